"""Test errors over elapsed time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asng_ext import plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Of each line its points and its style, and of each band its edges."""
    from matplotlib.axes import Axes

    lines: dict[str, dict[str, Any]] = {}
    plot, fill = Axes.plot, Axes.fill_between

    def plotted(axes: Axes, x: Any, y: Any, style: str, **named: Any) -> Any:
        lines[named["label"]] = {
            "x": list(x),
            "y": list(y),
            "style": style,
            "color": named["color"],
        }
        return plot(axes, x, y, style, **named)

    def filled(axes: Axes, x: Any, low: Any, high: Any, **named: Any) -> Any:
        next(reversed(lines.values()))["band"] = [list(low), list(high)]
        return fill(axes, x, low, high, **named)

    monkeypatch.setattr(Axes, "plot", plotted)
    monkeypatch.setattr(Axes, "fill_between", filled)
    return lines


def test_means_and_bands(
    tmp_path: Path, drawn: dict[str, dict[str, Any]], texts: list[str]
) -> None:
    curves = {
        "asng": [([60.0, 120.0], [9.0, 5.0]), ([120.0, 240.0, 300.0], [11.0, 5.0, 1.0])],
        "darts (mix)": [([30.0], [4.0])],
        "darts (fix)": [([30.0], [80.0])],
    }
    plots.plot_elapsed({"": curves}, tmp_path / "a.png", "test error, %")
    asng, mix, fix = drawn.values()
    assert asng["x"] == [1.5, 3.0]
    assert asng["y"] == [10.0, 5.0]
    deviation = 2**0.5
    assert asng["band"][0] == pytest.approx([10 - deviation, 5])
    assert asng["band"][1] == pytest.approx([10 + deviation, 5])
    assert "band" not in mix
    assert mix["color"] == fix["color"] != asng["color"]
    assert mix["style"] != fix["style"]
    assert {"asng", "darts (mix)", "darts (fix)", "test error, %"} <= set(texts)


def test_values_that_are_not_finite_are_left_out(
    tmp_path: Path, drawn: dict[str, dict[str, Any]]
) -> None:
    curve = ([60.0, 120.0, float("nan")], [float("nan"), 5.0, 6.0])
    plots.plot_elapsed({"": {"a": [curve]}}, tmp_path / "a.png", "error")
    assert (drawn["a"]["x"], drawn["a"]["y"]) == ([2.0], [5.0])
