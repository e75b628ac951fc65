"""Pictures: that they show what they should, and leave nothing else behind."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asng_ext import plots
from asng_ext.nn import CaeLayer, CellSpace, base_layers

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from asng_ext.plots._cell_layout import Box, lay_out  # noqa: E402
from asng_ext.plots._picture import DPI, OPERATION_STYLES  # noqa: E402


def some_architecture(nodes: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(k) for k in CellSpace(nodes).categories]


def some_rows(epochs: int) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        loss = 1 + math.cos(epoch)
        row = {"epoch": float(epoch), "convergence": epoch / epochs, "delta": math.exp(-epoch / 99)}
        row |= {"train_loss": loss, "theta_loss": loss + 0.1, "learning_rate": 0.1 / epoch}
        row |= {"train_accuracy": 0.5, "theta_accuracy": 0.4}
        if epoch % 10 == 0 or epoch == epochs:
            row |= {"test_loss": loss, "test_accuracy": 0.6}
        rows.append(row)
    return rows


def draw(kind: str, path: Path | str) -> Path:
    if kind == "cells":
        return plots.draw_cells(CellSpace(3), some_architecture(3), path)
    if kind == "search":
        return plots.plot_search(some_rows(12), path)
    if kind == "retrain":
        return plots.plot_retrain(some_rows(12), path)
    if kind == "autoencoder":
        chain = [CaeLayer(0, 3, 64, True), CaeLayer(2, 1, 101, False), CaeLayer(3, 5, 256, True)]
        return plots.draw_autoencoder(chain, path)
    if kind == "restored":
        images = torch.linspace(0, 1, 3 * 3 * 8 * 8).reshape(3, 3, 8, 8)
        return plots.draw_restored(images, images * 0.5, images * 0.9, path)
    return plots.plot_theta([[0.3, 0.7], [1.0, 0.0]], ["a", "b"], {"a": "xy", "b": "z"}, path)


KINDS = ["cells", "search", "retrain", "theta", "autoencoder", "restored"]


def pixels(path: Path) -> np.ndarray:
    """The picture's colours, (H, W, 3) in 0 … 255."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return (imread(path)[:, :, :3] * 255).round().astype(np.uint8)


def count(image: np.ndarray, color: str) -> int:
    rgb = np.array([round(255 * part) for part in to_rgb(color)])
    return int((image == rgb).all(axis=2).sum())


# Files


@pytest.mark.parametrize("kind", KINDS)
def test_a_white_png_with_something_on_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    assert draw(kind, str(path)) == path
    image = pixels(path)
    assert 100 < image.shape[0] < 3000
    assert 300 < image.shape[1] < 3000
    white = count(image, "white") / image[..., 0].size
    assert 0.3 < white < 0.98
    # Nothing is cut off at the edges.
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge == 255).all()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_content_gives_the_same_file(kind: str, ending: str, tmp_path: Path) -> None:
    first = draw(kind, tmp_path / f"a.{ending}").read_bytes()
    assert first.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    second = tmp_path / f"b.{ending}"
    second.write_text("something old")
    assert draw(kind, second).read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_the_style_of_the_caller_neither_matters_nor_changes(kind: str, tmp_path: Path) -> None:
    from matplotlib import rcParams, style

    expected = draw(kind, tmp_path / "a.png").read_bytes()
    with style.context(["dark_background", {"font.size": 31, "savefig.dpi": 7, "axes.grid": True}]):
        before = dict(rcParams)
        assert draw(kind, tmp_path / "b.png").read_bytes() == expected
        assert dict(rcParams) == before


def test_pyplot_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from asng_ext import plots; plots.plot_search([{'epoch': 1, 'delta': 2}], "
        f"{str(tmp_path / 'a.png')!r}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_paths(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist"):
        draw(kind, tmp_path / "nowhere" / "a.png")
    for name in ("a.jpg", "a"):
        with pytest.raises(ValueError, match=r"must end in \.png, \.svg, \.pdf"):
            draw(kind, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fail(figure: Figure, file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    path = tmp_path / "a.png"
    path.write_text("old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw("search", path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_without_matplotlib(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw(kind, tmp_path / "a.png")


# Cells


def test_cells_have_the_colours_of_their_operations_only(tmp_path: Path) -> None:
    names = list(OPERATION_STYLES)
    for first, second in [(0, 1), (2, 3), (3, 4)]:
        # Two nodes; the first reads the inputs, the second the first and the newer input.
        architecture = [0, 1, first, first, 2, 1, first, first]
        architecture += [0, 1, second, first, 2, 1, second, second]
        image = pixels(plots.draw_cells(CellSpace(2), architecture, tmp_path / "a.png"))
        for i, name in enumerate(names):
            # A label alone has thousands of pixels; rims of letters may hit a colour by accident.
            filled = count(image, OPERATION_STYLES[name].color) > 1000
            assert filled == (i in (first, second)), name


def test_operations_of_the_space_all_have_a_style() -> None:
    assert tuple(OPERATION_STYLES) == CellSpace.OPERATIONS
    assert len({style.color for style in OPERATION_STYLES.values()}) == len(OPERATION_STYLES)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is drawn."""
    from matplotlib.text import Text

    drawn: list[str] = []
    draw_text = Text.draw

    def record(text: Text, *args: Any, **kwargs: Any) -> None:
        if text.get_visible() and text.get_text():
            drawn.append(text.get_text())
        draw_text(text, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)
    return drawn


def test_cells_mark_stride_in_the_reduction_cell_only(tmp_path: Path, texts: list[str]) -> None:
    cell = [0, 0, 0, 0, 2, 0, 4, 1]
    plots.draw_cells(CellSpace(2), cell + cell, tmp_path / "a.png")
    assert texts.count("identity /2") == 2
    assert texts.count("avg 3×3 /2") == 1
    assert texts.count("avg 3×3") == 1
    assert texts.count("sep 5×5") == 2
    # Both cells read the older input only.
    assert texts.count("older") == 2
    assert texts.count("newer\n(unused)") == 2
    assert texts.count("output") == 2
    assert {"Normal cell", "Reduction cell", "stride 2"} <= set(texts)
    assert "max pooling 3×3" not in texts


def test_small_cells_stand_beside_and_large_ones_above(tmp_path: Path) -> None:
    small = pixels(plots.draw_cells(CellSpace(1), [0] * 8, tmp_path / "a.png"))
    large = pixels(plots.draw_cells(CellSpace(5), some_architecture(5), tmp_path / "b.png"))
    assert small.shape[0] < 0.5 * small.shape[1]
    assert large.shape[0] > 0.5 * large.shape[1]
    assert min(small.shape[1], large.shape[1]) > 7.4 * DPI


def test_a_wrong_architecture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="category indices"):
        plots.draw_cells(CellSpace(2), [0, 0], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def overlap(a: Box, b: Box) -> bool:
    return (
        a.x < b.x + b.width
        and b.x < a.x + a.width
        and abs(a.y - b.y) < (a.height + b.height) / 2 - 1e-9
    )


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8, 12])
def test_nothing_overlaps(nodes: int) -> None:
    for seed in range(6):
        cell, _ = CellSpace(nodes).parse(some_architecture(nodes, seed))
        layout = lay_out(cell, 0.8)
        assert layout == lay_out(cell, 0.8)
        boxes = [*layout.boxes, *(arrow.label for arrow in layout.arrows if arrow.label)]
        assert len(layout.boxes) == nodes + 3
        assert len(boxes) == nodes + 3 + 2 * nodes
        for a, b in combinations(boxes, 2):
            assert not overlap(a, b)
        for box in boxes:
            assert box.x >= 0
            assert box.x + box.width <= layout.width + 1e-9
            assert box.y - box.height / 2 >= -1e-9
            assert box.y + box.height / 2 <= layout.height + 1e-9
        for arrow in layout.arrows:
            source, target = layout.boxes[arrow.source], layout.boxes[arrow.target]
            start, *_, end = arrow.stretches
            assert start[0] == source.x + source.width
            assert abs(start[2] - source.y) < source.height / 2
            assert end[1] == target.x
            assert abs(end[2] - target.y) < target.height / 2
            # On its way the arrow passes between boxes, not over them.
            for left, right, y in arrow.stretches[1:-1]:
                line = Box(left, y, right - left, 0.05)
                assert not any(overlap(line, box) for box in boxes)
            ends = [stretch[:2] for stretch in arrow.stretches]
            assert all(a[1] < b[0] for a, b in pairwise(ends))


def test_the_layout_shows_the_cell() -> None:
    cell, _ = CellSpace(6).parse(some_architecture(6, 3))
    layout = lay_out(cell, 0.8)
    edges = [
        (edge.input, node + 2, edge.operation)
        for node, pair in enumerate(cell.nodes)
        for edge in pair
    ]
    edges += [(node + 2, 8, None) for node in cell.loose_nodes]
    assert [(a.source, a.target, a.operation) for a in layout.arrows] == edges
    assert all(layout.boxes[s].x < layout.boxes[t].x for s, t, _ in edges)
    # Every arrow has its own start and its own end.
    assert len({(a.source, a.stretches[0][2]) for a in layout.arrows}) == len(edges)
    assert len({(a.target, a.stretches[-1][2]) for a in layout.arrows}) == len(edges)


def test_few_crossings() -> None:
    # A chain of nodes that also read the older input can be drawn without any crossing.
    nodes = 8
    chain = [value for node in range(nodes) for value in (0, node + 1, 0, 0)]
    cell, _ = CellSpace(nodes).parse(chain + chain)
    arrows = lay_out(cell, 0.8).arrows
    long = sorted((a for a in arrows if a.source == 0), key=lambda a: a.target)
    levels = [a.stretches[0][2] for a in long]
    assert levels == sorted(levels)


# Curves


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


@pytest.mark.parametrize("epochs", [1, 2, 600])
def test_retrain(epochs: int, tmp_path: Path, texts: list[str]) -> None:
    image = pixels(plots.plot_retrain(some_rows(epochs), tmp_path / "a.png"))
    assert image.shape[:2] == (8 * DPI, 9 * DPI)
    assert {"loss", "accuracy", "learning rate"} <= set(texts)
    # Data for θ has no part in it.
    assert not any("θ" in text for text in texts)


def test_gaps_are_bridged(tmp_path: Path) -> None:
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


# Distributions


def test_theta_names_values_and_padding(tmp_path: Path, texts: list[str]) -> None:
    theta = np.array([[0.05, 0.95, 0.0], [0.2, 0.25, 0.55], [1.0, 7.0, math.nan]])
    labels = {"a": ("sep_conv_3x3", "$x$"), "b": (1, 2, "a label that is too long"), "c": ("only",)}
    plots.plot_theta(theta, list(labels), labels, tmp_path / "a.png")
    assert {"a", "b", "c", "sep 3×3", "$x$", "1", "2", "a label that is…", "only"} <= set(texts)
    assert {"0.95", "0.20", "0.25", "0.55", "1.00"} <= set(texts)
    assert not {"0.05", "7.00", "nan"} & set(texts)


def test_theta_colours_are_probabilities(tmp_path: Path) -> None:
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


# Autoencoders and images


def test_layers_and_sizes_are_named(tmp_path: Path, texts: list[str]) -> None:
    chain = [CaeLayer(0, 3, 64, True), CaeLayer(2, 1, 101, False), CaeLayer(3, 5, 256, True)]
    plots.draw_autoencoder(chain, tmp_path / "a.png", (9, 6))
    assert {"3×3\n64", "1×1 /2\n101", "1×1 ·2\n101", "5×5\n256", "image\n3"} <= set(texts)
    assert {"9×6", "5×3", "3 layers and their mirror images"} <= set(texts)
    texts.clear()
    # What a single pixel leaves out is not drawn.
    plots.draw_autoencoder(chain[:2], tmp_path / "a.png", (1, 6))
    assert "1×1 /2\n101" not in texts


@pytest.mark.parametrize("depth", [0, 1, 20])
def test_autoencoders_of_any_depth(depth: int, tmp_path: Path) -> None:
    chain = base_layers(depth) if depth else ()
    image = pixels(plots.draw_autoencoder(chain, tmp_path / "a.png", (8, 8), 1))
    assert image.shape[1] < 5000
    assert count(image, "#d55e00") >= 1000 * depth


def test_restored_images_are_shown_with_their_psnr(tmp_path: Path, texts: list[str]) -> None:
    original = torch.full((2, 1, 4, 6), 0.5)
    plots.draw_restored(original, original * 0, original + 0.1, tmp_path / "a.png")
    assert texts.count("20.0 dB") == 2
    assert {"original", "corrupted", "restored"} <= set(texts)
    for wrong in (torch.zeros(2, 2, 4, 6), torch.zeros(4, 6)):
        with pytest.raises(ValueError, match="original must be"):
            plots.draw_restored(wrong, wrong, wrong, tmp_path / "b.png")
    with pytest.raises(ValueError, match="restored must be"):
        plots.draw_restored(original, original, original[:1], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
