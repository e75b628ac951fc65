"""What strategies have in common that draw from a generator of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor

from asng_ext._random import seeded_generator
from asng_ext.runs.config import Checked
from asng_ext.space import Samples
from asng_ext.strategies.protocol import Parts, Strategy
from asng_ext.tasks.protocol import Batch, SearchTask

__all__ = ["SeededStrategy"]


class SeededStrategy(Strategy):
    """A method with settings of its own.

    Args:
        task: Data, supernet and losses.
        options: Settings of its own, of its class ``Options``.
        epochs: Of the whole search.
        seed: Decides all that it draws, from ``generator`` alone.
    """

    Options: ClassVar[type[Checked]] = Checked

    def __init__(self, task: SearchTask, options: Any, *, epochs: int, seed: int) -> None:
        self.space = task.space
        self.task = task
        self.options = options
        self.epochs = epochs
        self.seed = seed

    @property
    def identity(self) -> dict[str, Any]:
        return {**super().identity, "options": asdict(self.options), "strategy_seed": self.seed}

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        # On the CPU, wherever the supernet is: the same draws everywhere.
        self.generator = seeded_generator(self.seed, f"strategy {self.name}", torch.device("cpu"))

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def train_weights(self, batch: Batch, samples: Samples) -> None:
        """A step of the weights on the mean loss of architectures."""
        parts = self.parts
        parts.modes.train()
        parts.weight_optimizer.zero_grad(set_to_none=False)
        losses, metrics = self.task.losses(parts.supernet, batch, samples)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        parts.weight_optimizer.step()
        parts.means.add({"loss": losses, **metrics}, "train_")

    def evaluate(self, batch: Batch, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """(λ,) losses of architectures and the means of metrics, without a trace in the
        supernet."""
        parts = self.parts
        with torch.no_grad(), parts.modes.frozen_batch_norm():
            return self.task.losses(parts.supernet, batch, samples)
