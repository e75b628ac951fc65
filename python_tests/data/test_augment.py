"""Batched augmentation against slow loops over single images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asng_ext.data import (
    CIFAR10_AUGMENTATION,
    DIGITS_AUGMENTATION,
    NO_AUGMENTATION,
    Augmentation,
    apply_augmentations,
    augment,
    draw_augmentations,
    normalize,
)
from asng_ext.data.augment import Augmenter


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(
    shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool, seed: int
) -> Tensor:
    images = torch.randint(0, 256, shape, generator=generator(seed), dtype=torch.uint8)
    if dtype != torch.uint8:
        images = (images / 255).to(dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return images.contiguous(memory_format=memory_format)


def slow_augment(
    images: Tensor, draws: Tensor, augmentation: Augmentation, mean: Tensor, std: Tensor
) -> Tensor:
    """What `apply_augmentations` does, one image and one pixel at a time."""
    _, channels, height, width = images.shape
    padding, side = augmentation.crop_padding, augmentation.cutout
    results = []
    for image, (top, left, flip, row, column) in zip(images, draws.tolist(), strict=True):
        unit = image.double() / 255 if image.dtype == torch.uint8 else image.double()
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding).double()
        padded[:, padding : padding + height, padding : padding + width] = unit
        crop = padded[:, top : top + height, left : left + width]
        if augmentation.flip and flip:
            crop = crop.flip(2)
        result = (crop - mean.double()[:, None, None]) / std.double()[:, None, None]
        for y in range(height):
            for x in range(width):
                if 0 <= y - (row - side // 2) < side and 0 <= x - (column - side // 2) < side:
                    result[:, y, x] = 0
        results.append(result)
    return torch.stack(results).float()


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 4),
    channels=st.integers(1, 4),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    cutout=st.integers(0, 12),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.float16]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_a_loop_over_images(
    count: int,
    channels: int,
    height: int,
    width: int,
    padding: int,
    flip: bool,
    cutout: int,
    dtype: torch.dtype,
    channels_last: bool,
    seed: int,
) -> None:
    augmentation = Augmentation(padding, flip, cutout)
    images = random_images((count, channels, height, width), dtype, channels_last, seed)
    mean = torch.linspace(0.4, 0.6, channels)
    std = torch.linspace(0.2, 0.3, channels)
    draws = draw_augmentations(count, height, width, augmentation, generator=generator(seed))
    before = images.clone()

    result = apply_augmentations(images, draws, augmentation, mean=mean, std=std)

    torch.testing.assert_close(
        result, slow_augment(images, draws, augmentation, mean, std), rtol=1e-5, atol=1e-5
    )
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)
    assert torch.equal(
        result,
        augment(
            images,
            generator=generator(seed),
            crop_padding=padding,
            flip=flip,
            cutout=cutout,
            mean=mean,
            std=std,
        ),
    )


def test_padding_is_black_and_cutout_is_the_mean() -> None:
    images = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    mean, std = torch.tensor([0.5]), torch.tensor([0.25])
    draws = torch.tensor([[0, 1, 0, 3, 3]])  # one row of padding on top, cut out of the corner
    result = apply_augmentations(images, draws, Augmentation(1, False, 2), mean=mean, std=std)
    assert result[0, 0].tolist() == [
        [-2, -2, -2, -2],
        [2, 2, 2, 2],
        [2, 2, 0, 0],
        [2, 2, 0, 0],
    ]


def test_crop_that_shows_only_padding() -> None:
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    draws = torch.tensor([[6, 0, 0, 0, 0]])
    assert apply_augmentations(images, draws, Augmentation(3, False, 0)).eq(0).all()


def test_draws_cover_their_ranges_and_no_more() -> None:
    draws = draw_augmentations(5000, 6, 9, Augmentation(2, True, 4), generator=generator())
    for column, choices in zip(draws.unbind(1), (5, 5, 2, 6, 9), strict=True):
        assert sorted(set(column.tolist())) == list(range(choices))
    assert abs(draws[:, 2].double().mean().item() - 0.5) < 0.03


def test_draws_depend_on_the_generator_alone() -> None:
    images = random_images((8, 3, 32, 32), torch.uint8, True, 0)
    torch.manual_seed(1)
    first = augment(images, generator=generator(3))
    torch.manual_seed(2)
    assert torch.equal(first, augment(images, generator=generator(3)))
    assert not torch.equal(first, augment(images, generator=generator(4)))


def test_global_generators_are_left_alone(
    global_generators_unchanged: Callable[[], AbstractContextManager[None]],
) -> None:
    with global_generators_unchanged():
        augment(random_images((4, 3, 8, 8), torch.uint8, True, 0), generator=generator())


def test_nothing_to_do_only_changes_the_units() -> None:
    images = random_images((3, 2, 5, 4), torch.uint8, False, 1)
    result = augment(images, generator=generator(), crop_padding=0, flip=False, cutout=0)
    torch.testing.assert_close(result, images / 255)
    draws = draw_augmentations(3, 5, 4, NO_AUGMENTATION, generator=generator())
    assert torch.equal(result, apply_augmentations(images, draws, NO_AUGMENTATION))


def test_result_does_not_share_memory_with_float_images() -> None:
    images = random_images((2, 3, 4, 4), torch.float32, True, 1)
    assert normalize(images).data_ptr() != images.data_ptr()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalize(dtype: torch.dtype) -> None:
    images = random_images((2, 3, 4, 5), dtype, False, 2)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1.0, 2.0])
    unit = images / 255 if dtype == torch.uint8 else images
    expected = (unit - mean[:, None, None]) / std[:, None, None]
    result = normalize(images, mean, std)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_presets() -> None:
    assert Augmentation(4, True, 16) == CIFAR10_AUGMENTATION
    assert Augmentation(1, False, 0) == DIGITS_AUGMENTATION


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"crop_padding": -1}, ValueError, "crop_padding must be 0 or more pixels, got -1"),
        ({"crop_padding": 1.5}, TypeError, "crop_padding must be an int, got 1.5"),
        ({"cutout": -2}, ValueError, "cutout must be 0 or more pixels, got -2"),
        ({"cutout": True}, TypeError, "cutout must be an int, got True"),
        ({"flip": 1}, TypeError, "flip must be True or False, got 1"),
        ({"images": [1]}, TypeError, "images must be a tensor, got list"),
        ({"images": torch.zeros(1, 3, 4, 4).long()}, TypeError, "uint8 or floating .*int64"),
        ({"images": torch.zeros(3, 4, 4)}, ValueError, r"\(B, C, H, W\).*got \(3, 4, 4\)"),
        ({"images": torch.zeros(1, 3, 0, 4)}, ValueError, r"got \(1, 3, 0, 4\)"),
        ({"mean": torch.zeros(3)}, ValueError, "mean and std go together"),
        ({"mean": torch.zeros(3), "std": torch.ones(1)}, ValueError, r"std .* \(3,\).* got \(1,\)"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    defaults: dict[str, Any] = {"images": torch.zeros(2, 3, 4, 4), "generator": generator()}
    with pytest.raises(error, match=message):
        augment(**(defaults | arguments))


def test_bad_draws() -> None:
    with pytest.raises(ValueError, match=r"draws must be \(2, 5\), got \(1, 5\)"):
        apply_augmentations(torch.zeros(2, 1, 4, 4), torch.zeros(1, 5).long(), NO_AUGMENTATION)
    with pytest.raises(ValueError, match="height=0"):
        draw_augmentations(2, 0, 3, NO_AUGMENTATION, generator=generator())


def test_an_augmenter_is_for_batches_of_one_shape() -> None:
    augmenter = Augmenter(Augmentation(1, True, 2), (2, 3, 4, 5), torch.uint8, torch.device("cpu"))
    draws = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"images must be \(2, 3, 4, 5\), got \(1, 3, 4, 5\)"):
        augmenter(torch.zeros(1, 3, 4, 5, dtype=torch.uint8), draws[:1])
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"draws must be \(2, 5\), got \(1, 5\)"):
        augmenter(images, draws[:1])
    assert augmenter(images, None).shape == images.shape
