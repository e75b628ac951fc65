"""Labeled images in memory, as bytes, and how to divide them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._seeding import private_generator
from .augment import Augmentation


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their classes.

    images: (N, H, W, C) uint8. Channels come last because a batch is then N contiguous copies,
    and its (B, C, H, W) view already has the memory format that the operators want.
    labels: (N,) int64, on the device of the images.
    class_names: the name of each label.

    Raises TypeError and ValueError if a field is none of this.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.labels.dtype != torch.int64:
            raise TypeError(
                "images must be uint8 and labels int64, "
                f"got {self.images.dtype} and {self.labels.dtype}"
            )
        if self.images.ndim != 4 or self.images.numel() == 0:
            raise ValueError(
                f"images must be (N, H, W, C) and not empty, got {tuple(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be ({len(self.images)},), one per image, "
                f"got {tuple(self.labels.shape)}"
            )
        if self.labels.device != self.images.device:
            raise ValueError(
                "images and labels must be on one device, "
                f"got {self.images.device} and {self.labels.device}"
            )
        lowest, highest = (int(label) for label in torch.aminmax(self.labels))
        if lowest < 0 or highest >= len(self.class_names):
            raise ValueError(
                f"labels must lie in 0..{len(self.class_names) - 1}, one of "
                f"{len(self.class_names)} class_names, got {lowest}..{highest}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on `device`; without a copy where it is there already."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of image classification: what to train on, what to test on, and how to prepare it.

    train, test: two sets of the same image size and classes.
    mean, std: (C,) float32, of the pixels of the training images in units of [0, 1].
    augmentation: what suits the training images.

    `ImageData.of` computes mean and std. Raises ValueError where train and test do not match.
    """

    train: ImageSet
    test: ImageSet
    mean: Tensor
    std: Tensor
    augmentation: Augmentation

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise ValueError(
                "train and test must have images of one shape (H, W, C), got "
                f"{tuple(self.train.images.shape[1:])} and {tuple(self.test.images.shape[1:])}"
            )
        if self.train.class_names != self.test.class_names:
            raise ValueError(
                "train and test must have the same class_names, "
                f"got {self.train.class_names} and {self.test.class_names}"
            )
        for name in ("mean", "std"):
            shape = tuple(getattr(self, name).shape)
            if shape != (self.channels,):
                raise ValueError(f"{name} must be ({self.channels},), got {shape}")

    @classmethod
    def of(cls, train: ImageSet, test: ImageSet, augmentation: Augmentation) -> ImageData:
        """Put two sets together, with the mean and standard deviation of the training pixels."""
        mean, std = _pixel_statistics(train.images)
        return cls(train, test, mean, std, augmentation)

    @property
    def channels(self) -> int:
        """1 for gray images, 3 for color."""
        return int(self.train.images.shape[3])

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.train.images.shape[1]), int(self.train.images.shape[2])

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.train.class_names)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.train.device

    def fingerprint(self) -> str:
        """What tells data sets apart: their sizes, and a hash of all labels and of up to 256 images
        of each set, so that it takes no time with large ones either."""
        digest = hashlib.sha256()
        for images in (self.train, self.test):
            chosen = torch.linspace(0, len(images) - 1, min(256, len(images))).long()
            few = images.images.index_select(0, chosen.to(images.device))
            for tensor in (few, images.labels):
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        height, width = self.image_size
        return (
            f"{len(self.train)} + {len(self.test)} images {height}×{width}×{self.channels}, "
            f"{self.classes} classes, {digest.hexdigest()[:16]}"
        )

    def to(self, device: torch.device | str) -> ImageData:
        """Everything on `device`. Do this once: then no batch is copied from the host."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "test", "mean", "std")}
        return replace(self, **moved)


def split_halves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide 0..n-1 at random into one half for the weights x and one for the parameters θ (§3.2).

    Returns two int64 tensors of ascending indices, of n - n//2 and n//2 elements. They depend on
    (n, seed) alone. Raises ValueError if n < 2, since both halves need an element.
    """
    if n < 2:
        raise ValueError(f"n must be 2 or more to be divided in two, got {n}")
    order = torch.randperm(n, generator=private_generator(seed, "split halves"))
    middle = n - n // 2
    return order[:middle].sort().values, order[middle:].sort().values


def _pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation per channel of (N, H, W, C) uint8, in [0, 1] units.

    Counting the 256 values is exact and needs no floating-point copy of the images.
    """
    levels = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    counts = torch.stack(
        [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(3)]
    ).to(torch.float64)
    fractions = counts / counts.sum(1, keepdim=True)
    mean = fractions @ levels
    variance = (fractions * (levels - mean[:, None]).square()).sum(1)
    # A channel that never varies becomes 0 by any divisor but 0.
    std = torch.where(variance > 0, variance.sqrt(), 1.0)
    return mean.to(torch.float32), std.to(torch.float32)
