"""What the search loop and the retraining loop need to know of a task.

New supernets and networks are initialized as a function of the seed that the loop is given. So is
what else a task draws from PyTorch's global generators, for dropout, say. These belong to the whole
process: a loop borrows them for each step, one loop at a time, and another thread must not draw
from them meanwhile. A task that draws all it needs from generators of its own says so by a true
attribute ``own_generators``; the loops then leave the global ones alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from asng_ext.space import Samples, SearchSpace

__all__ = ["Metrics", "Optimizer", "RetrainTask", "SearchTask", "Task"]

Metrics = dict[str, Tensor]
"""Means over a batch, by name, on the device: reading one would make the device wait."""


class Optimizer(Protocol):
    """An ask/tell optimizer of a search space, such as :class:`asng_ext.ASNG`.

    One whose attribute ``capturable`` is true gives samples of tensors on the device, takes losses
    there, keeps its state in tensors that stay where they are, and waits for nothing in ``ask`` and
    ``tell``: steps with it can be captured in a graph.
    """

    space: SearchSpace

    def ask(self) -> Samples: ...

    def tell(self, samples: Samples, losses: Any) -> object: ...

    def recommend(self) -> dict[str, Any]: ...

    @property
    def convergence(self) -> float: ...

    @property
    def delta(self) -> float: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class SearchTask(Protocol):
    """Data, supernet and loss of a search.

    A batch is whatever the task's own methods understand.

    If the attribute ``capturable`` is there and true, steps can be captured in a graph: ``losses``
    does the same work on the device whatever the numbers are, takes samples that are there, and
    draws only from PyTorch's global generators; batches are tensors on the device and plain values,
    in tuples, lists and dicts. See :mod:`asng_ext.training.cuda_graphs`. Where it is not, the
    attribute ``obstacle`` may say why, in words that follow the name of the task.

    A method ``identity(loop)``, if there is one, gives plain values by name on which the results
    of a loop ("search" or "retrain") depend beside the loop's own settings and its seed: a run goes
    on only if they are the same. See :meth:`Task.identity`.
    """

    @property
    def space(self) -> SearchSpace:
        """What to search."""
        ...

    @property
    def search_steps(self) -> int:
        """Steps per epoch."""
        ...

    def supernet(self) -> nn.Module:
        """A new supernet with random weights, on the task's device."""
        ...

    def weight_batches(self, epoch: int) -> Iterable[Any]:
        """Batches that train the weights; a function of the epoch alone."""
        ...

    def theta_batches(self, epoch: int) -> Iterable[Any]:
        """As many batches of other data that move the distribution."""
        ...

    def losses(self, supernet: nn.Module, batch: Any, samples: Samples) -> tuple[Tensor, Metrics]:
        """(λ,) loss of every sample on the same batch, and further means over samples and batch.

        The loop decides whether gradients are recorded.
        """
        ...

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of one architecture with the supernet's weights on test data."""
        ...


class RetrainTask(Protocol):
    """Data, network and loss of a retraining."""

    @property
    def retrain_steps(self) -> int:
        """Steps per epoch."""
        ...

    def network(self, values: Mapping[str, Any]) -> nn.Module:
        """A new network of the architecture with random weights, on the task's device."""
        ...

    def train_batches(self, epoch: int) -> Iterable[Any]:
        """Batches of all training data; a function of the epoch alone."""
        ...

    def begin_epoch(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Sets what changes from epoch to epoch."""
        ...

    def training_loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Metrics]:
        """The loss to minimize, and further means over the batch."""
        ...

    def test(self, network: nn.Module) -> dict[str, float]:
        """Metrics on test data."""
        ...


class Task(SearchTask, RetrainTask, Protocol):
    """A whole experiment: what both loops need, and what the run folder shows."""

    def identity(self, loop: str) -> dict[str, Any]:
        """What results of a loop, "search" or "retrain", depend on, by name: the task, those of its
        settings that matter there, and which data it has. For "retrain" that is also all that
        :meth:`network` needs beside the architecture."""
        ...

    def summary(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Numbers about the network of an architecture, such as its parameters."""
        ...

    def draw_architecture(self, values: Mapping[str, Any], path: Path) -> None:
        """Draws an architecture into a file (PNG)."""
        ...

    def draw_results(self, network: nn.Module, folder: Path) -> None:
        """Draws what there is to see of a retrained network into files of a folder."""
        ...
