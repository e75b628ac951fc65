"""Masks of the inpainting experiments (Section 3.3): which pixels of an image are missing."""

from __future__ import annotations

import torch
from torch import Tensor

from asng_ext._checks import brief, is_integer

from ._seeding import check_generator

__all__ = ["MASKS", "draw_masks"]

MASKS = ("center", "pixel", "half")

MISSING_SHARE = 0.8
"""Probability with which the random pixel mask takes a pixel away."""


def draw_masks(
    kind: str, count: int, height: int, width: int, *, generator: torch.Generator
) -> Tensor:
    """Masks for `count` images: 1 where a pixel is kept, 0 where it is missing.

    Args:
        kind: "center" takes away the central half in each dimension; "pixel" takes away each
            pixel with probability 0.8; "half" takes away the left, right, upper or lower half,
            drawn for each image. All channels of an image lose the same pixels. What cannot be
            halved loses the smaller part.
        count, height, width: Of the images.
        generator: The source of all draws; the masks are made on its device.

    Returns:
        (count, 1, height, width) float32.

    Raises:
        ValueError: If the kind is unknown or a number is not positive.
    """
    if kind not in MASKS:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {kind!r}")
    for name, value in (("count", count), ("height", height), ("width", width)):
        if not is_integer(value):
            raise TypeError(f"{name} must be an integer, got {brief(value)}")
    check_generator(generator)
    if min(count, height, width) < 1:
        raise ValueError(
            "count, height and width must be 1 or more, "
            f"got count={count}, height={height}, width={width}"
        )
    device = generator.device
    shape = (count, 1, height, width)
    if kind == "pixel":
        draws = torch.rand(shape, generator=generator, device=device)
        return (draws >= MISSING_SHARE).float()
    if kind == "center":
        masks, top, left = torch.ones(shape, device=device), height // 4, width // 4
        masks[:, :, top : top + height // 2, left : left + width // 2].zero_()
        return masks
    halves = torch.ones(4, 1, height, width, device=device)
    halves[0, :, :, : width // 2].zero_()
    halves[1, :, :, width - width // 2 :].zero_()
    halves[2, :, : height // 2].zero_()
    halves[3, :, height - height // 2 :].zero_()
    chosen = torch.randint(4, (count,), generator=generator, device=device)
    return halves.index_select(0, chosen)
