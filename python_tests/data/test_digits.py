"""The digits of scikit-learn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch

from asng_ext.data import DIGITS_AUGMENTATION, load_digits


def test_sizes_and_contents() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    data = load_digits(0)
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert (data.channels, data.image_size, data.classes) == (1, (8, 8), 10)
    assert data.train.class_names == tuple("0123456789")
    assert data.augmentation == DIGITS_AUGMENTATION

    # Together the two sets are the original images, each with its label.
    original = datasets.load_digits()
    gray = np.rint(original.images * 255 / 16).astype(int).reshape(-1, 64)
    expected = sorted(zip(gray.tolist(), original.target.tolist(), strict=True))
    ours: list[tuple[list[int], int]] = []
    for part in (data.train, data.test):
        ours += zip(part.images.reshape(-1, 64).tolist(), part.labels.tolist(), strict=True)
    assert sorted(ours) == expected


def test_division_is_stratified() -> None:
    pytest.importorskip("sklearn")
    data = load_digits(3)
    of_class = data.train.labels.bincount() + data.test.labels.bincount()
    assert (data.test.labels.bincount() - of_class / 5).abs().max() < 1


def test_division_depends_on_the_seed_alone(
    global_generators_unchanged: Callable[[], AbstractContextManager[None]],
) -> None:
    pytest.importorskip("sklearn")
    with global_generators_unchanged():
        first = load_digits(1)

    torch.manual_seed(123)
    assert torch.equal(first.test.images, load_digits(1).test.images)
    assert not torch.equal(first.test.images, load_digits(2).test.images)


def test_scikit_learn_is_imported_where_its_file_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sklearn.datasets")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.datasets", None)  # cannot be imported
        data = load_digits(4)
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    other = load_digits(4)
    for part, same in ((data.train, other.train), (data.test, other.test)):
        assert torch.equal(part.images, same.images)
        assert torch.equal(part.labels, same.labels)
        assert part.class_names == same.class_names


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        load_digits(0)
