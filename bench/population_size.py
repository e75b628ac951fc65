"""Which λ suits which budget, and which steps a larger λ allows.

The first is the default of `asng_ext.ASNG`, 8, against others, on the functions of
`bench/black_box.py`. Each row has the median over seeds of the smallest loss seen, above the
optimum's, within a budget of evaluations; ``ratio`` takes losses below 0.001 as 0.001.

The second, ``--steps PATH``, is on problems whose weights are trained meanwhile: the toy problem of
Section 3.1, where a search with a constant step size (SNG) shows which steps are too large, and
the search of cells for digits. Rows compare λ = 2 with others, and PATH is the figure.

Run with ``python bench/population_size.py [--steps PATH] [--quick] [--seeds N] [--json PATH]``.
"""

from __future__ import annotations

import itertools
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from black_box import FUNCTIONS, SMALLEST, best, ours
from table import Row, finish, made_row, options

from asng_ext import ASNG, _host
from asng_ext.toy.problem import ToyOptimizer, ToySettings, native_settings, simulate

SIZES = (2, 4, 16, 32)
BUDGETS = (50, 100, 200, 400, 800)
STEPPED = (2, 4, 8, 16, 32, 64)
SEARCHED = STEPPED[:5]
"""On digits, where an iteration costs what λ is."""
CONSTANT = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (0.05, 0.005)
"""Learning rates of the toy problem's weights."""
ITERATIONS = 30_000
"""Of a run on it, and of its schedule."""
EPOCHS = 30
TARGETS = (1.0, 0.75)
"""Expected validation losses of the search on digits."""


def budgets(seeds: int, quick: bool) -> list[Row]:
    rows: list[Row] = []
    limits = BUDGETS[:1] if quick else BUDGETS
    for title, function in FUNCTIONS.items():
        found = best(ours, function, limits, seeds)
        for size in SIZES:
            other = partial(ours, population_size=size, delta_init="auto")
            for budget, loss, theirs in zip(limits, found, best(other, function, limits, seeds)):
                ratio = max(theirs, SMALLEST) / max(loss, SMALLEST)
                case = f"{title}, {budget}"
                rows.append(made_row(f"8 samples vs {size}", case, loss, theirs, "loss", ratio))
    return rows


class Toy(NamedTuple):
    """Of several runs with one λ on the toy problem.

    Attributes:
        constant: Iterations to success with each constant step size, as `iterations` gives them.
        iterations: Median of ASNG's.
        delta: The step size that it found: geometric mean of a run, median of all.
        seconds: Processor time of a run of ASNG, on one thread.
    """

    constant: list[float]
    iterations: float
    delta: float
    seconds: float


def iterations(settings: ToySettings, optimizer: ToyOptimizer, runs: int) -> float:
    """Median of those that succeed, divided by how many do; infinite if none does."""
    results = simulate(settings, optimizer, runs=runs, threads=1)
    if not results.succeeded.any():
        return float("inf")
    return float(np.median(results.iterations[results.succeeded]) / results.succeeded.mean())


def toy(size: int, rate: float, runs: int) -> Toy:
    settings = ToySettings(population_size=size, learning_rate=rate, iteration_limit=ITERATIONS)
    constant = [iterations(settings, ToyOptimizer("SNG", step), runs) for step in CONSTANT]
    start = time.process_time()
    counts, means = [], []
    for number in range(runs):
        run = _host.ToyRun(native_settings(settings, ToyOptimizer()), 0, number)
        deltas = [run.delta]
        while not run.advance(10) and run.iteration < ITERATIONS:
            deltas.append(run.delta)
        counts.append(run.iteration if run.succeeded else np.inf)
        means.append(np.exp(np.log(deltas).mean()))
    seconds = (time.process_time() - start) / runs
    return Toy(constant, float(np.median(counts)), float(np.median(means)), seconds)


class Digits(NamedTuple):
    """One search of cells.

    Attributes:
        loss: Expected validation loss under the distribution, mean of each epoch.
        convergence: Mean over the variables of the largest probability, after each epoch.
        delta: The step size after each epoch.
        steps: Iterations of an epoch.
        seconds: Processor time of an iteration, on one thread.
    """

    loss: list[float]
    convergence: list[float]
    delta: list[float]
    steps: int
    seconds: float

    def reaches(self, target: float) -> float:
        """The first iteration at whose end, of an epoch, the loss is that low; or infinite."""
        low = (i + 1 for i, loss in enumerate(self.loss) if loss <= target)
        return next(low, float("inf")) * self.steps


def digits(size: int, seed: int, epochs: int) -> Digits:
    from asng_ext.data import load_digits
    from asng_ext.engine.search import search
    from asng_ext.runs.config import SearchConfig
    from asng_ext.tasks.classification import ClassificationConfig, ClassificationTask

    small = ClassificationConfig(data="digits", nodes=3, cells=3, channels=4)
    task = ClassificationTask(
        load_digits(0), small, search_batch_size=32, retrain_batch_size=64, seed=seed
    )
    optimizer = ASNG(task.space, population_size=size, delta_init=1.0, seed=seed)
    config = SearchConfig(epochs=epochs, batch_size=32, learning_rate=0.05, threads=1, test_every=0)
    start = time.process_time()
    rows = search(task, optimizer, config, seed=seed, stream=None).rows
    seconds = (time.process_time() - start) / (epochs * task.search_steps)
    columns = [[row[name] for row in rows] for name in ("theta_loss", "convergence", "delta")]
    return Digits(*columns, task.search_steps, seconds)


def steps(
    path: Path,
    runs: int,
    seeds: int,
    epochs: int,
    sizes: tuple[int, ...],
    searched: tuple[int, ...],
) -> list[Row]:
    """Measures, prints and draws."""
    rows: list[Row] = []
    toys: dict[tuple[float, int], Toy] = {}
    for rate, size in itertools.product(RATES, sizes):
        toys[rate, size] = found = toy(size, rate, runs)
        first, case = toys[rate, 2], f"toy, {rate:g}"
        best_step = int(np.argmin(found.constant))
        print(
            f"{case}, λ = {size}: SNG "
            + " ".join(f"{step:.3g}:{count:.0f}" for step, count in zip(CONSTANT, found.constant)),
            f"best {found.constant[best_step]:.0f} with {CONSTANT[best_step]:.3g};",
            f"ASNG {found.iterations:.0f} with {found.delta:.3g}, {found.seconds * 1e3:.1f} ms",
            flush=True,
        )
        for unit, ours_, theirs in (
            ("it", found.iterations, first.iterations),
            ("ev", 2 * size * found.iterations, 4 * first.iterations),
            ("ms", found.seconds * 1e3, first.seconds * 1e3),
        ):
            rows.append(made_row(f"{size} samples vs 2", case, ours_, theirs, unit))
    searches = {
        (size, seed): digits(size, seed, epochs)
        for seed, size in itertools.product(range(seeds), searched)
    }
    for size in searched:
        mine = [searches[size, seed] for seed in range(seeds)]
        theirs = [searches[2, seed] for seed in range(seeds)]
        times = [float(np.mean([s.seconds for s in of])) for of in (mine, theirs)]
        for target in TARGETS:
            counts = [float(np.mean([s.reaches(target) for s in of])) for of in (mine, theirs)]
            if not np.isfinite(counts).all():
                continue
            case = f"digits, loss {target:g}"
            for unit, own, other in (("it", 1, 1), ("ev", 2 * size, 4), ("s", *times)):
                pair = counts[0] * own, counts[1] * other
                rows.append(made_row(f"{size} samples vs 2", case, *pair, unit))
        print(
            f"digits, λ = {size}: δ after half of it",
            [round(s.delta[len(s.delta) // 2], 3) for s in mine],
            "convergence",
            [round(s.convergence[-1], 3) for s in mine],
            "loss",
            [round(s.loss[-1], 3) for s in mine],
        )
    draw(path, toys, searches)
    return rows


def draw(
    path: Path,
    toys: dict[tuple[float, int], Toy],
    searches: dict[tuple[int, int], Digits],
) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    sizes = sorted({size for _, size in toys})
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    colors = {size: colormaps["viridis"](i / len(sizes)) for i, size in enumerate(sizes)}
    for panel, rate in zip(panels[:, 0], RATES):
        for size in sizes:
            found, color = toys[rate, size], colors[size]
            counts = np.where(np.isfinite(found.constant), found.constant, np.nan)
            panel.plot(CONSTANT, counts, "o-", ms=3, color=color, label=f"λ = {size}")
            panel.plot(
                found.delta, found.iterations, "*", ms=13, color=color, markeredgecolor="black"
            )
        panel.set(xscale="log", yscale="log", xlabel="step size δ", ylabel="iterations to success")
        panel.set_title(f"toy, $\\epsilon_x$ = {rate:g}: constant δ; ★ ASNG")
    panels[0, 0].legend(fontsize=8)
    for panel, rate in zip(panels[:, 1], RATES):
        found_ = [toys[rate, size] for size in sizes]
        own = np.array([found.iterations for found in found_])
        tuned = np.array([min(found.constant) for found in found_])
        both = 2 * np.array(sizes)
        panel.plot(sizes, own, "*-", ms=9, color="#0072B2", label="ASNG, iterations")
        panel.plot(sizes, tuned, "o-", color="#D55E00", label="best constant δ, iterations")
        panel.plot(sizes, own * both, "*--", ms=9, color="#0072B2", label="ASNG, evaluations")
        panel.plot(
            sizes, tuned * both, "o--", color="#D55E00", label="best constant δ, evaluations"
        )
        panel.set(xscale="log", yscale="log", xlabel="λ", title=f"toy, $\\epsilon_x$ = {rate:g}")
        panel.set_xticks(sizes, list(map(str, sizes)))
        panel.xaxis.set_minor_locator(NullLocator())
    panels[0, 1].legend(fontsize=8)
    losses, deltas = panels[:, 2]
    for size in sorted({size for size, _ in searches}):
        of = [search for (each, _), search in searches.items() if each == size]
        x = of[0].steps * (1 + np.arange(len(of[0].loss)))
        losses.plot(x, np.mean([s.loss for s in of], axis=0), color=colors[size])
        deltas.plot(x, np.exp(np.mean(np.log([s.delta for s in of]), axis=0)), color=colors[size])
    losses.set(xlabel="iterations", ylabel="expected validation loss", title="digits")
    deltas.set(xlabel="iterations", ylabel="step size δ of ASNG", title="digits", yscale="log")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = options(__doc__, quick="2 seeds and 50 evaluations; with --steps 2 runs and epochs")
    parser.add_argument("--seeds", type=int, help="runs of each (21; --steps: 12, digits 1)")
    parser.add_argument("--steps", metavar="PATH", type=Path, help="draw which steps λ allows")
    args = parser.parse_args()
    if args.steps is None:
        rows = budgets(2 if args.quick else args.seeds or 21, args.quick)
    elif args.quick:
        rows = steps(args.steps, 2, 1, 2, STEPPED[:2], STEPPED[:2])
    else:
        rows = steps(args.steps, args.seeds or 12, args.seeds or 1, EPOCHS, STEPPED, SEARCHED)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
