"""Stochastic natural gradient with a constant step size, the baseline of Section 3.1."""

from __future__ import annotations

from asng_ext import _host
from asng_ext._checks import check_number
from asng_ext.optimizers._distribution import Margin
from asng_ext.optimizers.base import Optimizer
from asng_ext.space import SearchSpace

__all__ = ["SNG"]


class SNG(Optimizer):
    """Optimizer of categorical, integer and real variables by the stochastic natural gradient.

    The update is that of :class:`ASNG`, θ + δ G/‖G‖_F and projection (eqs. 13 and 14), with a δ
    that stays as it is. It has to be tuned to the problem; :class:`ASNG` has not.

    Args:
        space: What to search.
        population_size: λ, samples per ``ask``; at least 2.
        delta: Trust-region radius δ, above 0.
        margin: Lower bound of probabilities, see :func:`margins`.
        seed: Any integer in [0, 2⁶⁴), or None for one from the operating system.
        maximize: Treat what is told as scores to maximize instead of losses.
        convergence_limit: ``should_stop`` once :attr:`progress`, in [0, 1], is this far and
            ``patience`` is over.
        patience: Populations in a row without a new :attr:`best` after which the search counts as
            done where it has converged.
        stall_limit: ``should_stop``, with a RuntimeWarning, after so many populations in a row of
            which none moved the distribution; None for never.
        generation_limit: ``should_stop`` after this many ``tell``; None for no limit.
        evaluation_limit: ``should_stop`` where one more population would be more than so many
            samples told; None for no limit.
        device: Where the optimizer lives; "cpu".

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
        margin: Margin = "paper",
        seed: int | None = None,
        maximize: bool = False,
        convergence_limit: float = 0.95,
        patience: int = 20,
        stall_limit: int | None = 100,
        generation_limit: int | None = None,
        evaluation_limit: int | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            space,
            population_size=population_size,
            margin=margin,
            seed=seed,
            maximize=maximize,
            convergence_limit=convergence_limit,
            patience=patience,
            stall_limit=stall_limit,
            generation_limit=generation_limit,
            evaluation_limit=evaluation_limit,
            device=device,
        )
        check_number("delta", delta, 0.0)
        self._delta = float(delta)
        self._engine = _host.SNG(self._common, delta=self._delta)

    @property
    def delta(self) -> float:
        """Trust-region radius δ of every update."""
        return self._delta
