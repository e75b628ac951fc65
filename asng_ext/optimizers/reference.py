"""Algorithm 1 written for reading and checking: slow, obvious, in plain NumPy.

Nothing here is used by the rest of the package but its tests. Matrices that the fast code takes
apart in closed form are built in full from their definitions and taken apart numerically.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from asng_ext.optimizers import margins
from asng_ext.space import BoolArray, FloatArray, IntArray

__all__ = [
    "ReferenceASNG",
    "ReferenceNaturalAdam",
    "ReferenceSNG",
    "fisher_matrix_categorical",
    "fisher_matrix_gaussian",
    "fisher_root_categorical",
    "utilities",
]


def utilities(losses: Sequence[float]) -> list[Fraction]:
    """Utility of each sample (Section 2.4), exactly: the best ⌈λ/4⌉ get +1/⌈λ/4⌉, the worst get
    the negative, equal losses share the mean over their ranks; NaN counts as +inf."""
    ranked = [math.inf if math.isnan(loss) else float(loss) for loss in losses]
    count = len(ranked)
    selected = -(-count // 4)
    of_rank = [Fraction(0)] * count
    for i in range(selected):
        of_rank[i] += Fraction(1, selected)
        of_rank[count - 1 - i] -= Fraction(1, selected)
    ascending = sorted(ranked)
    result = []
    for loss in ranked:
        tied = [of_rank[i] for i in range(count) if ascending[i] == loss]
        result.append(sum(tied, Fraction(0)) / len(tied))
    return result


def fisher_matrix_categorical(theta: FloatArray) -> FloatArray:
    """F = diag(1/θ) + 1 1ᵀ/θ_K over the first K - 1 probabilities (Section 2.4)."""
    return np.asarray(np.diag(1 / theta[:-1]) + 1 / theta[-1])


def fisher_matrix_gaussian(mean: float, variance: float) -> FloatArray:
    """F of N(μ, σ²) in the parameters (μ, μ² + σ²): the inverse of the covariance of (x, x²)
    (Section 2.4)."""
    inverse = np.array(
        [
            [variance, 2 * mean * variance],
            [2 * mean * variance, 4 * mean**2 * variance + 2 * variance**2],
        ]
    )
    return np.linalg.inv(inverse)


def fisher_root_categorical(theta: FloatArray) -> FloatArray:
    """The root R of F, RᵀR = F, that Algorithm 1 uses: diag(θ)^(-1/2) + √θ 1ᵀ/(θ_K + √θ_K)."""
    free, last = theta[:-1], theta[-1]
    root = np.diag(1 / np.sqrt(free)) + np.sqrt(free)[:, None] / (last + np.sqrt(last))
    return np.asarray(root)


def _symmetric_root(matrix: FloatArray) -> FloatArray:
    """The symmetric square root of a symmetric positive definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray(vectors @ np.diag(np.sqrt(values)) @ vectors.T)


@dataclass
class ReferenceASNG:
    """The distribution and step size of Algorithm 1.

    Args:
        sizes: Number of categories of each categorical variable.
        ranges: (low, high, σ_min) of each Gaussian variable.
        alpha, delta_init, delta_max: α, δ⁰ and Δ_max.
        variance_ratio_min: Least factor of a Gaussian's variance in an update; with 0 clipping the
            mean keeps the second moment instead.
    """

    sizes: Sequence[int]
    ranges: Sequence[tuple[float, float, float]] = ()
    alpha: float = 1.5
    delta_init: float = 1.0
    delta_max: float = math.inf
    variance_ratio_min: float = 0.0
    gamma: float = 0.0
    Delta: float = 1.0
    theta: list[FloatArray] = field(init=False)
    moments: FloatArray = field(init=False)
    s: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.theta = [np.full(size, 1 / size) for size in self.sizes]
        self.moments = np.zeros((2, len(self.ranges)))
        for j, (low, high, _) in enumerate(self.ranges):
            middle, std = (low + high) / 2, (high - low) / 2
            self.moments[:, j] = middle, middle**2 + std**2
        self.s = np.zeros(sum(size - 1 for size in self.sizes) + 2 * len(self.ranges))

    def update(
        self,
        categorical: IntArray,
        numerical: FloatArray,
        losses: Sequence[float],
        active: tuple[BoolArray, BoolArray] | None = None,
    ) -> None:
        """One iteration over λ samples: (λ, n_cat) indices and (λ, n_num) raw draws; which of the
        samples have the variable may be said in the same shapes."""
        weights = utilities(losses)
        if not any(weights):
            return
        count = len(weights)
        gradients: list[FloatArray] = []  # G of each variable
        roots: list[FloatArray] = []  # F^(1/2) G
        has, has_number = active or (
            np.ones(categorical.shape, dtype=bool),
            np.ones(numerical.shape, dtype=bool),
        )
        for i, theta in enumerate(self.theta):
            one_hot = np.eye(len(theta))[categorical[:, i]]
            own = [w if there else Fraction(0) for w, there in zip(weights, has[:, i])]
            exact = [
                sum((w for w, row in zip(own, one_hot) if row[j]), Fraction(0))
                for j in range(len(theta))
            ]
            gradient = np.array([float(total) for total in exact]) / count  # eq. (12)
            if sum(own):  # of all samples the utilities sum to 0
                gradient -= theta * float(sum(own)) / count
            gradients.append(gradient)
            if len(theta) > 1:
                roots.append(fisher_root_categorical(theta) @ gradient[:-1])
        moment_gradients = np.zeros_like(self.moments)
        for j in range(len(self.ranges)):
            mean, second = self.moments[:, j]
            draws = numerical[:, j]
            w = np.array([float(weight) for weight in weights]) * has_number[:, j]
            moment_gradients[0, j] = np.mean(w * (draws - mean))  # eq. (12)
            moment_gradients[1, j] = np.mean(w * (draws**2 - second))  # eq. (12)
        gaussian_roots = np.zeros_like(self.moments)
        for j in range(len(self.ranges)):
            mean, second = self.moments[:, j]
            fisher = fisher_matrix_gaussian(mean, second - mean**2)
            gaussian_roots[:, j] = _symmetric_root(fisher) @ moment_gradients[:, j]
        root = np.concatenate([*roots, gaussian_roots.ravel()])
        norm = float(np.linalg.norm(root))
        if norm == 0:
            return

        self._step(gradients, moment_gradients, root / norm, norm)

    def _step(
        self,
        gradients: list[FloatArray],
        moment_gradients: FloatArray,
        root: FloatArray,
        norm: float,
    ) -> None:
        """What comes of the natural gradient; ``root`` is F^(1/2) G / norm."""
        n_theta = len(self.s)
        delta = self.delta_init / self.Delta
        beta = delta / math.sqrt(n_theta)
        scale = delta / norm  # eq. (14)
        self._move([scale * gradient for gradient in gradients], scale * moment_gradients)
        self.s = (1 - beta) * self.s + math.sqrt(beta * (2 - beta)) * root  # eq. (19)
        self.gamma = (1 - beta) ** 2 * self.gamma + beta * (2 - beta)  # eq. (20)
        grown = self.Delta * math.exp(beta * (self.gamma - self.s @ self.s / self.alpha))
        floor = self.delta_init / math.sqrt(n_theta)  # keeps beta <= 1
        self.Delta = max(min(grown, self.delta_max), floor)  # eq. (21)

    def _move(self, steps: Sequence[FloatArray], moment_steps: FloatArray) -> None:
        """θ += steps, then the projection."""
        for theta, step, margin in zip(self.theta, steps, margins(self.sizes)):
            theta += step  # eq. (13)
            self._project(theta, margin)
        before = self.moments.copy()
        self.moments += moment_steps  # eq. (13)
        for j, (low, high, std_min) in enumerate(self.ranges):
            mean = np.clip(self.moments[0, j], low, high)
            std_max = (high - low) / 2
            second = self.moments[1, j]
            if self.variance_ratio_min > 0:
                # G about the old mean m: d(σ²) = d(μ² + σ²) - 2 m dμ - (Δμ)², Δμ the clipped step.
                m, variance = before[0, j], before[1, j] - before[0, j] ** 2
                spread = moment_steps[1, j] - 2 * m * moment_steps[0, j]
                changed = variance + spread - (mean - m) ** 2
                second = mean**2 + max(changed, self.variance_ratio_min * variance)
            second = np.clip(second, mean**2 + std_min**2, mean**2 + std_max**2)
            self.moments[:, j] = mean, second

    @staticmethod
    def _project(theta: FloatArray, margin: float) -> None:
        if len(theta) == 1:
            return
        np.maximum(theta, margin, out=theta)
        excess, room = theta.sum() - 1, theta.sum() - len(theta) * margin
        if room <= 1e-15:
            theta[:] = 1.0
        else:
            theta -= excess * (theta - margin) / room
        theta /= theta.sum()


class ReferenceSNG(ReferenceASNG):
    """The stochastic natural gradient with constant step size ``delta_init``."""

    def _step(
        self,
        gradients: list[FloatArray],
        moment_gradients: FloatArray,
        root: FloatArray,
        norm: float,
    ) -> None:
        scale = self.delta_init / norm  # eq. (14)
        self._move([scale * gradient for gradient in gradients], scale * moment_gradients)


@dataclass
class ReferenceNaturalAdam(ReferenceASNG):
    """Adam on the natural gradient divided by its norm; ``delta_init`` is the step size."""

    beta1: float = 0.9
    beta2: float = 0.999
    updates: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        size = sum(self.sizes) + self.moments.size
        self.first_moment, self.second_moment = np.zeros(size), np.zeros(size)

    def _step(
        self,
        gradients: list[FloatArray],
        moment_gradients: FloatArray,
        root: FloatArray,
        norm: float,
    ) -> None:
        gradient = np.concatenate([*gradients, moment_gradients.ravel()]) / (norm + 1e-9)
        self.updates += 1
        self.first_moment = self.beta1 * self.first_moment + (1 - self.beta1) * gradient
        self.second_moment = self.beta2 * self.second_moment + (1 - self.beta2) * gradient**2
        first = self.first_moment / (1 - self.beta1**self.updates)
        second = self.second_moment / (1 - self.beta2**self.updates)
        step = self.delta_init * first / (np.sqrt(second) + 1e-8)
        *steps, moment_steps = np.split(step, np.cumsum(self.sizes))
        self._move(steps, moment_steps.reshape(self.moments.shape))
