"""What a budget of evaluations finds in black-box functions: `asng_ext.ASNG` against Optuna's TPE
and, where `cmaes` is installed, CatCMA with margin.

Each row has the median over seeds of the smallest loss seen, above the optimum's, for all of them
with their default settings; ``ratio`` takes losses below 0.001 as 0.001. Baselines that are not
installed (``pip install optuna cmaes``) are left out, and the table says so. TPE takes most of the
time: about half a minute for 1,000 evaluations of ten variables.

Run with ``python bench/black_box.py [--quick] [--seeds N] [--json PATH]``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from table import Row, finish, made_row, options

import asng_ext as asng

Sample = dict[str, Any]
SMALLEST = 1e-3


class Function(NamedTuple):
    """A space and a loss that is 0 at the optimum."""

    space: asng.SearchSpace
    loss: Callable[[Sample], float]
    budgets: tuple[int, ...]


TEN = asng.SearchSpace(
    {
        "op": asng.Categorical(["a", "b", "c", "d", "e"]),
        "activation": asng.Categorical(["relu", "tanh", "gelu"]),
        "norm": asng.Categorical(["none", "batch"]),
        "pool": asng.Categorical(["max", "average", "stride", "none"]),
        "width": asng.Integer(16, 256),
        "hidden": asng.Integer(16, 256),
        "layers": asng.Integer(1, 12),
        "log_rate": asng.Real(-5, 0),
        "dropout": asng.Real(0, 0.6),
        "momentum": asng.Real(0, 1),
    }
)
CHOICES = {"op": "c", "activation": "tanh", "norm": "batch", "pool": "none"}
NUMBERS = {
    "width": 0.3,
    "hidden": 0.7,
    "layers": 4 / 11,
    "log_rate": 0.4,
    "dropout": 0.1,
    "momentum": 0.9,
}


def scaled(sample: Sample) -> dict[str, float]:
    """The numbers, each from 0 to 1 over its range."""
    return {
        name: (sample[name] - variable.low) / (variable.high - variable.low)
        for name, variable in TEN.numerical.items()
    }


def wrong_choices(sample: Sample) -> int:
    return sum(sample[name] != choice for name, choice in CHOICES.items())


def distances(sample: Sample) -> float:
    x = scaled(sample)
    return wrong_choices(sample) + 4 * sum(abs(x[name] - at) for name, at in NUMBERS.items())


def squares(sample: Sample) -> float:
    x = scaled(sample)
    return wrong_choices(sample) + 10 * sum((x[name] - at) ** 2 for name, at in NUMBERS.items())


def interacting(sample: Sample) -> float:
    """The best numbers depend on the choices and on each other."""
    x = scaled(sample)
    shift = {"a": 0.2, "b": 0.1, "c": 0.0, "d": -0.1, "e": -0.2}[sample["op"]]
    rate = x["log_rate"] - 0.4 - shift + (x["momentum"] - 0.9) / 2
    dropout = x["dropout"] - (0.1 if sample["norm"] == "batch" else 0.4)
    return (
        wrong_choices(sample)
        + 8 * rate**2
        + 10 * dropout**2
        + 4 * abs(x["width"] * x["hidden"] - 0.3)
        + 3 * abs(x["layers"] - 4 / 11)
        + 4 * (x["momentum"] - 0.9) ** 2
    )


def at_bounds(sample: Sample) -> float:
    """Most of the best numbers are ends of their ranges."""
    x = scaled(sample)
    ends = zip(x.values(), (0.0, 1.0, 1.0, 0.0, 0.0, 0.5))
    return wrong_choices(sample) + 3 * sum(abs(value - end) for value, end in ends)


def few_matter(sample: Sample) -> float:
    """Five of the variables do not."""
    x = scaled(sample)
    wrong = (sample["op"] != "c") + (sample["pool"] != "none")
    return float(wrong + 4 * (abs(x["width"] - 0.3) + abs(x["log_rate"] - 0.4) + x["dropout"]))


BITS = asng.SearchSpace.from_sizes([5] * 30)
THREE = asng.SearchSpace(
    {
        "op": asng.Categorical(["conv3", "conv5", "pool"]),
        "width": asng.Integer(64, 256),
        "dropout": asng.Real(0.0, 0.5),
    }
)
FUNCTIONS = {
    "ten, distances": Function(TEN, distances, (200, 1000)),
    "ten, squares": Function(TEN, squares, (200, 1000)),
    "ten, interacting": Function(TEN, interacting, (200, 1000)),
    "ten, optimum at bounds": Function(TEN, at_bounds, (200, 1000)),
    "ten, of which five matter": Function(TEN, few_matter, (200, 1000)),
    "OneMax, 30 x 5": Function(
        BITS, lambda s: float(sum(s[f"x{i}"] != i % 5 for i in range(30))), (500,)
    ),
    "the README's three": Function(
        THREE,
        lambda s: (s["op"] != "conv5") + abs(s["width"] - 131) / 64 + 4 * s["dropout"],
        (200,),
    ),
}


def ours(function: Function, budget: int, seed: int, **settings: Any) -> list[float]:
    optimizer = asng.ASNG(function.space, seed=seed, **settings)
    losses: list[float] = []
    while len(losses) < budget:
        samples = optimizer.ask()
        evaluated = [function.loss(sample) for sample in samples]
        optimizer.tell(samples, evaluated)
        losses += evaluated
    return losses[:budget]


def tpe(function: Function, budget: int, seed: int) -> list[float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    losses = []
    for _ in range(budget):
        trial = study.ask()
        sample: Sample = {}
        for name, variable in function.space.items():
            if isinstance(variable, asng.Categorical):
                values = variable.values
                sample[name] = values[trial.suggest_categorical(name, range(len(values)))]
            elif isinstance(variable, asng.Integer):
                sample[name] = trial.suggest_int(name, variable.low, variable.high)
            else:
                sample[name] = trial.suggest_float(name, variable.low, variable.high)
        losses.append(function.loss(sample))
        study.tell(trial, losses[-1])
    return losses


def catcma(function: Function, budget: int, seed: int) -> list[float]:
    from cmaes import CatCMAwM

    space = function.space
    integers = {n: v for n, v in space.items() if isinstance(v, asng.Integer)}
    reals = {n: v for n, v in space.items() if isinstance(v, asng.Real)}
    optimizer = CatCMAwM(
        x_space=[[v.low, v.high] for v in reals.values()] or None,
        z_space=[list(range(v.low, v.high + 1)) for v in integers.values()] or None,
        c_space=space.sizes or None,
        seed=seed,
    )
    losses: list[float] = []
    while len(losses) < budget:
        solutions = []
        for _ in range(optimizer.population_size):
            solution = optimizer.ask()
            sample: Sample = {}
            if reals:
                sample |= dict(zip(reals, solution.x.tolist()))
            if integers:
                sample |= dict(zip(integers, map(int, solution.z)))
            for (name, variable), row in zip(space.categorical.items(), solution.c):
                sample[name] = variable.values[int(np.argmax(row))]
            solutions.append((solution, function.loss(sample)))
        losses += [loss for _, loss in solutions]
        optimizer.tell(solutions)
    return losses[:budget]


BASELINES = {"optuna": ("TPE", tpe), "cmaes": ("CatCMAwM", catcma)}


def best(
    run: Callable[[Function, int, int], list[float]],
    function: Function,
    budgets: tuple[int, ...],
    seeds: int,
) -> list[float]:
    """Medians over seeds of the smallest loss within each of the budgets."""
    runs = [run(function, budgets[-1], seed) for seed in range(seeds)]
    return [float(np.median([min(losses[:n]) for losses in runs])) for n in budgets]


def main() -> None:
    parser = options(__doc__, quick="2 seeds and 40 evaluations")
    parser.add_argument("--seeds", type=int, default=11, help="runs of each (default: 11)")
    args = parser.parse_args()
    rows: list[Row] = []
    seeds = 2 if args.quick else args.seeds
    installed = [name for name in BASELINES if importlib.util.find_spec(name) is not None]
    for title, function in FUNCTIONS.items():
        budgets = (40,) if args.quick else function.budgets
        found = best(ours, function, budgets, seeds)
        for name in installed:
            label, run = BASELINES[name]
            theirs = best(run, function, budgets, seeds)
            for budget, loss, other in zip(budgets, found, theirs):
                ratio = max(other, SMALLEST) / max(loss, SMALLEST)
                case = f"{title}, {budget}"
                rows.append(made_row(f"black box vs {label}", case, loss, other, "loss", ratio))
        if not installed:
            for budget, loss in zip(budgets, found):
                print(f"{title}, {budget}: {loss:.4g}", flush=True)
    for name in BASELINES:
        if name not in installed:
            print(f"{name} is not installed: no rows against {BASELINES[name][0]}")
    finish(rows, args.json)


if __name__ == "__main__":
    main()
