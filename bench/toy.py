"""Times the toy problem: iterations per second in compiled code and with any ask/tell optimizer,
against the same written in NumPy and PyTorch.

The baseline is what one writes first: weights as a module with ``torch.optim.SGD`` and a cosine
schedule, one-hot samples, the loss as a sum over their product with the weights, and Algorithm 1
in NumPy with a Python loop over the variables. Both do all iterations; no run may succeed.

Run with ``python bench/toy.py [--quick] [--json PATH]``.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from optimizer_step import PlainASNG
from table import Row, finish, made_row, options

from asng_ext import _host
from asng_ext.toy.problem import (
    ToyOptimizer,
    ToyProblem,
    ToySettings,
    native_settings,
    simulate,
)


class PlainToy(torch.nn.Module):
    """The selective squared error function."""

    def __init__(self, variables: int, categories: int) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.randn(variables, categories))
        self.cost = torch.arange(categories) / categories
        self.noise = 1 / categories

    def forward(self, one_hot: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """(λ,) losses of one-hot samples (λ, D, K)."""
        return (one_hot * ((self.x - z) ** 2 + self.cost)).sum(dim=(1, 2))


def plain(settings: ToySettings) -> Callable[[int], None]:
    """Continues for a number of iterations, with NumPy and torch."""
    torch.manual_seed(0)
    problem = PlainToy(settings.variables, settings.categories)
    sgd = torch.optim.SGD(problem.parameters(), lr=settings.learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, settings.iteration_limit)
    optimizer = PlainASNG(np.full(settings.variables, settings.categories))
    count = settings.population_size

    def noise() -> torch.Tensor:
        return torch.randn(settings.variables, 1) * problem.noise

    def reached(one_hot: torch.Tensor) -> bool:
        with torch.no_grad():
            losses = problem(one_hot, torch.zeros(settings.variables, 1))
        return bool((losses <= settings.target).any())

    def run(iterations: int) -> None:
        for _ in range(iterations):
            samples = optimizer.ask(count)
            one_hot = torch.from_numpy(samples).float()
            if reached(one_hot):
                return
            sgd.zero_grad()
            problem(one_hot, noise()).mean().backward()
            sgd.step()
            schedule.step()
            samples = optimizer.ask(count)
            one_hot = torch.from_numpy(samples).float()
            if reached(one_hot):
                return
            with torch.no_grad():
                losses = problem(one_hot, noise()).numpy()
            optimizer.tell(samples, losses)

    return run


def native(settings: ToySettings, name: str = "ASNG") -> Callable[[int], None]:
    """One run in compiled code, on this thread."""
    step = {"ASNG": 1.0, "SNG": 0.1, "NaturalAdam": 0.005}[name]
    run = _host.ToyRun(native_settings(settings, ToyOptimizer(name, step)), 0, 0)

    def advance(iterations: int) -> None:
        run.advance(iterations)

    return advance


def ask_tell(settings: ToySettings) -> Callable[[int], None]:
    """The plain Python task with this package's optimizer."""
    problem = ToyProblem(settings)
    optimizer = ToyOptimizer().build(settings)

    def run(iterations: int) -> None:
        end = problem.steps + iterations
        while problem.steps < end:
            problem.step(optimizer.ask().categorical)
            samples = optimizer.ask()
            problem.succeeds(samples.categorical)
            optimizer.tell(samples, problem.losses(samples.categorical).tolist())

    return run


def batch(settings: ToySettings, threads: int) -> Callable[[int], None]:
    """Many runs at once, each of as many iterations as two threads do in a few milliseconds."""

    def run(iterations: int) -> None:
        short = ToySettings(
            variables=settings.variables,
            categories=settings.categories,
            iteration_limit=2000,
            target=-1.0,
        )
        simulate(short, ToyOptimizer(), runs=max(iterations // 2000, 1), threads=threads)

    return run


def per_second(run: Callable[[int], None], seconds: float) -> float:
    """Iterations per second over about ``seconds``."""
    iterations = 1
    while True:
        start = time.perf_counter()
        run(iterations)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 2:
            return iterations / elapsed
        grow = min(seconds / max(elapsed, 1e-9), 10.0)
        iterations = max(iterations + 1, int(iterations * grow))


def rate(
    name: str,
    case: str,
    ours: Callable[[int], None],
    baseline: Callable[[int], None],
    *,
    rounds: int,
) -> Row:
    """Both alternately; medians, and the median of the rounds' ratios."""
    pairs = [(per_second(ours, 0.15), per_second(baseline, 0.15)) for _ in range(rounds)]
    mine, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    return made_row(name, case, mine, theirs, "it/s", statistics.median(a / b for a, b in pairs))


def main() -> None:
    parser = options(__doc__, quick="fewer and shorter rounds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if args.quick else 11

    def endless(variables: int = 30, categories: int = 5, count: int = 2) -> ToySettings:
        return ToySettings(
            variables=variables,
            categories=categories,
            population_size=count,
            target=-1.0,
            iteration_limit=2**50,
        )

    rows: list[Row] = []

    def add(
        name: str, case: str, ours: Callable[[int], None], baseline: Callable[[int], None]
    ) -> None:
        rows.append(rate(name, case, ours, baseline, rounds=rounds))

    paper = endless()
    for name in ("ASNG", "SNG", "NaturalAdam"):
        case = f"{name}, 30 x 5, λ=2"
        add("compiled run vs numpy + torch", case, native(paper, name), plain(paper))
    case = "ASNG, 30 x 5, λ=2"
    add("ask/tell task vs numpy + torch", case, ask_tell(paper), plain(paper))
    shapes = [(10, 5, 2), (300, 5, 2), (30, 20, 2), (30, 5, 8)]
    for variables, categories, count in shapes[:1] if args.quick else shapes:
        settings = endless(variables, categories, count)
        shape = f"ASNG, {variables} x {categories}, λ={count}"
        add("compiled run vs numpy + torch", shape, native(settings), plain(settings))
    threads = min(os.cpu_count() or 1, 8)
    add(f"batch on {threads} threads vs 1", case, batch(paper, threads), batch(paper, 1))
    finish(rows, args.json)


if __name__ == "__main__":
    main()
