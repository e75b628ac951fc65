"""A task of one's own: search, retrain and test by the loops of this package, in a run folder.

The loops bring checkpoints, metrics, progress and resuming; the task brings data, supernet, network
and losses. This one tells which of two spirals a point of the plane is on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import asng_ext as asng
from asng_ext.engine.retrain import retrain
from asng_ext.engine.search import search
from asng_ext.nn import Choice, search_space, subnet
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.protocol import Metrics, TaskDefaults


def spirals(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 2) points and (count,) labels, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator).float()
    radius = torch.rand(count, generator=generator).sqrt()
    angle = 5 * radius + math.pi * labels
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points + 0.02 * torch.randn(count, 2, generator=generator), labels


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class SpiralTask(TaskDefaults):
    """Members of `SearchTask` and `RetrainTask`; the others are those of `TaskDefaults`."""

    search_steps = 40  # an epoch
    retrain_steps = 80
    shown_metrics: Mapping[str, str] = {"accuracy": "accuracy"}

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self.points, self.labels = spirals(80 * batch_size, seed=0)
        self.test_points, self.test_labels = spirals(1000, seed=1)
        self.space = search_space(self.supernet())

    # ---------------------------------------------------------------------------------- search

    def supernet(self) -> nn.Module:
        activations = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sine": Sine()}
        deeper = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        return nn.Sequential(
            nn.Linear(2, 32),
            Choice("activation", activations),
            Choice("block", {"deeper": deeper, "skip": nn.Identity()}),
            nn.Linear(32, 1),
        )

    def weight_batches(self, epoch: int) -> Iterator[Tensor]:
        return self._batches(epoch, torch.arange(0, len(self.points), 2))

    def theta_batches(self, epoch: int) -> Iterator[Tensor]:
        return self._batches(epoch, torch.arange(1, len(self.points), 2))

    def losses(
        self, supernet: nn.Module, batch: Tensor, samples: asng.Samples
    ) -> tuple[Tensor, Metrics]:
        both = [self._loss(subnet(supernet, sample), batch) for sample in samples]
        accuracy = torch.stack([accuracy for _, accuracy in both]).mean()
        return torch.stack([loss for loss, _ in both]), {"accuracy": accuracy}

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        return self.test(subnet(supernet, values))

    # ------------------------------------------------------------------------------- retraining

    def network(self, values: Mapping[str, Any]) -> nn.Module:
        return subnet(self.supernet(), values)

    def train_batches(self, epoch: int) -> Iterator[Tensor]:
        return self._batches(epoch, torch.arange(len(self.points)))

    def training_loss(self, network: nn.Module, batch: Tensor) -> tuple[Tensor, Metrics]:
        loss, accuracy = self._loss(network, batch)
        return loss, {"accuracy": accuracy}

    def test(self, network: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            right = (network(self.test_points).squeeze(1) > 0) == (self.test_labels > 0)
        return {"accuracy": right.float().mean().item()}

    # ------------------------------------------------------------------------------------ shared

    def _batches(self, epoch: int, rows: Tensor) -> Iterator[Tensor]:
        """Rows of the data in an order that is a function of the epoch alone."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))
        return iter(rows[order].split(self.batch_size))

    def _loss(self, network: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits, labels = network(self.points[rows]).squeeze(1), self.labels[rows]
        right = (logits > 0) == (labels > 0)
        return binary_cross_entropy_with_logits(logits, labels), right.float().mean()


def main(folder: str = "runs/spirals") -> None:
    task = SpiralTask()
    run = RunFolder.create(Path(folder))
    optimizer = asng.ASNG(task.space, population_size=2, delta_init=0.2, seed=0)
    found = search(task, optimizer, SearchConfig(epochs=10, learning_rate=0.1), seed=0, run=run)
    print("found", found.architecture)
    settings = RetrainConfig(epochs=10, learning_rate=0.1)
    _, tested = retrain(task, found.architecture, settings, seed=0, run=run)
    print(f"test accuracy {tested['accuracy']:.3f}, metrics in {folder}/retrain.csv")


if __name__ == "__main__":
    main(*sys.argv[1:])
