"""Data sets of PyTorch and Hugging Face, read once into bytes of one size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asng_ext._checks import check_integer
from asng_ext._terminal import Progress

from ._optional import require
from .augment import Augmentation
from .image_files import GRAY_MODES, LARGEST_IMAGE, Survey, scaled, suited_side
from .images import ImageData
from .labels import Labels
from .own import DataShape, Labeled, as_bytes, divided, resized
from .pixel_cache import RESIDENT, MappedImages, written

__all__ = ["data_from_dataset", "load_huggingface"]

_LOOKED_AT = 256
"""Images of a data set that say what all are like."""
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img", "x"), ("label", "labels", "fine_label", "y")
_VALIDATION = ("validation", "val", "valid")


def data_from_dataset(
    dataset: Any,
    *,
    test: Any = None,
    validation: Any = None,
    class_names: Sequence[str] | None = None,
    image_size: int = 0,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    stream: TextIO | None = None,
) -> ImageData:
    """See `ImageData.from_dataset`."""
    check_integer("image_size", image_size, 0, LARGEST_IMAGE + 1)
    parts = _sources(dataset, validation, test)
    size, channels = _look_at(parts)
    size = image_size or size
    class_names = class_names or parts["train"].class_names()
    labels: dict[str, list[Any]] = {}
    pixels = {}
    training = [parts[name] for name in ("train", "validation") if name in parts]
    for name, group in (
        ("training", training),
        ("test", [parts["test"]] if "test" in parts else []),
    ):
        if group:
            pixels[name] = _read(name, group, labels, (size, size, channels), stream)
    meaning = Labels(labels["train"], class_names)
    indices = {name: meaning.indices(f"labels of {name}", each) for name, each in labels.items()}
    trained = [indices[name] for name in ("train", "validation") if name in indices]
    return divided(
        Labeled(pixels["training"], np.concatenate(trained)),
        Labeled(pixels["test"], indices["test"]) if "test" in pixels else None,
        meaning.names,
        validation=len(indices.get("validation", ())),
        seed=seed,
        augmentation=augmentation,
    )


def dataset_shape(dataset: Any) -> DataShape:
    """What a data set holds, or its divisions by name, by a look at a few of its images."""
    parts = _sources(dataset, None, None)
    size, channels = _look_at(parts)
    return DataShape.of({name: len(part) for name, part in parts.items()}, size, channels)


def _sources(dataset: Any, validation: Any, test: Any) -> dict[str, _Source]:
    """By the names of the divisions, "train", "validation" and "test", those that there are."""
    if isinstance(dataset, Mapping):  # of Hugging Face
        if "train" not in dataset:
            raise ValueError(f"dataset must have a division train, got {', '.join(dataset)}")
        test = dataset.get("test") if test is None else test
        for name in _VALIDATION:
            validation = dataset.get(name) if validation is None else validation
        dataset = dataset["train"]
    sources = {"train": dataset, "validation": validation, "test": test}
    return {name: _Source(name, each) for name, each in sources.items() if each is not None}


def _look_at(parts: Mapping[str, _Source]) -> Survey:
    images = [image for part in parts.values() for image in part.some()]
    channels = 1 if all(_is_gray(image) for image in images) else 3
    return Survey(suited_side(min(_sides(image)) for image in images), channels)


def load_huggingface(name: str) -> Any:
    """The divisions of a data set of Hugging Face by its name, or from a folder of its files or
    one of its `save_to_disk`.

    Raises ImportError if `datasets` is missing, and ValueError if it cannot be loaded.
    """
    datasets = require("datasets", "datasets", f"data {name!r} need", in_demo=False)
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # of many kinds, some of other packages
        words = str(error).partition("\n")[0]
        raise ValueError(f"the data set {name!r} cannot be loaded: {words}") from error


class _Source:
    """A map-style data set, and how an item of it is taken apart."""

    def __init__(self, name: str, dataset: Any) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{name} must be a map-style data set, with __getitem__ and __len__, "
                f"got {type(dataset).__name__}"
            )
        self.name, self.dataset = name, dataset
        if not len(self):
            raise ValueError(f"{name} must hold images, got an empty data set")
        self._keys: tuple[Any, Any] = (0, 1)
        first = dataset[0]
        if isinstance(first, Mapping):
            self._keys = (
                self._column("image", _IMAGE_COLUMNS, "Image", first),
                self._column("label", _LABEL_COLUMNS, "ClassLabel", first),
            )
        elif not isinstance(first, (tuple, list)) or len(first) < 2:
            raise TypeError(
                f"items of {name} must be pairs of an image and a label, or mappings with them, "
                f"got {type(first).__name__}"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def _features(self) -> Mapping[str, Any]:
        """What Hugging Face says of the columns."""
        features = getattr(self.dataset, "features", None)
        return features if isinstance(features, Mapping) else {}

    def _column(self, what: str, names: Sequence[str], kind: str, first: Mapping[str, Any]) -> str:
        typed = [n for n, f in self._features().items() if type(f).__name__ == kind]
        found = [*typed, *(name for name in names if name in first)]
        if not found:
            raise ValueError(
                f"items of {self.name} must have the {what} as one of {', '.join(names)}, "
                f"got {', '.join(map(str, first))}"
            )
        return found[0]

    def class_names(self) -> Sequence[str] | None:
        """The names that the data set has for its classes, if it has any."""
        names = getattr(self._features().get(self._keys[1]), "names", None)
        return names or getattr(self.dataset, "classes", None)

    def item(self, index: int) -> tuple[Any, Any]:
        """(image, label)."""
        item = self.dataset[index]
        return item[self._keys[0]], item[self._keys[1]]

    def some(self) -> list[Any]:
        """A few images from all over the data set."""
        count = min(len(self), _LOOKED_AT)
        return [self.item(int(i))[0] for i in np.linspace(0, len(self) - 1, count).astype(int)]


def _read(
    name: str,
    sources: Sequence[_Source],
    labels: dict[str, list[Any]],
    shape: tuple[int, int, int],
    stream: TextIO | None,
) -> Tensor | MappedImages:
    """The images of data sets, one after the other; many go into a temporary file. `labels` gets
    those of each."""
    total = sum(map(len, sources))
    progress = Progress(f"reading {name} images", total, 0, stream)

    def each() -> Iterator[NDArray[np.uint8]]:
        done = 0
        for source in sources:
            own = labels.setdefault(source.name, [])
            for index in range(len(source)):
                image, label = source.item(index)
                own.append(label.item() if hasattr(label, "item") else label)
                try:
                    yield _fitted(image, shape)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"item {index} of {source.name}: {error}") from error
                done += 1
                if progress.due():
                    progress.draw(done, {})
        progress.line(done, {})

    if total * np.prod(shape) > RESIDENT:
        return written(each(), (total, *shape))
    images = np.empty((total, *shape), dtype=np.uint8)
    for place, image in enumerate(each()):
        images[place] = image
    return torch.from_numpy(images)


def _fitted(image: Any, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    size, _, channels = shape
    if _is_pillow(image):
        return scaled(image, size, channels)
    array = as_bytes("the image", _batch(image))[0]
    if array.shape[2] > channels:
        raise ValueError(f"the image must be gray, as the first ones are, got {array.shape}")
    if array.shape[2] < channels:
        array = np.repeat(array, channels, axis=2)
    return array if array.shape[:2] == (size, size) else resized(array, size)


def _batch(image: Any) -> Any:
    if not isinstance(image, Tensor):
        image = np.asarray(image)
    return image[None]


def _is_pillow(image: Any) -> bool:
    return hasattr(image, "crop") and hasattr(image, "mode")


def _is_gray(image: Any) -> bool:
    if _is_pillow(image):
        return bool(image.mode in GRAY_MODES)
    return bool(as_bytes("images", _batch(image)).shape[3] == 1)


def _sides(image: Any) -> tuple[int, int]:
    """(height, width) in pixels."""
    if _is_pillow(image):
        return image.height, image.width
    height, width = as_bytes("images", _batch(image)).shape[1:3]
    return height, width
