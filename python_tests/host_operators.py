"""The optimizer's operators for tensors on the CPU, by the optimizer for NumPy arrays.

The package has them for CUDA alone. Importing this module registers what stands in for them where
tests run without a device, unless a grid on the CPU does (ASNG_CUDA_ON_CPU, see conftest.py).
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from asng_ext import _host
from asng_ext.ops import _libraries

COUNTERS = ("asked", "generation", "evaluations", "moved")


class _Parts:
    """Views of what is in the two tensors, see csrc/ops/library.cpp."""

    def __init__(self, state: Tensor, space: Tensor, n: int) -> None:
        m = (len(space) - 1 - 4 * n) // 2
        offsets, self.margin, bounds = space.split([m + 1, m, 4 * n])
        self.sizes = offsets.view(torch.int64).diff().tolist()
        self.bounds = bounds.view(4, n)
        count, width = len(_host.COUNTERS), sum(self.sizes)
        sizes = [count, 2, 1, width, n, n, width - m + 2 * n, m, n]
        counters, self.step, self.best_loss, *parameters, best, self.best_numerical = state.split(
            sizes, dim=1
        )
        self.parameters, self.s = parameters[:3], parameters[3]
        self.counters, self.best_categorical = counters.view(torch.int64), best.view(torch.int64)

    def optimizer(self, p: int, population: int, **settings: object) -> _host.ASNG:
        """Instance ``p`` on the host."""
        low, high, std_min, _ = self.bounds.tolist()
        common = {
            "sizes": self.sizes,
            "margin": self.margin.tolist(),
            "low": low,
            "high": high,
            "std_min": std_min,
            "variance_ratio_min": 0.0,
            "population_size": population,
            "seed": int(self.counters[p, 0]) % 2**64,
        }
        step = {name: settings.pop(name, 1.0) for name in ("alpha", "delta_init", "delta_max")}
        optimizer = _host.ASNG({**common, **settings}, **step)  # type: ignore[typeddict-item, arg-type]
        for name, values in zip(("theta", "mean", "variance"), self.parameters, strict=True):
            setattr(optimizer, name, values[p].numpy())
        for name in COUNTERS:
            setattr(optimizer, name, int(self.counters[p, _host.COUNTERS.index(name)]))
        return optimizer

    def write_back(self, optimizer: _host.ASNG, p: int) -> None:
        for name, values in zip(("theta", "mean", "variance"), self.parameters, strict=True):
            values[p] = torch.from_numpy(getattr(optimizer, name))
        for name in COUNTERS:
            self.counters[p, _host.COUNTERS.index(name)] = getattr(optimizer, name)


def _ask(
    state: Tensor, space: Tensor, n: int, largest: int, lam: int
) -> tuple[Tensor, Tensor | None]:
    if state.dim() == 1:
        one = _ask(state[None], space, n, largest, lam)
        return one[0][0], None if one[1] is None else one[1][0]
    parts = _Parts(state, space, n)
    drawn = []
    for p in range(len(state)):
        optimizer = parts.optimizer(p, lam)
        drawn.append([torch.from_numpy(values) for values in optimizer.ask()])
        parts.counters[p, _host.COUNTERS.index("asked")] = optimizer.asked
    categorical, numerical = (torch.stack(values) for values in zip(*drawn, strict=True))
    return categorical, numerical if n else None


def _tell(
    state: Tensor,
    space: Tensor,
    n: int,
    largest: int,
    categorical: Tensor,
    numerical: Tensor | None,
    losses: Tensor,
    alpha: float,
    delta_init: float,
    delta_max: float,
    variance_ratio_min: float,
    maximize: bool,
) -> Tensor:
    if state.dim() == 1:
        told = (categorical[None], None if numerical is None else numerical[None], losses[None])
        settings = (alpha, delta_init, delta_max, variance_ratio_min)
        return _tell(state[None], space, n, largest, *told, *settings, maximize)[0]
    if numerical is None:
        numerical = categorical.new_empty(*categorical.shape[:-1], 0, dtype=torch.float64)
    parts = _Parts(state, space, n)
    generation_of_best = _host.COUNTERS.index("best")
    moved = torch.empty(len(state), dtype=torch.bool)
    for p, given in enumerate(-losses if maximize else losses):
        optimizer = parts.optimizer(
            p,
            len(given),
            variance_ratio_min=variance_ratio_min,
            alpha=alpha,
            delta_init=delta_init,
            delta_max=delta_max,
        )
        optimizer.s = parts.s[p].numpy()
        optimizer.gamma, optimizer.Delta = parts.step[p].tolist()
        if parts.best_loss[p] < math.inf:
            best = (parts.best_categorical[p].tolist(), parts.best_numerical[p].tolist())
            generation = int(parts.counters[p, generation_of_best])
            optimizer.best = (float(parts.best_loss[p]), generation, *best)
        ranked = torch.where(given.isfinite(), given, math.inf).double().numpy()
        samples = categorical[p].numpy(), numerical[p].numpy()
        moved[p] = optimizer.tell(*samples, ranked, False)
        parts.write_back(optimizer, p)
        parts.s[p] = torch.from_numpy(optimizer.s)
        parts.step[p] = torch.tensor([optimizer.gamma, optimizer.Delta], dtype=torch.float64)
        if optimizer.best:
            parts.best_loss[p], parts.counters[p, generation_of_best] = optimizer.best[:2]
            parts.best_categorical[p] = torch.tensor(optimizer.best[2], dtype=torch.int64)
            parts.best_numerical[p] = torch.tensor(optimizer.best[3], dtype=torch.float64)
    return moved


if _libraries.available() and "ASNG_CUDA_ON_CPU" not in os.environ:
    LIBRARY = torch.library.Library("asng", "IMPL", "CPU")
    LIBRARY.impl("_asng_ask", _ask)
    LIBRARY.impl("_asng_tell", _tell)
