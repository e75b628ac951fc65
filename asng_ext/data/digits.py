"""The handwritten digits that come with scikit-learn: small enough for a search in a minute."""

from __future__ import annotations

import torch

from ._optional import require
from .augment import DIGITS_AUGMENTATION
from .images import ImageData, ImageSet, stratified


def load_digits(seed: int = 0) -> ImageData:
    """1797 gray images of 8×8 pixels in ten classes, 1437 to train on and 360 to test on.

    The images stay at 8×8 pixels, with their 17 gray levels spread over 0..255. The division is
    random but stratified, so every class has a fifth of its images (to within one) in the test
    set. It depends on `seed` alone.

    Raises ImportError if scikit-learn is missing.
    """
    purpose = "the digits data set comes with"
    bundle = require("sklearn.datasets", "scikit-learn", purpose).load_digits()
    gray = torch.as_tensor(bundle.images, dtype=torch.float64)
    images = (gray * (255 / 16)).round().to(torch.uint8).unsqueeze(3)
    labels = torch.as_tensor(bundle.target, dtype=torch.int64)
    names = tuple(str(name) for name in bundle.target_names)
    is_test = stratified(labels, seed, "digits")
    return ImageData.of(
        ImageSet(images[~is_test], labels[~is_test], names),
        ImageSet(images[is_test], labels[is_test], names),
        DIGITS_AUGMENTATION,
    )
