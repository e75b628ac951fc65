"""A task and an optimizer that do everything with tensors, on whatever device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import host_operators  # noqa: F401
import torch
from torch import Tensor, nn

import asng_ext as asng
from asng_ext.tasks.protocol import TaskDefaults


def asng_in_tensors(space: asng.SearchSpace, device: str = "cpu") -> asng.ASNG:
    """ASNG with its state in tensors, on the CPU, too."""
    optimizer = asng.ASNG(space, population_size=2, seed=7, device=device)
    if device == "cpu":
        optimizer._use_device(device)
    return optimizer


class Stacked(nn.Module):
    """Layers to choose from on the device: activation (three ways) and output (two)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Parameter(torch.randn(2, 16) / 4)

    def forward(self, x: Tensor, choices: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        ways = torch.stack([x.relu(), x, self.drop(x)])
        return ways.index_select(0, choices[:1])[0] @ self.out.index_select(0, choices[1:])[0]


class StackedTask(TaskDefaults):
    """Tells the sign of a product of two of six numbers."""

    capturable = True
    search_steps = 4

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 6, generator=generator).to(device)
        self.y = (self.x[:, 0] * self.x[:, 1] > 0).float()
        self.space = asng.SearchSpace(
            {
                "act": asng.Categorical(["relu", "id", "drop"]),
                "out": asng.Categorical(["a", "b"]),
            }
        )

    def supernet(self) -> nn.Module:
        return Stacked().to(self.device)

    def _batches(self, epoch: int, half: int) -> Iterable[Any]:
        order = torch.randperm(32, generator=torch.Generator().manual_seed(epoch)) + 32 * half
        return ({"rows": part} for part in order.to(self.device).split(8))

    def weight_batches(self, epoch: int) -> Iterable[Any]:
        return self._batches(epoch, 0)

    def theta_batches(self, epoch: int) -> Iterable[Any]:
        return self._batches(epoch, 1)

    def losses(
        self, supernet: nn.Module, batch: Any, samples: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = (t.index_select(0, batch["rows"]) for t in (self.x, self.y))
        outs = [supernet(x, choices) for choices in torch.as_tensor(samples.categorical)]
        losses = [nn.functional.binary_cross_entropy_with_logits(out, y) for out in outs]
        accuracy = torch.stack([((out > 0) == (y > 0.5)).float().mean() for out in outs]).mean()
        return torch.stack(losses), {"accuracy": accuracy}

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        choices = torch.as_tensor(self.space.encode(values)[0], device=self.device)
        supernet.eval()
        with torch.no_grad():
            out = supernet(self.x, choices)
        return {"accuracy": float(((out > 0) == (self.y > 0.5)).float().mean())}
