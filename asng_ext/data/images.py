"""Labeled images as bytes, in memory or mapped into it, and how to divide them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from asng_ext._checks import brief, is_integer, listed
from asng_ext._terminal import STDERR

from ._seeding import private_generator
from .augment import Augmentation
from .pixel_cache import MappedImages

UNEVEN = 2.0
"""From how many times as many images on classes are said to be uneven."""
_IMAGES_PER_TEST_IMAGE = 5
_CHUNK = 2**24
"""Bytes of images that are looked at together where all of them are."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their classes.

    images: (N, H, W, C) uint8. Channels come last because a batch is then N contiguous copies,
    and its (B, C, H, W) view already has the memory format that the operators want.
    labels: (N,) int64, on the device of the images.
    class_names: the name of each label.
    mapped: what maps the images into memory, where they are in a file.

    Raises TypeError and ValueError if a field is none of this.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    mapped: MappedImages | None = None

    @classmethod
    def of(
        cls, images: Tensor | MappedImages, labels: Tensor, class_names: Sequence[str]
    ) -> ImageSet:
        """The set of images that are in memory or mapped into it."""
        mapped = images if isinstance(images, MappedImages) else None
        tensor = images.images if isinstance(images, MappedImages) else images
        return cls(tensor, labels, tuple(class_names), mapped)

    def __post_init__(self) -> None:
        for name in ("images", "labels"):
            if not isinstance(getattr(self, name), Tensor):
                raise TypeError(f"{name} must be a tensor, got {brief(getattr(self, name))}")
        names = listed("class_names", self.class_names, "strings")
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"class_names must be strings, got {brief(names)}")
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

    def select(self, indices: Tensor) -> Tensor:
        """Copies of some images, (B, H, W, C), by their indices, (B,) int64 on their device."""
        if self.mapped is not None:
            self.mapped.has_read(len(indices))
        return self.images.index_select(0, indices)

    def chunks(self) -> Iterator[Tensor]:
        """All images, (n, H, W, C) at a time."""
        for chunk in torch.split(self.images, max(1, _CHUNK // math.prod(self.images.shape[1:]))):
            if self.mapped is not None:
                self.mapped.has_read(len(chunk))
            yield chunk

    def counts(self) -> list[int]:
        """How many images each class has."""
        return torch.bincount(self.labels, minlength=len(self.class_names)).tolist()  # type: ignore[no-any-return]

    def to(self, device: torch.device | str) -> ImageSet:
        """The same set on `device`; without a copy where it is there already."""
        device = torch.device(device)
        if self.mapped is None or device.type == "cpu":
            return replace(self, images=self.images.to(device), labels=self.labels.to(device))
        images = torch.empty(self.images.shape, dtype=torch.uint8, device=device)
        done = 0
        for chunk in self.chunks():
            images[done : done + len(chunk)] = chunk.to(device)
            done += len(chunk)
        return ImageSet(images, self.labels.to(device), self.class_names)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of image classification: what to train on, what to test on, and how to prepare it.

    train, test: two sets of the same image size and classes.
    mean, std: (C,) float32, of the pixels of the training images in units of [0, 1].
    augmentation: what suits the training images.
    validation: how many of the training images, the last ones, move the distribution in a search,
    while the others train the weights; 0 to divide them at random.

    `from_folder`, `from_arrays`, `from_dataset` and `from_npz` make one of your images;
    `ImageData.of` computes mean and std. Raises ValueError where train and test do not match, or
    nothing is left to train on.
    """

    train: ImageSet
    test: ImageSet
    mean: Tensor
    std: Tensor
    augmentation: Augmentation
    validation: int = 0

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
        if not 0 <= self.validation < len(self.train):
            raise ValueError(
                f"validation must be 0 or more images and fewer than the {len(self.train)} of "
                f"train, got {self.validation}"
            )

    @classmethod
    def of(
        cls, train: ImageSet, test: ImageSet, augmentation: Augmentation, validation: int = 0
    ) -> ImageData:
        """Put two sets together, with the mean and standard deviation of the training pixels."""
        mean, std = _pixel_statistics(train)
        return cls(train, test, mean, std, augmentation, validation)

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any,
        *,
        test: tuple[Any, Any] | None = None,
        validation: tuple[Any, Any] | None = None,
        class_names: Sequence[str] | None = None,
        image_size: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> ImageData:
        """Images in memory as a data set.

        Args:
            images: (N, H, W), (N, H, W, C) or (N, C, H, W), an array or a tensor: gray or color,
                uint8, other integers in 0..255, or floating point in [0, 1].
            labels: (N,) integers that count classes from 0 or from 1, or strings.
            test: Images and labels to test on; without, a random fifth of each class.
            validation: Images and labels that move the distribution in a search; without, that is
                a random half of the training images. A network is retrained on both.
            class_names: The names of the classes; by default the labels.
            image_size: The side of the square that their central part is scaled to, in pixels; 0 to
                leave them as they are.
            seed: Decides what to test on.
            augmentation: Of the training images; by default what suits their size.

        Raises:
            TypeError, ValueError: If images or labels are none of this, or there are not 2 classes
                at least with training images of each.
        """
        from .own import data_from_arrays

        return data_from_arrays(
            images,
            labels,
            test=test,
            validation=validation,
            class_names=class_names,
            image_size=image_size,
            seed=seed,
            augmentation=augmentation,
        )

    @classmethod
    def from_npz(cls, path: str | Path, *, image_size: int = 0, seed: int = 0) -> ImageData:
        """The arrays x_train, y_train, and if they are there x_val, y_val, x_test, y_test and
        class_names of a .npz file; or train_images, train_labels and so on.

        The other arguments, and what is raised, are those of `from_arrays`; FileNotFoundError if
        the file does not exist.
        """
        from .own import data_from_npz

        return data_from_npz(path, image_size=image_size, seed=seed)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        image_size: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        cache: str | Path | None = None,
        stream: TextIO | None = STDERR,
    ) -> ImageData:
        """The images of a folder that holds a subfolder for each class, which has its name; or
        "train" with these, and perhaps "val" and "test".

        The central square of each image is scaled. They are gray if none has color. The pixels are
        kept in a file that is found again as long as the list of files, their sizes and times of
        change, and image_size stay the same; others than its owner cannot read it. It is mapped
        into memory, of which all images take less than 1 GiB, however many they are. Files that
        cannot be read are left out, with a word about it, and so are those of more than 67
        megapixels that cannot be decoded at a fraction of their size, as JPEG files can.

        Args:
            folder: The folder.
            image_size: Side in pixels, up to 1024; 0 for the median of the smaller sides, to the
                nearest multiple of 8 and up to 224.
            seed: Decides, if there is no "test", which fifth of each class to test on.
            augmentation: Of the training images; by default what suits their size.
            cache: Where to keep the pixels; by default "asng-ext" in the user's cache folder. If
                it cannot be written, they are in a temporary file, with a word about it.
            stream: Where progress and unreadable files are shown; None for nowhere.

        Raises:
            FileNotFoundError: If the folder does not exist, or holds no classes or no images.
            ImportError: If Pillow is missing.
            ValueError: If there are not 2 classes at least with training images of each, or "val"
                or "test" has others.
        """
        from .class_folder import data_from_folder

        return data_from_folder(
            folder,
            image_size=image_size,
            seed=seed,
            augmentation=augmentation,
            cache=cache,
            stream=stream,
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        test: Any = None,
        validation: Any = None,
        class_names: Sequence[str] | None = None,
        image_size: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        stream: TextIO | None = STDERR,
    ) -> ImageData:
        """The items of map-style data sets, each of which is read once.

        Args:
            dataset: A `torch.utils.data.Dataset`, or anything else with `__getitem__` and
                `__len__`, of pairs of an image and a label; a `Dataset` of Hugging Face with
                columns of these, or its divisions by name. Images are Pillow's, (C, H, W) tensors
                or arrays as `from_arrays` takes them: without random augmentation. Their central
                squares are scaled; they are gray if the first ones are.
            test, validation: Such data sets, for what `from_arrays` says.
            class_names: The names of the classes; by default the data set's `classes`, or those of
                its label column, or the labels.
            image_size: Side in pixels, up to 1024; 0 for the median, as in `from_folder`.
            seed, augmentation: As in `from_arrays`.
            stream: Where progress is shown; None for nowhere.

        Raises:
            TypeError, ValueError: If items are none of this; see `from_arrays`.
        """
        from .datasets import data_from_dataset

        return data_from_dataset(
            dataset,
            test=test,
            validation=validation,
            class_names=class_names,
            image_size=image_size,
            seed=seed,
            augmentation=augmentation,
            stream=stream,
        )

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

    @property
    def imbalance(self) -> float:
        """How many times more training images the largest class has than the smallest."""
        counts = self.train.counts()
        return max(counts) / max(1, min(counts))

    def class_weights(self) -> Tensor:
        """(classes,) float32: N / (classes · N_c), by which N training images of which N_c are of
        class c weigh as if the classes were equally large."""
        counts = torch.tensor(self.train.counts(), dtype=torch.float64).clamp(min=1)
        weights = counts.sum() / (self.classes * counts)
        return weights.to(self.device, torch.float32)

    def describe(self) -> str:
        """How many images there are of what, in a line; and in another, if one class has twice as
        many as another or more, which ones."""
        height, width = self.image_size
        counts = sorted(zip(self.train.counts(), self.train.class_names))
        validation = f", {self.validation} of them to validate" if self.validation else ""
        text = (
            f"data: {len(self.train)} training images{validation}, {len(self.test)} test images, "
            f"{height}×{width}×{self.channels}, {self.classes} classes"
        )
        if self.imbalance >= UNEVEN:
            few = ", ".join(f"{name} {count}" for count, name in counts[:3])
            most = f"{counts[-1][1]} {counts[-1][0]}"
            text += f"\nclasses are uneven: {few}{', …' * (len(counts) > 4)}, {most} images"
        return text

    def fingerprint(self) -> str:
        """What tells data sets apart: their sizes, and a hash of all labels and of up to 256 images
        of each set, so that it takes no time with large ones either."""
        digest = hashlib.sha256()
        for images in (self.train, self.test):
            chosen = torch.linspace(0, len(images) - 1, min(256, len(images))).long()
            few = images.select(chosen.to(images.device))
            for tensor in (few, images.labels):
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        height, width = self.image_size
        train = str(len(self.train))
        if self.validation:
            train = f"{len(self.train) - self.validation} + {self.validation}"
        return (
            f"{train} + {len(self.test)} images {height}×{width}×{self.channels}, "
            f"{self.classes} classes, {digest.hexdigest()[:16]}"
        )

    def to(self, device: torch.device | str) -> ImageData:
        """Everything on `device`. Do this once: then no batch is copied from the host."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "test", "mean", "std")}
        return replace(self, **moved)


def search_parts(data: ImageData, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training images that train the weights in a search, and of those that move the
    distribution: the validation set if there is one, or else a random half."""
    train = len(data.train)
    if not data.validation:
        return split_halves(train, seed)
    first = train - data.validation
    return torch.arange(first), torch.arange(first, train)


def split_halves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide 0..n-1 at random into one half for the weights x and one for the parameters θ (§3.2).

    Returns two int64 tensors of ascending indices, of n - n//2 and n//2 elements. They depend on
    (n, seed) alone. Raises ValueError if n < 2, since both halves need an element.
    """
    if not is_integer(n):
        raise TypeError(f"n must be an integer, got {brief(n)}")
    if n < 2:
        raise ValueError(f"n must be 2 or more to be divided in two, got {n}")
    order = torch.randperm(n, generator=private_generator(seed, "split halves"))
    middle = n - n // 2
    return order[:middle].sort().values, order[middle:].sort().values


def stratified(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """(n,) bool: a random fifth of each class, to within an image, to test on.

    It depends on (labels, seed, purpose) alone.
    """
    # Every fifth of the shuffled images sorted by class is a random fifth of each class.
    order = torch.randperm(len(labels), generator=private_generator(seed, purpose))
    order = order[labels[order].argsort(stable=True)]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[::_IMAGES_PER_TEST_IMAGE]] = True
    return chosen


def _pixel_statistics(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation per channel, in [0, 1] units.

    Counting the 256 values is exact and needs no floating-point copy of the images.
    """
    levels = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    counts = torch.stack(
        [
            torch.stack([torch.bincount(c.flatten(), minlength=256) for c in chunk.unbind(3)])
            for chunk in images.chunks()
        ]
    ).sum(0)
    counts = counts.to(torch.float64)
    fractions = counts / counts.sum(1, keepdim=True)
    mean = fractions @ levels
    variance = (fractions * (levels - mean[:, None]).square()).sum(1)
    # A channel that never varies becomes 0 by any divisor but 0.
    std = torch.where(variance > 0, variance.sqrt(), 1.0)
    return mean.to(torch.float32), std.to(torch.float32)
