"""Map-style data sets of PyTorch and Hugging Face."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from asng_ext.data import ImageData, pixel_cache
from asng_ext.data.datasets import load_huggingface

LEVELS = np.arange(30) * 8


class Pictures(Dataset[Any]):
    """Pillow's images, as torchvision's data sets have them."""

    classes = ("cat", "dog")

    def __init__(self, numbers: range, side: int = 16) -> None:
        self.numbers, self.side = numbers, side
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        number = self.numbers[index]
        self.read.append(index)
        return Image.new("L", (self.side + number, self.side), 8 * number), int(number >= 10)


class FakeColumn:
    """What describes a column, of the names that Hugging Face has for it."""

    def __init__(self, names: list[str] | None = None) -> None:
        if names is not None:
            self.names = names


class ImageColumn(FakeColumn):
    pass


ImageColumn.__name__ = "Image"


class ClassLabel(FakeColumn):
    pass


class FakeHuggingFace:
    """Rows as mappings, and features that say what the columns are."""

    def __init__(self, numbers: range) -> None:
        self.pictures = Pictures(numbers)
        self.features = {
            "path": FakeColumn(), "picture": ImageColumn(), "kind": ClassLabel(["cat", "dog"])
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.pictures[index]
        return {"path": "x.png", "picture": image, "kind": label}


def levels(images: torch.Tensor) -> list[int]:
    return images[:, 4, 4, 0].tolist()


def test_pictures() -> None:
    stream = io.StringIO()
    dataset = Pictures(range(30))
    data = ImageData.from_dataset(dataset, seed=2, stream=stream)
    assert (data.image_size, data.channels) == ((16, 16), 1)
    assert data.train.class_names == ("cat", "dog")
    assert (data.train.counts(), data.test.counts()) == ([8, 16], [2, 4])
    assert sorted(levels(data.train.images) + levels(data.test.images)) == LEVELS.tolist()
    for part in (data.train, data.test):
        assert [int(level >= 80) for level in levels(part.images)] == part.labels.tolist()
    assert "reading training images 30/30" in stream.getvalue()


def test_divisions_and_tensors() -> None:
    x = torch.from_numpy(np.tile(LEVELS[:, None, None, None] / 255, (1, 3, 8, 8))).float()
    y = torch.arange(30) % 3
    train, val, test = (
        TensorDataset(x[part], y[part]) for part in (slice(18), slice(18, 24), slice(24, None))
    )
    data = ImageData.from_dataset(train, validation=val, test=test, stream=None)
    assert levels(data.train.images) == LEVELS[:24].tolist()
    assert levels(data.test.images) == LEVELS[24:].tolist()
    assert (data.validation, data.channels) == (6, 3)
    assert data.train.class_names == ("0", "1", "2")


def test_many_images_go_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ImageData.from_dataset(Pictures(range(30)), stream=None)
    monkeypatch.setattr("asng_ext.data.datasets.RESIDENT", 5 * 256)
    monkeypatch.setattr("asng_ext.data.own.RESIDENT", 5 * 256)
    monkeypatch.setattr(pixel_cache, "RESIDENT", 5 * 256)
    many = ImageData.from_dataset(Pictures(range(30)), stream=None)
    assert many.train.mapped is not None
    assert torch.equal(many.train.images, few.train.images)
    assert torch.equal(many.test.images, few.test.images)


def test_columns_of_hugging_face() -> None:
    data = ImageData.from_dataset(
        {"train": FakeHuggingFace(range(20)), "validation": FakeHuggingFace(range(5, 15))},
        image_size=8,
        stream=None,
    )
    assert data.train.class_names == ("cat", "dog")
    assert (data.validation, data.image_size, len(data.test)) == (10, (8, 8), 4)


def test_datasets_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    pictures = Pictures(range(30))
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])
    )
    columns = list(zip(*(pictures[i] for i in range(30))))
    dataset = datasets.Dataset.from_dict(
        {"image": list(columns[0]), "label": list(columns[1])}, features=features
    )
    data = ImageData.from_dataset(dataset, stream=None)
    assert (data.train.class_names, data.channels) == (("cat", "dog"), 1)
    assert sorted(levels(data.train.images) + levels(data.test.images)) == LEVELS.tolist()

    saved = tmp_path / "saved"
    dataset.train_test_split(0.2, seed=0).save_to_disk(saved)
    data = ImageData.from_dataset(load_huggingface(str(saved)), stream=None)
    assert (len(data.train), len(data.test)) == (24, 6)

    files = tmp_path / "files"
    files.mkdir()
    dataset.to_parquet(files / "train.parquet")
    data = ImageData.from_dataset(load_huggingface(str(files)), stream=None)
    assert len(data.train) == 24
    with pytest.raises(ValueError, match=r"the data set 'no/such' cannot be loaded"):
        load_huggingface("no/such")


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        (iter(()), TypeError, "train must be a map-style data set, with __getitem__ and __len__"),
        ([], ValueError, "train must hold images, got an empty data set"),
        ([3], TypeError, "items of train must be pairs of an image and a label.*got int"),
        ([{"image": 0}], ValueError, "the label as one of label, .*got image"),
        ({"test": []}, ValueError, "dataset must have a division train, got test"),
        ([(np.zeros((4, 4, 2)), 0)], ValueError, r"1 or 3 channels, got \(1, 4, 4, 2\)"),
        ([(np.zeros((4, 4)), 0)] * 9, ValueError, "images must be of 2 classes or more"),
    ],
)
def test_wrong_datasets(dataset: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ImageData.from_dataset(dataset, stream=None)


def test_an_item_that_is_no_image_is_named() -> None:
    gray, color = np.zeros((8, 8)), np.zeros((8, 8, 3))
    many = [(gray, i % 2) for i in range(600)]
    many[1] = (color, 1)  # not among those that are looked at
    with pytest.raises(ValueError, match="item 1 of train: the image must be gray"):
        ImageData.from_dataset(many, stream=None)
    many[1] = (gray - 1, 1)
    with pytest.raises(ValueError, match="item 1 of train: the image must lie in"):
        ImageData.from_dataset(many, stream=None)
    with pytest.raises(TypeError, match="image_size must be an integer"):
        ImageData.from_dataset(many, image_size=2.5, stream=None)  # type: ignore[arg-type]
