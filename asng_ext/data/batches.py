"""Batches of an ImageSet: shuffled and augmented for training, in order for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import NamedTuple, cast

import torch
from torch import Tensor

from asng_ext import ops
from asng_ext._checks import brief, is_integer
from asng_ext.ops import _libraries

from ._seeding import check_seed, private_generator
from .augment import NO_AUGMENTATION, Augmentation, Augmenter, draw_augmentations, normalize
from .images import ImageSet

Batch = tuple[Tensor, Tensor]


class BatchPlan(NamedTuple):
    """What a batch is made of, on the device of the images: a few hundred numbers.

    indices: (B,) int64, which images.
    draws: (B, 5) int64, how they are augmented, as `draw_augmentations` gives them; None for not
    at all.
    """

    indices: Tensor
    draws: Tensor | None


Recipe = BatchPlan
"""Its former name."""


class BatchStream:
    """Training batches, shuffled anew in every epoch.

    A batch is (x, y): x (B, C, H, W) float32, channels last, augmented and normalized; y (B,)
    int64; both on the device of `image_set`. All batches of an epoch have the same size: what is
    left over at its end is dropped, and comes up in other epochs. A set smaller than `batch_size`
    is one batch.

    Batch i of epoch e is a function of (seed, name, e, i) and of the other arguments. One
    generator per epoch, seeded by a hash of (seed, name, e), draws the order and the augmentations
    of the whole epoch, so that `epoch(e, start=k)` gives, bit for bit, the batches of `epoch(e)`
    without the first k. To resume, a caller needs to keep just e and k. The draws are made on the
    CPU and so are the same on every device; they travel there once per epoch, and making batches of
    them synchronizes with no device and draws nothing, so that it can be captured in a CUDA graph.

    image_set: the images; move them to the training device first.
    indices: (n,) int64, the part of the set to use; None for all of it.
    batch_size: B.
    seed, name: streams of different names are independent.
    augmentation: None for none.
    mean, std: (C,), as in `ImageData`.

    Raises TypeError and ValueError for indices of another dtype or shape or out of range, a
    batch_size below 1, a seed that is no integer, and an augmentation that can leave nothing of an
    image.
    """

    def __init__(
        self,
        image_set: ImageSet,
        indices: Tensor | None,
        batch_size: int,
        *,
        seed: int,
        name: str,
        augmentation: Augmentation | None,
        mean: Tensor,
        std: Tensor,
    ) -> None:
        self.image_set = image_set
        self.indices = _checked_indices(indices, len(image_set))
        self.batch_size = min(_checked_batch_size(batch_size), len(self.indices))
        self.seed = check_seed(seed)
        self.name = name
        if augmentation is not None and not isinstance(augmentation, Augmentation):
            raise TypeError(f"augmentation must be an Augmentation, got {brief(augmentation)}")
        for what, values in (("mean", mean), ("std", std)):
            if not isinstance(values, Tensor):
                raise TypeError(f"{what} must be a tensor, got {brief(values)}")
        self.augmentation = augmentation
        _, height, width, channels = image_set.images.shape
        for what in ("cutout", "crop_padding"):
            pixels = getattr(augmentation or NO_AUGMENTATION, what)
            if pixels >= min(height, width):
                raise ValueError(
                    f"{what} must be below {min(height, width)}, the smaller side of the images in "
                    f"pixels, got {pixels}"
                )
        # Where they are parts of others, as an operator takes them.
        self._images = image_set.images.contiguous()
        self._labels = image_set.labels.contiguous()
        self._augmenter = partial(
            Augmenter,
            augmentation or NO_AUGMENTATION,
            dtype=image_set.images.dtype,
            device=image_set.device,
            mean=mean.to(image_set.device),
            std=std.to(image_set.device),
        )
        self._prepare = self._augmenter(shape=(self.batch_size, channels, height, width))

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.indices) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches `start`, `start` + 1, … of epoch number `epoch`.

        Raises ValueError if `epoch` is negative or `start` is not in 0..len(self).
        """
        return map(self.make, self.plans(epoch, start))

    def plans(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        """What `make` makes the batches of `epoch(epoch, start)` of; raises what that does."""
        for name, value in (("epoch", epoch), ("start", start)):
            if not is_integer(value):
                raise TypeError(f"{name} must be an integer, got {brief(value)}")
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be in 0..{len(self)}, the batches done, got {start}")
        return self._plans(epoch, start)

    def make(self, plan: BatchPlan, dtype: torch.dtype = torch.float32) -> Batch:
        """The batch of a plan, or of some rows of one, with images in float32 or rounded to
        bfloat16."""
        images, labels = self._images, self._labels
        if _libraries.has_cuda_kernels(images.device):
            return ops.batch.batch(
                images,
                labels,
                *plan,
                *cast(tuple[Tensor, Tensor], self._prepare.scale_and_shift),
                **asdict(self.augmentation or NO_AUGMENTATION),
                dtype=dtype,
            )
        x = self.image_set.select(plan.indices).permute(0, 3, 1, 2)
        y = labels.index_select(0, plan.indices)
        if self._prepare.shape != tuple(x.shape):  # a part of a batch
            self._prepare = self._augmenter(shape=tuple(x.shape))
        return self._prepare(x, plan.draws).to(dtype), y

    def steps(self, start: int = 0) -> Iterator[Batch]:
        """Batches without end: number s is batch s mod len(self) of epoch s // len(self).

        Raises ValueError if `start` is negative.
        """
        return map(self.make, self.plans_of_steps(start))

    def plans_of_steps(self, start: int = 0) -> Iterator[BatchPlan]:
        """What `make` makes the batches of `steps(start)` of; raises what that does."""
        if start < 0:
            raise ValueError(f"start must be 0 or more, got {start}")
        first_epoch, first_batch = divmod(start, len(self))
        return (
            plan
            for epoch in count(first_epoch)
            for plan in self._plans(epoch, first_batch if epoch == first_epoch else 0)
        )

    def _plans(self, epoch: int, start: int) -> Iterator[BatchPlan]:
        order, draws = self._draw_epoch(epoch)
        for batch in range(start, len(self)):
            rows = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield BatchPlan(order[rows], None if draws is None else draws[rows])

    def _draw_epoch(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """Everything random about an epoch: the order (n,) and the augmentations (n, 5)."""
        generator = private_generator(self.seed, self.name, epoch)
        device = self.image_set.device
        n = len(self.indices)
        order = _sent(self.indices[torch.randperm(n, generator=generator)], device)
        if self.augmentation is None:
            return order, None
        _, height, width, _ = self.image_set.images.shape
        draws = draw_augmentations(n, height, width, self.augmentation, generator=generator)
        return order, _sent(draws, device)


def evaluation_batches(
    image_set: ImageSet,
    batch_size: int,
    *,
    mean: Tensor,
    std: Tensor,
    indices: Tensor | None = None,
) -> Iterator[Batch]:
    """Every image once, in order, normalized and not augmented; the last batch may be smaller.

    Arguments, batches and errors are those of `BatchStream`.
    """
    batch_size = _checked_batch_size(batch_size)
    chosen = _checked_indices(indices, len(image_set)).to(image_set.device)
    mean, std = mean.to(image_set.device), std.to(image_set.device)
    return (
        (
            normalize(image_set.select(part).permute(0, 3, 1, 2), mean, std),
            image_set.labels.index_select(0, part),
        )
        for part in torch.split(chosen, batch_size)
    )


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device. Only from pinned memory does a GPU fetch it while the host
    continues."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _checked_batch_size(batch_size: int) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise TypeError(f"batch_size must be an int, got {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    return batch_size


def _checked_indices(indices: Tensor | None, size: int) -> Tensor:
    """(n,) int64 indices on the CPU, where the order of an epoch is drawn."""
    if indices is None:
        return torch.arange(size)
    if not isinstance(indices, Tensor) or indices.dtype != torch.int64:
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"indices must be an int64 tensor or None, got {kind}")
    if indices.ndim != 1 or indices.numel() == 0:
        raise ValueError(f"indices must be (n,) with n > 0, got {tuple(indices.shape)}")
    lowest, highest = (int(index) for index in torch.aminmax(indices))
    if lowest < 0 or highest >= size:
        raise ValueError(f"indices must lie in 0..{size - 1}, got {lowest}..{highest}")
    return indices.cpu()
