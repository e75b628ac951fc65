"""Which λ suits which budget: the default of `asng_ext.ASNG`, 8, against others, on the functions
of `bench/black_box.py`.

Each row has the median over seeds of the smallest loss seen, above the optimum's, within a budget
of evaluations; ``ratio`` takes losses below 0.001 as 0.001.

Run with ``python bench/population_size.py [--quick] [--seeds N] [--json PATH]``.
"""

from __future__ import annotations

from functools import partial

from black_box import FUNCTIONS, SMALLEST, best, ours
from table import Row, finish, made_row, options

SIZES = (2, 4, 16, 32)
BUDGETS = (50, 100, 200, 400, 800)


def main() -> None:
    parser = options(__doc__, quick="2 seeds and 50 evaluations")
    parser.add_argument("--seeds", type=int, default=21, help="runs of each (default: 21)")
    args = parser.parse_args()
    rows: list[Row] = []
    seeds = 2 if args.quick else args.seeds
    budgets = BUDGETS[:1] if args.quick else BUDGETS
    for title, function in FUNCTIONS.items():
        found = best(ours, function, budgets, seeds)
        for size in SIZES:
            other = partial(ours, population_size=size, delta_init="auto")
            for budget, loss, theirs in zip(budgets, found, best(other, function, budgets, seeds)):
                ratio = max(theirs, SMALLEST) / max(loss, SMALLEST)
                case = f"{title}, {budget}"
                rows.append(made_row(f"8 samples vs {size}", case, loss, theirs, "loss", ratio))
    finish(rows, args.json)


if __name__ == "__main__":
    main()
