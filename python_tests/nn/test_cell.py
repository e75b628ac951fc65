"""How architectures of the cell space are written down, checked and read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asng_ext.nn import CellArchitecture, CellSpace, Edge


@st.composite
def spaces_and_architectures(draw: st.DrawFn) -> tuple[CellSpace, list[int]]:
    space = CellSpace(draw(st.integers(1, 6)))
    return space, [draw(st.integers(0, k - 1)) for k in space.categories]


def test_size_of_the_paper() -> None:
    space = CellSpace()
    cell = [k for node in range(5) for k in (node + 2, node + 2, 5, 5)]
    assert space.categories == cell + cell
    assert len(space.categories) == 40
    assert space.n_theta == 140


def test_search_space() -> None:
    space = CellSpace().search_space()
    assert space.names[:5] == (
        "normal/node0/input0",
        "normal/node0/input1",
        "normal/node0/operation0",
        "normal/node0/operation1",
        "normal/node1/input0",
    )
    assert space.names[20] == "reduction/node0/input0"
    assert space.n_theta == 140
    values = space.decode([0] * 39 + [4])
    assert values["normal/node0/input0"] == "older"
    assert values["reduction/node4/operation1"] == "sep_conv_5x5"
    assert space["normal/node2/input1"].values == ("older", "newer", "node0", "node1")


@given(spaces_and_architectures())
def test_json_round_trip(case: tuple[CellSpace, list[int]]) -> None:
    space, architecture = case
    text = json.dumps(space.to_dict(architecture), sort_keys=True)
    assert space.to_indices(json.loads(text)) == architecture


@given(spaces_and_architectures())
def test_no_node_is_idle(case: tuple[CellSpace, list[int]]) -> None:
    space, architecture = case
    for cell in space.parse(architecture):
        read = {i - 2 for i in cell.inputs if i >= 2}
        assert read.isdisjoint(cell.leaf_nodes)
        assert read | set(cell.leaf_nodes) == set(range(space.nodes))
        assert space.nodes - 1 in cell.leaf_nodes


def test_parse() -> None:
    normal, reduction = CellSpace(2).parse([0, 1, 0, 4, 2, 2, 3, 1, 1, 1, 2, 2, 0, 1, 1, 0])
    assert normal == CellArchitecture(
        (
            (Edge(0, "identity"), Edge(1, "sep_conv_5x5")),
            (Edge(2, "sep_conv_3x3"), Edge(2, "avg_pool_3x3")),
        )
    )
    assert normal.inputs == {0, 1, 2}
    assert normal.leaf_nodes == (1,)
    assert reduction.nodes[0] == (Edge(1, "max_pool_3x3"), Edge(1, "max_pool_3x3"))
    assert reduction.leaf_nodes == (0, 1)


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, np.uint8])
def test_every_sequence_of_integers_is_an_architecture(make: Any) -> None:
    architecture = [1] * 16
    assert CellSpace(2).check(make(architecture)) == tuple(architecture)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ([0] * 15, "architecture must be one-dimensional with 16 category indices, got length 15"),
        (np.zeros((2, 16), int), r"with 16 category indices, got shape \(2, 16\)"),
        (torch.tensor(3), r"with 16 category indices, got shape \(\)"),
        (3, "with 16 category indices, got 3"),
        ([0] * 15 + [5], r"architecture\[15\] \(reduction/node1/operation1\) must be .* 0 to 4"),
        ([0, -1] + [0] * 14, r"architecture\[1\] .* must be an integer from 0 to 1, got -1"),
        ([0.0] * 16, r"architecture\[0\] \(normal/node0/input0\) must be an integer .* got 0.0"),
        ("0" * 16, r"architecture\[0\] .* got '0'"),
        (np.zeros((16, 1), int), r"architecture\[0\] .* got \[0\]"),
    ],
)
def test_wrong_architectures(architecture: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CellSpace(2).check(architecture)
    with pytest.raises(ValueError, match=message):
        CellSpace(2).parse(architecture)


def test_wrong_names() -> None:
    space = CellSpace(1)
    names = space.to_dict([0] * 8)
    with pytest.raises(ValueError, match=r"missing: .'normal/node0/input0'"):
        space.to_indices({k: v for k, v in names.items() if k != "normal/node0/input0"})
    with pytest.raises(ValueError, match=r"unknown: .'stem'"):
        space.to_indices({**names, "stem": "older"})
    with pytest.raises(ValueError, match=r"normal/node0/input0.*'node0'"):
        space.to_indices({**names, "normal/node0/input0": "node0"})


def test_other_operations() -> None:
    space = CellSpace(1, operations=("sep_conv_5x5", "identity"))
    assert space.categories == [2, 2, 2, 2] * 2
    normal, _ = space.parse([0, 1, 0, 1, 0, 0, 0, 0])
    assert normal.nodes == ((Edge(0, "sep_conv_5x5"), Edge(1, "identity")),)
    assert space.to_dict([0, 1, 0, 1, 0, 0, 0, 0])["normal/node0/operation1"] == "identity"
    assert CellSpace(1, ["identity"]) == CellSpace(1, ("identity",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operations", "got"),
    [((), "none"), (("identity", "conv"), "'identity', 'conv'"), (("identity",) * 2, "'identity'")],
)
def test_wrong_operations(operations: tuple[str, ...], got: str) -> None:
    with pytest.raises(ValueError, match=f"operations must be different ones of .*got {got}"):
        CellSpace(1, operations)


@pytest.mark.parametrize("nodes", [0, -1, 2.0, "5"])
def test_wrong_number_of_nodes(nodes: Any) -> None:
    with pytest.raises(ValueError, match="nodes must be a positive integer, got"):
        CellSpace(nodes)
