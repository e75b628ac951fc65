"""Adam on the normalized natural gradient, the other baseline of Section 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from asng_ext import _host
from asng_ext._checks import check_integer, check_number
from asng_ext.optimizers.base import TOLERANCE, CommonSettings, Optimizer
from asng_ext.space import SearchSpace

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NaturalAdam"]


class NaturalAdam(Optimizer):
    """Optimizer of categorical, integer and real variables by Adam (Kingma & Ba, 2015).

    The gradient is the natural gradient divided by its norm, G/(‖G‖_F + 1e-9), as in
    :class:`ASNG`; with the plain one Adam does not work properly (Section 3.1). Moments are kept
    for all K probabilities of a categorical variable, which move as if they were free and are
    then projected back onto a distribution, and for the parameters (μ, μ² + σ²) of Gaussians.

    Args:
        space, population_size: See :class:`Optimizer`.
        step_size: Adam's, above 0: about how far each parameter moves in an update.
        beta1, beta2: Decay of the two moments, in [0, 1).
        common: Margin, seed, direction, limits and device, see :class:`Optimizer`.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range, or the
            space has nothing to choose.
    """

    _engine: _host.NaturalAdam
    _own_settings = ("step_size", "beta1", "beta2")
    _own_arrays = ("first_moment", "second_moment")

    def __init__(
        self,
        space: SearchSpace,
        *,
        population_size: int = 2,
        step_size: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(space, population_size=population_size, **common)
        check_number("step_size", step_size, 0.0)
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            check_number(name, value, least=0.0, below=1.0)
        self.step_size = float(step_size)
        self.beta1 = float(beta1)
        self.beta2 = float(beta2)
        self._engine = self._started(
            _host.NaturalAdam(
                self._common, step_size=self.step_size, beta1=self.beta1, beta2=self.beta2
            )
        )

    @property
    def delta(self) -> float:
        """The step size, under the name it has in the other optimizers."""
        return self.step_size

    @property
    def updates(self) -> int:
        """How many populations moved the distribution."""
        return int(self._engine.updates)

    def _own_numbers(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def _array_bounds(self) -> dict[str, tuple[Any, Any]]:
        bounds = super()._array_bounds()
        # Moments are means of gradients g of Fisher norm 1 or less and of their squares. There
        # |g_j| <= sqrt(theta_j) <= 1, and of a Gaussian |g_1| <= sigma and
        # |g_2| <= sqrt(4 mu^2 sigma^2 + 2 sigma^4).
        mean, variance = np.abs(bounds["mean"]).max(axis=0), bounds["variance"][1]
        most = np.concatenate(
            [
                np.ones(sum(self._reduced.sizes)),
                np.sqrt(variance),
                np.sqrt(4 * mean**2 * variance + 2 * variance**2),
            ]
        ) * (1 + TOLERANCE)
        return {**bounds, "first_moment": (-most, most), "second_moment": (0.0, most**2)}

    def _check_own_numbers(self, state: Mapping[str, Any]) -> None:
        check_integer("state['updates']", state["updates"], 0, 2**63)
