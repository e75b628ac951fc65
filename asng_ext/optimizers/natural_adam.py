"""Adam on the normalized natural gradient, the other baseline of Section 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asng_ext import _host
from asng_ext._checks import check_integer, check_number
from asng_ext.optimizers._distribution import Margin
from asng_ext.optimizers.base import TOLERANCE, Optimizer
from asng_ext.space import SearchSpace

__all__ = ["NaturalAdam"]


class NaturalAdam(Optimizer):
    """Optimizer of categorical, integer and real variables by Adam (Kingma & Ba, 2015).

    The gradient is the natural gradient divided by its norm, G/(‖G‖_F + 1e-9), as in
    :class:`ASNG`; with the plain one Adam does not work properly (Section 3.1). Moments are kept
    for all K probabilities of a categorical variable, which move as if they were free and are
    then projected back onto a distribution, and for the parameters (μ, μ² + σ²) of Gaussians.

    Args:
        space: What to search.
        population_size: λ, samples per ``ask``; at least 2.
        step_size: Adam's, above 0: about how far each parameter moves in an update.
        beta1, beta2: Decay of the two moments, in [0, 1).
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
        check_number("step_size", step_size, 0.0)
        for name, value in (("beta1", beta1), ("beta2", beta2)):
            check_number(name, value, least=0.0, below=1.0)
        self.step_size = float(step_size)
        self.beta1 = float(beta1)
        self.beta2 = float(beta2)
        self._engine = _host.NaturalAdam(
            self._common, step_size=self.step_size, beta1=self.beta1, beta2=self.beta2
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
                np.ones(sum(self.space.sizes)),
                np.sqrt(variance),
                np.sqrt(4 * mean**2 * variance + 2 * variance**2),
            ]
        ) * (1 + TOLERANCE)
        return {**bounds, "first_moment": (-most, most), "second_moment": (0.0, most**2)}

    def _check_own_numbers(self, state: Mapping[str, Any]) -> None:
        check_integer("state['updates']", state["updates"], 0, 2**63)
