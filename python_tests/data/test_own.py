"""Images of one's own from arrays and .npz files: labels, divisions, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asng_ext.data import Augmentation, ImageData

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def pixels(data: ImageData) -> set[bytes]:
    return {image.numpy().tobytes() for each in (data.train, data.test) for image in each.images}


def test_a_random_fifth_of_each_class_is_for_testing(
    global_generators_unchanged: Callable[[], AbstractContextManager[None]],
) -> None:
    with global_generators_unchanged():
        data = ImageData.from_arrays(IMAGES, LABELS, seed=1)
    assert (len(data.train), len(data.test)) == (24, 6)
    assert data.train.counts() == [8, 8, 8]
    assert data.test.counts() == [2, 2, 2]
    assert data.train.class_names == ("0", "1", "2")
    assert pixels(data) == {image.tobytes() for image in IMAGES}
    again = ImageData.from_arrays(IMAGES, LABELS, seed=1)
    assert torch.equal(data.test.images, again.test.images)
    assert not torch.equal(
        data.test.images, ImageData.from_arrays(IMAGES, LABELS, seed=2).test.images
    )


def test_given_divisions() -> None:
    data = ImageData.from_arrays(
        IMAGES[:18],
        LABELS[:18],
        validation=(IMAGES[18:24], LABELS[18:24]),
        test=(IMAGES[24:], LABELS[24:]),
        class_names=["a", "b", "c"],
        augmentation=Augmentation(crop_padding=2, flip=False, cutout=1),
    )
    assert torch.equal(data.train.images, torch.from_numpy(IMAGES[:24]))
    assert torch.equal(data.test.labels, torch.from_numpy(LABELS[24:]))
    assert data.validation == 6
    assert data.train.class_names == ("a", "b", "c")
    assert data.augmentation.cutout == 1
    assert "18 + 6 + 6 images 8×8×3" in data.fingerprint()


@pytest.mark.parametrize(
    "same",
    [
        torch.from_numpy(IMAGES),
        torch.from_numpy(IMAGES).permute(0, 3, 1, 2),
        IMAGES.transpose(0, 3, 1, 2).astype(np.int64),
        IMAGES / 255,
        (IMAGES / 255).astype(np.float32),
        list(IMAGES),
    ],
)
def test_the_same_images_in_other_forms(same: Any) -> None:
    first = ImageData.from_arrays(IMAGES, LABELS)
    assert torch.equal(ImageData.from_arrays(same, LABELS).train.images, first.train.images)


def test_gray_and_read_only_images() -> None:
    gray = IMAGES[..., 0].copy()
    gray.flags.writeable = False
    data = ImageData.from_arrays(gray, LABELS)
    assert (data.channels, data.image_size) == (1, (8, 8))
    assert not data.augmentation.flip
    data.train.images[:] = 0
    assert gray.any()


def test_images_are_scaled() -> None:
    wide = np.zeros((6, 8, 16, 3), dtype=np.uint8)
    wide[:, :, 4:8], wide[:, :, 8:12] = 100, 200  # within the central square
    data = ImageData.from_arrays(wide, LABELS[:6], image_size=4)
    assert data.image_size == (4, 4)
    assert data.train.images[0, 0, :, 0].tolist() == pytest.approx([100, 100, 200, 200], abs=15)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (LABELS + 1, None, ("1", "2", "3")),
        (LABELS + 1, ["a", "b", "c"], ("a", "b", "c")),
        (LABELS.astype(np.uint8)[:, None], None, ("0", "1", "2")),
        (torch.from_numpy(LABELS), None, ("0", "1", "2")),
        ([("ant", "bee", "cat")[i] for i in LABELS], None, ("ant", "bee", "cat")),
        ([("ant", "bee", "cat")[i] for i in LABELS], ["cat", "bee", "ant"], ("cat", "bee", "ant")),
        (np.array([b"ant", b"bee", b"cat"])[LABELS], None, ("ant", "bee", "cat")),
        (np.array(["ant", "bee", "cat"], dtype=object)[LABELS], None, ("ant", "bee", "cat")),
    ],
)
def test_labels_become_classes(labels: Any, names: Any, expected: tuple[str, ...]) -> None:
    data = ImageData.from_arrays(IMAGES, labels, class_names=names, test=(IMAGES, labels))
    assert data.train.class_names == expected
    mapped = LABELS if expected[0] != "cat" else 2 - LABELS
    assert data.test.labels.tolist() == mapped.tolist()


def test_two_classes_of_which_one_is_negative() -> None:
    data = ImageData.from_arrays(IMAGES, np.where(LABELS > 0, 1, -1), test=(IMAGES, LABELS * 0 + 1))
    assert data.train.class_names == ("-1", "1")
    assert data.train.labels.tolist() == (LABELS > 0).astype(int).tolist()
    assert data.test.labels.tolist() == [1] * 30


@pytest.mark.parametrize(
    ("labels", "names", "error", "words"),
    [
        (LABELS - 1, None, ValueError, r"labels must not be negative, but for .* got -1"),
        (LABELS + 2, None, ValueError, r"count classes from 0 or 1, got 2 as the least"),
        (LABELS * 2, None, ValueError, r"without gaps from 0 to 4, got none of 1, 3"),
        (LABELS * 10**9, None, ValueError, r"got none of 1, 2, 3, 4, 5 and 9994 more"),
        (LABELS, ["a", "b"], ValueError, r"0\.\.1, or in 1\.\.2, one of 2 class_names, got 0\.\.2"),
        (LABELS, ["a", "b", "c", "d"], ValueError, r"got none of d \(1 of 4 classes\)"),
        (LABELS, ["a", "b", "b"], ValueError, "class_names must be different"),
        (LABELS, [1, 2, 3], TypeError, "class_names must be strings"),
        (["x"] * 30, ["a", "b"], ValueError, "labels must be among class_names, got x"),
        (["x"] * 30, None, ValueError, "images must be of 2 classes or more.*got 1: x"),
        (LABELS * 0, None, ValueError, "images must be of 2 classes or more.*got 1: 0"),
        (LABELS / 2, None, TypeError, "labels must be integers or strings, got float64"),
        (LABELS > 0, None, TypeError, "labels must be integers or strings, got bool"),
        ([1, "a"] * 15 + [None], None, TypeError, "got objects of several types"),
        (np.eye(3)[LABELS], None, ValueError, r"labels must be \(N,\).*got \(30, 3\); of one-hot"),
        (LABELS[:9], None, ValueError, r"labels must be \(30,\), one per image, got \(9,\)"),
        ([], None, ValueError, r"labels must be \(N,\), one per image, got \(0,\)"),
        ([0] * 29 + [1], None, ValueError, r"2 images or more to be divided.*got 1 of 1"),
    ],
)
def test_wrong_labels(labels: Any, names: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ImageData.from_arrays(IMAGES, labels, class_names=names)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (IMAGES.astype(np.float64), ValueError, r"0\.\.1 for float64, got 0\.\.255; as uint8"),
        (np.full(IMAGES.shape, np.nan), ValueError, r"must lie in 0\.\.1.*got nan\.\.nan"),
        (IMAGES.astype(np.int64) - 1, ValueError, r"images must lie in 0\.\.255.*got -1\.\."),
        (IMAGES > 9, TypeError, "images must be uint8, or floating point .* got bool"),
        (IMAGES[:, :, :, :2], ValueError, r"with 1 or 3 channels, got \(30, 8, 8, 2\)"),
        (IMAGES[0, 0], ValueError, r"got \(8, 3\)"),
        (IMAGES[:0], ValueError, r"got \(0, 8, 8, 3\)"),
        (np.array([IMAGES[0], None], dtype=object), TypeError, "scale images to one size first"),
    ],
)
def test_wrong_images(images: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ImageData.from_arrays(images, LABELS)


@pytest.mark.parametrize(
    ("test", "error", "words"),
    [
        ((IMAGES[:, :4], LABELS), ValueError, r"test images must be of the shape .*\(8, 8, 3\)"),
        ((IMAGES, LABELS + 1), ValueError, r"test labels must be of the 3 classes .* got 3"),
        ((IMAGES, ["a"] * 30), TypeError, "test labels must be integers as the training images'"),
        ((IMAGES, LABELS[:3]), ValueError, r"test labels must be \(30,\).*got \(3,\)"),
        (IMAGES, TypeError, "test must be a pair of images and labels"),
    ],
)
def test_wrong_test_sets(test: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ImageData.from_arrays(IMAGES, LABELS, test=test)


def test_a_validation_set_leaves_something_to_train_on() -> None:
    data = ImageData.from_arrays(IMAGES, LABELS)
    with pytest.raises(ValueError, match="fewer than the 24 of train, got 24"):
        ImageData(data.train, data.test, data.mean, data.std, data.augmentation, 24)


# -------------------------------------------------------------------------------------- .npz files


def test_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(
        path, x_train=IMAGES[:18], y_train=LABELS[:18], x_val=IMAGES[18:24], y_val=LABELS[18:24],
        x_test=IMAGES[24:], y_test=LABELS[24:], class_names=["a", "b", "c"],
    )  # fmt: skip
    data = ImageData.from_npz(path)
    assert torch.equal(data.train.images, torch.from_numpy(IMAGES[:24]))
    assert torch.equal(data.test.images, torch.from_numpy(IMAGES[24:]))
    assert (data.validation, data.train.class_names) == (6, ("a", "b", "c"))

    np.savez_compressed(path, train_images=IMAGES[..., 0], train_labels=LABELS[:, None])
    data = ImageData.from_npz(path, image_size=4, seed=3)
    assert (data.image_size, data.channels, len(data.test)) == ((4, 4), 1, 6)


def test_wrong_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with pytest.raises(FileNotFoundError, match=r"data\.npz does not exist"):
        ImageData.from_npz(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"data\.npz is not a \.npz file"):
        ImageData.from_npz(path)
    np.savez(path, images=IMAGES, labels=LABELS)
    with pytest.raises(ValueError, match=r"must hold x_train and y_train.*got images, labels"):
        ImageData.from_npz(path)
    np.savez(path, x_train=IMAGES, y_train=LABELS * 2)
    with pytest.raises(ValueError, match=r"data\.npz: labels must count classes without gaps"):
        ImageData.from_npz(path)
    np.savez(path, x_train=IMAGES, y_train=np.array([{}] * 30))
    with pytest.raises(ValueError, match=r"data\.npz cannot be read: Object arrays"):
        ImageData.from_npz(path)
    np.savez(path, x_train=IMAGES, y_train=LABELS)
    path.write_bytes(path.read_bytes().replace(IMAGES[5].tobytes(), IMAGES[6].tobytes()))
    with pytest.raises(ValueError, match=r"data\.npz cannot be read: Bad CRC"):
        ImageData.from_npz(path)
    with open(path, "wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(ValueError, match=r"must be a \.npz file of several arrays, got one array"):
        ImageData.from_npz(path)
