"""Curves of searches and retrainings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pictures import pixels, some_rows

from asng_ext import plots
from asng_ext.plots._picture import DPI


def test_every_search_panel_is_drawn(tmp_path: Path, texts: list[str]) -> None:
    image = pixels(plots.plot_search(some_rows(600), tmp_path / "a.png"))
    assert image.shape[:2] == (8 * DPI, 9 * DPI)
    assert {"loss", "accuracy", "convergence", "δ", "epoch"} <= set(texts)
    assert {"data for θ (last 0.4)", "test data (last 0.6)"} <= set(texts)
    # Epochs are written below the last panel only.
    assert texts.count("100") == texts.count("epoch")


def test_only_what_is_there_is_drawn(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"epoch": 1.0, "train_loss": 2.0, "train_accuracy": math.nan, "delta": math.nan}]
    image = pixels(plots.plot_search(rows, tmp_path / "a.png"))
    assert image.shape[:2] == (3 * DPI, 9 * DPI)
    assert {"loss", "epoch", "data for the weights (last 2)"} <= set(texts)
    assert not {"accuracy", "convergence", "δ"} & set(texts)


def test_further_metrics_have_their_panels(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"epoch": 1.0, "test_psnr": 30.5}, {"epoch": 2.0, "train_psnr": 31.5}]
    plots.plot_retrain(rows, tmp_path / "a.png")
    assert {"psnr", "test data (last 30.5)", "training data (last 31.5)"} <= set(texts)
    assert "learning rate" not in texts


def test_what_the_input_has_is_a_level(tmp_path: Path, texts: list[str]) -> None:
    rows = [
        {
            "epoch": float(e),
            "test_psnr": 20.0 + e,
            "test_psnr_corrupted": 9.5,
            "test_x_corrupted": 1,
        }
        for e in range(3)
    ]
    image = pixels(plots.plot_retrain(rows, tmp_path / "a.png"))
    # A panel for PSNR, and one for what is of nothing else.
    assert image.shape[:2] == (int(5.5 * DPI), 9 * DPI)
    assert {"psnr", "test data (last 22)", "corrupted images (9.5)", "x corrupted"} <= set(texts)
    assert "psnr corrupted" not in texts


def scales(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(name, scale) of the axes on the left that are drawn."""
    from matplotlib.axes import Axes

    drawn: list[tuple[str, str]] = []
    draw = Axes.draw

    def record(axes: Axes, *args: Any, **kwargs: Any) -> None:
        drawn.append((axes.get_ylabel(), axes.get_yscale()))
        draw(axes, *args, **kwargs)

    monkeypatch.setattr(Axes, "draw", record)
    return drawn


def test_losses_of_a_retraining_are_on_a_logarithmic_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    drawn = scales(monkeypatch)
    rows = [{"epoch": 1.0 + e, "train_loss": 10.0**-e, "test_loss": 0.0} for e in range(4)]
    plots.plot_retrain(rows, tmp_path / "a.png")
    assert set(drawn) == {("loss", "log")}
    assert {"0.001", "1", "training data (last 0.001)"} <= set(texts)
    assert not any(text.startswith("test data") for text in texts)  # no logarithm of 0
    # Negative losses, as some tasks have, are shown as they are.
    drawn.clear()
    plots.plot_retrain([{"epoch": 1.0, "train_loss": -2.0}], tmp_path / "a.png")
    assert set(drawn) == {("loss", "linear")}
    assert "training data (last -2)" in texts


def test_a_search_says_what_its_curves_are_means_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    drawn = scales(monkeypatch)
    plots.plot_search(some_rows(9), tmp_path / "a.png")
    assert ("loss", "linear") in drawn
    (note,) = {text for text in texts if "means over the architectures" in text}
    assert "most likely" in note
    texts.clear()
    plots.plot_retrain(some_rows(9), tmp_path / "a.png")
    assert not any("architectures" in text for text in texts)


@pytest.mark.parametrize("epochs", [1, 2, 600])
def test_retrain(epochs: int, tmp_path: Path, texts: list[str]) -> None:
    image = pixels(plots.plot_retrain(some_rows(epochs), tmp_path / "a.png"))
    assert image.shape[:2] == (8 * DPI, 9 * DPI)
    assert {"loss", "accuracy", "learning rate"} <= set(texts)
    # Data for θ has no part in it.
    assert not any("θ" in text for text in texts)


def test_gaps_are_bridged(tmp_path: Path) -> None:
    from matplotlib.colors import to_rgb

    rows = [{"epoch": float(e), "test_loss": 1.0} for e in (1, 101)]
    rows[1:1] = [
        {"epoch": float(e), "test_loss": (math.nan, math.inf)[e % 2], "delta": 0.0}
        for e in range(2, 101)
    ]
    image = pixels(plots.plot_search(rows, tmp_path / "a.png"))
    green = (image == [int(255 * part + 0.5) for part in to_rgb("#2a8a4a")]).all(axis=2)
    assert green.any(axis=0).mean() > 0.8


def test_a_run_without_any_finite_value(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"epoch": 1.0, "train_loss": math.nan, "delta": -1.0}]
    plots.plot_search(rows, tmp_path / "a.png")
    assert "no finite values" in texts


@pytest.mark.parametrize("plot", [plots.plot_search, plots.plot_retrain])
def test_wrong_rows(plot: Any, tmp_path: Path) -> None:
    for rows, message in [
        ([], "at least one epoch"),
        ([{"epoch": 1.0}], "nothing to plot"),
        ([{"epoch": 1.0, "train_loss": 1.0}, {"train_loss": 1.0}], r"rows\[1\] must have a finite"),
        ([{"epoch": math.nan, "train_loss": 1.0}], r"rows\[0\] must have a finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            plot(rows, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
