"""Pictures of cells."""

from __future__ import annotations

from functools import partial
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from pictures import count, pixels, some_architecture

from asng_ext import plots
from asng_ext.nn import CellSpace
from asng_ext.nn.operations import OPERATIONS
from asng_ext.plots._cell_layout import Box, lay_out
from asng_ext.plots._picture import DPI, OPERATION_STYLES


def test_cells_have_the_colors_of_their_operations_only(tmp_path: Path) -> None:
    names = list(OPERATION_STYLES)
    for first, second in pairwise(range(len(names))):
        # Two nodes; the first reads the inputs, the second the first and the newer input.
        architecture = [0, 1, first, first, 2, 1, first, first]
        architecture += [0, 1, second, first, 2, 1, second, second]
        space = CellSpace(2, OPERATIONS)
        image = pixels(plots.draw_cells(space, architecture, tmp_path / "a.png"))
        for i, name in enumerate(names):
            # A label alone has thousands of pixels; rims of letters may hit a color by accident.
            filled = count(image, OPERATION_STYLES[name].color) > 1000
            assert filled == (i in (first, second)), name


def test_all_operations_have_a_style() -> None:
    assert tuple(OPERATION_STYLES) == OPERATIONS
    assert len({style.color for style in OPERATION_STYLES.values()}) == len(OPERATION_STYLES)


def test_cells_mark_stride_in_the_reduction_cell_only(tmp_path: Path, texts: list[str]) -> None:
    cell = [0, 0, 0, 0, 2, 0, 4, 1]
    plots.draw_cells(CellSpace(2), cell + cell, tmp_path / "a.png")
    assert texts.count("identity /2") == 2
    assert texts.count("avg 3×3 /2") == 1
    assert texts.count("avg 3×3") == 1
    assert texts.count("sep 5×5") == 2
    # Both cells read the older input only.
    assert texts.count("older\ncell k−2") == 2
    assert texts.count("newer\ncell k−1\n(unused)") == 2
    assert texts.count("output") == 2
    assert {"Normal cell", "Reduction cell", "stride 2"} <= set(texts)
    assert "max pooling 3×3" not in texts


def test_small_cells_stand_beside_and_large_ones_above(tmp_path: Path) -> None:
    small = pixels(plots.draw_cells(CellSpace(1), [0] * 8, tmp_path / "a.png"))
    large = pixels(plots.draw_cells(CellSpace(5), some_architecture(5), tmp_path / "b.png"))
    assert small.shape[0] < 0.5 * small.shape[1]
    assert large.shape[0] > 0.5 * large.shape[1]
    assert min(small.shape[1], large.shape[1]) > 7.4 * DPI


def test_sizes_and_near_ties_are_written(tmp_path: Path, texts: list[str]) -> None:
    ties = {
        f"normal/node{i}/operation0": {"sep_conv_5x5": 0.5, "identity": 0.3 + 0.01 * i}
        for i in range(10)
    }
    draw = partial(plots.draw_cells, CellSpace(2), [0] * 16)
    plain = pixels(draw(tmp_path / "a.png"))
    assert any("older and newer are the outputs" in text for text in texts)
    assert not any("Near ties" in text for text in texts)
    texts.clear()
    sizes = {"cells": 5, "parameters": 1234567, "layers": ["no number"]}
    more = pixels(draw(tmp_path / "b.png", sizes=sizes, near_ties=ties))
    assert more.shape[0] - plain.shape[0] == pytest.approx(DPI * 0.19 * 11, abs=2)
    assert "cells 5, parameters 1,234,567" in texts
    shown = [text.strip() for text in texts if "sep 5×5 0" in text]
    assert shown == [
        f"normal/node{i}/operation0: sep 5×5 0.50, identity {0.3 + 0.01 * i:.2f}"
        for i in range(9, 1, -1)
    ]
    assert "    and 2 more" in texts


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
    edges += [(node + 2, 8, None) for node in cell.leaf_nodes]
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
