"""Images without labels: bundled photographs, and folders with their cache."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asng_ext.data import folder as folder_module
from asng_ext.data import load_folder, load_photos


def write_image(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def colors(images: torch.Tensor) -> list[int]:
    """The red of the central pixel of each image."""
    side = images.shape[1]
    return [int(image[side // 2, side // 2, 0]) for image in images]


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    for i in range(20):
        write_image(tmp_path / "data" / "img_align_celeba" / f"{i:06}.png", (10 * i, 0, 255))
    return tmp_path / "data"


# ---------------------------------------------------------------------------------- photographs


def test_photographs_are_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "socket", offline)
    data = load_photos(32)
    assert data.image_size == (32, 32)
    assert data.channels == 3
    assert len(data.train) > 3000
    assert len(data.test) > 1000
    again = load_photos(32)
    assert torch.equal(data.train.images, again.train.images)
    train = {image.numpy().tobytes() for image in data.train.images}
    assert not train & {image.numpy().tobytes() for image in data.test.images}


def test_wrong_patches() -> None:
    with pytest.raises(ValueError, match="image_size must be at most 400, the smaller side"):
        load_photos(401)
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="image_size must be a positive integer"):
            load_photos(size)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- folders


def test_last_tenth_is_for_testing(celeba: Path, tmp_path: Path) -> None:
    data = load_folder(celeba, 8, cache=tmp_path / "cache", stream=None)
    assert data.image_size == (8, 8)
    assert colors(data.train.images) == [10 * i for i in range(18)]
    assert colors(data.test.images) == [180, 190]
    x = data.train.images.float()
    assert (x[..., 2] == 255).all()
    assert data.mean.tolist() == [0, 0, 0]
    assert data.std.tolist() == [1, 1, 1]


def test_train_and_test_folders(tmp_path: Path) -> None:
    for i, part in enumerate(["train", "train", "test"]):
        write_image(tmp_path / part / "img" / f"{i}.jpg", (100 * i, 0, 0), (40, 80))
    data = load_folder(tmp_path, 8, cache=tmp_path / "cache", stream=None)
    assert np.allclose(colors(data.train.images), [0, 100], atol=3)
    assert np.allclose(colors(data.test.images), [200], atol=3)


def test_center_is_cropped_and_scaled(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:20], pixels[:, 20:30] = 100, 200
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    data = load_folder(tmp_path, 4, cache=tmp_path / "cache", stream=None)
    red = data.train.images[0, :, :, 0].float()
    assert (red - torch.tensor([100.0, 100, 200, 200])).abs().max() < 15


def test_a_second_time_nothing_is_decoded(
    celeba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = load_folder(celeba, 8, cache=cache, stream=None)

    def fail(size: int) -> None:
        raise AssertionError("must not be read again")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "_reader", fail)
        second = load_folder(celeba, 8, cache=cache, stream=None)
    assert torch.equal(first.train.images, second.train.images)
    assert len(list(cache.iterdir())) == 2

    # A file that changed without changing its size is noticed by its time.
    path = celeba / "img_align_celeba" / "000003.png"
    write_image(path, (99, 0, 255))
    os.utime(path, ns=(1, 1))
    changed = load_folder(celeba, 8, cache=cache, stream=None)
    assert colors(changed.train.images)[3] == 99
    load_folder(celeba, 6, cache=cache, stream=None)
    assert len(list(cache.iterdir())) == 4


def test_damaged_cache_is_made_again(celeba: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_folder(celeba, 8, cache=cache, stream=None)
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    second = load_folder(celeba, 8, cache=cache, stream=None)
    assert torch.equal(first.train.images, second.train.images)


def test_unreadable_files_are_named(celeba: Path, tmp_path: Path) -> None:
    broken = celeba / "img_align_celeba" / "000004.png"
    broken.write_bytes(broken.read_bytes()[:45])
    for i in range(7):
        (celeba / "img_align_celeba" / f"000000x{i}.jpg").write_bytes(b"no image")
    stream = io.StringIO()
    data = load_folder(celeba, 8, cache=tmp_path / "cache", stream=stream)
    assert 40 not in colors(data.train.images)
    assert len(data.train) + len(data.test) == 19
    assert "unreadable 8" in stream.getvalue()
    assert "left out 8 unreadable images:" in stream.getvalue()
    assert "000000x0.jpg" in stream.getvalue()
    assert "and 3 more" in stream.getvalue()


def test_wrong_folders(tmp_path: Path) -> None:
    options: dict[str, Any] = {"cache": tmp_path / "cache", "stream": None}
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_folder(tmp_path / "nowhere", **options)
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no images in"):
        load_folder(empty, **options)
    write_image(empty / "a.png", (0, 0, 0))
    with pytest.raises(FileNotFoundError, match="2 images or more"):
        load_folder(empty, 8, **options)
    write_image(empty / "b.png", (0, 0, 0))
    with pytest.raises(ValueError, match=r"at least image_size=16 pixels.*got 12×10 in .*a\.png"):
        load_folder(empty, 16, **options)
    for name in "ab":
        (empty / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 1 images can be read"):
        load_folder(empty, 8, **options)
    with pytest.raises(ValueError, match="image_size"):
        load_folder(empty, 0, **options)
