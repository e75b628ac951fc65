"""Images without labels: patches of the photographs that come with scikit-image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asng_ext._checks import check_positive

from ._optional import require
from .augment import Augmentation
from .images import ImageData, ImageSet
from .pixel_cache import MappedImages

__all__ = ["TEST_PHOTOS", "TRAIN_PHOTOS", "load_photos", "unlabeled"]

TRAIN_PHOTOS = ("astronaut", "coffee", "rocket", "stereo_motorcycle")
TEST_PHOTOS = ("chelsea", "camera")
_SCALES = (1, 2, 4)
"""Patches are cut from the photograph itself and from reductions by these factors."""


def load_photos(image_size: int = 64) -> ImageData:
    """Overlapping square patches of photographs, for training and for testing from different ones.

    The photographs are among those inside scikit-image's package; nothing is downloaded. Patches
    lie half a patch apart, on the photograph and on copies reduced to a half and a quarter.
    The labels are 0, and mean and standard deviation are 0 and 1: batches are in [0, 1].

    Args:
        image_size: Side of a patch in pixels.

    Raises:
        ImportError: If scikit-image is missing.
        ValueError: If `image_size` is not positive or larger than a photograph.
    """
    check_positive("image_size", image_size)
    sets = [
        np.concatenate([_patches(name, _photo(name), image_size) for name in names])
        for names in (TRAIN_PHOTOS, TEST_PHOTOS)
    ]
    return unlabeled(*(torch.from_numpy(patches) for patches in sets))


def unlabeled(train: Tensor | MappedImages, test: Tensor | MappedImages) -> ImageData:
    """(N, H, W, C) uint8 images as a data set whose batches are in [0, 1], flipped at random."""
    sets = [
        ImageSet.of(images, torch.zeros(len(images), dtype=torch.int64), ("image",))
        for images in (train, test)
    ]
    channels = sets[0].images.shape[3]
    return ImageData(
        sets[0],
        sets[1],
        mean=torch.zeros(channels),
        std=torch.ones(channels),
        augmentation=Augmentation(crop_padding=0, flip=True, cutout=0),
    )


def _photo(name: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8."""
    photo = getattr(require("skimage.data", "scikit-image", "these photographs come with"), name)()
    if isinstance(photo, Sequence):  # a stereo pair and its disparities
        photo = photo[0]
    image = np.asarray(photo, dtype=np.uint8)
    return np.stack([image] * 3, axis=2) if image.ndim == 2 else image[:, :, :3]


def _patches(name: str, photo: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(n, side, side, 3) patches, half a side apart."""
    if min(photo.shape[:2]) < side:
        raise ValueError(
            f"image_size must be at most {min(photo.shape[:2])}, the smaller side of the "
            f"photograph {name!r}, got {side}"
        )
    step = max(1, side // 2)
    patches = []
    for scale in _SCALES:
        small = _reduced(photo, scale)
        if min(small.shape[:2]) < side:
            break
        windows = np.lib.stride_tricks.sliding_window_view(small, (side, side), axis=(0, 1))
        chosen = windows[::step, ::step].reshape(-1, 3, side, side)
        patches.append(chosen.transpose(0, 2, 3, 1))
    return np.ascontiguousarray(np.concatenate(patches))


def _reduced(photo: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means over squares of factor × factor pixels."""
    height, width = (side // factor for side in photo.shape[:2])
    whole = photo[: height * factor, : width * factor].astype(np.float32)
    means = whole.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    reduced: NDArray[np.uint8] = means.round().astype(np.uint8)
    return reduced
