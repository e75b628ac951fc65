"""A folder of color images to classify, without any download: patches of the photographs that come
with scikit-image, each of which is a class.

    python examples/photo_patches.py [FOLDER] [SIDE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle")


def photo(name: str) -> np.ndarray:
    """(H, W, 3) uint8."""
    found = getattr(data, name)()
    return np.asarray(found[0] if isinstance(found, tuple) else found)[:, :, :3]


folder = Path(sys.argv[1] if len(sys.argv) > 1 else "patches")
side = int(sys.argv[2]) if len(sys.argv) > 2 else 32
written = 0
for name in PHOTOS:
    pixels = photo(name)
    (folder / name).mkdir(parents=True, exist_ok=True)
    for top in range(0, pixels.shape[0] - side + 1, side):
        for left in range(0, pixels.shape[1] - side + 1, side):
            patch = Image.fromarray(pixels[top : top + side, left : left + side])
            patch.save(folder / name / f"{top:03}-{left:03}.png")
            written += 1
print(f"{written} patches of {len(PHOTOS)} photographs in {folder}; now")
print(f"asng search classification --data {folder} --out runs/patches")
