"""Folders with a subfolder for each class, and the file of their pixels."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asng_ext.data import BatchStream, ImageData, class_folder, pixel_cache
from asng_ext.data.class_folder import folder_shape
from asng_ext.predict import read_image


def write(path: Path, level: int, size: tuple[int, int] = (16, 16), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode == "L" else (level, 0, 0)).save(path)


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 4, 4, 0].tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """10 images of cats and 20 of dogs, of another gray each."""
    for i in range(30):
        write(tmp_path / "data" / ("cat" if i < 10 else "dog") / f"{i:02}.png", 8 * i)
    return tmp_path / "data"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"cache": tmp_path / "cache", "stream": None}


def test_classes_are_subfolders(folder: Path, options: dict[str, Any]) -> None:
    data = ImageData.from_folder(folder, seed=3, **options)
    assert data.train.class_names == ("cat", "dog")
    assert (data.train.counts(), data.test.counts()) == ([8, 16], [2, 4])
    assert (data.channels, data.image_size, data.validation) == (1, (16, 16), 0)
    for images in (data.train, data.test):
        assert [int(level >= 80) for level in levels(images.images)] == images.labels.tolist()
    assert sorted(levels(data.train.images) + levels(data.test.images)) == [
        8 * i for i in range(30)
    ]
    again = ImageData.from_folder(folder, seed=3, **options)
    assert torch.equal(data.test.images, again.test.images)
    other = ImageData.from_folder(folder, seed=4, **options)
    assert not torch.equal(data.test.images, other.test.images)
    assert folder_shape(folder, **options) == (24, 12, 16, 1)


def test_given_divisions(folder: Path, options: dict[str, Any]) -> None:
    for part, numbers in {"train": (0, 1, 10, 11, 12), "val": (2, 13), "test": (14,)}.items():
        for i in numbers:
            name = "cat" if i < 10 else "dog"
            target = folder.parent / "divided" / part / name / f"{i:02}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name / f"{i:02}.png", target)
    data = ImageData.from_folder(folder.parent / "divided", **options)
    assert levels(data.train.images) == [0, 8, 80, 88, 96, 16, 104]
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1, 0, 1]
    assert levels(data.test.images) == [112]
    assert data.test.labels.tolist() == [1]
    assert data.validation == 2
    shutil.rmtree(folder.parent / "divided" / "test")
    data = ImageData.from_folder(folder.parent / "divided", **options)
    assert len(data.test) == 1
    assert levels(data.train.images)[-2:] == [16, 104]


def test_a_class_may_be_called_train(tmp_path: Path, options: dict[str, Any]) -> None:
    for i in range(5):
        write(tmp_path / "vehicles" / "train" / f"{i}.png", i)
        write(tmp_path / "vehicles" / "plane" / f"{i}.png", i)
    data = ImageData.from_folder(tmp_path / "vehicles", **options)
    assert data.train.class_names == ("plane", "train")


@pytest.mark.parametrize(
    ("sides", "size"), [([5], 8), ([28], 32), ([27], 24), ([16, 40, 41], 40), ([500], 224)]
)
def test_the_size_is_the_median(
    sides: list[int], size: int, tmp_path: Path, options: dict[str, Any]
) -> None:
    for name in "ab":
        for i in range(6):
            side = sides[i % len(sides)]
            write(tmp_path / "data" / name / f"{i}.png", i, (side + 3 * i, side))
    assert ImageData.from_folder(tmp_path / "data", **options).image_size == (size, size)


def test_color_and_size(folder: Path, options: dict[str, Any]) -> None:
    write(folder / "dog" / "99.jpg", 200, (30, 20), "RGB")
    data = ImageData.from_folder(folder, image_size=12, **options)
    assert (data.channels, data.image_size) == (3, (12, 12))
    assert data.augmentation.flip
    gray = data.train.images[data.train.labels == 0]
    assert (gray == gray[..., :1]).all()


def test_predictions_see_what_was_trained_on(folder: Path, options: dict[str, Any]) -> None:
    generator = np.random.default_rng(0)
    for path in (folder / "cat").iterdir():
        Image.fromarray(generator.integers(0, 65536, (30, 20), dtype=np.uint16)).save(path)
    data = ImageData.from_folder(folder, image_size=12, **options)
    read = [read_image(path, (12, 12), 1) for path in sorted((folder / "cat").iterdir())]
    images = torch.cat([data.train.images, data.test.images]).permute(0, 3, 1, 2)
    for image in read:
        assert (images == image).flatten(1).all(dim=1).sum() == 1


def test_16_bits_become_8(folder: Path, options: dict[str, Any]) -> None:
    for path in (folder / "cat").iterdir():
        level = int(path.stem) * 8
        Image.fromarray(np.full((16, 16), 256 * level + 200, dtype=np.uint16)).save(path)
    data = ImageData.from_folder(folder, **options)
    assert sorted(levels(data.train.images) + levels(data.test.images)) == [
        8 * i for i in range(30)
    ]


def test_a_second_time_nothing_is_read(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = folder / "cat" / "03.png"
    broken.write_bytes(broken.read_bytes()[:50])
    stream = io.StringIO()
    first = ImageData.from_folder(folder, cache=options["cache"], stream=stream)
    assert f"left out 1 unreadable images: {broken}\n" in stream.getvalue()
    assert "reading training images 30/30  unreadable 1" in stream.getvalue()
    assert first.train.mapped is None  # few images, of which some are for testing

    def fail(*args: Any, **named: Any) -> None:
        raise AssertionError("must not be read again")

    with monkeypatch.context() as patch:
        patch.setattr(class_folder, "reader", fail)
        patch.setattr(class_folder, "survey", fail)
        second = ImageData.from_folder(folder, **options)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.train.labels, second.train.labels)
    assert len(list(options["cache"].iterdir())) == 2
    write(folder / "cat" / "03.png", 24)
    third = ImageData.from_folder(folder, **options)
    assert len(third.train) + len(third.test) == 30
    assert len(list(options["cache"].iterdir())) == 2


@pytest.mark.parametrize("cache", ["file", "/proc/nowhere"])
def test_an_unwritable_cache_is_a_warning_and_a_temporary_one(
    cache: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    stream = io.StringIO()
    data = ImageData.from_folder(folder, cache=tmp_path / cache, stream=stream)
    assert sorted(levels(data.train.images) + levels(data.test.images)) == [
        8 * i for i in range(30)
    ]
    assert "kept in a temporary file and will be read again the next time" in stream.getvalue()
    assert str(tmp_path / cache) in stream.getvalue()
    assert not list((tmp_path / "temporary").iterdir())


def resident(mapped: pixel_cache.MappedImages) -> int:
    """Bytes of the mapping that are in memory for this process."""
    address, found = mapped.images.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            found = begin <= address < end
        elif found and first == "Rss:":
            return int(rest.split()[0]) * 1024
    raise AssertionError("not mapped")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="it is read there")
def test_mapped_images_do_not_stay_resident(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 MiB of images, of which 4 may be resident, and another 4 until that is noticed."""
    limit = 2**22
    monkeypatch.setattr(pixel_cache, "RESIDENT", limit)
    monkeypatch.setattr("asng_ext.data.own.RESIDENT", limit)
    monkeypatch.setattr("asng_ext.data.images._CHUNK", 2**20)
    for i in range(160):
        write(tmp_path / "data" / "ab"[i % 2] / f"{i}.png", i, (256, 256), "RGB")
    data = ImageData.from_folder(tmp_path / "data", image_size=256, seed=1, **options)
    assert data.train.mapped is not None
    most = 0
    stream = BatchStream(
        data.train, None, 4, seed=0, name="", augmentation=None, mean=data.mean, std=data.std
    )
    wanted = data.train.images.clone()
    data.train.mapped.forget()
    assert resident(data.train.mapped) == 0
    for plan in stream.plans(0):
        x, _ = stream.make(plan)
        red = ((x[:, 0, 0, 0] * data.std[0] + data.mean[0]) * 255).round()
        assert torch.equal(red.byte(), wanted[plan.indices, 0, 0, 0])
        most = max(most, resident(data.train.mapped))
    assert 2**20 < most <= 2 * limit
    again = ImageData.from_folder(tmp_path / "data", image_size=256, seed=1, **options)
    assert torch.equal(again.train.images, wanted)
    assert torch.equal(again.mean, data.mean)


def test_wrong_folders(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    def fails(error: type[Exception], words: str, **more: Any) -> None:
        before = sorted(tmp_path.rglob("*.pixels"))
        for _ in range(2):  # what the cache holds does not help
            with pytest.raises(error, match=words):
                ImageData.from_folder(folder, **{**options, **more})
        assert sorted(tmp_path.rglob("*.pixels")) == before

    fails(ValueError, "image_size must be at least 0 and below 1025, got 2000", image_size=2000)
    fails(TypeError, "image_size must be an integer", image_size=8.0)
    (folder / "bird").mkdir()
    fails(ValueError, r"every class must have training images, got none of bird \(1 of 3 classes\)")
    (folder / "bird").rename(folder / ".bird")
    for path in (folder / "cat").iterdir():
        path.unlink()
    fails(ValueError, "got none of cat")
    (folder / "cat").rmdir()
    fails(ValueError, "images must be of 2 classes or more to be told apart, got 1: dog")
    for path in (folder / "dog").iterdir():
        path.rename(folder / path.name)
    fails(FileNotFoundError, "no images in")
    (folder / "dog").rename(folder / "train")
    (folder / "test").mkdir()
    fails(FileNotFoundError, "must hold a subfolder of images for each class.*; got test, train")
    (folder / "test").rmdir()
    (folder / "train").rmdir()
    fails(FileNotFoundError, "must hold a subfolder of images for each class.*got none")
    shutil.rmtree(folder)
    fails(FileNotFoundError, "does not exist")


def test_classes_that_only_testing_has(folder: Path, options: dict[str, Any]) -> None:
    folder.rename(folder.parent / "train")
    write(folder / "test" / "bird" / "0.png", 0)
    (folder.parent / "train").rename(folder / "train")
    with pytest.raises(ValueError, match=r"test must hold classes of .*train only, got bird"):
        ImageData.from_folder(folder, **options)
    shutil.rmtree(folder / "test" / "bird")
    with pytest.raises(FileNotFoundError, match=r"no images in .*test"):
        ImageData.from_folder(folder, **options)


def test_a_class_of_broken_files_is_empty(folder: Path, options: dict[str, Any]) -> None:
    for path in (folder / "cat").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="every class must have training images, got none of cat"):
        ImageData.from_folder(folder, **options)
    for path in (folder / "dog").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 30 images can be read"):
        ImageData.from_folder(folder, **options)


def test_images_beside_the_classes_are_counted(folder: Path, options: dict[str, Any]) -> None:
    write(folder / "sheet.png", 0)
    stream = io.StringIO()
    data = ImageData.from_folder(folder, cache=options["cache"], stream=stream)
    assert len(data.train) + len(data.test) == 30
    assert f"left out 1 images in {folder} that are in no folder of a class" in stream.getvalue()
