"""Times one step of ASNG (ask and tell, or sampling and update) against plain NumPy.

Two baselines do the same work on the same losses in the same run:

* ``numpy``: Algorithm 1 as one writes it down, a Python loop over the variables for the parts
  that act on one variable (the square root of its Fisher matrix and its projection).
* ``numpy, vectorized``: the same without that loop, over arrays padded to the largest number of
  categories.

Run with ``python bench/optimizer_step.py [--quick] [--json PATH]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from table import Row, compare, finish, options

import asng_ext as asng
from asng_ext import compat


class PlainASNG:
    """Algorithm 1 for categorical variables, one variable after the other where need be."""

    def __init__(self, sizes: np.ndarray, seed: int = 0) -> None:
        self.sizes = sizes
        self.theta = np.zeros((len(sizes), sizes.max()))
        for i, size in enumerate(sizes):
            self.theta[i, :size] = 1 / size
        self.n_theta = int((sizes - 1).sum())
        self.choices = int((sizes > 1).sum())
        self.s = np.zeros(self.n_theta)
        self.gamma, self.Delta, self.alpha = 0.0, 1.0, 1.5
        self.random = np.random.default_rng(seed)

    def ask(self, count: int) -> np.ndarray:
        """(λ, d, K) one-hot."""
        cumulative = self.theta.cumsum(axis=1)
        uniforms = self.random.random((count, len(self.sizes), 1))
        return (cumulative - self.theta <= uniforms) & (uniforms < cumulative)

    @staticmethod
    def utilities(losses: np.ndarray) -> np.ndarray:
        count = len(losses)
        selected = int(np.ceil(count / 4))
        place = np.zeros(count)
        place[:selected] = 1 / selected
        place[count - selected :] = -1 / selected
        order = np.argsort(losses)
        utility = np.empty(count)
        for rank, k in enumerate(order):
            tied = losses[order] == losses[k]
            utility[k] = place[tied].mean() if tied.sum() > 1 else place[rank]
        return utility

    def roots(self, gradient: np.ndarray) -> np.ndarray:
        roots = []
        for i, size in enumerate(self.sizes):
            theta, last = self.theta[i, : size - 1], self.theta[i, size - 1]
            g = gradient[i, : size - 1]
            roots.append(g / np.sqrt(theta) + np.sqrt(theta) * g.sum() / (last + np.sqrt(last)))
        return np.concatenate(roots)

    def project(self) -> None:
        for i, size in enumerate(self.sizes):
            low = 1 / (self.choices * (size - 1))
            row = np.maximum(self.theta[i, :size], low)
            row -= (row.sum() - 1) * (row - low) / (row.sum() - low * size)
            self.theta[i, :size] = row / row.sum()

    def tell(self, samples: np.ndarray, losses: np.ndarray) -> None:
        utility = self.utilities(losses)
        if not utility.any():
            return
        gradient = (utility[:, None, None] * (samples - self.theta)).mean(axis=0)  # eq. (12)
        root = self.roots(gradient)
        norm = np.sqrt(root @ root)
        if norm == 0:
            return
        delta = 1 / self.Delta
        beta = delta / np.sqrt(self.n_theta)
        self.theta += delta * gradient / norm  # eq. (13), eq. (14)
        self.s = (1 - beta) * self.s + np.sqrt(beta * (2 - beta)) * root / norm  # eq. (19)
        self.gamma = (1 - beta) ** 2 * self.gamma + beta * (2 - beta)  # eq. (20)
        self.Delta *= np.exp(beta * (self.gamma - self.s @ self.s / self.alpha))  # eq. (21)
        self.project()


class VectorizedASNG(PlainASNG):
    """The same without loops over variables; all have the same number of categories."""

    def roots(self, gradient: np.ndarray) -> np.ndarray:
        theta, last = self.theta[:, :-1], self.theta[:, -1:]
        g = gradient[:, :-1]
        scale = np.sqrt(theta)
        return (g / scale + scale * (g.sum(axis=1, keepdims=True) / (last + np.sqrt(last)))).ravel()

    def project(self) -> None:
        size = self.theta.shape[1]
        low = 1 / (self.choices * (size - 1))
        theta = np.maximum(self.theta, low)
        total = theta.sum(axis=1, keepdims=True)
        theta -= (total - 1) * (theta - low) / (total - low * size)
        self.theta = theta / theta.sum(axis=1, keepdims=True)


def losses_of(count: int, draws: int = 1024) -> list[list[float]]:
    """Random losses, made before the clock starts."""
    return np.random.default_rng(1).random((draws, count)).tolist()


def ours(variables: int, categories: int, count: int) -> Callable[[], None]:
    space = asng.SearchSpace.from_sizes([categories] * variables)
    optimizer = asng.ASNG(space, population_size=count, seed=0)
    losses, step = losses_of(count), iter(range(1 << 62))

    def run() -> None:
        samples = optimizer.ask()
        optimizer.tell(samples, losses[next(step) % 1024])

    return run


def plain(kind: type[PlainASNG], variables: int, categories: int, count: int) -> Callable[[], None]:
    optimizer = kind(np.full(variables, categories))
    losses, step = [np.array(row) for row in losses_of(count)], iter(range(1 << 62))

    def run() -> None:
        samples = optimizer.ask(count)
        optimizer.tell(samples, losses[next(step) % 1024])

    return run


def drop_in(variables: int, categories: int, count: int) -> Callable[[], None]:
    """The loop of a 2019 script: one ``sampling`` per sample, then ``update``."""
    optimizer = compat.AdaptiveSNG(np.full(variables, categories), lam=count)
    losses, step = [np.array(row) for row in losses_of(count)], iter(range(1 << 62))

    def run() -> None:
        samples = np.array([optimizer.sampling() for _ in range(count)])
        optimizer.update(samples, losses[next(step) % 1024])

    return run


def main() -> None:
    parser = options(__doc__, quick="fewer and smaller cases")
    args = parser.parse_args()
    rounds = 5 if args.quick else 15
    rows: list[Row] = []

    def add(name: str, case: str, a: Callable[[], Any], b: Callable[[], Any]) -> None:
        rows.append(compare(name, case, a, b, rounds=rounds))

    for variables in (30, 1000):
        shape = (variables, 5, 2)
        case = f"{variables} x 5, λ=2"
        add("ask + tell vs numpy", case, ours(*shape), plain(PlainASNG, *shape))
        add("ask + tell vs numpy, vectorized", case, ours(*shape), plain(VectorizedASNG, *shape))
        add("compat vs numpy", case, drop_in(*shape), plain(PlainASNG, *shape))
    sizes = (10, 1000, 10_000) if args.quick else (10, 100, 1000, 10_000, 100_000)
    for variables in sizes:
        shape = (variables, 5, 2)
        case = f"{variables} x 5, λ=2"
        add("growth with variables", case, ours(*shape), plain(VectorizedASNG, *shape))
    for count in (2, 8, 32) if args.quick else (2, 4, 8, 16, 32, 64, 128):
        shape = (1000, 5, count)
        case = f"1000 x 5, λ={count}"
        add("growth with λ", case, ours(*shape), plain(VectorizedASNG, *shape))
    finish(rows, args.json)


if __name__ == "__main__":
    main()
