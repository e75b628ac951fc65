"""The handwritten digits that come with scikit-learn: small enough for a search in a minute."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
    table = torch.as_tensor(_table())
    gray = table[:, :64].to(torch.float64).view(-1, 8, 8, 1)
    images = (gray * (255 / 16)).round().to(torch.uint8)
    labels = table[:, 64].to(torch.int64)
    names = tuple("0123456789")
    is_test = stratified(labels, seed, "digits")
    return ImageData.of(
        ImageSet(images[~is_test], labels[~is_test], names),
        ImageSet(images[is_test], labels[is_test], names),
        DIGITS_AUGMENTATION,
    )


def _table() -> NDArray[Any]:
    """(1797, 65): the gray levels of each image, 0..16, and its class.

    From scikit-learn's file, since importing scikit-learn, with pandas, takes seconds. Where the
    file is not found, by its own function.
    """
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, np.uint8, delimiter=",")
    purpose = "the digits data set comes with"
    bundle = require("sklearn.datasets", "scikit-learn", purpose).load_digits()
    return np.column_stack([bundle.data, bundle.target])
