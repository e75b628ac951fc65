"""Images of one's own as a data set: arrays, .npz files, and how such data are divided."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asng_ext._checks import brief, check_integer
from asng_ext._files import as_path

from .augment import Augmentation, augmentation_for
from .image_files import LARGEST_IMAGE, scaled
from .images import ImageData, ImageSet, stratified
from .labels import Labels, check_classes
from .pixel_cache import RESIDENT, MappedImages, written

__all__ = ["DataShape", "Labeled", "data_from_arrays", "data_from_npz", "divided", "npz_shape"]

_NPZ_NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels")),
    "validation": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
"""What the arrays of a .npz file may be called: images and labels."""


class Labeled(NamedTuple):
    """images: (N, H, W, C) uint8. labels: (N,) indices of classes."""

    images: Tensor | MappedImages
    labels: NDArray[np.int64]


class DataShape(NamedTuple):
    """What data look like before they are read.

    images: how many there are to train on.
    searched: how many train the weights in a search, or move the distribution, if these are fewer.
    size, channels: of an image, whose side is `size` pixels.
    """

    images: int
    searched: int
    size: int
    channels: int

    @classmethod
    def of(cls, counts: Mapping[str, int], size: int, channels: int) -> DataShape:
        """From the images in "train", and perhaps "validation" and "test"."""
        train, validation = counts["train"], counts.get("validation", 0)
        if "test" not in counts:
            train = train * 4 // 5
        searched = min(train, validation) if validation else train // 2
        return cls(train + validation, searched, size, channels)


def divided(
    train: Labeled,
    test: Labeled | None,
    names: Sequence[str],
    *,
    validation: int = 0,
    seed: int = 0,
    augmentation: Augmentation | None = None,
) -> ImageData:
    """A data set, of which without a test set a random fifth of each class is for testing.

    Args:
        train: What to train on; the last `validation` images move the distribution in a search.
        test: What to test on.
        names: The names of the classes.
        validation: How many of the training images are a validation set.
        seed: Decides the division.
        augmentation: By default what suits the size of the images.

    Raises:
        ValueError: If there are not two classes or more, one has no training images, or too few to
            be divided.
    """
    check_classes(train.labels, names)
    if test is None:
        count = len(train.labels) - validation
        counts = np.bincount(train.labels[:count], minlength=len(names))
        if counts.min() < 2:
            raise ValueError(
                "every class must have 2 images or more to be divided into training and test "
                f"images, got {counts.min()} of {names[int(counts.argmin())]}"
            )
        is_test = np.zeros(len(train.labels), dtype=bool)
        is_test[:count] = stratified(torch.from_numpy(train.labels[:count]), seed, "test split")
        test = Labeled(_part(train.images, is_test), train.labels[is_test])
        train = Labeled(_part(train.images, ~is_test), train.labels[~is_test])
    sets = [
        ImageSet.of(images, torch.from_numpy(labels), tuple(names))
        for images, labels in (train, test)
    ]
    if augmentation is not None and not isinstance(augmentation, Augmentation):
        raise TypeError(f"augmentation must be an Augmentation, got {brief(augmentation)}")
    if augmentation is None:
        _, height, width, channels = sets[0].images.shape
        augmentation = augmentation_for((height, width), channels)
    return ImageData.of(sets[0], sets[1], augmentation, validation)


def _part(images: Tensor | MappedImages, chosen: NDArray[np.bool_]) -> Tensor | MappedImages:
    """Some of the images; many that are in a file go into another one."""
    indices = torch.from_numpy(chosen.nonzero()[0])
    if isinstance(images, Tensor):
        return images.index_select(0, indices)
    shape = (len(indices), *images.images.shape[1:])
    if np.prod(shape) <= RESIDENT:
        part = torch.empty(shape, dtype=torch.uint8)
        for place, index in enumerate(indices):
            images.has_read(1)
            part[place] = images.images[index]
        return part

    def each() -> Any:
        for index in indices:
            images.has_read(1)
            yield images.images[index].numpy()

    return written(each(), shape)


def data_from_arrays(
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
    """See `ImageData.from_arrays`."""
    check_integer("image_size", image_size, 0, LARGEST_IMAGE + 1)
    meaning = Labels(labels, class_names)
    parts = {"": (images, labels), "validation ": validation, "test ": test}
    read = {
        name: _labeled(name, part, meaning, image_size)
        for name, part in parts.items()
        if part is not None
    }
    train, shape = read[""], read[""].images.shape[1:]
    for name, part in read.items():
        if part.images.shape[1:] != shape:
            raise ValueError(
                f"{name}images must be of the shape of the training images, {tuple(shape)}, "
                f"got {tuple(part.images.shape[1:])}"
            )
    if "validation " in read:
        more = read["validation "]
        train = _Array(
            np.concatenate([train.images, more.images]),
            np.concatenate([train.labels, more.labels]),
        )
    return divided(
        train.tensors(),
        read["test "].tensors() if "test " in read else None,
        meaning.names,
        validation=len(read["validation "].labels) if "validation " in read else 0,
        seed=seed,
        augmentation=augmentation,
    )


class _Array(NamedTuple):
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def tensors(self) -> Labeled:
        # PyTorch would warn of arrays that cannot be written.
        images = self.images if self.images.flags.writeable else self.images.copy()
        return Labeled(torch.from_numpy(np.ascontiguousarray(images)), self.labels)


def _labeled(name: str, part: tuple[Any, Any], meaning: Labels, image_size: int) -> _Array:
    try:
        images, labels = part
    except (TypeError, ValueError):
        raise TypeError(
            f"{name.strip()} must be a pair of images and labels, got {brief(part)}"
        ) from None
    pixels = as_bytes(f"{name}images", images)
    indices = meaning.indices(f"{name}labels", labels)
    if len(pixels) != len(indices):
        raise ValueError(
            f"{name}labels must be ({len(pixels)},), one per image, got ({len(indices)},)"
        )
    if image_size and pixels.shape[1:3] != (image_size, image_size):
        pixels = np.stack([resized(image, image_size) for image in pixels])
    return _Array(pixels, indices)


def as_bytes(name: str, images: Any) -> NDArray[np.uint8]:
    """(N, H, W, C) uint8 of images in any form that `ImageData.from_arrays` takes."""
    try:
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    except (ValueError, NotImplementedError):  # of several lengths; on torch's meta device
        raise ValueError(f"{name} must be an array, got {brief(images)}") from None
    if array.dtype.kind not in "iuf":
        hint = "; scale images to one size first" if array.dtype.kind == "O" else ""
        raise TypeError(
            f"{name} must be uint8, or floating point in [0, 1], got {array.dtype}{hint}"
        )
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in (1, 3) or array.size == 0:
        raise ValueError(
            f"{name} must be (N, H, W) or (N, H, W, C), or (N, C, H, W), with 1 or 3 channels, "
            f"got {array.shape}"
        )
    if array.dtype == np.uint8:
        return array
    largest = 1 if array.dtype.kind == "f" else 255
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= largest):  # NaN is neither
        raise ValueError(
            f"{name} must lie in 0..{largest} for {array.dtype}, got {low:g}..{high:g}"
            + ("; as uint8 they may reach 255" if largest == 1 else "")
        )
    if array.dtype.kind != "f":
        return array.astype(np.uint8)
    # A part at a time, as the numbers in between take several times the memory.
    result = np.empty(array.shape, dtype=np.uint8)
    for first in range(0, len(array), 256):
        part = slice(first, first + 256)
        result[part] = np.rint(array[part] * 255.0)
    return result


def resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The central square of (H, W, C), scaled to (size, size, C)."""
    from ._optional import require

    pillow = require("PIL.Image", "Pillow", "scaling images needs")
    channels = image.shape[2]
    return scaled(pillow.fromarray(image[:, :, 0] if channels == 1 else image), size, channels)


def data_from_npz(path: str | Path, *, image_size: int = 0, seed: int = 0) -> ImageData:
    """See `ImageData.from_npz`."""
    path = as_path("path", path)
    with _opened(path) as file:
        found = {part: _names_in(file.files, names) for part, names in _NPZ_NAMES.items()}
        if found["train"] is None:
            raise ValueError(
                f"{path} must hold x_train and y_train, and may hold x_val, y_val, x_test and "
                f"y_test; got {', '.join(file.files) or 'nothing'}"
            )
        try:
            arrays = {
                part: (file[names[0]], file[names[1]])
                for part, names in found.items()
                if names is not None
            }
            names = [str(name) for name in file["class_names"]] if "class_names" in file else None
        except (ValueError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    images, labels = arrays["train"]
    try:
        return data_from_arrays(
            images,
            labels,
            test=arrays.get("test"),
            validation=arrays.get("validation"),
            class_names=names,
            image_size=image_size,
            seed=seed,
        )
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from None


def npz_shape(path: str | Path) -> DataShape:
    """What a .npz file holds, by the headers of its arrays."""
    path, counts = as_path("path", path), {}
    shape: tuple[int, ...] = ()
    with _opened(path) as file:
        found = {part: _names_in(file.files, names) for part, names in _NPZ_NAMES.items()}
    if found["train"] is None:
        data_from_npz(path)  # says what is missing
    with zipfile.ZipFile(path) as archive:
        for part, names in found.items():
            if names is not None:
                with archive.open(f"{names[0]}.npy") as entry:
                    first = np.lib.format.read_magic(entry) == (1, 0)
                    header = np.lib.format
                    read = header.read_array_header_1_0 if first else header.read_array_header_2_0
                    own = read(entry)[0]
                counts[part] = own[0] if own else 0
                shape = shape or own
    # Not more than one image, but checked as all are.
    few = as_bytes("images", np.zeros((1, *shape[1:]), dtype=np.uint8))
    return DataShape.of(counts, min(few.shape[1:3]), few.shape[3])


def _opened(path: Path) -> Any:
    """An open .npz file, whose arrays are of plain values."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        file = np.load(path, allow_pickle=False)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not a .npz file: {error}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} must be a .npz file of several arrays, got one array")
    return file


def _names_in(files: Sequence[str], names: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    return next((pair for pair in names if set(pair) <= set(files)), None)
