"""Reading both forms of CIFAR-10, from files of the official layout with few images."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from asng_ext.data import CIFAR10_AUGMENTATION, ImageData, cifar10, load_cifar10

COUNT = 20
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_IMAGES_PER_FILE", COUNT)


def contents_of(batch: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Pixels (COUNT, 3072) and labels of a batch."""
    generator = np.random.default_rng(BATCHES.index(batch))
    pixels = generator.integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    return pixels, generator.integers(0, 10, COUNT).tolist()


def python2_string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) < 256:
        return b"U" + struct.pack("<B", len(raw)) + raw  # SHORT_BINSTRING
    return b"T" + struct.pack("<i", len(raw)) + raw  # BINSTRING


def python2_number(number: int) -> bytes:
    return b"K" + bytes([number]) if number < 256 else b"M" + struct.pack("<H", number)


def python2_list(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def python2_array(array: NDArray[np.uint8]) -> bytes:
    """As Python 2's cPickle writes a uint8 array of two dimensions of NumPy 1."""
    shape = b"".join(python2_number(n) for n in array.shape) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n" + python2_string("u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + python2_string("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + python2_string("b")
        + b"\x87R(K\x01"
        + shape
        + dtype
        + b"\x89"
        + python2_string(array.tobytes())
        + b"tb"
    )


def python2_dict(entries: dict[str, bytes]) -> bytes:
    items = b"".join(python2_string(key) + value for key, value in entries.items())
    return b"\x80\x02}(" + items + b"u."


def python2_batch(pixels: NDArray[np.uint8], labels: list[int]) -> bytes:
    return python2_dict(
        {
            "batch_label": python2_string("training batch 1 of 5"),
            "labels": python2_list([python2_number(label) for label in labels]),
            "data": python2_array(pixels),
            "filenames": python2_list([python2_string(f"{i}.png") for i in range(len(labels))]),
        }
    )


def python3_batch(pixels: NDArray[np.uint8], labels: list[int]) -> bytes:
    return pickle.dumps({b"labels": labels, b"data": pixels}, protocol=2)


def python3_batch_with_text_keys(pixels: NDArray[np.uint8], labels: list[int]) -> bytes:
    return pickle.dumps({"labels": labels, "data": np.asfortranarray(pixels)}, protocol=4)


def write_python(
    folder: Path, write: Callable[[NDArray[np.uint8], list[int]], bytes] = python2_batch
) -> Path:
    folder.mkdir(parents=True)
    for batch in BATCHES:
        (folder / batch).write_bytes(write(*contents_of(batch)))
    names = python2_list([python2_string(name) for name in NAMES])
    (folder / "batches.meta").write_bytes(
        python2_dict({"num_vis": python2_number(3072), "label_names": names})
    )
    return folder


def write_binary(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for batch in BATCHES:
        pixels, labels = contents_of(batch)
        records = np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)
        (folder / f"{batch}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return folder


def assert_official(data: ImageData) -> None:
    assert (len(data.train), len(data.test)) == (5 * COUNT, COUNT)
    assert (data.channels, data.image_size, data.classes) == (3, (32, 32), 10)
    assert data.train.class_names == tuple(NAMES)
    assert data.augmentation == CIFAR10_AUGMENTATION
    expected = [contents_of(batch) for batch in BATCHES]
    pixels = np.concatenate([pixels for pixels, _ in expected]).reshape(-1, 3, 32, 32)
    images = torch.cat([data.train.images, data.test.images]).permute(0, 3, 1, 2)
    assert torch.equal(images, torch.from_numpy(pixels))
    labels = torch.cat([data.train.labels, data.test.labels]).tolist()
    assert labels == [label for _, labels in expected for label in labels]


def test_the_pickles_of_these_tests_are_pickles() -> None:
    pixels, labels = contents_of("test_batch")
    loaded = pickle.loads(python2_batch(pixels, labels), encoding="bytes")
    assert np.array_equal(loaded[b"data"], pixels)
    assert loaded[b"labels"] == labels
    assert loaded[b"filenames"][3] == b"3.png"


@pytest.mark.parametrize("write", [python2_batch, python3_batch, python3_batch_with_text_keys])
def test_python_form(tmp_path: Path, write: Callable[..., bytes]) -> None:
    assert_official(load_cifar10(write_python(tmp_path / "anywhere", write)))


def test_binary_form(tmp_path: Path) -> None:
    assert_official(load_cifar10(write_binary(tmp_path / "anywhere")))


def test_both_forms_are_equal_and_are_found_in_the_parent_folder(tmp_path: Path) -> None:
    write_python(tmp_path / "a" / "cifar-10-batches-py")
    write_binary(tmp_path / "b" / "cifar-10-batches-bin")
    python, binary = load_cifar10(tmp_path / "a"), load_cifar10(str(tmp_path / "b"))
    for ours, theirs in (
        (python.train.images, binary.train.images),
        (python.train.labels, binary.train.labels),
        (python.test.images, binary.test.images),
        (python.test.labels, binary.test.labels),
        (python.mean, binary.mean),
        (python.std, binary.std),
    ):
        assert torch.equal(ours, theirs)
    assert python.train.class_names == binary.train.class_names


def test_a_complete_form_is_preferred_to_an_incomplete_one(tmp_path: Path) -> None:
    (write_python(tmp_path / "cifar-10-batches-py") / "data_batch_3").unlink()
    write_binary(tmp_path / "cifar-10-batches-bin")
    assert_official(load_cifar10(tmp_path))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 in .*nowhere.*cifar-10-batches-bin"):
        load_cifar10(tmp_path / "nowhere")


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "cifar-10-batches-bin")
    (folder / "data_batch_2.bin").unlink()
    (folder / "batches.meta.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"cifar-10-batches-bin lacks data_batch_2.bin, batches.meta.txt"
    ):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("size", [0, 3072, COUNT * 3073 - 1, COUNT * 3073 + 1])
def test_binary_file_of_the_wrong_size(tmp_path: Path, size: int) -> None:
    folder = write_binary(tmp_path / "data")
    (folder / "data_batch_4.bin").write_bytes(bytes(size))
    with pytest.raises(
        ValueError, match=rf"data_batch_4.bin must have {COUNT * 3073} .*got {size}"
    ):
        load_cifar10(folder)


def test_binary_label_out_of_range(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "data")
    with (folder / "test_batch.bin").open("r+b") as file:
        file.seek(3073 * 5)
        file.write(b"\x0a")
    with pytest.raises(ValueError, match=r"test_batch.bin has the label 10, expected 0 to 9"):
        load_cifar10(folder)


GOOD_PIXELS, GOOD_LABELS = contents_of("test_batch")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"labels": [3] * COUNT}, "has no entry 'data'"),
        ({"data": GOOD_PIXELS}, "has no entry 'labels'"),
        ({"data": GOOD_PIXELS[:-1], "labels": GOOD_LABELS}, r"shape \(20, 3072\).*\(19, 3072\)"),
        ({"data": GOOD_PIXELS.ravel(), "labels": GOOD_LABELS}, r"got shape \(61440,\)"),
        ({"data": GOOD_PIXELS.tolist(), "labels": GOOD_LABELS}, "uint8 array .* got list"),
        ({"data": GOOD_PIXELS.astype(np.int16), "labels": GOOD_LABELS}, "dtype 'i2', not uint8"),
        ({"data": GOOD_PIXELS.astype(object), "labels": GOOD_LABELS}, "dtype 'O8', not uint8"),
        ({"data": GOOD_PIXELS, "labels": GOOD_LABELS[:-1]}, "list of 20 labels, got 19 labels"),
        ({"data": GOOD_PIXELS, "labels": "text"}, "list of 20 labels, got str"),
        ({"data": GOOD_PIXELS, "labels": [3] * 19 + [-1]}, "has the label -1, expected 0 to 9"),
        ({"data": GOOD_PIXELS, "labels": [3] * 19 + [2**70]}, "has the label 1180591"),
        ({"data": GOOD_PIXELS, "labels": [3] * 19 + ["a"]}, "has the label 'a'"),
        ([GOOD_PIXELS, GOOD_LABELS], "must hold a dict, got list"),
    ],
)
def test_wrong_python_batches(tmp_path: Path, entries: Any, message: str) -> None:
    folder = write_python(tmp_path / "data")
    (folder / "test_batch").write_bytes(pickle.dumps(entries, protocol=2))
    with pytest.raises(ValueError, match=message) as error:
        load_cifar10(folder)
    assert "test_batch" in str(error.value)


def test_truncated_python_batch(tmp_path: Path) -> None:
    path = write_python(tmp_path / "data") / "data_batch_5"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot read .*data_batch_5"):
        load_cifar10(tmp_path / "data")


def test_a_pickle_that_runs_a_command_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'EVIDENCE'}",)

    folder = write_python(tmp_path / "data")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": Attack()}, protocol=2))
    with pytest.raises(ValueError, match=r"cannot read .*batches.meta: it names .*system"):
        load_cifar10(folder)
    assert not (tmp_path / "EVIDENCE").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [(NAMES[:9], "names of 10 classes"), ("text", "names of 10 classes"), ([1] * 10, "strings")],
)
def test_wrong_python_names(tmp_path: Path, names: Any, message: str) -> None:
    folder = write_python(tmp_path / "data")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
    with pytest.raises(ValueError, match=message):
        load_cifar10(folder)


def test_wrong_binary_names(tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "data")
    (folder / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"batches.meta.txt must have the names of 10 classes"):
        load_cifar10(folder)


def test_global_generators_are_left_alone(
    tmp_path: Path, global_generators_unchanged: Callable[[], AbstractContextManager[None]]
) -> None:
    folder = write_binary(tmp_path / "data")
    with global_generators_unchanged():
        load_cifar10(folder)
