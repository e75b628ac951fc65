"""What the search loop knows of a method: how weights and architecture are trained in turns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from asng_ext.space import SearchSpace
from asng_ext.tasks.protocol import Batch, SearchTask
from asng_ext.training.metrics import Means
from asng_ext.training.modes import Modes

__all__ = ["Parts", "Strategy"]


@dataclass
class Parts:
    """What a strategy trains, and with what.

    Attributes:
        task: Data, supernet and losses.
        supernet: The supernet that :meth:`Strategy.supernet` made.
        weight_optimizer: The optimizer of its weights, whose learning rate the loop sets.
        means: Where metrics of a step go: "train_" and "theta_" with their names.
        modes: Of the supernet.
    """

    task: SearchTask
    supernet: nn.Module
    weight_optimizer: torch.optim.Optimizer
    means: Means
    modes: Modes = field(init=False)

    def __post_init__(self) -> None:
        self.modes = Modes(self.supernet)


class Strategy(ABC):
    """A method of one-shot search.

    The loop makes a supernet by :meth:`supernet`, calls :meth:`begin`, then for each pair of
    batches :meth:`prepare`, :meth:`step`, or replays one, and :meth:`stepped`; and
    :meth:`end_epoch` after each epoch. Checkpoints hold :meth:`state_dict`.

    Attributes:
        name: By which it is chosen, or that of its optimizer's class.
        space: What it searches.
        population_size: Architectures that a step of the weights trains.
    """

    name: str
    space: SearchSpace
    population_size: int = 1
    parts: Parts

    @property
    def capture_blocker(self) -> str | None:
        """What keeps its steps from being captured in a CUDA graph, in words that follow "steps run
        without CUDA graphs: "; None for nothing."""
        return f"the strategy {self.name} works on the host"

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values on which results depend, beside the settings of the loop."""
        return {"optimizer": self.name, "population_size": self.population_size}

    def supernet(self, task: SearchTask) -> nn.Module:
        """A new supernet with random weights, on the task's device."""
        return task.supernet()

    def begin(self, parts: Parts) -> None:
        """Begins a search with a new supernet. To continue one, its state is loaded then."""
        self.parts = parts

    def prepare(self) -> None:  # noqa: B027
        """What the host does before a step, or a replay of one: nothing. What that is to see of it
        must be put into tensors that stay where they are."""

    @abstractmethod
    def step(self, batches: tuple[Batch, Batch]) -> None:
        """Trains with a batch for the weights and one of other data for the architecture."""

    def stepped(self) -> None:  # noqa: B027
        """What the host does after a step, which may have been a replay: nothing."""

    def end_epoch(self, epoch: int) -> None:  # noqa: B027
        """What follows the steps of an epoch, counted from 0: nothing."""

    @abstractmethod
    def recommend(self) -> dict[str, Any]:
        """The architecture, by names, that the search has found so far."""

    @property
    @abstractmethod
    def theta(self) -> Any:
        """The probabilities of choices, as :class:`asng_ext.optimizers.Theta`; None without any."""

    @abstractmethod
    def numbers(self) -> dict[str, float]:
        """Columns of an epoch's metrics beside the means. Where there are probabilities,
        "convergence" is one, the mean over variables of the largest."""

    def test(self) -> dict[str, float]:
        """Test metrics beside those of the architecture: none."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that changes in a search beside the weights, as tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what :meth:`state_dict` gave."""
