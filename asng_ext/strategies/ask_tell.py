"""Algorithm 1 with any ask/tell optimizer: weights and distribution move in turns."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from asng_ext.distributed import ALONE, Ranks
from asng_ext.optimizers import Penalty
from asng_ext.strategies.protocol import Parts, Strategy
from asng_ext.tasks.protocol import Batch, Optimizer, TaskDefaults
from asng_ext.training.spread import Spread

__all__ = ["AskTell"]


class AskTell(Strategy):
    """A weight step and a θ step on a pair of batches.

    What a step changes is in the objects it is made of, and with capturable ones in tensors that
    stay where they are: replaying its work is as good as calling it again.

    Args:
        optimizer: Of the task's space.
        penalty: Limits of what the architecture may cost.
        ranks: The processes that search together.
        repeats: Whether each :meth:`begin` starts from the optimizer as it is now.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        penalty: Penalty | None = None,
        ranks: Ranks = ALONE,
        *,
        repeats: bool = False,
    ) -> None:
        self.name = type(optimizer).__name__
        self.space = optimizer.space
        self.population_size = optimizer.population_size
        self.optimizer = optimizer
        self.penalty = penalty
        self.ranks = ranks
        self._beginning = copy.deepcopy(optimizer.state_dict()) if repeats else None

    @property
    def capture_blocker(self) -> str | None:
        if self.optimizer.capturable:
            return None
        return f"the optimizer, {self.name}, {TaskDefaults.capture_blocker}"

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        if self._beginning is not None:
            self.optimizer.load_state_dict(self._beginning)
        self._spread = Spread(
            self.ranks,
            parts.supernet,
            parts.weight_optimizer,
            self.population_size,
            parts.task.part_of_batch,
        )

    def step(self, batches: tuple[Batch, Batch]) -> None:
        for_weights, for_theta = batches
        self._train_weights(for_weights)
        self._move_distribution(for_theta)

    def _train_weights(self, batch: Batch) -> None:
        parts = self.parts
        parts.modes.train()
        samples = self.optimizer.ask()
        parts.weight_optimizer.zero_grad(set_to_none=False)
        self._spread.begin()
        losses, metrics = parts.task.losses(parts.supernet, *self._spread.own(batch, samples))
        shares = self._spread.share_of_each(losses)
        losses.backward(shares)  # type: ignore[no-untyped-call]  # eq. (9)
        losses, metrics = self._spread.together(losses, metrics, trained=True)
        parts.weight_optimizer.step()
        parts.means.add({"loss": losses, **metrics}, "train_")

    def _move_distribution(self, batch: Batch) -> None:
        parts = self.parts
        samples = self.optimizer.ask()
        with torch.no_grad(), parts.modes.frozen_batch_norm():
            losses, metrics = parts.task.losses(parts.supernet, *self._spread.own(batch, samples))
            losses, metrics = self._spread.together(losses, metrics, trained=False)
        ranked, costs = self.penalty.ranked(samples, losses) if self.penalty else (losses, {})
        self.optimizer.tell(samples, ranked)  # eq. (12) and what follows
        # A step without a finite loss moves nothing.
        parts.means.add({"loss": losses, **metrics, **costs}, "theta_", watched="loss")

    def recommend(self) -> dict[str, Any]:
        return (
            self.penalty.recommend(self.optimizer) if self.penalty else self.optimizer.recommend()
        )

    @property
    def theta(self) -> Any:
        """The optimizer's; None for one of a user's that shows none."""
        return getattr(self.optimizer, "theta", None)

    def numbers(self) -> dict[str, float]:
        return {"convergence": self.optimizer.convergence, "delta": self.optimizer.delta}

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state)
