"""A step whose samples, or the parts of whose batch, are on several ranks, and what these exchange.

The samples of a population are divided among the ranks as they come. Where there are fewer samples
than ranks, each gets several, which divide the batch. Gradients and losses of all are added up, so
that every rank makes the step of one process. What a model keeps beside its weights, the running
statistics of batch normalization, becomes what it would have been there, too: updates of samples
are made one after the other, those of parts of a batch are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from asng_ext.distributed import Ranks
from asng_ext.training.active_sgd import ActiveSGD

__all__ = ["BatchPart", "Spread", "part_of_batch", "rows_of_part"]


class BatchPart(NamedTuple):
    """A part of a batch.

    Attributes:
        batch: What the task takes in the place of the whole one.
        share: Of the images that are in it.
        loss_share: What the mean loss over it counts in that over the whole batch, a number or a
            tensor; None for ``share``.
    """

    batch: Any
    share: float
    loss_share: float | Tensor | None = None


def rows_of_part(rows: int, index: int, count: int) -> slice:
    """Which of the rows of a batch are in a part of it; parts differ by a row at most.

    Raises:
        ValueError: If there are fewer rows than parts.
    """
    if rows < count:
        raise ValueError(
            f"a batch must have at least as many images as there are ranks for it, {count}, "
            f"got {rows}: start fewer processes, or raise batch_size or population_size"
        )
    return slice(rows * index // count, rows * (index + 1) // count)


def part_of_batch(batch: Any, index: int, count: int) -> BatchPart:
    """A part of the rows of all tensors in a batch, nested as it may be.

    Raises:
        ValueError: If the tensors have no or different numbers of rows, or too few.
    """
    leaves, structure = pytree.tree_flatten(batch)
    lengths = {len(leaf) if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(lengths) != 1:
        raise ValueError(
            "tensors of a batch must have the same number of rows to be divided among ranks, got "
            f"{sorted(lengths)}; a method part_of_batch of the task divides others"
        )
    (total,) = lengths
    rows = rows_of_part(total, index, count)
    parts = [leaf[rows] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return BatchPart(pytree.tree_unflatten(parts, structure), (rows.stop - rows.start) / total)


class Spread:
    """What this rank does of each step, and what it makes of that together with the others.

    Args:
        ranks: All of them.
        model: The one that is trained.
        weight_optimizer: The optimizer of its weights.
        population: λ; 1 for one architecture.
        part_of_batch: The task's.
    """

    def __init__(
        self,
        ranks: Ranks,
        model: nn.Module,
        weight_optimizer: torch.optim.Optimizer,
        population: int,
        part_of_batch: Callable[[Any, int, int], BatchPart],
    ) -> None:
        self._ranks = ranks
        self._population = population
        self._part_of_batch = part_of_batch
        owners = [_samples_of(rank, ranks.size, population) for rank in range(ranks.size)]
        self._own = owners[ranks.rank]
        # Ranks of the same samples, in the order of these.
        self._groups = [
            [rank for rank, other in enumerate(owners) if other == samples]
            for samples in sorted(set(owners))
        ]
        group = next(group for group in self._groups if ranks.rank in group)
        self._part, self._parts = group.index(ranks.rank), len(group)
        self._share: float = 1.0
        self._loss_share: float | Tensor = 1.0
        self._shares: Tensor | None = None
        self._gradients: _Gradients | _Slices
        if isinstance(weight_optimizer, ActiveSGD):
            self._gradients = _Slices(ranks, weight_optimizer)
        else:
            self._gradients = _Gradients(list(model.parameters()))
        if ranks.size > 1:
            self._statistics = _RunningStatistics(ranks, self._groups, model)

    def own(self, batch: Any, samples: Any = None) -> tuple[Any, Any]:
        """The part of a batch and the samples that are for this rank."""
        if self._ranks.size == 1:
            return batch, samples
        if self._parts > 1:
            part = self._part_of_batch(batch, self._part, self._parts)
            batch, self._share = part.batch, part.share
            self._loss_share = part.share if part.loss_share is None else part.loss_share
        return batch, None if samples is None else samples[slice(*self._own)]

    def share_of_each(self, losses: Tensor) -> Tensor:
        """The gradient of the mean of the losses of all, with respect to those of this rank."""
        shares = self._shares
        if self._parts > 1:  # batches may differ
            return torch.ones_like(losses) / self._population * self._loss_share
        if shares is None or (shares.shape, shares.dtype) != (losses.shape, losses.dtype):
            self._shares = shares = torch.ones_like(losses) / self._population
        return shares

    def begin(self) -> None:
        """Says that a step of the weights begins."""
        if self._ranks.size > 1:
            self._statistics.keep()

    def together(
        self, losses: Tensor, metrics: dict[str, Tensor], *, trained: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of all samples, and the means of metrics over all.

        Args:
            losses: Those of this rank.
            metrics: Means over its samples and its part of the batch.
            trained: Whether there are gradients, which become those of all.
        """
        if self._ranks.size == 1:
            return losses, metrics
        start, stop = self._own
        whole = losses.detach().new_zeros(self._population)
        whole[start:stop] = losses.detach() * self._loss_share
        weight = (stop - start) / self._population * self._share
        means = {
            name: value.detach().to(whole.dtype).mean() * weight for name, value in metrics.items()
        }
        more: Sequence[Tensor] = ()
        if trained:
            more = [*self._gradients.own(), *self._statistics.own(self._share)]
        elif isinstance(self._gradients, _Slices):
            self._gradients.only_read()
        self._ranks.sum([whole, *means.values(), *more])
        if trained:
            self._gradients.put()
            self._statistics.put()
        return whole.view(losses.shape) if not losses.dim() else whole, means


def _samples_of(rank: int, size: int, population: int) -> tuple[int, int]:
    """The first sample of a rank, and the first after its samples."""
    if population >= size:
        return population * rank // size, population * (rank + 1) // size
    sample = rank * population // size
    return sample, sample + 1


class _Gradients:
    """Those of the weights of a model.

    A weight that no rank has used so far keeps having none.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = [weight for weight in weights if weight.requires_grad]
        # The same on all ranks.
        self._are_used = False
        self._tensors: list[Tensor] = []
        self._used: list[Tensor] = []

    def own(self) -> list[Tensor]:
        """What is to be added up."""
        gradients = [weight.grad for weight in self._weights]
        self._tensors = [
            torch.zeros_like(weight) if gradient is None else gradient
            for weight, gradient in zip(self._weights, gradients)
        ]
        self._used = []
        if not self._are_used and self._weights:
            first = self._weights[0]
            self._used = [first.new_tensor([float(gradient is not None) for gradient in gradients])]
        return [*self._tensors, *self._used]

    def put(self) -> None:
        """Takes the sums that those have become."""
        used = [True] * len(self._weights)
        if self._used:
            used = (self._used[0] > 0).tolist()
            self._are_used = all(used)
        for weight, gradient, is_used in zip(self._weights, self._tensors, used):
            if is_used:
                weight.grad = gradient


class _Slices:
    """Those of the slices of sliceable weights that were read.

    Deferred steps of a weight are made when it is read, and rounded then: so that weights stay the
    same everywhere, they are made where another rank has read it, too.
    """

    def __init__(self, ranks: Ranks, sgd: ActiveSGD) -> None:
        self._ranks = ranks
        self._sgd = sgd
        self._whole: dict[int, Tensor] = {}

    def own(self) -> list[Tensor]:
        """What is to be added up: slices as large as the largest of any rank."""
        read = self._sgd.read
        gradients = self._sgd.take_gradients()
        sizes = self._largest(read, gradients)
        self._whole = {}
        for i, (rows, columns) in enumerate(sizes):
            if rows:
                weight = self._sgd.param_groups[0]["params"][i]
                whole = weight.detach().new_zeros(rows, columns, *weight.shape[2:])
                if (own := gradients.get(i)) is not None:
                    whole[: own.shape[0], : own.shape[1]] = own
                self._whole[i] = whole
        return list(self._whole.values())

    def put(self) -> None:
        """Takes the sums that those have become."""
        self._sgd.give_gradients(self._whole)

    def only_read(self) -> None:
        """After a step without gradients."""
        self._largest(self._sgd.read, {})

    def _largest(self, read: frozenset[int], gradients: dict[int, Tensor]) -> list[list[int]]:
        """The size of the gradient of each weight; (0, 0) of those without."""
        own = torch.zeros(len(self._sgd.param_groups[0]["params"]), 3, dtype=torch.int64)
        for i in read:
            own[i, 0] = 1
        for i, gradient in gradients.items():
            own[i, 1], own[i, 2] = gradient.shape[:2]
        found = self._ranks.largest(own)
        self._sgd.prepare_to_read(
            [i for i in found[:, 0].nonzero()[:, 0].tolist() if i not in read]
        )
        sizes: list[list[int]] = found[:, 1:].tolist()
        return sizes


class _RunningStatistics:
    """Those of the batch normalizations of a model that keep any.

    A pass takes a statistic r to a·r + b, with a = 1 − momentum, where it runs the module, or to
    the mean of all so far. Ranks tell by which b they have moved it in how many passes, and
    everyone makes the passes of all, in the order of the samples.
    """

    def __init__(self, ranks: Ranks, groups: Sequence[Sequence[int]], model: nn.Module) -> None:
        # Here, as it imports PyTorch's compiler.
        from asng_ext.training.synced_batch_norm import SyncedBatchNorm

        self._ranks = ranks
        self._groups = groups
        self._modules: list[Any] = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            and not isinstance(module, SyncedBatchNorm)
            and module.running_mean is not None
        ]
        self._before: list[tuple[Tensor, Tensor]] = []
        self._rows: list[Tensor] = []

    def keep(self) -> None:
        """Remembers them as they are before a step."""
        self._before = [(_both(m), m.num_batches_tracked.clone()) for m in self._modules]

    def own(self, share: float) -> list[Tensor]:
        """What is to be added up: for each module a row for each rank."""
        self._rows = []
        for module, (before, count) in zip(self._modules, self._before):
            after = _both(module)
            passes = (module.num_batches_tracked - count).to(after.dtype)
            if module.momentum is None:
                moved = after * module.num_batches_tracked - before * count
            else:
                moved = after - (1 - module.momentum) ** passes * before
            rows = after.new_zeros(self._ranks.size, len(after) + 1)
            rows[self._ranks.rank, :-1] = moved * share
            rows[self._ranks.rank, -1] = passes
            self._rows.append(rows)
        return self._rows

    def put(self) -> None:
        """Makes the passes of all ranks."""
        for module, (statistics, count), rows in zip(self._modules, self._before, self._rows):
            if module.momentum is None:
                statistics = statistics * count
            for group in self._groups:
                of_group = rows[group[0] : group[-1] + 1]
                moved, passes = of_group[:, :-1].sum(dim=0), of_group[0, -1]
                if module.momentum is not None:
                    statistics = statistics * (1 - module.momentum) ** passes
                statistics, count = statistics + moved, count + passes.to(count.dtype)
            if module.momentum is None:  # where no pass has been, they stay as they are
                statistics = torch.where(count > 0, statistics / count.clamp(min=1), _both(module))
            mean, variance = statistics.chunk(2)
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
            module.num_batches_tracked.copy_(count)


def _both(module: Any) -> Tensor:
    return torch.cat([module.running_mean, module.running_var])
