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

State = tuple[Tensor, Tensor, Tensor, Tensor]  # counters, theta, mean, variance
COUNTERS = ("asked", "generation", "evaluations", "moved")


def _optimizer(p: int, state: State, offsets: Tensor, population: int, **settings: object):  # type: ignore[no-untyped-def]
    """Instance ``p`` on the host."""
    counters, *parameters = state
    zeros = [0.0] * state[2].shape[1]
    common = {
        "sizes": offsets.diff().tolist(),
        "margin": [0.0] * (len(offsets) - 1),
        **dict.fromkeys(("low", "high", "std_min"), zeros),
        "variance_ratio_min": 0.0,
        "population_size": population,
        "seed": int(counters[p, 0]) % 2**64,
    }
    step = {name: settings.pop(name, 1.0) for name in ("alpha", "delta_init", "delta_max")}
    optimizer = _host.ASNG({**common, **settings}, **step)  # type: ignore[typeddict-item, arg-type]
    for name, values in zip(("theta", "mean", "variance"), parameters, strict=True):
        setattr(optimizer, name, values[p].numpy())
    for name in COUNTERS:
        setattr(optimizer, name, int(counters[p, _host.COUNTERS.index(name)]))
    return optimizer


def _write_back(optimizer: _host.ASNG, p: int, state: State) -> None:
    counters, *parameters = state
    for name, values in zip(("theta", "mean", "variance"), parameters, strict=True):
        values[p] = torch.from_numpy(getattr(optimizer, name))
    for name in COUNTERS:
        counters[p, _host.COUNTERS.index(name)] = getattr(optimizer, name)


def _ask(
    counters: Tensor, theta: Tensor, mean: Tensor, variance: Tensor, offsets: Tensor, lam: int
) -> tuple[Tensor, Tensor]:
    if theta.dim() == 1:
        one = _ask(*(t[None] for t in (counters, theta, mean, variance)), offsets, lam)
        return one[0][0], one[1][0]
    state = (counters, theta, mean, variance)
    drawn = []
    for p in range(len(theta)):
        optimizer = _optimizer(p, state, offsets, lam)
        drawn.append([torch.from_numpy(values) for values in optimizer.ask()])
        counters[p, _host.COUNTERS.index("asked")] = optimizer.asked
    categorical, numerical = (torch.stack(values) for values in zip(*drawn, strict=True))
    return categorical, numerical


def _tell(
    counters: Tensor,
    theta: Tensor,
    mean: Tensor,
    variance: Tensor,
    s: Tensor,
    step: Tensor,
    best_loss: Tensor,
    best_categorical: Tensor,
    best_numerical: Tensor,
    categorical: Tensor,
    numerical: Tensor,
    losses: Tensor,
    offsets: Tensor,
    margin: Tensor,
    bounds: Tensor,
    alpha: float,
    delta_init: float,
    delta_max: float,
    variance_ratio_min: float,
    maximize: bool,
) -> Tensor:
    if theta.dim() == 1:
        state = (counters, theta, mean, variance, s, step)
        rows = (*state, best_loss, best_categorical, best_numerical, categorical, numerical, losses)
        settings = (alpha, delta_init, delta_max, variance_ratio_min, maximize)
        return _tell(*(t[None] for t in rows), offsets, margin, bounds, *settings)[0]
    state = (counters, theta, mean, variance)
    low, high, std_min, _ = bounds.tolist()
    generation_of_best = _host.COUNTERS.index("best")
    moved = torch.empty(len(theta), dtype=torch.bool)
    for p, given in enumerate(-losses if maximize else losses):
        optimizer = _optimizer(
            p,
            state,
            offsets,
            len(given),
            margin=margin.tolist(),
            low=low,
            high=high,
            std_min=std_min,
            variance_ratio_min=variance_ratio_min,
            alpha=alpha,
            delta_init=delta_init,
            delta_max=delta_max,
        )
        optimizer.s = s[p].numpy()
        optimizer.gamma, optimizer.Delta = step[p].tolist()
        if best_loss[p] < math.inf:
            best = (best_categorical[p].tolist(), best_numerical[p].tolist())
            optimizer.best = (float(best_loss[p]), int(counters[p, generation_of_best]), *best)
        ranked = torch.where(given.isfinite(), given, math.inf).double().numpy()
        samples = categorical[p].numpy(), numerical[p].numpy()
        moved[p] = optimizer.tell(*samples, ranked, False)
        _write_back(optimizer, p, state)
        s[p] = torch.from_numpy(optimizer.s)
        step[p] = torch.tensor([optimizer.gamma, optimizer.Delta], dtype=torch.float64)
        if optimizer.best:
            best_loss[p], counters[p, generation_of_best] = optimizer.best[:2]
            best_categorical[p] = torch.tensor(optimizer.best[2], dtype=torch.int64)
            best_numerical[p] = torch.tensor(optimizer.best[3], dtype=torch.float64)
    return moved


if _libraries.available() and "ASNG_CUDA_ON_CPU" not in os.environ:
    LIBRARY = torch.library.Library("asng", "IMPL", "CPU")
    LIBRARY.impl("_asng_ask", _ask)
    LIBRARY.impl("_asng_tell", _tell)
