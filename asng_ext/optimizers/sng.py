"""Stochastic natural gradient with a constant step size, the baseline of Section 3.1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asng_ext import _host
from asng_ext._checks import check_number
from asng_ext.optimizers.base import CommonSettings, Optimizer
from asng_ext.space import SearchSpace

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SNG"]


class SNG(Optimizer):
    """Optimizer of categorical, integer and real variables by the stochastic natural gradient.

    The update is that of :class:`ASNG`, θ + δ G/‖G‖_F and projection (eq. (13), eq. (14)), with a δ
    that stays as it is. It has to be tuned to the problem; :class:`ASNG` has not.

    Args:
        space, population_size: See :class:`Optimizer`.
        delta: Trust-region radius δ, above 0.
        common: Margin, seed, direction, limits and device, see :class:`Optimizer`.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range, or the
            space has nothing to choose.
    """

    _engine: _host.SNG
    _own_settings = ("delta",)

    def __init__(
        self,
        space: SearchSpace,
        *,
        population_size: int = 2,
        delta: float = 1.0,
        **common: Unpack[CommonSettings],
    ) -> None:
        super().__init__(space, population_size=population_size, **common)
        check_number("delta", delta, 0.0)
        self._delta = float(delta)
        self._engine = self._started(_host.SNG(self._common, delta=self._delta))

    @property
    def delta(self) -> float:
        """Trust-region radius δ of every update."""
        return self._delta
