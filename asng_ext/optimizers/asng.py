"""Adaptive stochastic natural gradient (Algorithm 1) behind an ask/tell interface."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from asng_ext import _host
from asng_ext._checks import check_number
from asng_ext.optimizers._distribution import Margin, Theta, margins
from asng_ext.optimizers.base import TOLERANCE, Optimizer
from asng_ext.space import FloatArray, SearchSpace

if TYPE_CHECKING:
    import torch

    from asng_ext.optimizers._tensors import ASNGEngine

__all__ = ["ASNG", "Theta", "margins"]


class ASNG(Optimizer):
    """Optimizer of categorical, integer and real variables by the adaptive stochastic natural
    gradient (Algorithm 1).

    The distribution starts with the highest entropy: uniform probabilities, Gaussians in the
    middle of their range with half of it as standard deviation. Random numbers are a function of
    ``seed`` and of how many populations were asked for; no global generator is read or set.

    Args:
        space: What to search.
        population_size: λ, samples per ``ask``: "auto" for 8, which suits black-box functions, or
            a number, at least 2. The paper has 2, which suits losses of weights that are trained
            meanwhile.
        alpha: Threshold α of the signal-to-noise ratio, above 0. The default needs no tuning.
        delta_init: Initial trust-region radius δ⁰, above 0. δ never exceeds √n_θ. "auto" is 1, the
            paper's, or √n_θ/5 if that is less: in a small space a step of 1 would all but decide
            the search. None is "auto" with a ``population_size`` of "auto", and 1 otherwise.
        variance_ratio_min: Least factor, in [0, 1), by which an update multiplies the variance of
            a Gaussian. 0 is the paper's update, where one step can take all of it, and where
            clipping the mean to its range keeps the second moment about 0, so that the variance
            jumps. None is 0.5 if one of the above is "auto", and 0 otherwise.
        delta_max: Upper bound of Δ = δ⁰/δ (Δ_max of Algorithm 1), at least 1: δ never falls below
            ``delta_init / delta_max``.
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
        device: Where the optimizer lives: "cpu", or a CUDA device ("cuda", "cuda:1", a
            torch.device). On the latter samples are CUDA tensors, and neither ``ask`` nor ``tell``
            with CUDA losses waits for the device; what reads the state does. There at most 1024
            samples are told at once, and losses of -inf, which cannot be refused without waiting,
            rank last. The same seed gives the same samples on every device, and states go from
            one to the other.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range, or the
            space has nothing to choose.
        RuntimeError: If there is no such CUDA device, torch has no CUDA, or the operators for it
            are not built; the message says which.
    """

    _engine: _host.ASNG | ASNGEngine
    _own_settings = ("alpha", "delta_init", "variance_ratio_min", "delta_max")
    _own_arrays = ("s",)

    def __init__(
        self,
        space: SearchSpace,
        *,
        population_size: int | str = "auto",
        alpha: float = 1.5,
        delta_init: float | str | None = None,
        variance_ratio_min: float | None = None,
        delta_max: float = math.inf,
        margin: Margin = "paper",
        seed: int | None = None,
        maximize: bool = False,
        convergence_limit: float = 0.95,
        patience: int = 20,
        stall_limit: int | None = 100,
        generation_limit: int | None = None,
        evaluation_limit: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if delta_init is None:
            delta_init = "auto" if population_size == "auto" else 1.0
        if variance_ratio_min is None:
            variance_ratio_min = 0.5 if "auto" in (population_size, delta_init) else 0.0
        super().__init__(
            space,
            population_size=8 if population_size == "auto" else population_size,  # type: ignore[arg-type]
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
        check_number("alpha", alpha, 0.0)
        if delta_init == "auto":
            delta_init = min(1.0, math.sqrt(space.n_theta) / 5)
        check_number("delta_init", delta_init, 0.0)
        check_number("variance_ratio_min", variance_ratio_min, least=0.0, below=1.0)
        if not (delta_max >= 1):
            raise ValueError(f"delta_max must be at least 1, got {delta_max}")
        self.alpha = float(alpha)
        self.delta_init = float(delta_init)
        self.delta_max = float(delta_max)
        self.variance_ratio_min = float(variance_ratio_min)
        self._common["variance_ratio_min"] = self.variance_ratio_min
        if self.device == "cpu":
            self._engine = _host.ASNG(
                self._common,
                alpha=self.alpha,
                delta_init=self.delta_init,
                delta_max=self.delta_max,
            )
        else:
            self._use_tensors(self.device)

    def _use_tensors(self, device: str) -> None:
        """Starts anew with the state in tensors on a device."""
        import torch

        from asng_ext.optimizers._tensors import ASNGEngine

        self._engine = ASNGEngine(
            self._common,
            alpha=self.alpha,
            delta_init=self.delta_init,
            delta_max=self.delta_max,
            device=torch.device(device),
        )

    def _check_device(self, device: Any) -> str:
        if str(device) == "cpu":
            return "cpu"
        # An optimizer on the CPU does not need torch.
        from asng_ext.optimizers._tensors import cuda_device

        return str(cuda_device(device))

    def _losses(self, losses: Any) -> Any:
        engine = self._engine
        return super()._losses(losses) if isinstance(engine, _host.ASNG) else engine.losses(losses)

    @property
    def capturable(self) -> bool:
        """Whether steps with it can be captured in a CUDA graph: on a CUDA device they can."""
        return not isinstance(self._engine, _host.ASNG)

    @property
    def delta(self) -> float:
        """Trust-region radius δ = δ⁰/Δ of the next update."""
        return float(self._engine.delta)

    @property
    def s(self) -> FloatArray:
        """(n_θ,) accumulated normalized natural gradient, eq. (19); categorical part first, then
        all first and all second components of the Gaussians."""
        return np.asarray(self._engine.s)

    @property
    def gamma(self) -> float:
        """Correction factor γ, eq. (20)."""
        return float(self._engine.gamma)

    @property
    def Delta(self) -> float:  # noqa: N802 - the paper's symbol
        """Δ of Algorithm 1."""
        return float(self._engine.Delta)

    @property
    def snr(self) -> float:
        """‖s‖²/γ, which the step size adaptation holds near α (0 before the first update)."""
        return float(np.dot(self.s, self.s) / self.gamma) if self.gamma > 0 else 0.0

    def _own_numbers(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "Delta": self.Delta}

    def _array_bounds(self) -> dict[str, tuple[Any, Any]]:
        return {**super()._array_bounds(), "s": (-math.inf, math.inf)}

    def _check_own_numbers(self, state: Mapping[str, Any]) -> None:
        least = self.delta_init / math.sqrt(self.n_theta)
        for name, low, high in (
            ("gamma", 0.0, 1.0),
            ("Delta", least, max(self.delta_max, least)),
        ):
            value = state[name]
            check_number(f"state[{name!r}]", value)
            if not low * (1 - TOLERANCE) <= value <= high * (1 + TOLERANCE):
                raise ValueError(
                    f"state[{name!r}] must be in [{low:.9g}, {high:.9g}], got {value:.9g}"
                )
