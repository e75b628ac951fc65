"""Images without labels: bundled photographs, and folders with their cache."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from asng_ext.data import folder as folder_module
from asng_ext.data import image_files, load_folder, load_photos


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

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("must not be read again")

    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "reader", fail)
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
    first = load_folder(celeba, 8, cache=cache, stream=None).train.images.clone()
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    second = load_folder(celeba, 8, cache=cache, stream=None)
    assert torch.equal(first, second.train.images)


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


def test_what_is_no_image_is_left_out_and_starts_nothing(
    celeba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would start Ghostscript for EPS, and wait at a pipe for somebody to write into it."""
    images = celeba / "img_align_celeba"
    (images / "000000x0.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n"
    )
    os.mkfifo(images / "000000x1.png")
    (images / "000000x2.png").symlink_to(tmp_path / "nowhere")
    (images / "000000x3.png").mkdir()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("no program is to be started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", fail)
    monkeypatch.setattr(subprocess, "Popen", fail)
    stream = io.StringIO()
    data = load_folder(celeba, 8, cache=tmp_path / "cache", stream=stream)
    assert len(data.train) + len(data.test) == 20
    assert "left out 3 unreadable images" in stream.getvalue()


def test_huge_images_are_decoded_alone_or_left_out(
    celeba: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = celeba / "img_align_celeba"
    write_image(images / "000000x0.png", (250, 0, 0), (40, 40))
    write_image(images / "000000x1.jpg", (240, 0, 0), (256, 256))  # decoded at a fraction
    monkeypatch.setattr(image_files, "_IN_FLIGHT", 100)
    monkeypatch.setattr(image_files, "_TOO_LARGE", 40 * 40 - 1)
    active: list[int] = []
    most = 0
    crop = Image.Image.crop

    def watched(self: Image.Image, box: Any) -> Image.Image:
        nonlocal most
        active.append(1)
        most = max(most, len(active))
        time.sleep(0.001)
        active.pop()
        return crop(self, box)

    monkeypatch.setattr(Image.Image, "crop", watched)
    stream = io.StringIO()
    data = load_folder(celeba, 8, cache=tmp_path / "cache", stream=stream)
    assert "left out 1 unreadable images:" in stream.getvalue()
    assert "000000x0.png" in stream.getvalue()
    assert min(abs(red - 240) for red in colors(data.train.images)) <= 3
    assert most == 1


def test_a_cache_that_cannot_be_written(celeba: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    stream = io.StringIO()
    data = load_folder(celeba, 8, cache=tmp_path / "cache", stream=stream)
    assert len(data.train) == 18
    assert "will be read again the next time: cannot cache them" in stream.getvalue()
    assert str(tmp_path / "cache") in stream.getvalue()


def test_other_files_in_the_cache_are_replaced(celeba: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    data = load_folder(celeba, 8, cache=cache, stream=None)
    first = data.train.images.clone(), data.test.images.clone()
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8, 3)}
    )
    some = next(cache.iterdir())
    others: list[np.ndarray | bytes | dict[str, np.ndarray]] = [
        np.zeros((18, 8, 8, 3)),
        np.zeros((18, 9, 9, 3), dtype=np.uint8),
        np.zeros((0, 8, 8, 3), dtype=np.uint8),
        np.zeros((99, 8, 8, 3), dtype=np.uint8),
        np.uint8(3),
        np.array([{}], dtype=object),
        {"images": np.zeros((18, 8, 8, 3), dtype=np.uint8)},
        b"",
        b"PK\3\4",
        huge.getvalue(),
    ]
    for other in others:
        content = io.BytesIO()
        if isinstance(other, bytes):
            content.write(other)
        elif isinstance(other, dict):
            np.savez(content, **other)
        else:
            np.save(content, other)
        some.write_bytes(content.getvalue())
        again = load_folder(celeba, 8, cache=cache, stream=None)
        assert torch.equal(again.train.images, first[0])
        assert torch.equal(again.test.images, first[1])


def test_nobody_else_can_read_the_cache(celeba: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_folder(celeba, 8, cache=cache, stream=None)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.iterdir()} == {0o600}


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
