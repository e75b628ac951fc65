"""Pictures of every kind: they leave nothing behind but their file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import count, pixels, some_architecture, some_rows

from asng_ext import plots
from asng_ext.nn import CaeLayer, CellSpace


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
    if kind == "confusion":
        return plots.draw_confusion([[9, 1], [0, 0]], ["a cat", "a dog"], path)
    if kind == "mistakes":
        images = torch.linspace(0, 1, 7 * 8 * 8).reshape(7, 1, 8, 8)
        return plots.draw_mistakes(images, "abcdefg", [("z", 0.5)] * 7, path)
    if kind == "restored":
        images = torch.linspace(0, 1, 3 * 3 * 8 * 8).reshape(3, 3, 8, 8)
        return plots.draw_restored(images, images * 0.5, images * 0.9, path)
    if kind == "elapsed":
        mix = [([60.0, 120.0], [9.0, 5.0]), ([80.0, 140.0], [8.0, 6.0])]
        panels = {"center": {"a (mix)": mix, "b": mix[:1]}, "half": {"b": mix}}
        return plots.plot_elapsed(panels, path, "test error, %")
    if kind == "sweep":
        points = [(0.5, 900.0, 0.7, True), (1.0, 1900.0, 0.5, True), (None, 2500.0, 0.6, False)]
        rows = [
            {
                "factor": factor,
                "costs": {"flops": {"cost": cost}, "latency": {"cost": cost / 500}},
                "metrics": {"loss": loss},
                "of": "supernet",
                "best": best,
            }
            for factor, cost, loss, best in points
        ]
        return plots.plot_sweep(rows, path)
    return plots.plot_theta([[0.3, 0.7], [1.0, 0.0]], ["a", "b"], {"a": "xy", "b": "z"}, path)


KINDS = [
    "cells",
    "search",
    "retrain",
    "theta",
    "autoencoder",
    "restored",
    "confusion",
    "mistakes",
    "sweep",
    "elapsed",
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A picture of each kind, in a folder of its own."""

    @cache
    def drawn(kind: str) -> Path:
        path = tmp_path_factory.mktemp(kind) / "picture.png"
        assert draw(kind, str(path)) == path
        return path

    return drawn


@pytest.mark.parametrize("kind", KINDS)
def test_a_white_png_with_something_on_it(kind: str, drawn: Callable[[str], Path]) -> None:
    path = drawn(kind)
    image = pixels(path)
    assert 100 < image.shape[0] < 3000
    assert 300 < image.shape[1] < 3000
    white = count(image, "white") / image[..., 0].size
    assert 0.3 < white < 0.98
    # Nothing is cut off at the edges.
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge == 255).all()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["cells", "search", "autoencoder", "mistakes"])
@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_the_same_content_gives_the_same_file(kind: str, ending: str, tmp_path: Path) -> None:
    """Of kinds that differ in what they are made of: lines, shapes, images. A .png of each is made
    twice below."""
    first = draw(kind, tmp_path / f"a.{ending}").read_bytes()
    assert first.startswith({"svg": b"<?xml", "pdf": b"%PDF"}[ending])
    second = tmp_path / f"b.{ending}"
    second.write_text("something old")
    assert draw(kind, second).read_bytes() == first


@pytest.mark.parametrize("kind", KINDS)
def test_the_style_of_the_caller_neither_matters_nor_changes(
    kind: str, tmp_path: Path, drawn: Callable[[str], Path]
) -> None:
    from matplotlib import rcParams, style

    expected = drawn(kind).read_bytes()
    assert expected.startswith(b"\x89PNG")
    again = tmp_path / "again.png"
    again.write_text("something old")
    with style.context(["dark_background", {"font.size": 31, "savefig.dpi": 7, "axes.grid": True}]):
        before = dict(rcParams)
        assert draw(kind, again).read_bytes() == expected
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
