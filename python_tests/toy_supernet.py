"""A supernet of a few numbers, whose best architecture is known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import asng_ext as asng
from asng_ext.nn import Relaxation
from asng_ext.runs.config import SearchConfig
from asng_ext.strategies import get
from asng_ext.strategies.protocol import Parts
from asng_ext.tasks.protocol import TaskDefaults
from asng_ext.training.metrics import Means
from asng_ext.training.weight_optimizers import ClippedSGD

PLANTED = (2, 0, 1, 3, 2)
CHOICES = 4


def features(x: Tensor) -> Tensor:
    """(N, V) numbers in [-1, 1] to (N, V, K), about orthogonal, of variance 1."""
    angle = math.pi * x
    return math.sqrt(2) * torch.stack(
        [angle.sin(), angle.cos(), (2 * angle).sin(), (2 * angle).cos()], dim=2
    )


class ToySupernet(nn.Module):
    """Variable v is a function of its own number to choose, times a weight."""

    def __init__(self, variables: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(variables, CHOICES))

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """(N, V) and the (V, K) weights of choices to (N,)."""
        return (features(x) * self.weight * weights).sum(dim=(1, 2))


class ToyTask(TaskDefaults):
    """A sum of functions of single numbers, of which each choice but the planted one explains
    nothing."""

    own_generators = True
    search_steps = 25

    def __init__(self, planted: tuple[int, ...] = PLANTED, *, dtype: torch.dtype = torch.float32):
        self.planted, self.dtype = planted, dtype
        self.space = asng.SearchSpace.from_sizes([CHOICES] * len(planted))
        generator = torch.Generator().manual_seed(3)
        self.x = 2 * torch.rand(2, 512, len(planted), generator=generator, dtype=dtype) - 1
        amplitude = 1 + 0.2 * torch.arange(len(planted), dtype=dtype)
        one_hot = torch.eye(CHOICES, dtype=dtype)[list(planted)]
        self.y = (features(self.x.flatten(0, 1)) * (amplitude[:, None] * one_hot)).sum((1, 2))
        self.y = self.y.view(2, -1)

    def supernet(self) -> nn.Module:
        return ToySupernet(len(self.planted)).to(self.dtype)

    def _batches(self, epoch: int, half: int) -> Iterable[Any]:
        generator = torch.Generator().manual_seed(2 * epoch + half)
        for _ in range(self.search_steps):
            rows = torch.randint(512, (32,), generator=generator)
            yield self.x[half, rows], self.y[half, rows]

    def weight_batches(self, epoch: int) -> Iterable[Any]:
        return self._batches(epoch, 0)

    def theta_batches(self, epoch: int) -> Iterable[Any]:
        return self._batches(epoch, 1)

    def losses(
        self, supernet: nn.Module, batch: Any, samples: asng.Samples
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        rows = torch.as_tensor(samples.categorical)
        one_hot = nn.functional.one_hot(rows, CHOICES).to(self.dtype)
        return torch.stack([(supernet(x, row) - y).square().mean() for row in one_hot]), {}

    def relaxed_losses(
        self, supernet: nn.Module, batch: Any, relaxation: Relaxation
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch
        weights = relaxation.table(range(len(self.planted)), CHOICES)
        return (supernet(x, weights) - y).square().mean(), {}

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        return {"right": float(sum(a == b for a, b in zip(values.values(), self.planted)))}

    def test_relaxed(self, supernet: nn.Module, relaxation: Relaxation) -> dict[str, float]:
        return {"right": -1.0}


def make_step(strategy: Any, pair: Any) -> None:
    """As the loop does."""
    strategy.prepare()
    strategy.step(pair)
    strategy.stepped()


def begun(
    name: str,
    task: Any,
    *,
    epochs: int = 4,
    seed: int = 0,
    supernet_seed: int | None = None,
    **options: Any,
) -> Any:
    """A strategy with a supernet and its optimizer, as the loop begins it."""
    kind = get(name).load()
    strategy = kind(task, kind.Options(**options), epochs=epochs, seed=seed)
    torch.manual_seed(seed if supernet_seed is None else supernet_seed)
    supernet = strategy.supernet(task)
    config = SearchConfig(learning_rate=0.05, weight_decay=0.0)
    strategy.begin(Parts(task, supernet, ClippedSGD(supernet, config), Means()))
    return strategy
