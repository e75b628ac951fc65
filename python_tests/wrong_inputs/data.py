"""Images: sets in memory, arrays, folders, masks, augmentation and batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asng_ext.data import (
    Augmentation,
    BatchStream,
    ImageData,
    ImageSet,
    augment,
    draw_masks,
    evaluation_batches,
    load_cifar10,
    load_folder,
    load_images,
    load_photos,
    private_generator,
    split_halves,
)
from wrong_inputs.table import Given, Wrong, refused
from wrong_inputs.values import NOT_INTEGERS, NOT_TRUTH_VALUES

PIXELS = torch.zeros(6, 8, 8, 1, dtype=torch.uint8)
LABELS = torch.arange(6) % 2
NAMES = ("a", "b")
ARRAY, INDICES = PIXELS.numpy(), LABELS.numpy()
COUNTS: list[Any] = [*NOT_INTEGERS, None, 0, -1]
_ONE = torch.ones(1)


def _stream(**changes: Any) -> BatchStream:
    given = {"indices": None, "batch_size": 2, "seed": 0, "name": "a", "augmentation": None,
             "mean": _ONE, "std": _ONE, **changes}  # fmt: skip
    return BatchStream(ImageSet(PIXELS, LABELS, NAMES), **given)


def _file(content: bytes, name: str = "data.npz") -> Any:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder

    return make


def _folder(folder: Path) -> Path:
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        (folder / "images" / name / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


_NPZ = [
    b"", b"no zip", b"PK\x03\x04" + b"\0" * 30, b"\x93NUMPY" + b"\0" * 10, b"\x80\x04N.",
]  # fmt: skip

MEMORY: list[Wrong] = [
    *refused("ImageSet", lambda _, v: ImageSet(v, LABELS, NAMES), "images",
             [None, 3, "images", Given(ARRAY, "array("), PIXELS.float(), PIXELS[0], PIXELS[:0], PIXELS[:, :, :, 0], [1]]),
    *refused("ImageSet", lambda _, v: ImageSet(PIXELS, v, NAMES), "labels",
             [None, 3, "labels", INDICES, LABELS.int(), LABELS[:3], LABELS[None], Given(LABELS + 1, "1..2"),
              Given(LABELS - 1, "-1..0"), LABELS.to("meta"), [0, 1]]),
    *refused("ImageSet", lambda _, v: ImageSet(PIXELS, LABELS, v), "class_names",
             [None, 3, "ab", Given((), "0..1"), Given(("a",), "0..1"), (1, 2), ("a", None)]),
    *refused("from_arrays", lambda _, v: ImageData.from_arrays(v, INDICES), "images",
             [Given(None, "object"), Given(3, "()"), Given("images", "<U6"), Given([], "(0,)"), ARRAY[:0], np.zeros((6, 8, 8, 2)), ARRAY.astype(object),
              np.full((6, 8, 8, 1), math.nan), np.full((6, 8, 8, 1), 1j), np.full((6, 8, 8, 1), -1),
              np.full((6, 8, 8, 1), 256), np.full((6, 8, 8, 1), "a"), np.full((6, 8, 8, 1), 300.0),
              [[1], [1, 2]], ARRAY > 0, torch.zeros(6, 8, 8, 1, device="meta")]),
    *refused("from_arrays", lambda _, v: ImageData.from_arrays(ARRAY, v), "labels",
             [Given(None, "()"), Given(3, "()"), Given("labels", "()"), Given([], "(0,)"), Given([0, 1], "(2,)"), INDICES[None], np.eye(6), [0.0, 1.0] * 3, Given([None] * 6, "objects"), [1j] * 6,
              Given([-1, 0] * 3, "-1"), Given([0, 2] * 3, "none of 1"), Given([5, 6] * 3, "5"),
              [["a"], ["b", "c"]], [True, False] * 3, Given([10**30] * 6, "objects"),
              torch.zeros(6, device="meta", dtype=torch.int64)]),
    *refused("from_arrays", lambda _, v: ImageData.from_arrays(ARRAY, INDICES, class_names=v), "class_names",
             [3, "ab", Given(["a"], "0..1"), [1, 2], ["a", "a"], ["a", None]]),
    *refused("from_arrays", lambda _, v: ImageData.from_arrays(ARRAY, INDICES, test=v), "test",
             [3, Given("ab", "<U1"), Given(ARRAY, "array("), Given((ARRAY,), "(array("), Given((ARRAY, INDICES, 1), "(array("), Given((ARRAY[:, :4], INDICES), "(4, 8, 1)"),
              Given((ARRAY, INDICES + 5), "5"), Given((ARRAY, INDICES[:2]), "(2,)"),
              Given((ARRAY, ["a"] * 6), "strings")]),
    *refused("from_arrays", lambda _, v: ImageData.from_arrays(ARRAY, INDICES, validation=v), "validation",
             [3, Given("ab", "<U1"), Given((ARRAY,), "(array("), Given((ARRAY, INDICES[:2]), "(2,)")]),
    *refused("from_arrays", lambda _, v: ImageData.from_arrays(ARRAY, INDICES, image_size=v), "image_size",
             [*NOT_INTEGERS, None, -1, 10**6]),
    *refused("from_arrays", lambda _, v: ImageData.from_arrays(ARRAY, INDICES, seed=v), "seed",
             ["2", 2.0, 2.5, math.nan, math.inf, True, [2], None, 2j]),
    *refused("from_arrays", lambda _, v: ImageData.from_arrays(ARRAY, INDICES, augmentation=v), "augmentation",
             [3, "auto", {}, Augmentation]),
]  # fmt: skip

DRAWN: list[Wrong] = [
    *refused("Augmentation", lambda _, v: Augmentation(crop_padding=v), "crop_padding", [*NOT_INTEGERS, None, -1]),
    *refused("Augmentation", lambda _, v: Augmentation(cutout=v), "cutout", [*NOT_INTEGERS, None, -1]),
    *refused("Augmentation", lambda _, v: Augmentation(flip=v), "flip", [*NOT_TRUTH_VALUES, None]),
    *refused("augment", lambda _, v: augment(v, generator=torch.Generator()), "images",
             [None, 3, "images", ARRAY, PIXELS[0], PIXELS.long(), torch.zeros(2, 2, dtype=torch.complex64)]),
    *refused("augment", lambda _, v: augment(PIXELS.permute(0, 3, 1, 2), generator=v), "generator", [None, 3, 0, "a"]),
    *refused("augment", lambda _, v: augment(PIXELS.permute(0, 3, 1, 2), generator=torch.Generator(), mean=v, std=_ONE),
             "mean", [3, "a", [1.0, 1.0], torch.ones(2), torch.ones(1, 1)]),
    *refused("draw_masks", lambda _, v: draw_masks(v, 1, 8, 8, generator=torch.Generator()), "mask",
             ["no", "", None, 3, ["half"]]),
    *refused("draw_masks", lambda _, v: draw_masks("half", v, 8, 8, generator=torch.Generator()), "count", COUNTS),
    *refused("draw_masks", lambda _, v: draw_masks("half", 1, v, 8, generator=torch.Generator()), "height", COUNTS),
    *refused("draw_masks", lambda _, v: draw_masks("half", 1, 8, 8, generator=v), "generator", [None, 3, "a"]),
    *refused("private_generator", lambda _, v: private_generator(v, "a"), "seed",
             [None, 1.0, "1", True, math.nan, [1], np.array([1, 2])]),
    *refused("split_halves", lambda _, v: split_halves(v, 0), "n", [*COUNTS, 1]),
    *refused("BatchStream", lambda _, v: _stream(batch_size=v), "batch_size", COUNTS),
    *refused("BatchStream", lambda _, v: _stream(indices=v), "indices",
             [3, "a", [0, 1], torch.zeros(2), torch.zeros(0, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64),
              Given(torch.tensor([6]), "6"), Given(torch.tensor([-1]), "-1"), INDICES]),
    *refused("BatchStream", lambda _, v: _stream(seed=v), "seed", [None, 1.0, "1", True]),
    *refused("BatchStream", lambda _, v: _stream(augmentation=v), "augmentation", [3, "auto", {}, Augmentation]),
    *refused("BatchStream", lambda _, v: _stream(augmentation=Augmentation(cutout=v)), "cutout", [8, 100]),
    *refused("BatchStream", lambda _, v: _stream(augmentation=Augmentation(v, cutout=0)), "crop_padding", [8, 100]),
    *refused("BatchStream", lambda _, v: _stream(mean=v), "mean", [None, 3, "a", torch.ones(2), torch.ones(1, 1)]),
    *refused("epoch", lambda _, v: list(_stream().epoch(v)), "epoch", [None, 1.0, "1", -1, True]),
    *refused("epoch", lambda _, v: list(_stream().epoch(0, v)), "start", [None, 1.0, "1", -1, 4, True]),
    *refused("evaluation_batches", lambda _, v: list(evaluation_batches(ImageSet(PIXELS, LABELS, NAMES), v, mean=_ONE, std=_ONE)),
             "batch_size", COUNTS),
]  # fmt: skip

FILES: list[Wrong] = [
    *[
        row
        for i, content in enumerate(_NPZ)
        for row in refused(f"npz{i}", lambda folder, v: ImageData.from_npz(folder / v), "data.npz",
                           ["data.npz"], _file(content))
    ],
    *refused("from_npz", lambda folder, v: ImageData.from_npz(folder / v), "", ["missing.npz", "a\0b", "x" * 300],
             _file(b"")),

    *refused("from_folder", lambda folder, v: ImageData.from_folder(folder / v, cache=folder / "cache", stream=None), "",
             ["missing", "images", "images/a", "images/a/broken.png"], _folder),
    *refused("load_folder", lambda folder, v: load_folder(folder / v, cache=folder / "cache", stream=None), "",
             ["missing", "images/a", "images/a/broken.png"], _folder),
    *refused("load_folder", lambda folder, v: load_folder(folder, v), "image_size", COUNTS, _folder),
    *refused("load_photos", lambda _, v: load_photos(v), "image_size", [*COUNTS, 10**5]),
    *refused("load_cifar10", lambda folder, v: load_cifar10(folder / v), "", ["missing", "images", "data.npz"], _folder),
    *refused("load_images", lambda folder, v: load_images(v), "", ["", "no-such-data", "no/such/folder", "x.npz"]),
    *refused("load_images", lambda folder, v: load_images(v), "source", [None, 3, b"digits", ["digits"]]),
    *refused("load_images", lambda folder, v: load_images("digits", image_size=v), "image_size", [8, -1, "8", None, True]),
]  # fmt: skip

TABLES = {"memory": MEMORY, "drawn": DRAWN, "files": FILES}
