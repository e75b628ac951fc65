"""``asng toy``: how many iterations each optimizer needs for the toy problem, whatever its initial
step size (Figure 1), and whatever α."""

from __future__ import annotations

import argparse
import csv
import io
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from asng_ext._checks import check_integer, check_number
from asng_ext._files import write_atomically
from asng_ext._terminal import STDERR, columns, say, tell
from asng_ext.toy.problem import OPTIMIZERS, PROBLEMS, ToyOptimizer, ToySettings, simulate

__all__ = ["Case", "Row", "Summary", "add_parser", "cases", "read_rows", "study", "summary"]

POWERS = tuple(p / 4 for p in range(9))
ALPHAS = (1.1, 1.5, 2.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True)
class Case:
    """One point of the figure: what all its runs have in common."""

    optimizer: ToyOptimizer
    settings: ToySettings

    def key(self) -> tuple[str, ...]:
        """The columns that name the case, as text."""
        s, o = self.settings, self.optimizer
        numbers = (s.noise, s.target, s.momentum, s.learning_rate)
        own = (o.step_size, o.alpha, o.beta1, o.beta2)
        return (
            s.problem,
            *(str(int(n)) for n in (s.variables, s.categories, s.population_size)),
            str(int(s.iteration_limit)),
            *(repr(float(number)) for number in numbers),
            o.name,
            *(repr(float(number)) for number in own),
        )


COLUMNS = (
    "problem", "variables", "categories", "population_size", "iteration_limit", "noise", "target",
    "momentum", "learning_rate", "optimizer", "step_size", "alpha", "beta1", "beta2",
    "seed", "run", "iterations", "succeeded",
)  # fmt: skip

# A row: the case's columns, seed, run, iterations, succeeded.
Row = tuple[tuple[str, ...], int, int, int, bool]


@dataclass(frozen=True)
class Summary:
    """Of all runs of a case.

    Attributes:
        success_rate: In [0, 1].
        median, lower, upper: Quartiles of the successful runs' iterations, each divided by the
            success rate; NaN if no run succeeded.
    """

    success_rate: float
    median: float
    lower: float
    upper: float


def cases(
    settings: ToySettings,
    optimizers: Sequence[str] = OPTIMIZERS,
    powers: Sequence[float] = POWERS,
    learning_rates: Sequence[float] = (0.05, 0.0005),
    alphas: Sequence[float] = (),
    alpha: float = 1.5,
) -> list[Case]:
    """The sweep over step sizes n_θ^(-p), or, if ``alphas`` are given, over α of ASNG.

    Args:
        settings: The problem; its learning rate is replaced.
        optimizers: Names.
        powers: The p. With ``alphas``, each of them is combined with each α.
        learning_rates: ε_x.
        alphas: α of ASNG, which is then the only optimizer.
        alpha: α of ASNG in the sweep over step sizes.

    Raises:
        TypeError, ValueError: If a number is of the wrong kind or out of its range.
    """
    for power in powers:
        check_number("powers", power, least=-40.0, below=40.0)
    return [
        Case(
            ToyOptimizer(name, step_size=settings.n_theta**-power, alpha=a),
            replace(settings, learning_rate=rate),
        )
        for rate in learning_rates
        for name in (("ASNG",) if alphas else optimizers)
        for a in (alphas or (alpha,))
        for power in powers
    ]


def study(
    todo: Sequence[Case],
    path: Path,
    *,
    seed: int = 0,
    runs: int = 100,
    threads: int | None = None,
    report: Callable[[str], Any] = lambda line: None,
) -> list[Row]:
    """Runs 0 to ``runs`` of every case; those that the CSV file at ``path`` holds are not run
    again. The file is replaced whole whenever a case is done, so that an interruption loses the
    runs of one case at most.

    Returns:
        The rows of these cases and runs, in order; the file may hold more.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    """
    check_integer("runs", runs, 1, 10**6)
    rows = {row[:3]: row for row in (read_rows(path) if path.exists() else [])}
    start = time.monotonic()
    simulated = 0
    for number, case in enumerate(todo, 1):
        key = case.key()
        label = (
            f"{case.optimizer.name}, step size {case.optimizer.step_size:.3g}, "
            f"alpha {case.optimizer.alpha:g}, learning rate {case.settings.learning_rate:g}"
        )
        for first, count in _missing([(key, seed, run) in rows for run in range(runs)]):

            def progress(done: int, iterations: int, label: str = label, n: int = number) -> None:
                report(f"{n}/{len(todo)} {done} runs, {iterations:,} iterations of {label}\r")

            results = simulate(
                case.settings,
                case.optimizer,
                seed=seed,
                first=first,
                runs=count,
                threads=threads,
                progress=progress,
            )
            for run, iterations, succeeded in zip(range(first, first + count), *results):
                rows[key, seed, run] = (key, seed, run, int(iterations), bool(succeeded))
            simulated += int(results.iterations.sum())
            _write_rows(path, rows.values())
        point = summary([rows[key, seed, run] for run in range(runs)])
        report(
            f"{number}/{len(todo)} {label}: {point.success_rate:.0%} succeed, "
            f"median / success rate {point.median:,.0f}\n"
        )
    seconds = time.monotonic() - start
    if simulated:
        report(f"{simulated:,} iterations in {seconds:.1f} s, {simulated / seconds:,.0f} per s\n")
    return [rows[case.key(), seed, run] for case in todo for run in range(runs)]


def summary(rows: Sequence[Row]) -> Summary:
    """What the figure shows of the runs of one case."""
    iterations = [row[3] for row in rows if row[4]]
    rate = len(iterations) / len(rows) if rows else 0.0
    if not iterations:
        return Summary(0.0, np.nan, np.nan, np.nan)
    lower, median, upper = np.quantile(iterations, (0.25, 0.5, 0.75)) / rate
    return Summary(rate, float(median), float(lower), float(upper))


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file that :func:`study` wrote.

    Raises:
        ValueError: If it is another kind of file.
    """
    rows: list[Row] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) != COLUMNS:
            raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)}")
        for number, line in enumerate(reader, 2):
            try:
                *key, seed, run, iterations, succeeded = line
                if len(key) != len(COLUMNS) - 4 or succeeded not in ("0", "1"):
                    raise ValueError
                rows.append((tuple(key), int(seed), int(run), int(iterations), succeeded == "1"))
            except ValueError:
                raise ValueError(f"{path}, line {number}: not a row of this table") from None
    return rows


def _missing(done: Sequence[bool]) -> list[tuple[int, int]]:
    """(first, count) of each stretch of runs that are not done."""
    stretches: list[tuple[int, int]] = []
    for run, is_done in enumerate(done):
        if is_done:
            continue
        if stretches and sum(stretches[-1]) == run:
            stretches[-1] = (stretches[-1][0], stretches[-1][1] + 1)
        else:
            stretches.append((run, 1))
    return stretches


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for key, seed, run, iterations, succeeded in rows:
        writer.writerow([*key, seed, run, iterations, int(succeeded)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def add_parser(subparsers: Any) -> None:
    """Adds the command ``toy`` to argparse subparsers; its ``run`` takes the parsed arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "toy",
        help="the toy study: ASNG, SNG and Adam over initial step sizes (Figure 1)",
        description=(
            "Runs ASNG, SNG and Adam on the selective squared error function over initial step "
            "sizes n_theta^(-p) and learning rates of the weights, and draws iterations to "
            "success divided by the success rate. Started again, it continues where it stopped."
        ),
    )
    add, default = parser.add_argument, " (default: %(default)s)"
    add(
        "--sweep", choices=("step-size", "alpha"), default="step-size", help="what varies" + default
    )
    add("--out", default="runs/toy", metavar="FOLDER", help="for table and figure" + default)
    add("--runs", type=int, default=100, help="of every case" + default)
    add("--seed", type=int, default=0, help="decides everything that is random" + default)
    add("--threads", type=int, help="default: one per processor")
    add("--variables", type=int, default=30, metavar="D", help="how many" + default)
    add("--categories", type=int, default=5, metavar="K", help="of each variable" + default)
    add("--population-size", type=int, default=2, metavar="LAMBDA", help="λ" + default)
    add(
        "--learning-rates", type=float, nargs="+", metavar="RATE", default=[0.05, 0.0005],
        help="of the weights; default: 0.05 0.0005",
    )  # fmt: skip
    add(
        "--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS),
        help="default: all of them",
    )  # fmt: skip
    add(
        "--powers", type=float, nargs="+", metavar="P",
        help="default: 0 to 2 in nine steps; 0, 0.5 and 1 for --sweep alpha",
    )  # fmt: skip
    add(
        "--alphas", type=float, nargs="+", default=list(ALPHAS), metavar="ALPHA",
        help=f"for --sweep alpha; default: {' '.join(f'{alpha:g}' for alpha in ALPHAS)}",
    )  # fmt: skip
    add("--iteration-limit", type=int, default=100_000, metavar="N", help="of a run" + default)
    add("--noise", type=float, default=math.nan, help="standard deviation of z; default: 1/K")
    add("--problem", choices=PROBLEMS, default="squared_error", help="the function" + default)
    add("--no-figure", action="store_true", help="write only the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """The command.

    Raises:
        ValueError, TypeError, ImportError, OSError: If it cannot be done.
    """
    by_alpha = args.sweep == "alpha"
    settings = ToySettings(
        problem=args.problem,
        variables=args.variables,
        categories=args.categories,
        population_size=args.population_size,
        noise=args.noise,
        iteration_limit=args.iteration_limit,
    )
    todo = cases(
        settings,
        tuple(dict.fromkeys(args.optimizers)),
        tuple(args.powers or ((0.0, 0.5, 1.0) if by_alpha else POWERS)),
        tuple(args.learning_rates),
        tuple(args.alphas) if by_alpha else (),
    )
    folder = Path(args.out)
    name = "toy_alpha" if by_alpha else "toy"
    if not args.no_figure:
        from asng_ext.toy import figure

        figure.require_matplotlib()
    rows = study(
        todo,
        folder / f"{name}.csv",
        seed=args.seed,
        runs=args.runs,
        threads=args.threads,
        report=_to_terminal,
    )
    tell(f"wrote {folder / f'{name}.csv'}")
    if not args.no_figure:
        points = [
            (case, summary(rows[i * args.runs : (i + 1) * args.runs]))
            for i, case in enumerate(todo)
        ]
        target = folder / f"{name}.png"
        figure.draw(points, target, by_alpha=by_alpha)
        tell(f"wrote {target}")


def _to_terminal(line: str) -> None:
    """Lines that end in a carriage return are overwritten, and left out where that is no use."""
    width = columns(STDERR)
    clear = "\r\x1b[2K" if width else ""
    if not line.endswith("\r"):
        say(STDERR, clear + line)
    elif width:
        say(STDERR, clear + line[:-1][: width - 1])
