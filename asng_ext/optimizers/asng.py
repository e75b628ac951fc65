"""Adaptive stochastic natural gradient (Algorithm 1) behind an ask/tell interface."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from asng_ext import _host
from asng_ext._checks import check_number
from asng_ext.optimizers.base import TOLERANCE, CommonSettings, Optimizer
from asng_ext.space import FloatArray, SearchSpace

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from asng_ext.optimizers._device import ASNGEngine

__all__ = ["ASNG"]


class ASNG(Optimizer):
    """Optimizer of categorical, integer and real variables by the adaptive stochastic natural
    gradient (Algorithm 1).

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
        common: Margin, seed, direction, limits and device, see :class:`Optimizer`. ``device`` may
            be a CUDA device ("cuda", "cuda:1", a torch.device). Samples are then CUDA tensors, and
            neither ``ask`` nor ``tell`` with CUDA losses synchronizes with the device; what reads
            the state does. There a population has at most ``asng_ext._host.LARGEST_POPULATION``
            = 1024 samples, and losses of -inf, which cannot be refused without synchronization,
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
        **common: Unpack[CommonSettings],
    ) -> None:
        if delta_init is None:
            default = isinstance(population_size, str) and population_size == "auto"
            delta_init = "auto" if default else 1.0
        auto = [isinstance(x, str) and x == "auto" for x in (population_size, delta_init)]
        if variance_ratio_min is None:
            variance_ratio_min = 0.5 if any(auto) else 0.0
        super().__init__(
            space,
            population_size=8 if auto[0] else population_size,  # type: ignore[arg-type]
            **common,
        )
        check_number("alpha", alpha, 0.0)
        if auto[1]:
            delta_init = min(1.0, math.sqrt(self.n_theta) / 5)
        check_number("delta_init", delta_init, 0.0)
        check_number("variance_ratio_min", variance_ratio_min, least=0.0, below=1.0)
        check_number("delta_max", delta_max, least=1.0, infinite=True)
        self.alpha = float(alpha)
        self.delta_init = float(delta_init)
        self.delta_max = float(delta_max)
        self.variance_ratio_min = float(variance_ratio_min)
        self._common["variance_ratio_min"] = self.variance_ratio_min
        if self.device == "cpu":
            self._engine = self._started(
                _host.ASNG(
                    self._common,
                    alpha=self.alpha,
                    delta_init=self.delta_init,
                    delta_max=self.delta_max,
                )
            )
        else:
            self._use_device(self.device)

    def _use_device(self, device: str) -> None:
        """Starts anew with the state on a device."""
        import torch

        from asng_ext.optimizers._device import ASNGEngine

        if self._fixed:
            self._fixed.use(torch.device(device))
        self._engine = self._started(
            ASNGEngine(
                self._common,
                alpha=self.alpha,
                delta_init=self.delta_init,
                delta_max=self.delta_max,
                device=torch.device(device),
            )
        )

    def _check_device(self, device: Any) -> str:
        if str(device) == "cpu":
            return "cpu"
        # An optimizer on the CPU does not need torch.
        from asng_ext.optimizers._device import cuda_device

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
        """‖s‖²/γ, the estimate of the signal-to-noise ratio of eq. (18), which the step size
        holds near α (0 before the first update)."""
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
