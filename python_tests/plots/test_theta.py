"""Pictures of distributions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import count, pixels

from asng_ext import plots
from asng_ext.nn import CellSpace


def test_theta_names_values_and_padding(tmp_path: Path, texts: list[str]) -> None:
    theta = np.array([[0.05, 0.95, 0.0], [0.2, 0.25, 0.55], [1.0, 7.0, math.nan]])
    labels = {"a": ("sep_conv_3x3", "$x$"), "b": (1, 2, "a label that is too long"), "c": ("only",)}
    plots.plot_theta(theta, list(labels), labels, tmp_path / "a.png")
    assert {"a", "b", "c", "sep 3×3", "$x$", "1", "2", "a label that is…", "only"} <= set(texts)
    assert {"0.95", "0.20", "0.25", "0.55", "1.00"} <= set(texts)
    assert not {"0.05", "7.00", "nan"} & set(texts)


def test_theta_colors_are_probabilities(tmp_path: Path) -> None:
    space = CellSpace(5)
    labels = space.variables
    theta = np.zeros((40, 6))
    theta[:, 0] = 1
    full = pixels(plots.plot_theta(theta, list(labels), labels, tmp_path / "a.png"))
    assert count(full, "#123a6b") > 40 * 1000
    for row, k in zip(theta, space.categories):
        row[:k] = 1 / k
    even = pixels(plots.plot_theta(theta, list(labels), labels, tmp_path / "a.png"))
    assert count(even, "#123a6b") < 1000
    assert full.shape == even.shape


def test_large_thetas_fit_into_a_file(tmp_path: Path) -> None:
    for rows, columns in [(1000, 2), (2, 300), (1, 1)]:
        theta = np.full((rows, columns), 1 / columns)
        names = [f"x{i}" for i in range(rows)]
        labels = {name: range(columns) for name in names}
        image = pixels(plots.plot_theta(theta, names, labels, tmp_path / "a.png"))
        assert max(image.shape) < 20000


def test_wrong_thetas(tmp_path: Path) -> None:
    good: dict[str, Any] = {"theta": [[0.5, 0.5]], "names": ["a"], "labels": {"a": "xy"}}
    for change, message in [
        ({"theta": [0.5, 0.5]}, "one row for each of 1 names"),
        ({"theta": [[0.5, 0.5]] * 2}, "one row for each of 1 names"),
        ({"theta": np.zeros((0, 2)), "names": []}, "one row for each of 0 names"),
        ({"labels": {}}, "labels must give 'a' 1 to 2 categories, got none"),
        ({"labels": {"a": "xyz"}}, "labels must give 'a' 1 to 2 categories, got 3 labels"),
        ({"theta": [[0.5, 1.5]]}, "must be probabilities"),
        ({"theta": [[0.5, math.nan]]}, "must be probabilities"),
    ]:
        with pytest.raises(ValueError, match=message):
            plots.plot_theta(**{**good, **change}, path=tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
