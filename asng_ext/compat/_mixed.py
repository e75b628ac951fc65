"""ASNG for categorical and integer variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from asng_ext._checks import brief, listed
from asng_ext.compat._common import (
    INPUT_ERRORS,
    BoolArray,
    Integers,
    as_numbers,
    check_sizes,
    checked_losses,
    flat,
    from_log,
    initial,
    make_updater,
    one_hot_mle,
    padded,
    refusal,
    theta_header,
    uniform,
    utility,
)
from asng_ext.space import FloatArray

__all__ = ["MixedAdaptiveSNG"]


class MixedAdaptiveSNG:
    """ASNG for categorical and integer variables.

    Args:
        categories: (d_cat,) numbers of categories.
        integers: (d_int, 2) lower and upper bounds.
        alpha, delta_init, lam, Delta_max: As in :class:`AdaptiveSNG`.
        init_theta: A pair (theta_cat, theta_int) to start from.

    Attributes:
        theta_cat: (d_cat, Cmax) probabilities, zero-padded.
        theta_int: (2, d_int), (μ, μ² + σ²).
        n_cat, n_int, n_theta: Dimensions of the parts of θ, and of all.
        s, gamma, Delta, delta, eps: As in :class:`AdaptiveSNG`.
        d_cat, C, Cmax, valid_d_cat, d_int, int_min, int_max, int_std_min, int_std_max: The space.
    """

    def __init__(
        self,
        categories: Integers,
        integers: Any,
        alpha: float = 1.5,
        delta_init: float = 1.0,
        lam: int = 2,
        Delta_max: float = np.inf,
        init_theta: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    ) -> None:
        self.C = check_sizes(categories)
        bounds = as_numbers("integers", integers)
        if (
            bounds.ndim != 2
            or bounds.shape[1] != 2
            or not (np.isfinite(bounds).all() and (bounds[:, 0] < bounds[:, 1]).all())
        ):
            raise ValueError(
                f"integers must be pairs of a lower and a higher bound, got {brief(integers)}"
            )
        self._updater = make_updater(self.C, alpha, delta_init, Delta_max, bounds)
        self.n_cat = int((self.C - 1).sum())
        self.n_int = 2 * len(bounds)
        self.n_theta = self.n_cat + self.n_int
        self.d_cat = len(self.C)
        self.Cmax = int(self.C.max())
        self.valid_d_cat = int((self.C > 1).sum())
        self.theta_cat = uniform(self.C)
        self.d_int = len(bounds)
        self.int_min, self.int_max = bounds[:, 0], bounds[:, 1]
        self.int_std_max = (self.int_max - self.int_min) / 2.0
        self.int_std_min = 1.0 / 4.0
        middle = (self.int_max + self.int_min) / 2.0
        self.theta_int = np.stack([middle, middle**2 + self.int_std_max**2])
        if init_theta is not None:
            pair = listed("init_theta", init_theta, "theta_cat and theta_int")
            if len(pair) != 2:
                raise ValueError(f"init_theta must be a pair of arrays, got {brief(init_theta)}")
            self.theta_cat = initial(pair[0], self.theta_cat)
            self.theta_int = initial(pair[1], self.theta_int)
        self.alpha, self.delta_init, self.Delta_max = alpha, delta_init, Delta_max
        self.lam = lam
        self.Delta = 1.0
        self.gamma = 0.0
        self.s = np.zeros(self.n_theta)
        self.delta = self.delta_init / self.Delta
        self.eps = self.delta

    def get_lam(self) -> int:
        """λ."""
        return self.lam

    def get_delta(self) -> float:
        """δ of the last update."""
        return self.delta

    def sampling(self, lam: int) -> tuple[BoolArray, FloatArray]:
        """(lam, d_cat, Cmax) one-hot samples and (lam, d_int) raw draws in antithetic pairs."""
        uniforms = np.random.rand(lam, self.d_cat, 1)
        categories = np.stack([self._updater.one_hot(self.theta_cat, row) for row in uniforms])
        mean = self.theta_int[0]
        std = np.sqrt(self.theta_int[1] - mean**2)
        numbers = np.empty((lam + lam % 2, self.d_int))
        for pair in range(len(numbers) // 2):
            z = np.random.randn(self.d_int)
            numbers[2 * pair] = mean + std * z
            numbers[2 * pair + 1] = mean - std * z
        return categories, numbers[:lam]

    def mle(self) -> tuple[FloatArray, FloatArray]:
        """One-hot of the most likely categories, and the means of the integers."""
        return one_hot_mle(self.theta_cat), self.theta_int[0]

    def update(self, c: Any, fxc: Any, range_restriction: bool = True) -> None:
        """One update from (one-hot samples (λ, d_cat, Cmax), raw draws (λ, d_int)) and losses."""
        losses = checked_losses(fxc)
        try:
            adapted = self._updater.adapt(
                self.theta_cat,
                self.theta_int,
                self.s,
                self.gamma,
                self.Delta,
                c[0],
                c[1],
                losses,
                range_restriction,
                1e-9,
                False,
            )
        except INPUT_ERRORS as error:
            samples = c[0] if isinstance(c, (tuple, list)) and c else c
            raise refusal(error, samples, losses, range_restriction) from None
        self.theta_cat, self.theta_int, self.s, moved = adapted[:4]
        self.gamma, self.Delta, self.delta, eps = adapted[4:]
        if moved:
            self.eps = eps

    utility = staticmethod(utility)

    def log_header(self, theta_log: bool = False) -> list[str]:
        """Names of the columns of :meth:`log`."""
        header = ["delta", "eps", "snorm_alpha", "theta_cat_converge"]
        if theta_log:
            header += theta_header(self.C, "theta_cat")
            header += [f"theta_int{row + 1}_{i}" for row in range(2) for i in range(self.d_int)]
        return header

    def log(self, theta_log: bool = False) -> list[Any]:
        """δ, the factor of the gradient, ‖s‖²/α, mean of max_j θ_ij, parameters."""
        values: list[Any] = [
            self.delta,
            self.eps,
            np.dot(self.s, self.s) / self.alpha,
            self.theta_cat.max(axis=1).mean(),
        ]
        if theta_log:
            values += list(flat(self.theta_cat, self.C)) + list(self.theta_int.ravel())
        return values

    def load_theta_from_log(self, theta_log: Sequence[float]) -> None:
        """Sets both parts of theta from the parameters of a log."""
        count = int(self.C.sum())
        numbers = from_log(theta_log, count + self.n_int)
        self.theta_cat = padded(numbers[:count], self.C)
        self.theta_int = np.array(numbers[count:]).reshape(2, self.d_int)
