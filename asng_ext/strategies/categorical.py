"""What strategies of categorical variables have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from asng_ext.optimizers import Theta
from asng_ext.space import Samples
from asng_ext.strategies.seeded import SeededStrategy
from asng_ext.tasks.protocol import Batch, SearchTask
from asng_ext.training.divergence import DivergedError

__all__ = ["CategoricalStrategy"]


class CategoricalStrategy(SeededStrategy):
    """A method that chooses among categories.

    Its arguments are those of :class:`asng_ext.strategies.seeded.SeededStrategy`.

    Raises:
        ValueError: If the space has variables that are not categorical, or conditional ones.
    """

    def __init__(self, task: SearchTask, options: Any, *, epochs: int, seed: int) -> None:
        super().__init__(task, options, epochs=epochs, seed=seed)
        if self.space.numerical or self.space.active_if or not self.space.sizes:
            raise ValueError(
                f"strategy {self.name} is for spaces of categorical variables alone, none of them "
                f"conditional, got {self.space!r}"
            )

    @property
    def theta(self) -> Theta | None:
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

    def reward(self, batch: Batch, indices: Any) -> float:
        """How good one architecture is on a batch: its accuracy, or the negative loss where the
        task gives none.

        Raises:
            DivergedError: If its loss is not finite.
        """
        losses, metrics = self.evaluate(batch, self.samples(indices))
        self.parts.means.add({"loss": losses, **metrics}, "theta_", watched="loss")
        loss = float(losses.mean())
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss of an architecture that {self.name} compares is {loss}: "
                f"{self.decoded(indices)}"
            )
        return float(metrics["accuracy"]) if "accuracy" in metrics else -loss

    def mean_reward(self, batches: Sequence[Batch], indices: Any) -> float:
        """That over several batches."""
        return float(np.mean([self.reward(batch, indices) for batch in batches]))

    def validation(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch that train no weights, each made when it is taken."""
        return iter(self.task.theta_batches(epoch))
