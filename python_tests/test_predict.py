"""Image files are prepared as training images are, and the network is asked of each."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from itertools import starmap
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import small_runs
import torch
from small_runs import finished

import asng_ext as asng
from asng_ext import cli
from asng_ext.data import load_digits, load_folder
from asng_ext.predict import UnreadableImageError, image_files, predict, read_image, write_image
from asng_ext.retrained import ImageClassifier

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(small_runs.classification(tmp_path_factory.mktemp("runs") / "classifier"))


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(small_runs.inpainting(tmp_path_factory.mktemp("runs") / "restorer"))


@pytest.fixture(scope="module")
def color_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(0)
    images = {
        f"x_{part}": generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        for part, count in (("train", 520), ("test", 20))
    }
    labels = {name.replace("x", "y"): np.arange(len(x)) % 5 for name, x in images.items()}
    np.savez(folder / "noise.npz", **images, **labels)
    data = str(folder / "noise.npz")
    return finished(small_runs.classification(folder / "classifier", data=data))


def write_digits(folder: Path, count: int) -> torch.Tensor:
    """Digits as 0.png, …; returns them, (N, 1, 8, 8) uint8."""
    folder.mkdir(parents=True, exist_ok=True)
    images = load_digits(0).test.images[:count]
    for number, image in enumerate(images):
        Image.fromarray(image[:, :, 0].numpy()).save(folder / f"{number}.png")
    return images.permute(0, 3, 1, 2)


def write_pixels(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_probabilities_are_those_of_the_network(classifier: Path, tmp_path: Path) -> None:
    images = write_digits(tmp_path / "digits", 7)
    network = cast(ImageClassifier, asng.load_network(classifier))
    with torch.no_grad():
        expected = network(images).softmax(dim=1)
    files = image_files([tmp_path / "digits"])
    for batch_size in (1, 3, 64):
        got = list(predict(network, files, batch_size=batch_size))
        assert [path.name for path, _ in got] == [f"{i}.png" for i in range(7)]
        for (_, probabilities), wanted in zip(got, expected):
            assert isinstance(probabilities, torch.Tensor)
            torch.testing.assert_close(probabilities, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        next(predict(network, files, batch_size=0))


def test_the_command_names_the_likeliest_classes(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_digits(tmp_path / "digits", 3)
    network = cast(ImageClassifier, asng.load_network(classifier))
    with torch.no_grad():
        expected = network(images).softmax(dim=1)
    file = tmp_path / "digits" / "1.png"
    assert cli.main(["predict", str(classifier), str(file), "--top", "2"]) == 0
    (first, second), classes = expected[1].topk(2)
    printed = capsys.readouterr().out
    assert printed == f"{file}: {classes[0]} {first:.3f}, {classes[1]} {second:.3f}\n"
    assert cli.main(["predict", str(classifier), str(tmp_path / "digits")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / "digits" / f"{i}.png") for i in range(3)
    ]
    assert all(line.count(",") == 2 for line in lines)
    # More than there are is all of them.
    arguments = ["predict", str(classifier / "network.pt"), str(file), "--json", "--top=99"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["image"] == str(file)
    values = list(found["probabilities"].values())
    assert values == sorted(values, reverse=True)
    assert found["probabilities"] == pytest.approx(
        {str(digit): float(value) for digit, value in enumerate(expected[1])}, abs=1e-6
    )


def test_other_sizes_are_prepared_as_a_training_folder_is(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    shapes = {"a": (40, 40, 3), "b": (33, 61, 3), "c": (61, 30, 3), "d": (12, 12, 3)}
    for name, shape in shapes.items():
        write_pixels(folder / f"{name}.png", generator.integers(0, 256, shape, dtype=np.uint8))
    rows, columns = np.mgrid[:150, :170]
    smooth = np.stack([rows, columns, rows // 2 + columns // 2], axis=2).astype(np.uint8)
    write_pixels(folder / "e.jpg", smooth)  # large enough to be decoded at a fraction
    data = load_folder(folder, 12, cache=tmp_path / "cache", stream=None)
    expected = torch.cat([data.train.images, data.test.images])
    for path, image in zip(image_files([folder]), expected):
        assert torch.equal(read_image(path, (12, 12), 3), image.permute(2, 0, 1))


@pytest.mark.parametrize(
    ("shape", "size"), [((10, 40), (5, 10)), ((40, 10), (5, 10)), ((3, 3), (8, 6))]
)
def test_the_central_part_has_the_shape_of_the_network(
    tmp_path: Path, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    horizontal = write_pixels(tmp_path / "x.png", (columns * 5).astype(np.uint8))
    vertical = write_pixels(tmp_path / "y.png", (rows * 5).astype(np.uint8))
    scale = min(shape[0] / size[0], shape[1] / size[1])
    for path, dimension in ((vertical, 0), (horizontal, 1)):
        image = read_image(path, size, 1)
        assert image.shape == (1, *size)
        line = image[0].float().select(1 - dimension, 0)
        assert float(line.mean()) == pytest.approx(5 * (shape[dimension] - 1) / 2, abs=3)
        # Neighbors are as far apart as pixels of the image times its scale, in both directions.
        assert float(line[1:].diff().mean()) == pytest.approx(5 * scale, rel=0.35)


def test_gray_and_color_are_what_the_network_takes(tmp_path: Path) -> None:
    gray = write_pixels(tmp_path / "gray.png", np.full((4, 4), 100, np.uint8))
    color = write_pixels(tmp_path / "color.png", np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert (read_image(gray, (4, 4), 3) == 100).all()
    assert (read_image(color, (4, 4), 1) == 76).all()  # ITU-R 601: 0.299 of red
    assert read_image(color, (4, 4), 3)[:, 0, 0].tolist() == [255, 0, 0]
    deep = write_pixels(tmp_path / "deep.png", np.full((4, 4), 100 * 256 + 255, np.uint16))
    for channels in (1, 3):
        assert (read_image(deep, (4, 4), channels) == 100).all()
    with pytest.raises(ValueError, match="channels must be 1 or 3, got 4"):
        read_image(color, (4, 4), 4)


def write_deep(path: Path, values: tuple[int, ...], kind: int) -> None:
    """A PNG of 8×8 pixels of these 16-bit values, which Pillow cannot write in color: of PNG's kind
    0 gray, 2 color, 4 and 6 the same with transparency."""

    def chunk(name: bytes, data: bytes) -> bytes:
        number = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", number)

    row = b"\0" + struct.pack(f">{len(values)}H", *values) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(row * 8), b"IEND": b""}
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(starmap(chunk, chunks.items())))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_kind_are_classified(
    channels: int, tmp_path: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    """In gray, in color, of 1 bit, of 16 bits, with a palette, transparent, smaller than those of
    the network: without a warning, as what they show. They show one color, so that scaling does not
    change it; transparency does not count."""
    run = request.getfixturevalue("classifier" if channels == 1 else "color_classifier")
    color, gray = (200, 30, 90), 88  # ITU-R 601: 0.299, 0.587, 0.114
    folder = tmp_path / "images" / "more"
    folder.mkdir(parents=True)

    def save(name: str, mode: str, value: Any, size: tuple[int, int] = (8, 8), **how: Any) -> None:
        Image.new(mode, size, value).save(folder / f"{name}.png", **how)

    save("color", "RGB", color)
    save("color-cut-out", "RGB", color, transparency=color)
    save("color-small", "RGB", color, (3, 2))
    save("color-transparent", "RGBA", (*color, 10))
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([1, 2, 3, *color, 4, 5, 6])
    palette.save(folder / "color-palette.png")
    palette.save(folder / "color-palette-cut-out.png", transparency=1)
    palette.save(folder / "color-palette-transparent.png", transparency=bytes([50, 100, 150]))
    deep = tuple(256 * value + 255 for value in color)
    write_deep(folder / "color-deep.png", deep, 2)
    write_deep(folder / "color-deep-transparent.png", (*deep, 9), 6)
    save("gray", "L", gray)
    save("gray-small", "L", gray, (1, 1))
    save("gray-cut-out", "L", gray, transparency=gray)
    save("gray-transparent", "LA", (gray, 0))
    save("gray-deep", "I;16", 256 * gray + 255)
    write_deep(folder / "gray-deep-transparent.png", (256 * gray + 255, 9), 4)
    save("white", "1", 1)

    network = cast(ImageClassifier, asng.load_network(run))
    assert network.in_channels == channels
    capfd.readouterr()
    assert cli.main(["predict", str(run), str(tmp_path / "images"), "--json", "--top=10"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["image"] for line in lines] == sorted(map(str, folder.iterdir()))
    shown = {"color": color if channels == 3 else [gray], "gray": [gray] * 3, "white": [255] * 3}
    for line in lines:
        values = shown[Path(line["image"]).stem.partition("-")[0]][:channels]
        image = torch.tensor(values, dtype=torch.uint8)[:, None, None].expand(channels, 8, 8)
        with torch.no_grad():
            expected = network(image[None]).softmax(dim=1)[0].tolist()
        assert line["probabilities"] == pytest.approx(
            dict(zip(network.class_names, expected)), abs=1e-6
        )


def test_unreadable_images_are_named_and_the_others_classified(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits"
    write_digits(folder, 3)
    (folder / "0.png").write_text("no image")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    assert cli.main(["predict", str(classifier), str(folder)]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{folder / '2.png'}: ")
    assert printed.out.count("\n") == 1
    assert f"{folder / '0.png'} cannot be read as an image: it is not of a known" in printed.err
    assert f"{folder / '1.png'} cannot be read as an image: " in printed.err
    assert "asng: error: 2 of 3 images cannot be read" in printed.err
    assert cli.main(["predict", str(classifier), "--json", str(folder)]) == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [sorted(line) for line in lines] == [["error", "image"]] * 2 + [
        ["image", "probabilities"]
    ]
    assert cli.main(["predict", str(classifier), str(folder / "0.png")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"asng: error: {folder / '0.png'} cannot be read as an image: it is not of a known format\n"
    )


def test_what_is_missing_is_named_before_anything_is_done(
    classifier: Path, restorer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: object) -> str:
        assert cli.main(["predict", *map(str, arguments)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    write_digits(tmp_path / "digits", 1)
    (tmp_path / "empty").mkdir()
    file = tmp_path / "digits" / "0.png"
    assert f"the image {tmp_path / 'no.png'} is missing" in error(
        classifier, file, tmp_path / "no.png"
    )
    assert f"no images in {tmp_path / 'empty'}; looked for .jpg" in error(
        classifier, tmp_path / "empty"
    )
    assert "is not the folder of a run" in error(tmp_path / "empty", file)
    assert "--top must be a positive integer, got 0" in error(classifier, file, "--top=0")
    assert "--out is for networks that restore" in error(classifier, file, "--out=x")
    assert "--top is for networks that classify" in error(restorer, file, "--top=1")


def test_restored_images_are_written(
    restorer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    pixels[3:9, 3:9] = 0
    write_pixels(tmp_path / "a.png", pixels)
    assert cli.main(["predict", str(restorer), "a.png"]) == 0
    assert capsys.readouterr().out == f"a.png: restored as {Path('restored/a.png')}\n"
    network = asng.load_network(restorer)
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    written = torch.from_numpy(np.array(Image.open("restored/a.png")))
    assert written.dtype == torch.uint8
    restored = written.permute(2, 0, 1).float() / 255
    torch.testing.assert_close(restored, expected, rtol=0, atol=0.5 / 255 + 1e-6)
    arguments = ["predict", str(restorer), "a.png", "--out", "b/c", "--json"]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"image": "a.png", "restored": str(Path("b/c/a.png"))}
    assert Path("b/c/a.png").read_bytes() == Path("restored/a.png").read_bytes()


def test_no_image_is_written_over(
    restorer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.zeros((12, 12, 3), np.uint8)
    first = write_pixels(tmp_path / "a.png", pixels)
    second = write_pixels(tmp_path / "a.bmp", pixels)
    before = first.read_bytes()
    assert cli.main(["predict", str(restorer), str(first), f"--out={tmp_path}"]) == 2
    assert "--out must be a folder without the images that are read" in capsys.readouterr().err
    out = tmp_path / "out"
    assert cli.main(["predict", str(restorer), str(first), str(second), f"--out={out}"]) == 2
    assert "images must have different names" in capsys.readouterr().err
    assert not out.exists()
    assert first.read_bytes() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_read_as_it_was_written(channels: int, tmp_path: Path) -> None:
    image = torch.arange(channels * 30).reshape(channels, 5, 6)
    write_image(image / 255, tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", (5, 6), channels).long(), image)


def test_without_pillow(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "PIL.Image", None)
        assert cli.main(["predict", str(classifier), str(tmp_path / "0.png")]) == 2
    assert "pip install pillow" in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="it is no file"):
        read_image(tmp_path / "a.png", (4, 4), 1)


def test_help_names_the_command() -> None:
    command = [sys.executable, "-m", "asng_ext.cli", "predict", "--help"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "--top K" in printed
