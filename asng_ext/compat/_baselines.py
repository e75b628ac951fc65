"""The baselines of the toy problem: SNG and Adam for categorical variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from asng_ext._checks import check_number
from asng_ext.compat._common import (
    INPUT_ERRORS,
    CategoricalBase,
    Integers,
    checked_losses,
    refusal,
    theta_header,
)

__all__ = ["SNG", "Adam"]


class SNG(CategoricalBase):
    """Stochastic natural gradient with a constant step size.

    Args:
        categories: (d,) numbers of categories.
        delta_init: δ.
        lam: λ, what :meth:`get_lam` tells the caller; :meth:`update` takes any number of samples.
        init_theta: (d, Cmax) probabilities to start from instead of uniform ones.

    Attributes:
        theta: (d, Cmax) probabilities, padded with zeros.
        delta, eps: δ, and the natural gradient's factor in the last update.
        N, d, C, Cmax, valid_d, lam: As in :class:`AdaptiveSNG`.
    """

    def __init__(
        self,
        categories: Integers,
        delta_init: float = 1.0,
        lam: int = 2,
        init_theta: npt.ArrayLike | None = None,
    ) -> None:
        check_number("delta_init", delta_init, 0.0)
        super().__init__(categories, lam, init_theta)
        self.delta = delta_init
        self.eps = self.delta

    def get_delta(self) -> float:
        """δ."""
        return self.delta

    def update(self, c_one: Any, fxc: Any, range_restriction: bool = True) -> None:
        """One update from one-hot samples (λ, d, Cmax) and their losses (λ,)."""
        losses = checked_losses(fxc)
        try:
            self.theta, eps = self._updater.step(
                self.theta, self.delta, c_one, losses, range_restriction, 1e-8
            )
        except INPUT_ERRORS as error:
            raise refusal(error, c_one, losses, range_restriction) from None
        if eps > 0:
            self.eps = eps

    def log_header(self) -> list[str]:
        """Names of the columns of :meth:`log`."""
        return ["delta", "eps", "theta_converge", *theta_header(self.C)]

    def log(self) -> list[Any]:
        """δ, the factor of the gradient, mean of max_j θ_ij; probabilities as text."""
        return [self.delta, self.eps, self.theta.max(axis=1).mean(), *self._probabilities()]


class Adam(CategoricalBase):
    """Adam on the natural gradient divided by its norm.

    Args:
        categories: (d,) numbers of categories.
        alpha: Step size.
        beta1, beta2: Decay of the two moments.
        lam: λ, what :meth:`get_lam` tells the caller; :meth:`update` takes any number of samples.
        init_theta: (d, Cmax) probabilities to start from instead of uniform ones.

    Attributes:
        theta: (d, Cmax) probabilities, padded with zeros.
        m, v: (d, Cmax) moments of the gradient, of all Cmax entries.
        t: How many updates moved θ.
        alpha, beta1, beta2: The settings.
        N, d, C, Cmax, valid_d, lam: As in :class:`AdaptiveSNG`.
    """

    def __init__(
        self,
        categories: Integers,
        alpha: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        lam: int = 2,
        init_theta: npt.ArrayLike | None = None,
    ) -> None:
        check_number("alpha", alpha, 0.0)
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            check_number(name, value, least=0.0, below=1.0)
        super().__init__(categories, lam, init_theta)
        self.alpha, self.beta1, self.beta2 = alpha, beta1, beta2
        self.m = np.zeros_like(self.theta)
        self.v = np.zeros_like(self.theta)
        self.t = 0

    def get_delta(self) -> float:
        """The step size."""
        return self.alpha

    def update(self, c_one: Any, fxc: Any, range_restriction: bool = True) -> None:
        """One update from one-hot samples (λ, d, Cmax) and their losses (λ,)."""
        losses = checked_losses(fxc)
        try:
            self.theta, self.m, self.v, moved = self._updater.step_adam(
                self.theta,
                self.m,
                self.v,
                self.alpha,
                self.beta1,
                self.beta2,
                self.t + 1,
                c_one,
                losses,
                range_restriction,
            )
        except INPUT_ERRORS as error:
            raise refusal(error, c_one, losses, range_restriction) from None
        self.t += moved

    def log_header(self) -> list[str]:
        """Names of the columns of :meth:`log`."""
        return ["alpha", "theta_converge", *theta_header(self.C)]

    def log(self) -> list[Any]:
        """The step size, mean of max_j θ_ij; probabilities as text."""
        return [self.alpha, self.theta.max(axis=1).mean(), *self._probabilities()]
