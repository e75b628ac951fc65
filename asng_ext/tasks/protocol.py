"""What the search loop and the retraining loop need to know of a task.

A task of one's own inherits :class:`TaskDefaults`, which has every member that need not be written,
and writes the others: those of :class:`SearchTask` for a search, of :class:`RetrainTask` for a
retraining, of :class:`Task` for a run folder with both.

New supernets and networks are initialized as a function of the seed that the loop is given. So is
what else a task draws from PyTorch's global generators, for dropout, say. These belong to the whole
process: a loop borrows them for each step, one loop at a time, and another thread must not draw
from them meanwhile.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn

from asng_ext.costs import Cost
from asng_ext.nn import Latencies, Relaxation
from asng_ext.space import Samples, SearchSpace
from asng_ext.training.spread import BatchPart, part_of_batch

__all__ = [
    "Batch",
    "BatchPart",
    "Metrics",
    "Optimizer",
    "RelaxedTask",
    "RetrainTask",
    "SearchTask",
    "Task",
    "TaskDefaults",
    "check_members",
    "shown_metrics",
]

Batch: TypeAlias = (
    "Tensor | str | float | tuple[Batch, ...] | list[Batch] | Mapping[str, Batch] | None"
)
"""What a step is given, in both loops: tensors on the task's device and plain values, nested in
tuples, lists and dicts. Only the task looks into it. Within an epoch, batches should have the same
structure and shapes: a step is captured for each; see :mod:`asng_ext.training.cuda_graphs`."""

Metrics = dict[str, Tensor]
"""Means over a batch, by name, on the device: reading one would synchronize with it."""


class Optimizer(Protocol):
    """An ask/tell optimizer of a search space, such as :class:`asng_ext.ASNG`.

    A ``capturable`` one gives samples of tensors on the device, takes losses there, keeps its state
    in tensors that stay where they are, and does not synchronize in ``ask`` and ``tell``: steps
    with it can be captured in a graph.
    """

    space: SearchSpace
    population_size: int

    @property
    def capturable(self) -> bool: ...

    def ask(self) -> Samples: ...

    def tell(self, samples: Samples, losses: Any) -> object: ...

    def recommend(self) -> dict[str, Any]: ...

    @property
    def convergence(self) -> float: ...

    @property
    def delta(self) -> float: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class TaskDefaults:
    """The members of a task that need not be written, for a task of one's own to inherit.

    Attributes:
        own_generators: Whether the task draws all it needs from generators of its own, and none
            from PyTorch's global ones; the loops then leave these alone.
        capturable: Whether steps can be captured in a graph: ``losses`` does the same work on the
            device whatever the numbers are, takes samples that are there, and draws only from
            PyTorch's global generators.
        capture_blocker: Why not, in words that follow the name of the task.
        retrain_capturable: Whether steps of the retraining can be captured: the same of
            ``training_loss``.
        kernels: What computes the supernet, where there is a choice, in words that the search
            shows.
        kernel_candidates: What may compute it, as environment variables by name, first what does
            by default; empty where there is no choice. See :mod:`asng_ext.engine.autotune`.
        shown_metrics: The metrics that the loops show beside the loss, and how they are called
            there: {"psnr": "PSNR"}.
    """

    own_generators: bool = False
    capturable: bool = False
    capture_blocker: str = "works on the host (it is not capturable)"
    retrain_capturable: bool = False
    kernels: str = ""
    kernel_candidates: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    shown_metrics: Mapping[str, str] = MappingProxyType({})

    def identity(self, loop: str) -> dict[str, Any]:
        """Nothing: results depend on the settings and the seed of the loop alone."""
        return {}

    def part_of_batch(self, batch: Any, index: int, count: int) -> BatchPart:
        """A part of the rows of all tensors in the batch."""
        return part_of_batch(batch, index, count)

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        """Nothing: there are no test data."""
        return {}

    def begin_epoch(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Nothing changes from epoch to epoch."""

    def prepare_batch(self, network: nn.Module, batch: Any) -> Any:
        """The batch itself: the network needs nothing else."""
        return batch

    def summary(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing is said of a network."""
        return {}

    def cost(self, name: str, latencies: Latencies) -> Cost:
        """Nothing is counted: a search cannot have limits."""
        raise ValueError(f"penalty must be of costs that the task counts, got {name!r}")

    def blueprint(self, network: nn.Module) -> dict[str, Any]:
        """Nothing is said of how a network is built: it cannot be loaded without the task."""
        return {}

    def details(self, network: nn.Module) -> dict[str, Any]:
        """Nothing more is said of the results of a network."""
        return {}

    def draw_architecture(self, values: Mapping[str, Any], path: Path) -> None:
        """Nothing is drawn of an architecture."""

    def draw_results(self, network: nn.Module, folder: Path) -> None:
        """Nothing is drawn of a network."""


class _TaskOfALoop(Protocol):
    """What both loops need; see :class:`TaskDefaults`."""

    @property
    def own_generators(self) -> bool: ...

    @property
    def shown_metrics(self) -> Mapping[str, str]: ...

    def identity(self, loop: str) -> dict[str, Any]:
        """Plain values by name on which the results of a loop, "search" or "retrain", depend beside
        the loop's own settings and its seed: a run continues only if they are the same. For
        "retrain" that is also all that the network needs beside the architecture."""
        ...

    def part_of_batch(self, batch: Any, index: int, count: int) -> BatchPart:
        """Part number ``index`` of the ``count`` parts of a batch, for ranks that divide it. The
        mean of the losses of all parts, weighted by their ``loss_share``, is the loss."""
        ...


class SearchTask(_TaskOfALoop, Protocol):
    """Data, supernet and loss of a search."""

    @property
    def capturable(self) -> bool: ...

    @property
    def capture_blocker(self) -> str: ...

    @property
    def kernels(self) -> str: ...

    @property
    def kernel_candidates(self) -> Mapping[str, Mapping[str, str]]: ...

    @property
    def space(self) -> SearchSpace:
        """What to search."""

    @property
    def search_steps(self) -> int:
        """Steps per epoch."""

    def supernet(self) -> nn.Module:
        """A new supernet with random weights, on the task's device."""

    def weight_batches(self, epoch: int) -> Iterable[Batch]:
        """Batches that train the weights; a function of the epoch alone. To continue within an
        epoch, all are made again, and those that were used are left out."""

    def theta_batches(self, epoch: int) -> Iterable[Batch]:
        """As many batches of other data that move the distribution."""

    def losses(self, supernet: nn.Module, batch: Any, samples: Samples) -> tuple[Tensor, Metrics]:
        """(λ,) loss of every sample on the same batch, and further means over samples and batch.

        The loop decides whether gradients are recorded.
        """

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        """Metrics of one architecture with the supernet's weights on test data."""


class RelaxedTask(SearchTask, Protocol):
    """What strategies that relax the space need as well; a task need not offer them."""

    def relaxed_losses(
        self, supernet: nn.Module, batch: Any, relaxation: Relaxation
    ) -> tuple[Tensor, Metrics]:
        """() loss of the mixture of architectures on a batch, differentiable by the weights of the
        supernet and of the relaxation, and further means over the batch."""

    def test_relaxed(self, supernet: nn.Module, relaxation: Relaxation) -> dict[str, float]:
        """Metrics of the mixture on test data, those of ``test_supernet``."""


class RetrainTask(_TaskOfALoop, Protocol):
    """Data, network and loss of a retraining."""

    @property
    def retrain_capturable(self) -> bool: ...

    @property
    def retrain_steps(self) -> int:
        """Steps per epoch."""

    def network(self, values: Mapping[str, Any]) -> nn.Module:
        """A new network of the architecture with random weights, on the task's device."""

    def train_batches(self, epoch: int) -> Iterable[Batch]:
        """Batches of all training data; a function of the epoch alone."""

    def begin_epoch(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Sets what changes from epoch to epoch. A captured step sees of that what is changed
        within tensors, and what ``prepare_batch`` takes from it."""

    def prepare_batch(self, network: nn.Module, batch: Any) -> Any:
        """The batch with what else a step is given, such as random numbers from a generator of
        the task's own. Before each step, and no part of what is captured of it."""

    def training_loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Metrics]:
        """The loss to minimize, and further means over the batch."""

    def test(self, network: nn.Module) -> dict[str, float]:
        """Metrics on test data."""

    def details(self, network: nn.Module) -> dict[str, Any]:
        """What else results.json is to hold beside the metrics of ``test``, as plain values."""
        ...

    def blueprint(self, network: nn.Module) -> dict[str, Any]:
        """What :mod:`asng_ext.retrained` needs beside the weights to build a network without the
        task, as plain values; empty if it cannot."""
        ...


class Task(SearchTask, RetrainTask, Protocol):
    """A whole experiment: what both loops need, and what the run folder shows."""

    def summary(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Numbers about the network of an architecture, such as its parameters."""

    def cost(self, name: str, latencies: Latencies) -> Cost:
        """What the networks of samples that are retrained cost; ValueError for a name that the
        task does not know, or settings that leave open what is retrained.

        Args:
            name: One of :data:`asng_ext.nn.costs.KINDS`, or of the task's own.
            latencies: Where latencies are measured, if need be.
        """

    def draw_architecture(self, values: Mapping[str, Any], path: Path) -> None:
        """Draws an architecture into a file (PNG). One that takes ``near_ties``, too, is given the
        probabilities of variables for which another value was nearly as likely as that of the
        architecture: {variable: {value: probability, other value: probability}}."""

    def draw_results(self, network: nn.Module, folder: Path) -> None:
        """Draws what there is to see of a retrained network into files of a folder."""


def shown_metrics(
    row: Mapping[str, float], task: _TaskOfALoop, prefixes: Mapping[str, str]
) -> dict[str, float]:
    """What is shown of a row of metrics: the loss, and what the task shows, by label. ``prefixes``
    are those of the labels, with those of the metrics."""
    names = {"train loss": "train_loss"} | {
        f"{prefix} {label}": f"{column}_{name}"
        for prefix, column in prefixes.items()
        for name, label in task.shown_metrics.items()
    }
    return {label: row[name] for label, name in names.items() if name in row}


def check_members(name: str, value: object, protocol: type) -> None:
    """TypeError if the argument called ``name`` lacks a member of the protocol."""
    members = {
        member
        for base in protocol.__mro__
        for member in (*vars(base), *inspect.get_annotations(base))
        if not member.startswith("_")
    }
    missing = sorted(member for member in members if not hasattr(value, member))
    if missing:
        defaults = [member for member in missing if hasattr(TaskDefaults, member)]
        remedy = f"; inherit TaskDefaults for {', '.join(defaults)}" if defaults else ""
        raise TypeError(
            f"{name} must have all members of {protocol.__module__}.{protocol.__name__}, and "
            f"{type(value).__name__} lacks {', '.join(missing)}{remedy}"
        )
