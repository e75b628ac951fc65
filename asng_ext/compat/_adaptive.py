"""ASNG for categorical variables, and their distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from asng_ext._checks import check_number
from asng_ext.compat._common import (
    INPUT_ERRORS,
    NO_GAUSSIANS,
    BoolArray,
    CategoricalBase,
    Integers,
    Probabilities,
    checked_losses,
    initial,
    make_updater,
    padded,
    refusal,
    theta_header,
    utility,
)
from asng_ext.space import FloatArray

__all__ = ["AdaptiveSNG", "Categorical", "CategoricalASNG"]


class Categorical(Probabilities):
    """Categorical distribution of d variables.

    Args:
        categories: (d,) numbers of categories.

    Attributes:
        d, C, Cmax: Number of variables, their categories, the most of them.
        valid_d: How many variables have more than one category.
        valid_param_num: Σ (K_i - 1).
        theta: (d, Cmax) probabilities, padded with zeros.
    """

    def __init__(self, categories: Integers) -> None:
        super().__init__(categories)
        self.valid_param_num = int((self.C - 1).sum())

    def sampling_lam(self, lam: int) -> BoolArray:
        """(lam, d, Cmax) one-hot samples."""
        uniforms = np.random.rand(lam, self.d, 1)
        return np.stack([self._updater.one_hot(self.theta, row) for row in uniforms])

    def loglikelihood(self, X: npt.NDArray[Any]) -> FloatArray:
        """(lam,) log-likelihoods of one-hot samples (lam, d, Cmax)."""
        chosen = np.where(np.asarray(X, dtype=bool), self.theta, 1.0)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(chosen).sum(axis=(1, 2)))

    def log_header(self) -> list[str]:
        """Names of the columns of :meth:`log`."""
        return theta_header(self.C)

    def log(self) -> list[str]:
        """Probabilities as text."""
        return self._probabilities()

    def load_theta_from_log(self, theta: Sequence[float]) -> None:
        """Sets theta from the values of :meth:`log`."""
        self.theta = padded(theta, self.C)


class AdaptiveSNG(CategoricalBase):
    """ASNG for categorical variables.

    Args:
        categories: (d,) numbers of categories.
        alpha: Threshold α.
        delta_init: δ⁰.
        lam: λ, what :meth:`get_lam` tells the caller; :meth:`update` takes any number of samples.
        Delta_max: Upper bound of Δ.
        init_theta: (d, Cmax) probabilities to start from instead of uniform ones.

    Attributes:
        theta, s, gamma, Delta: The state of Algorithm 1; theta is (d, Cmax), zero-padded.
        delta, eps: Of the last update: trust-region radius, and the natural gradient's factor.
        N, d, C, Cmax, valid_d: Σ (K_i - 1), number of variables, categories, the most of them,
            how many variables have more than one.
    """

    def __init__(
        self,
        categories: Integers,
        alpha: float = 1.5,
        delta_init: float = 1.0,
        lam: int = 2,
        Delta_max: float = np.inf,
        init_theta: npt.ArrayLike | None = None,
    ) -> None:
        settings = {"alpha": alpha, "delta_init": delta_init, "delta_max": Delta_max}
        super().__init__(categories, lam, init_theta, **settings)
        self.alpha, self.delta_init, self.Delta_max = alpha, delta_init, Delta_max
        self.Delta = 1.0
        self.gamma = 0.0
        self.s = np.zeros(self.N)
        self.delta = self.delta_init / self.Delta
        self.eps = self.delta

    def get_delta(self) -> float:
        """δ of the last update."""
        return self.delta

    def update(self, c_one: Any, fxc: Any, range_restriction: bool = True) -> None:
        """One update from one-hot samples (λ, d, Cmax) and their losses (λ,)."""
        losses = checked_losses(fxc)
        try:
            adapted = self._updater.adapt(
                self.theta,
                NO_GAUSSIANS,
                self.s,
                self.gamma,
                self.Delta,
                c_one,
                NO_GAUSSIANS,
                losses,
                range_restriction,
                1e-9,
                True,
            )
        except INPUT_ERRORS as error:
            raise refusal(error, c_one, losses, range_restriction) from None
        self.theta, _, self.s, moved, self.gamma, self.Delta, self.delta, eps = adapted
        if moved:
            self.eps = eps

    def log_header(self, theta_log: bool = False) -> list[str]:
        """Names of the columns of :meth:`log`."""
        header = ["delta", "eps", "snorm_alpha", "theta_converge"]
        return header + theta_header(self.C) if theta_log else header

    def log(self, theta_log: bool = False) -> list[Any]:
        """δ, the factor of the gradient, ‖s‖²/α, mean of max_j θ_ij; probabilities as text."""
        values: list[Any] = [
            self.delta,
            self.eps,
            np.dot(self.s, self.s) / self.alpha,
            self.theta.max(axis=1).mean(),
        ]
        return values + self._probabilities() if theta_log else values


class CategoricalASNG:
    """ASNG for categorical variables over a :class:`Categorical`.

    Args:
        categories: (d,) numbers of categories.
        alpha: Threshold α.
        init_delta: δ⁰.
        Delta_max: Upper bound of Δ.
        init_theta: (d, Cmax) probabilities to start from.

    Attributes:
        p_model: The distribution; its ``theta`` is what is optimized.
        delta: δ⁰; :meth:`get_delta` gives the current δ = δ⁰/Δ.
        N, Delta, Delta_max, alpha, gamma, s: As in :class:`AdaptiveSNG`.
    """

    def __init__(
        self,
        categories: Integers,
        alpha: float = 1.5,
        init_delta: float = 1.0,
        Delta_max: float = np.inf,
        init_theta: npt.ArrayLike | None = None,
    ) -> None:
        check_number("init_delta", init_delta, 0.0)
        self.p_model = Categorical(categories)
        if init_theta is not None:
            self.p_model.theta = initial(init_theta, self.p_model.theta)
        self.N = self.p_model.valid_param_num
        self.delta = init_delta
        self.Delta = 1.0
        self.Delta_max = Delta_max
        self.alpha = alpha
        self.gamma = 0.0
        self.s = np.zeros(self.N)
        self._updater = make_updater(self.p_model.C, alpha, init_delta, Delta_max)

    def get_delta(self) -> float:
        """The current δ."""
        return self.delta / self.Delta

    def sampling(self) -> BoolArray:
        """(d, Cmax) one-hot sample."""
        return self.p_model.sampling()

    def update(self, Ms: Any, losses: Any, range_restriction: bool = True) -> None:
        """One update from one-hot samples (λ, d, Cmax) and their losses (λ,)."""
        losses = checked_losses(losses)
        try:
            adapted = self._updater.adapt(
                self.p_model.theta,
                NO_GAUSSIANS,
                self.s,
                self.gamma,
                self.Delta,
                Ms,
                NO_GAUSSIANS,
                losses,
                range_restriction,
                0.0,
                False,
            )
        except INPUT_ERRORS as error:
            raise refusal(error, Ms, losses, range_restriction) from None
        self.p_model.theta, _, self.s, _, self.gamma, self.Delta, _, _ = adapted

    utility = staticmethod(utility)
