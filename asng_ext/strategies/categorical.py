"""What strategies of categorical variables have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from asng_ext._random import seeded_generator
from asng_ext.optimizers import Theta
from asng_ext.runs.config import Checked
from asng_ext.space import Samples
from asng_ext.strategies.protocol import Parts, Strategy
from asng_ext.tasks.protocol import Batch, SearchTask
from asng_ext.training.batch_norm import frozen_batch_norm

__all__ = ["CategoricalStrategy"]


class CategoricalStrategy(Strategy):
    """A method that chooses among categories.

    Args:
        task: Data, supernet and losses.
        options: Settings of its own, of its class ``Options``.
        epochs: Of the whole search.
        seed: Decides all that it draws, from ``generator`` alone.

    Raises:
        ValueError: If the space has variables that are not categorical, or conditional ones.
    """

    Options: ClassVar[type[Checked]] = Checked

    def __init__(self, task: SearchTask, options: Any, *, epochs: int, seed: int) -> None:
        self.space = task.space
        if self.space.numerical or self.space.active_if or not self.space.sizes:
            raise ValueError(
                f"strategy {self.name} is for spaces of categorical variables alone, none of them "
                f"conditional, got {self.space!r}"
            )
        self.task = task
        self.options = options
        self.epochs = epochs
        self.seed = seed

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        # On the CPU, wherever the supernet is: the same draws everywhere.
        self.generator = seeded_generator(self.seed, f"strategy {self.name}", torch.device("cpu"))

    @property
    def theta(self) -> Theta:
        """The probabilities of choices; uniform ones of a method that has none."""
        sizes = self.space.sizes
        rows = np.zeros((len(sizes), max(sizes)))
        for row, probabilities in zip(rows, self.probabilities()):
            row[: len(probabilities)] = probabilities
        return Theta(rows, np.zeros((2, 0)))

    def probabilities(self) -> Sequence[Any]:
        """(K,) probabilities of the choices of each variable."""
        return [np.full(size, 1 / size) for size in self.space.sizes]

    def numbers(self) -> dict[str, float]:
        return {"convergence": float(np.mean([max(row) for row in self.probabilities()]))}

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.generator.set_state(state["generator"])

    def uniform(self, count: int) -> Samples:
        """Architectures whose choices are all equally likely."""
        columns = [
            torch.randint(size, (count,), generator=self.generator) for size in self.space.sizes
        ]
        return self.samples(torch.stack(columns, dim=1))

    def samples(self, indices: Any) -> Samples:
        """Architectures of (count, d) or (d,) category indices."""
        rows = np.asarray(indices, dtype=np.int64).reshape(-1, len(self.space.sizes))
        return Samples(self.space, rows, np.zeros((len(rows), 0)))

    def decoded(self, indices: Any) -> dict[str, Any]:
        """An architecture by names."""
        return self.space.decode([int(index) for index in indices])

    def train_weights(self, batch: Batch, samples: Samples) -> None:
        """A step of the weights on the mean loss of architectures."""
        parts = self.parts
        parts.supernet.train()
        parts.weight_optimizer.zero_grad(set_to_none=False)
        losses, metrics = self.task.losses(parts.supernet, batch, samples)
        losses.mean().backward()  # type: ignore[no-untyped-call]
        parts.weight_optimizer.step()
        parts.means.add({"loss": losses, **metrics}, "train_")

    def evaluate(self, batch: Batch, samples: Samples) -> tuple[Tensor, dict[str, Tensor]]:
        """(λ,) losses of architectures and the means of metrics, without a trace in the
        supernet."""
        supernet = self.parts.supernet
        with torch.no_grad(), frozen_batch_norm(supernet):
            return self.task.losses(supernet, batch, samples)

    def reward(self, batch: Batch, indices: Any) -> float:
        """How good one architecture is on a batch: its accuracy, or the negative loss where the
        task gives none."""
        losses, metrics = self.evaluate(batch, self.samples(indices))
        return float(metrics["accuracy"]) if "accuracy" in metrics else -float(losses.mean())

    def mean_reward(self, batches: Sequence[Batch], indices: Any) -> float:
        """That over several batches."""
        return float(np.mean([self.reward(batch, indices) for batch in batches]))

    def validation(self, epoch: int) -> list[Batch]:
        """The batches of an epoch that train no weights."""
        return list(self.task.theta_batches(epoch))
