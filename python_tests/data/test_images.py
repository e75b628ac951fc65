"""ImageSet, ImageData and the division into halves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from asng_ext.data import NO_AUGMENTATION, ImageData, ImageSet, split_halves


def image_set(n: int = 6, channels: int = 3, size: int = 4, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, size, size, channels)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(n) % 2, ("cat", "dog"))


def test_mean_and_std_are_those_of_the_training_pixels() -> None:
    train = image_set(7, seed=1)
    data = ImageData.of(train, image_set(3, seed=2), NO_AUGMENTATION)
    pixels = train.images.double().reshape(-1, 3) / 255
    torch.testing.assert_close(data.mean, pixels.mean(0).float())
    torch.testing.assert_close(data.std, pixels.std(0, correction=0).float())
    assert (data.channels, data.image_size, data.classes) == (3, (4, 4), 2)


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    constant = ImageSet(
        torch.full((2, 3, 3, 1), 51, dtype=torch.uint8), torch.tensor([0, 0]), ("",)
    )
    data = ImageData.of(constant, constant, NO_AUGMENTATION)
    assert data.std.item() == 1.0
    torch.testing.assert_close(data.mean, torch.tensor([0.2]))


def test_to_the_same_device_copies_nothing() -> None:
    data = ImageData.of(image_set(), image_set(), NO_AUGMENTATION)
    moved = data.to("cpu")
    assert moved.train.images.data_ptr() == data.train.images.data_ptr()
    assert moved.device == torch.device("cpu")


@pytest.mark.cuda
def test_to_moves_everything() -> None:
    data = ImageData.of(image_set(), image_set(), NO_AUGMENTATION).to("cuda")
    tensors = (data.train.images, data.train.labels, data.test.images, data.mean, data.std)
    assert all(tensor.is_cuda for tensor in tensors)


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_halves_divide_everything(n: int) -> None:
    for_x, for_theta = split_halves(n, seed=5)
    assert (len(for_x), len(for_theta)) == (n - n // 2, n // 2)
    assert sorted(for_x.tolist() + for_theta.tolist()) == list(range(n))


def test_halves_depend_on_the_seed_alone(
    global_generators_unchanged: Callable[[], AbstractContextManager[None]],
) -> None:
    torch.manual_seed(0)
    first = split_halves(100, seed=1)[0]
    torch.manual_seed(9)
    with global_generators_unchanged():
        assert torch.equal(first, split_halves(100, seed=1)[0])
    assert not torch.equal(first, split_halves(100, seed=2)[0])


def test_bad_halves() -> None:
    with pytest.raises(ValueError, match="n must be 2 or more to be divided in two, got 1"):
        split_halves(1, seed=0)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 0\.5"):
        split_halves(4, seed=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (torch.zeros(2, 4, 4, 3), torch.zeros(2).long(), TypeError, "got torch.float32"),
        (torch.zeros(2, 4, 4, 3).byte(), torch.zeros(2), TypeError, "labels int64"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), ValueError, r"got \(2, 4, 4\)"),
        (torch.zeros(0, 4, 4, 3).byte(), torch.zeros(0).long(), ValueError, "not empty"),
        (torch.zeros(2, 4, 4, 3).byte(), torch.zeros(3).long(), ValueError, r"\(2,\).*got \(3,\)"),
        (torch.zeros(1, 4, 4, 3).byte(), torch.tensor([2]), ValueError, r"0\.\.1.*got 2\.\.2"),
        (torch.zeros(1, 4, 4, 3).byte(), torch.tensor([-1]), ValueError, r"got -1\.\.-1"),
    ],
)
def test_bad_sets(
    images: torch.Tensor, labels: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ImageSet(images, labels, ("cat", "dog"))


def test_sets_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"one shape \(H, W, C\), got \(4, 4, 3\) and \(4, 4, 1\)"):
        ImageData.of(image_set(), image_set(channels=1), NO_AUGMENTATION)
    other = ImageSet(image_set().images, image_set().labels, ("dog", "cat"))
    with pytest.raises(ValueError, match="same class_names"):
        ImageData.of(image_set(), other, NO_AUGMENTATION)
    with pytest.raises(ValueError, match=r"mean must be \(3,\), got \(1,\)"):
        ImageData(image_set(), image_set(), torch.zeros(1), torch.ones(3), NO_AUGMENTATION)
