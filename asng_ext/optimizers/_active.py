"""The update from samples of which each has a part of the variables only.

A conditional variable that a sample does not have was drawn all the same, and what was drawn had no
influence on the loss. Here it has none on the distribution either: the gradient of a variable,
eq. (12), is a sum over those samples that have it. Where all have all, the update is that of the
compiled optimizers but for rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from asng_ext import _host
from asng_ext.optimizers._evaluations import as_array

if TYPE_CHECKING:
    from asng_ext.optimizers.base import Optimizer
    from asng_ext.space import FloatArray, IntArray

__all__ = ["tell_active"]


def tell_active(
    optimizer: Optimizer, categorical: IntArray, numerical: FloatArray, losses: Any
) -> bool:
    """Updates an optimizer's engine; what it raises is what :meth:`Optimizer.tell` does.

    Args:
        optimizer: On the CPU.
        categorical, numerical: (λ, n_cat) and (λ, n_num), of the reduced space.
        losses: (λ,), as told.

    Returns:
        Whether anything moved.
    """
    engine: Any = optimizer._engine
    before = {name: np.array(getattr(engine, name)) for name in optimizer._arrays()}
    numbers = {"moved": engine.moved, **optimizer._own_numbers()}
    # It checks all, counts, and keeps the best sample; what it moves is taken back.
    engine.tell(categorical, numerical, losses, optimizer.maximize)
    for name, value in (*before.items(), *numbers.items()):
        setattr(engine, name, value)
    losses = as_array(losses)
    weights = _utilities(-losses if optimizer.maximize else losses)
    if not weights.any() or not _Update(optimizer).move(categorical, numerical, weights):
        return False
    engine.moved = engine.generation
    return True


def _utilities(losses: FloatArray) -> FloatArray:
    """(λ,) utilities (Section 2.4): equal losses share the mean over their ranks."""
    count = len(losses)
    selected = -(-count // 4)
    of_rank = np.zeros(count)
    of_rank[:selected] += 1 / selected
    of_rank[count - selected :] -= 1 / selected
    ranked = np.where(np.isfinite(losses), losses, np.inf)
    _, group, sizes = np.unique(ranked, return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        return np.zeros(count)
    means = np.add.reduceat(of_rank, np.cumsum(sizes) - sizes) / sizes
    return np.asarray(means[group.reshape(-1)])


class _Update:
    """One update of the engine of an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.engine: Any = optimizer._engine
        self.space = optimizer._reduced
        sizes = np.array(self.space.sizes, dtype=np.int64)
        self.ends = np.cumsum(sizes)
        self.starts = self.ends - sizes
        self.variable = np.repeat(np.arange(len(sizes)), sizes)
        """Of each probability."""
        self.margin = np.array(self.engine.margin)[self.variable]
        self.sizes = sizes[self.variable]

    def move(self, categorical: IntArray, numerical: FloatArray, weights: FloatArray) -> bool:
        engine = self.engine
        theta, mean = np.array(engine.theta), np.array(engine.mean)
        variance = np.array(engine.variance)
        has, has_number = self.space.activity(categorical)
        count = len(weights)

        # eq. (12), over the samples that have the variable
        categories = np.arange(len(theta)) - self.starts[self.variable]
        differences = (categorical[:, self.variable] == categories) - theta
        g = (weights[:, None] * has[:, self.variable] * differences).sum(axis=0) / count
        w = weights[:, None] * has_number
        moments = np.stack(
            [
                (w * (numerical - mean)).sum(axis=0) / count,
                (w * (numerical**2 - (mean**2 + variance))).sum(axis=0) / count,
            ]
        )

        root = np.concatenate(
            [self._root(theta, g), _gaussian_root(mean, variance, moments).ravel()]
        )
        norm = float(np.linalg.norm(root))
        if norm == 0:
            return False
        steps, moment_steps = self._steps(g, moments, root / norm, norm)
        engine.theta = self._projected(theta + steps)
        engine.mean, engine.variance = self._moved(mean, variance, moment_steps)
        return True

    def _root(self, theta: FloatArray, g: FloatArray) -> FloatArray:
        """F^(1/2) g of the free probabilities, with the root that Algorithm 1 uses."""
        last = self.ends - 1
        # What the others of a variable sum to: all sum to 0.
        rest = (-g[last] / (theta[last] + np.sqrt(theta[last])))[self.variable]
        whole = g / np.sqrt(theta) + np.sqrt(theta) * rest
        return np.delete(whole, last)

    def _steps(
        self, g: FloatArray, moments: FloatArray, root: FloatArray, norm: float
    ) -> tuple[FloatArray, FloatArray]:
        """By how much θ and the moments change, and what else an optimizer keeps."""
        engine, optimizer = self.engine, self.optimizer
        if isinstance(engine, _host.NaturalAdam):
            own: Any = optimizer
            gradient = np.concatenate([g, moments.ravel()]) / (norm + 1e-9)
            engine.updates += 1
            engine.first_moment = own.beta1 * engine.first_moment + (1 - own.beta1) * gradient
            engine.second_moment = own.beta2 * engine.second_moment + (1 - own.beta2) * gradient**2
            first = engine.first_moment / (1 - own.beta1**engine.updates)
            second = engine.second_moment / (1 - own.beta2**engine.updates)
            step = own.step_size * first / (np.sqrt(second) + 1e-8)
            return step[: len(g)], step[len(g) :].reshape(moments.shape)
        delta = optimizer.delta
        if isinstance(engine, _host.ASNG):
            own = optimizer
            n_theta = len(root)
            beta = delta / math.sqrt(n_theta)
            engine.s = (1 - beta) * engine.s + math.sqrt(beta * (2 - beta)) * root  # eq. (19)
            engine.gamma = (1 - beta) ** 2 * engine.gamma + beta * (2 - beta)  # eq. (20)
            snr = float(engine.s @ engine.s)
            grown = engine.Delta * math.exp(beta * (engine.gamma - snr / own.alpha))
            floor = own.delta_init / math.sqrt(n_theta)  # keeps beta <= 1
            engine.Delta = max(min(grown, own.delta_max), floor)  # eq. (21)
        return delta / norm * g, delta / norm * moments  # eq. (13), eq. (14)

    def _projected(self, theta: FloatArray) -> FloatArray:
        """Probabilities at or above their margins that sum to 1."""
        if not len(theta):
            return theta
        theta = np.where(self.sizes > 1, np.maximum(theta, self.margin), 1.0)
        total = np.add.reduceat(theta, self.starts)[self.variable]
        room = total - self.sizes * self.margin
        shrunk = theta - (total - 1) * (theta - self.margin) / np.where(room > 1e-15, room, 1.0)
        theta = np.where(room > 1e-15, shrunk, 1.0)
        return np.asarray(theta / np.add.reduceat(theta, self.starts)[self.variable])

    def _moved(
        self, mean: FloatArray, variance: FloatArray, steps: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Means and variances in their ranges."""
        common = self.optimizer._common
        low, high = np.array(common["low"]), np.array(common["high"])
        moved = np.clip(mean + steps[0], low, high)
        if common["variance_ratio_min"] > 0:
            # G about the old mean m: d(σ²) = d(μ² + σ²) - 2 m dμ - (Δμ)², Δμ the clipped step.
            changed = variance + steps[1] - 2 * mean * steps[0] - (moved - mean) ** 2
            spread = np.maximum(changed, common["variance_ratio_min"] * variance)
        else:
            spread = mean**2 + variance + steps[1] - moved**2
        # A range may be so narrow that its half is below the smallest standard deviation.
        half = (high - low) / 2
        return moved, np.minimum(np.maximum(spread, np.array(common["std_min"]) ** 2), half**2)


def _gaussian_root(mean: FloatArray, variance: FloatArray, moments: FloatArray) -> FloatArray:
    """F^(1/2) G of each Gaussian, with the symmetric root of its 2×2 Fisher matrix, which is the
    inverse of the covariance of (x, x²)."""
    a, b, c = variance, 2 * mean * variance, 4 * mean**2 * variance + 2 * variance**2
    det = 2 * variance**3
    f11, f12, f22 = c / det, -b / det, a / det
    # (F + √det F) / √(tr F + 2 √det F)
    root_det = np.sqrt(1 / det)
    scale = np.sqrt(f11 + f22 + 2 * root_det)
    first, second = moments
    return np.stack(
        [
            ((f11 + root_det) * first + f12 * second) / scale,
            (f12 * first + (f22 + root_det) * second) / scale,
        ]
    )
