"""Random crop, horizontal flip, normalization and cutout of whole batches, on their own device.

This is the preprocessing of the classification experiments (§3.2): crops of the zero-padded image
and flips (He et al., 2016), then cutout (DeVries & Taylor, 2017). There is no loop over images,
and nothing synchronizes with the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asng_ext._checks import brief

from ._seeding import check_generator


@dataclass(frozen=True)
class Augmentation:
    """What to do to training images.

    crop_padding: pixels of zeros around the image before a crop of the original size; 0 for none.
    flip: mirror left to right with probability one half.
    cutout: side in pixels of the square set to zero; 0 for none.

    Raises TypeError and ValueError if a field is not of its type, or negative.
    """

    crop_padding: int = 4
    flip: bool = True
    cutout: int = 16

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} must be 0 or more pixels, got {value}")
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip must be True or False, got {self.flip!r}")


CIFAR10_AUGMENTATION = Augmentation(crop_padding=4, flip=True, cutout=16)
# A mirrored digit is another sign, and an 8 x 8 image has nothing to spare for a cutout.
DIGITS_AUGMENTATION = Augmentation(crop_padding=1, flip=False, cutout=0)
NO_AUGMENTATION = Augmentation(crop_padding=0, flip=False, cutout=0)


def augmentation_for(image_size: tuple[int, int], channels: int) -> Augmentation:
    """What suits images of which no more than (height, width) and the channels are known.

    Crops are shifted by up to an eighth of the smaller side. Color images are mirrored; gray ones
    are often signs, which have another meaning then. Nothing is cut out of images below 16 pixels,
    and a square of a quarter of the side out of others.
    """
    side = min(image_size)
    return Augmentation(
        crop_padding=side // 8, flip=channels == 3, cutout=side // 4 if side >= 16 else 0
    )


def augment(
    images: Tensor,
    *,
    generator: torch.Generator,
    crop_padding: int = 4,
    flip: bool = True,
    cutout: int = 16,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """Draw an augmentation per image and apply it: crop, flip, normalize, cutout, in this order.

    images: (B, C, H, W), uint8 in 0..255 or floating point in [0, 1], in any memory format.
    generator: the source of all draws, on the CPU or on the device of the images. A CPU generator
    gives the same draws whatever the device of the images.
    mean, std: (C,), in units of [0, 1] images; without them images are only brought to [0, 1].

    Returns (B, C, H, W) float32, channels last. Images read best, too, when they are channels last.
    Raises TypeError and ValueError for images of another dtype or shape, for a `mean` or `std` of
    another shape, and as `Augmentation` does.
    """
    augmentation = Augmentation(crop_padding=crop_padding, flip=flip, cutout=cutout)
    _check_images(images)
    check_generator(generator)
    count, _, height, width = images.shape
    draws = draw_augmentations(count, height, width, augmentation, generator=generator)
    # Without non_blocking the host would synchronize with the device.
    draws = draws.to(images.device, non_blocking=True)
    return apply_augmentations(images, draws, augmentation, mean=mean, std=std)


def draw_augmentations(
    count: int,
    height: int,
    width: int,
    augmentation: Augmentation,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Draw what `apply_augmentations` needs for `count` images of height × width pixels.

    Returns (count, 5) int64 on the generator's device: the top and left edge of the crop within
    the padded image, 1 to flip or 0, and the row and column of the cutout's center. All five are
    drawn even where the augmentation does not use them.

    Raises ValueError if `count` is negative or the image has no pixels.
    """
    if count < 0 or height < 1 or width < 1:
        raise ValueError(
            "expected count >= 0, height >= 1 and width >= 1, "
            f"got count={count}, height={height}, width={width}"
        )
    offsets = 2 * augmentation.crop_padding + 1
    columns = [
        torch.randint(choices, (count,), generator=generator, device=generator.device)
        for choices in (offsets, offsets, 2, height, width)
    ]
    return torch.stack(columns, dim=1)


def apply_augmentations(
    images: Tensor,
    draws: Tensor,
    augmentation: Augmentation,
    *,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """Crop, flip, normalize and cut out of `images` what `draws` says.

    images, mean, std, the result and errors: as in `augment`.
    draws: (B, 5) int64 of `draw_augmentations`, on the device of the images. Their values are
    not checked, since that would synchronize with the device.
    """
    _check_images(images)
    shape = tuple(images.shape)
    return Augmenter(augmentation, shape, images.dtype, images.device, mean=mean, std=std)(
        images, draws
    )


def normalize(images: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """Images as a network takes them: (x - mean)/std with x in [0, 1], without augmentation.

    Arguments, result and errors are those of `augment`.
    """
    _check_images(images)
    _, channels, _, width = images.shape
    scaling = _scaling(images.dtype, channels, width, mean, std)
    return _as_images(_scaled(images.permute(0, 2, 3, 1), scaling), channels)


class Augmenter:
    """`apply_augmentations` for batches of one shape: what these have in common is computed once.

    On a GPU each little computation is a launch, and a batch needs but half of them this way.

    augmentation, mean, std: as in `apply_augmentations`.
    shape: (B, C, H, W) of the batches.
    dtype, device: of the batches.

    Raises ValueError for a `mean` or `std` of another shape.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        count, channels, height, width = shape
        padding = augmentation.crop_padding
        self.augmentation = augmentation
        self.shape = tuple(shape)
        self._scaling = _scaling(dtype, channels, width, mean, std)
        self._padded = (count, height + 2 * padding, width + 2 * padding, channels)

        image, y, x = (torch.arange(n, device=device) for n in (count, height, width))
        # Where in the padded images, taken as a list of pixels, crops at (0, 0) come from.
        rows = image[:, None] * self._padded[1] + y
        self._sources = (rows * self._padded[2])[:, :, None] + x
        # How far to the right the pixel lies that takes the place of this one if it is flipped.
        self._mirror = width - 1 - 2 * x
        # Twice the distance from the middle of a cutout around 0. It may lie between two pixels.
        twice_middle = augmentation.cutout - 1 - 2 * (augmentation.cutout // 2)
        self._y = (2 * y - twice_middle).float()
        self._x = (2 * x - twice_middle).float().repeat_interleave(channels)

    @property
    def scale_and_shift(self) -> tuple[Tensor, Tensor] | None:
        """From pixels to normalized numbers, (C,) each; None without a mean."""
        if isinstance(self._scaling, float):
            return None
        channels = self.shape[1]
        scale, shift = self._scaling
        return scale[:channels], shift[:channels]

    def __call__(self, images: Tensor, draws: Tensor | None) -> Tensor:
        """Augmented images, (B, C, H, W) float32, channels last.

        images: (B, C, H, W) of the shape, dtype and device given.
        draws: (B, 5) int64 of `draw_augmentations` on that device; None only normalizes.

        Raises ValueError for images or draws of another shape.
        """
        if tuple(images.shape) != self.shape:
            raise ValueError(f"images must be {self.shape}, got {tuple(images.shape)}")
        pixels = images.permute(0, 2, 3, 1)
        if draws is None:
            return _as_images(_scaled(pixels, self._scaling), self.shape[1])
        if draws.shape != (self.shape[0], 5):
            raise ValueError(f"draws must be {(self.shape[0], 5)}, got {tuple(draws.shape)}")
        top, left, flip, row, column = draws.unbind(1)
        if self.augmentation.crop_padding or self.augmentation.flip:
            pixels = self._crop_and_flip(pixels, top, left, flip)
        values = _scaled(pixels, self._scaling)
        if self.augmentation.cutout:
            # A product is several times faster here than masked_fill.
            values.mul_(self._outside_square(row, column))
        return _as_images(values, self.shape[1])

    def _crop_and_flip(self, pixels: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """Cut (B, H, W, C) out of the zero-padded (B, H, W, C), in one gather of whole pixels."""
        _, height, width, channels = pixels.shape
        padding = self.augmentation.crop_padding
        padded = pixels.new_zeros(self._padded)
        padded[:, padding : padding + height, padding : padding + width] = pixels
        shift = torch.add(left, top, alpha=self._padded[2])[:, None]
        if self.augmentation.flip:
            shift = shift + flip[:, None] * self._mirror
        source = self._sources + shift[:, None]
        # index_select copies C values per index; indexing with three tensors takes four times as
        # long.
        return padded.view(-1, channels).index_select(0, source.view(-1)).view(pixels.shape)

    def _outside_square(self, row: Tensor, column: Tensor) -> Tensor:
        """(B, H, W*C) float32: 0 in the square around (row, column), 1 outside it.

        The square has `side` rows, from row - side // 2 on, and as many columns; what lies beyond
        the border is lost.
        """
        side = self.augmentation.cutout
        y = torch.sub(self._y, row[:, None], alpha=2).abs_()
        x = torch.sub(self._x, column[:, None], alpha=2).abs_()
        return torch.maximum(y[:, :, None], x[:, None, :]).ge_(side)


def _scaling(
    dtype: torch.dtype, channels: int, width: int, mean: Tensor | None, std: Tensor | None
) -> tuple[Tensor, Tensor] | float:
    """What to multiply rows of pixels by and what to add then; or what to divide them by.

    Rows are W*C long here and in cutouts because the inner loop of a broadcast over (…, W, C) has
    only C = 3 steps, which makes it several times slower.
    """
    largest = 255.0 if dtype == torch.uint8 else 1.0
    if mean is None and std is None:
        return largest
    if mean is None or std is None:
        raise ValueError("mean and std go together, got only one of them")
    for name, constant in (("mean", mean), ("std", std)):
        if not isinstance(constant, Tensor):
            raise TypeError(f"{name} must be a tensor, got {brief(constant)}")
        if constant.shape != (channels,):
            raise ValueError(
                f"{name} must have shape ({channels},), one value per channel, "
                f"got {tuple(constant.shape)}"
            )
    return (1.0 / (largest * std)).repeat(width), (-mean / std).repeat(width)


def _scaled(pixels: Tensor, scaling: tuple[Tensor, Tensor] | float) -> Tensor:
    """(B, H, W, C) of any dtype -> (B, H, W*C) float32, in memory of its own.

    What can be is done in place, as fresh memory costs more here than the arithmetic.
    """
    count, height, width, channels = pixels.shape
    values = pixels.reshape(count, height, width * channels)
    values = values.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if isinstance(scaling, float):
        return values.div_(scaling)
    scale, shift = scaling
    return values.mul_(scale).add_(shift)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images must be (B, C, H, W) and have pixels, got {tuple(images.shape)}")


def _as_images(values: Tensor, channels: int) -> Tensor:
    """(B, H, W*C) -> a (B, C, H, W) view, which is channels last."""
    count, height, _ = values.shape
    return values.view(count, height, -1, channels).permute(0, 3, 1, 2)
