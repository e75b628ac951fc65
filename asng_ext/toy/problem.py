"""The toy problem of Section 3.1: weights and categories of a function that costs nothing.

Weights x (D, K) are trained by SGD while the categories that pick among them are optimized, as in
neural architecture search, but a run takes milliseconds. There are two ways to run it, which give
the same result for the same seed:

* :func:`solve` takes any optimizer with ``ask`` and ``tell`` and is written for reading;
* :func:`simulate` does whole runs in compiled code, many at once on several threads.

Random numbers are a function of the seed and the number of the run. Runs of one number start from
the same weights and see the same noise, whatever the optimizer and its settings.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from asng_ext import _host
from asng_ext._checks import check_integer, check_number
from asng_ext.optimizers import Optimizer, make, margins
from asng_ext.space import FloatArray, IntArray, Samples, SearchSpace

__all__ = [
    "OPTIMIZERS",
    "PROBLEMS",
    "ToyOptimizer",
    "ToyProblem",
    "ToyResults",
    "ToySettings",
    "simulate",
    "solve",
]

PROBLEMS = ("squared_error", "ordered_product")
# What the settings of a ToyOptimizer are called by the registered optimizer of its name.
_SETTINGS = {
    "ASNG": {"delta_init": "step_size", "alpha": "alpha"},
    "SNG": {"delta": "step_size"},
    "NaturalAdam": {"step_size": "step_size", "beta1": "beta1", "beta2": "beta2"},
}
OPTIMIZERS = tuple(_SETTINGS)
"""Names, as in :data:`asng_ext.optimizers.REGISTRY`, of the optimizers that have compiled runs."""
REGULARIZATION = 1e-8
MOST_NUMBERS = _host.MOST_SAMPLES
MOST = 1e9
"""Larger settings have no meaning, and their products would overflow."""


@dataclass(frozen=True)
class ToySettings:
    """What is to be minimized, and how the weights are trained.

    Args:
        problem: ``"squared_error"`` is the selective squared error function,
            Σ_i (x_{i,c_i} - z_i)² + c_i/K with categories c_i counted from 0.
            ``"ordered_product"`` is D - Σ_i Π_{l≤i} p_l + 1e-8 Σ x² with
            p_l = (1 - c_l/(K - 1)) sigmoid(x_{l,c_l} - z_l): variable i counts only as far as all
            before it are right, category 0 counts in full and category K - 1 not at all, so
            that two categories are "taken" and "left out".
        variables: D.
        categories: K, at least 2.
        population_size: λ, samples per evaluation.
        learning_rate: ε_x, where the cosine schedule of SGD starts; it ends at 0.
        momentum: Of SGD, in [0, 1).
        noise: Standard deviation of z, drawn anew for every evaluation and shared by its
            samples; by default the paper's 1/K.
        target: A run succeeds with the first sample whose loss without noise is at most this; by
            default 1/K.
        iteration_limit: A run fails after this many iterations.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    """

    problem: str = "squared_error"
    variables: int = 30
    categories: int = 5
    population_size: int = 2
    learning_rate: float = 0.05
    momentum: float = 0.9
    noise: float = math.nan
    target: float = math.nan
    iteration_limit: int = 100_000

    def __post_init__(self) -> None:
        if self.problem not in PROBLEMS:
            raise ValueError(f"problem must be one of {PROBLEMS}, got {self.problem!r}")
        check_integer("variables", self.variables, 1, MOST_NUMBERS)
        check_integer("categories", self.categories, 2, MOST_NUMBERS)
        check_integer("population_size", self.population_size, 2, MOST_NUMBERS)
        if self.variables * max(self.categories, self.population_size) > MOST_NUMBERS:
            raise ValueError(
                "variables times categories, and times population_size, must be at most "
                f"{MOST_NUMBERS}, got {self.variables} variables, {self.categories} categories, "
                f"population_size {self.population_size}"
            )
        check_number("learning_rate", self.learning_rate, least=0.0, below=MOST)
        check_number("momentum", self.momentum, least=0.0, below=1.0)
        for name, least in (("noise", 0.0), ("target", -MOST)):
            value = getattr(self, name)
            if isinstance(value, float) and math.isnan(value):
                object.__setattr__(self, name, 1 / self.categories)
            check_number(name, getattr(self, name), least=least, below=MOST)
        check_integer("iteration_limit", self.iteration_limit, 0, 2**53)

    @property
    def space(self) -> SearchSpace:
        """D categorical variables of K values."""
        return SearchSpace.from_sizes([self.categories] * self.variables)

    @property
    def n_theta(self) -> int:
        """Dimension of θ, D (K - 1)."""
        return self.variables * (self.categories - 1)


@dataclass(frozen=True)
class ToyOptimizer:
    """Which optimizer, with what settings.

    Args:
        name: One of :data:`OPTIMIZERS`.
        step_size: δ⁰ of ASNG, δ of SNG, the step size of Adam; above 0.
        alpha: α of ASNG.
        beta1, beta2: Adam's, in [0, 1).

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    """

    name: str = "ASNG"
    step_size: float = 1.0
    alpha: float = 1.5
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"name must be one of {OPTIMIZERS}, got {self.name!r}")
        check_number("step_size", self.step_size, 0.0, below=MOST)
        check_number("alpha", self.alpha, 0.0, below=MOST)
        check_number("beta1", self.beta1, least=0.0, below=1.0)
        check_number("beta2", self.beta2, least=0.0, below=1.0)

    def build(self, settings: ToySettings, seed: int = 0, run: int = 0) -> Optimizer:
        """The ask/tell optimizer that :func:`simulate` uses in run number ``run``."""
        own = {name: getattr(self, here) for name, here in _SETTINGS[self.name].items()}
        optimizer: Optimizer = make(
            self.name,
            settings.space,
            seed=_host.toy_key(seed, run),
            population_size=settings.population_size,
            **own,
        )
        return optimizer


class ToyResults(NamedTuple):
    """Of several runs.

    Attributes:
        iterations: (runs,) int64, iterations to success, or all there were.
        succeeded: (runs,) bool.
    """

    iterations: IntArray
    succeeded: npt.NDArray[np.bool_]


class AskTell(Protocol):
    """What :func:`solve` needs of an optimizer."""

    def ask(self) -> Samples:
        """λ samples."""

    def tell(self, samples: Samples, losses: Any, /) -> Any:
        """Takes their losses."""


class ToyProblem:
    """The weights of one run, their training, and the losses of samples.

    Args:
        settings: The problem.
        seed, run: Decide the starting weights and all noise.

    Attributes:
        x: (D, K) weights.
        velocity: (D, K), SGD's.
        steps: How many steps of SGD were made.
        evaluations: How many times noise was drawn; every step and every evaluation does once.
    """

    def __init__(self, settings: ToySettings, seed: int = 0, run: int = 0) -> None:
        check_integer("seed", seed, 0, 2**64)
        check_integer("run", run, 0, 2**64)
        _check_settings(settings)
        self.settings = settings
        shape = settings.variables, settings.categories
        self._key = _host.toy_key(seed, run)
        self.x = _host.toy_start(self._key, shape[0] * shape[1]).reshape(shape)
        self.velocity = np.zeros(shape)
        self.steps = 0
        self.evaluations = 0

    def losses(self, categorical: IntArray) -> FloatArray:
        """(λ,) losses of samples (λ, D) with noise drawn for all of them together."""
        return self._losses(categorical, self._noise())

    def true_losses(self, categorical: IntArray) -> FloatArray:
        """(λ,) losses of samples (λ, D) without noise."""
        return self._losses(categorical, np.zeros(self.settings.variables))

    def succeeds(self, categorical: IntArray) -> bool:
        """Whether any of the samples (λ, D) reaches the target without noise."""
        return bool((self.true_losses(categorical) <= self.settings.target).any())

    def step(self, categorical: IntArray) -> None:
        """One step of SGD on the mean loss of samples (λ, D). All weights feel the momentum."""
        settings = self.settings
        z = self._noise()
        gradient = np.zeros_like(self.x)
        if settings.problem == "ordered_product":
            gradient += 2 * REGULARIZATION * self.x
        rows = np.arange(settings.variables)
        for row in categorical:
            if settings.problem == "squared_error":
                slope = 2 * (self.x[rows, row] - z)
            else:
                factor, tail = self._factors(row, z)
                products = np.cumprod(factor)
                slope = -tail * np.cumsum(products[::-1])[::-1]
            gradient[rows, row] += slope / len(categorical)
        fraction = self.steps / settings.iteration_limit
        rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
        self.velocity = settings.momentum * self.velocity + gradient
        self.x -= rate * self.velocity
        self.steps += 1

    def _noise(self) -> FloatArray:
        normal = _host.toy_noise(self._key, self.evaluations, self.settings.variables)
        self.evaluations += 1
        return np.asarray(self.settings.noise * normal)

    def _factors(self, row: IntArray, z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """p of one sample, and 1 - sigmoid, its logarithmic derivative by x."""
        tail = 1 / (1 + np.exp(self.x[np.arange(len(row)), row] - z))
        return (1 - row / (self.settings.categories - 1)) * (1 - tail), tail

    def _losses(self, categorical: IntArray, z: FloatArray) -> FloatArray:
        settings = self.settings
        if settings.problem == "ordered_product":
            gains = [np.cumprod(self._factors(row, z)[0]).sum() for row in categorical]
            penalty = REGULARIZATION * float((self.x**2).sum())
            return np.asarray(settings.variables - np.array(gains) + penalty)
        chosen = self.x[np.arange(settings.variables), categorical]
        return np.asarray(((chosen - z) ** 2 + categorical / settings.categories).sum(axis=1))


def solve(problem: ToyProblem, optimizer: AskTell) -> tuple[int, bool]:
    """Trains weights and categories in turn (Algorithm 1) until a sample reaches the target.

    Args:
        problem: Fresh, or as an earlier call left it.
        optimizer: Of the problem's space. Two populations are asked for per iteration: one to
            train the weights with, one to be evaluated.

    Returns:
        Iterations (this one included), and whether the target was reached within the limit.
    """
    while problem.steps < problem.settings.iteration_limit:
        samples = optimizer.ask()
        if problem.succeeds(samples.categorical):
            return problem.steps + 1, True
        problem.step(samples.categorical)
        samples = optimizer.ask()
        if problem.succeeds(samples.categorical):
            return problem.steps, True
        optimizer.tell(samples, problem.losses(samples.categorical).tolist())
    return problem.steps, False


def simulate(
    settings: ToySettings,
    optimizer: ToyOptimizer,
    *,
    seed: int = 0,
    first: int = 0,
    runs: int = 100,
    threads: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> ToyResults:
    """Runs ``first`` to ``first + runs`` of a seed in compiled code. The result does not depend on
    the number of threads, nor on which runs are done in one call. Ctrl-C stops it at once.

    Args:
        settings: The problem.
        optimizer: The optimizer.
        seed: In [0, 2⁶⁴).
        first, runs: Which runs.
        threads: None for one per processor that this process may use. Each needs the memory of
            one run.
        progress: Called now and then with the numbers of runs that are over and of all iterations
            so far, and at the end; what it raises stops the runs and is passed on.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range.
    """
    check_integer("seed", seed, 0, 2**64)
    check_integer("first", first, 0, 2**63)
    check_integer("runs", runs, 0, MOST_NUMBERS + 1)
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        threads = threads or os.cpu_count() or 1
    check_integer("threads", threads, 1, 1025)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function or None, got {progress!r}")
    results = _host.toy_batch(
        native_settings(settings, optimizer), seed, first, runs, threads, progress
    )
    return ToyResults(*results)


def native_settings(settings: ToySettings, optimizer: ToyOptimizer) -> dict[str, Any]:
    """All settings in the form in which the compiled code takes them."""
    _check_settings(settings)
    if not isinstance(optimizer, ToyOptimizer):
        raise TypeError(f"optimizer must be a ToyOptimizer, got {type(optimizer).__name__}")
    return {
        **vars(settings),
        "rule": optimizer.name,
        "alpha": optimizer.alpha,
        "delta": optimizer.step_size,
        "delta_max": math.inf,
        "step_size": optimizer.step_size,
        "beta1": optimizer.beta1,
        "beta2": optimizer.beta2,
        "margin": margins([settings.categories] * settings.variables)[0],
    }


def _check_settings(settings: object) -> None:
    if not isinstance(settings, ToySettings):
        raise TypeError(f"settings must be ToySettings, got {type(settings).__name__}")
