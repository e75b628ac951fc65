"""CIFAR-10 from the files of https://www.cs.toronto.edu/~kriz/cifar.html, in either form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asng_ext._files import as_path

from ._safe_pickle import PickledArray, load_pickle
from .augment import CIFAR10_AUGMENTATION
from .images import ImageData, ImageSet

_IMAGES_PER_FILE = 10_000
_CLASSES = 10
_PLANES = (3, 32, 32)  # an image in the files: red, green, blue, each row by row
_VALUES = 3 * 32 * 32

# Pixels (_IMAGES_PER_FILE, _VALUES) and as many labels
_Contents = tuple[NDArray[np.uint8], list[int]]


class _Form(NamedTuple):
    """One of the two ways in which CIFAR-10 is published."""

    folder: str
    suffix: str
    names_file: str
    read_batch: Callable[[Path], _Contents]
    read_names: Callable[[Path], tuple[str, ...]]

    @property
    def files(self) -> list[str]:
        """Five to train on, one to test on, and that of the names."""
        batches = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
        return [*(name + self.suffix for name in batches), self.names_file]


def load_cifar10(folder: str | Path) -> ImageData:
    """The 50,000 training and 10,000 test images of CIFAR-10, 32×32×3 in ten classes.

    folder: holds the files of the Python form (data_batch_1 … data_batch_5, test_batch,
    batches.meta) or of the binary form (the same with .bin, and batches.meta.txt), or holds
    cifar-10-batches-py or cifar-10-batches-bin with these files. Both forms give equal tensors.

    The pickles of the Python form are read by an unpickler that runs no code from them.

    Raises FileNotFoundError if files are missing, and ValueError, naming the file, if one is
    damaged or is not what its name says.
    """
    form, where = _find_form(as_path("folder", folder))
    *train, test, names_file = (where / name for name in form.files)
    names = form.read_names(names_file)
    train_set, test_set = (_read_set(paths, form, names) for paths in (train, [test]))
    return ImageData.of(train_set, test_set, CIFAR10_AUGMENTATION)


def holds_cifar10(folder: Path) -> bool:
    """Whether a folder is one that `load_cifar10` takes, or would if no file were missing."""
    return any(
        (where / name).is_file()
        for form in _FORMS
        for where in (folder, folder / form.folder)
        for name in form.files
    )


def _find_form(folder: Path) -> tuple[_Form, Path]:
    """The first complete set of files in `folder` or in one of the official folders in it."""
    incomplete = []
    for form in _FORMS:
        for where in (folder, folder / form.folder):
            missing = [name for name in form.files if not (where / name).is_file()]
            if not missing:
                return form, where
            if len(missing) < len(form.files):
                incomplete.append(f"{where} lacks {', '.join(missing)}")
    if incomplete:
        raise FileNotFoundError(f"CIFAR-10 is not complete: {'; '.join(incomplete)}")
    python, binary = _FORMS
    raise FileNotFoundError(
        f"no CIFAR-10 in {folder}: looked there, in {python.folder} and in {binary.folder} for "
        f"data_batch_1 to data_batch_5, test_batch and {python.names_file}, or the same with .bin "
        f"and {binary.names_file}. Unpack cifar-10-python.tar.gz or cifar-10-binary.tar.gz there."
    )


def _read_set(paths: list[Path], form: _Form, names: tuple[str, ...]) -> ImageSet:
    count = _IMAGES_PER_FILE
    images = np.empty((len(paths), count, 32, 32, 3), dtype=np.uint8)
    labels = np.empty((len(paths), count), dtype=np.int64)
    for i, path in enumerate(paths):
        pixels, labels[i] = form.read_batch(path)
        images[i] = pixels.reshape(count, *_PLANES).transpose(0, 2, 3, 1)
    return ImageSet(
        torch.from_numpy(images.reshape(-1, 32, 32, 3)), torch.from_numpy(labels.ravel()), names
    )


def _read_binary_batch(path: Path) -> _Contents:
    """Records of one byte for the label and _VALUES bytes for the pixels."""
    contents = np.fromfile(path, dtype=np.uint8)
    size = _IMAGES_PER_FILE * (1 + _VALUES)
    if contents.size != size:
        raise ValueError(
            f"{path} must have {size} bytes ({_IMAGES_PER_FILE} images of {1 + _VALUES}), "
            f"got {contents.size}"
        )
    records = contents.reshape(_IMAGES_PER_FILE, 1 + _VALUES)
    return records[:, 1:], _checked_labels(records[:, 0].tolist(), path)


def _read_binary_names(path: Path) -> tuple[str, ...]:
    return _checked_names(path.read_bytes().split(), path)


def _read_python_batch(path: Path) -> _Contents:
    """A pickled dict with the pixels under `data` and a list of numbers under `labels`."""
    data, labels = _read_entries(path, "data", "labels")
    pixels = data.value if isinstance(data, PickledArray) else None
    shape = (_IMAGES_PER_FILE, _VALUES)
    if pixels is None or pixels.shape != shape:
        found = type(data).__name__ if pixels is None else f"shape {pixels.shape}"
        raise ValueError(f"data in {path} must be a uint8 array of shape {shape}, got {found}")
    return pixels, _checked_labels(labels, path)


def _read_python_names(path: Path) -> tuple[str, ...]:
    (names,) = _read_entries(path, "label_names")
    return _checked_names(names, path)


def _read_entries(path: Path, *keys: str) -> list[object]:
    """Entries of a pickled dict, whose keys are bytes, or str if Python 3 wrote it."""
    contents = load_pickle(path)
    if not isinstance(contents, dict):
        raise ValueError(f"{path} must hold a dict, got {type(contents).__name__}")
    entries = []
    for key in keys:
        if key not in contents and key.encode() not in contents:
            raise ValueError(f"{path} has no entry {key!r}")
        entries.append(contents[key] if key in contents else contents[key.encode()])
    return entries


def _checked_labels(labels: object, path: Path) -> list[int]:
    if not isinstance(labels, list) or len(labels) != _IMAGES_PER_FILE:
        found = f"{len(labels)} labels" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"{path} must have a list of {_IMAGES_PER_FILE} labels, got {found}")
    for label in labels:
        if type(label) is not int or not 0 <= label < _CLASSES:
            raise ValueError(f"{path} has the label {label!r}, expected 0 to {_CLASSES - 1}")
    return labels


def _checked_names(names: object, path: Path) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != _CLASSES:
        raise ValueError(f"{path} must have the names of {_CLASSES} classes, got {names!r:.200}")
    texts = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the names in {path} must be strings, got {names!r:.200}")
    return tuple(texts)


_FORMS = (
    _Form("cifar-10-batches-py", "", "batches.meta", _read_python_batch, _read_python_names),
    _Form(
        "cifar-10-batches-bin", ".bin", "batches.meta.txt", _read_binary_batch, _read_binary_names
    ),
)
