"""Search spaces of networks, networks, choices, costs and operators."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from asng_ext.nn import (
    CaeCatSpace,
    CaeCost,
    CaeIntSpace,
    CaeLayer,
    CaeNetwork,
    CaeSupernet,
    CellNetwork,
    CellSpace,
    CellSupernet,
    Choice,
    Latencies,
    MixedNode,
    Relaxation,
    base_layers,
    cell_costs,
    cell_supernet,
    choice_costs,
    derive,
    search_space,
    set_architecture,
    subnet,
    widest_channels,
)
from wrong_inputs.table import Given, Wrong, refused
from wrong_inputs.values import NOT_FINITE, NOT_INTEGERS, NOT_NUMBERS

CELLS = CellSpace(2)
ARCHITECTURE = [0] * len(CELLS.categories)
SMALL = {"cells": 3, "channels": 2, "classes": 3}
CAE = CaeCatSpace(layers=2, kernels=(1, 3), channels=(2, 4))
COUNTS: list[Any] = [*NOT_INTEGERS, None, 0, -1]


def _choices(folder: Path | None = None) -> nn.Module:
    return nn.Sequential(
        Choice("op", {"a": nn.Linear(2, 2), "b": nn.Tanh()}), Choice("act", [nn.ReLU()])
    )


def _cell(name: str, values: list[Any]) -> list[Wrong]:
    rows = refused(
        "CellNetwork",
        lambda _, v: CellNetwork(CELLS, ARCHITECTURE, **{**SMALL, name: v}),
        name,
        values,
    )
    return [
        *rows,
        *refused(
            "CellSupernet", lambda _, v: CellSupernet(CELLS, **{**SMALL, name: v}), name, values
        ),
    ]


_CHOSEN: list[Any] = [
    None, 3, "op", [("op", "a")], {}, {"op": "a"}, {"op": "c", "act": "0"}, {"op": "a", "act": 0},
    {"op": None, "act": "0"}, {"op": "a", "act": "0", "no": "a"}, {"op": ["a"], "act": "0"},
    {1: "a", "act": "0", "op": "a"},
]  # fmt: skip
_ARCHITECTURES: list[Any] = [
    None, 3, Given("0" * 16, "'0'"), Given([], "length 0"), Given(ARCHITECTURE[1:], "length 15"), Given([*ARCHITECTURE, 0], "length 17"), [9, *ARCHITECTURE[1:]], [-1, *ARCHITECTURE[1:]],
    [0.0, *ARCHITECTURE[1:]], ["a", *ARCHITECTURE[1:]], [None, *ARCHITECTURE[1:]],
    [True, *ARCHITECTURE[1:]], np.zeros((1, 16), dtype=np.int64), Given(np.zeros(16), "0.0"), Given(torch.zeros(16), "0.0"),
    torch.zeros(15, dtype=torch.int64), {"normal/node0/input0": "older"}, iter(ARCHITECTURE),
]  # fmt: skip

CELL_ROWS: list[Wrong] = [
    *refused("CellSpace", lambda _, v: CellSpace(v), "nodes", COUNTS),
    *refused(
        "CellSpace", lambda _, v: CellSpace(2, v), "operations",
        [None, 3, "identity", [], ["no"], ["identity", "identity"], [3], [None], [["identity"]]],
    ),
    *refused("check", lambda _, v: CELLS.check(v), "architecture", _ARCHITECTURES),
    *refused("CellNetwork", lambda _, v: CellNetwork(CELLS, v, **SMALL), "architecture", [None, 3, Given([], "length 0"), [9] * 16]),
    *refused("CellNetwork", lambda _, v: CellNetwork(v, ARCHITECTURE, **SMALL), "space", [None, 3, "cells", CAE, CellSpace]),
    *refused("CellSupernet", lambda _, v: CellSupernet(v, **SMALL), "space", [None, 3, "cells", CAE]),
    *refused(
        "to_indices", lambda _, v: CELLS.to_indices(v), "",
        [{"no": 1}, {**CELLS.to_dict(ARCHITECTURE), "normal/node0/input0": "no"},
         {**CELLS.to_dict(ARCHITECTURE), "normal/node0/input0": 0},
         {**CELLS.to_dict(ARCHITECTURE), "normal/node0/input0": None}],
    ),
    *refused("to_indices", lambda _, v: CELLS.to_indices(v), "names", [None, 3, "older", []]),
    *_cell("classes", COUNTS),
    *_cell("cells", [*COUNTS, 1, 2]),
    *_cell("channels", COUNTS),
    *_cell("in_channels", COUNTS),
    *_cell("stem_multiplier", COUNTS),
    *refused(
        "CellNetwork", lambda _, v: CellNetwork(CELLS, ARCHITECTURE, **SMALL, drop_path_rate=v),
        "drop_path_rate", [*NOT_NUMBERS, *NOT_FINITE, None, -0.1, 1.0],
    ),
    *refused(
        "cell_supernet", lambda _, v: cell_supernet(CELLS, implementation=v, **SMALL), "implementation",
        ["no", "", None, 3, "Fused", ["fused"]],
    ),
    *refused("widest_channels", lambda _, v: widest_channels(CELLS, ARCHITECTURE, v, cells=3), "limit",
             [*NOT_NUMBERS, None, 0, -1, math.nan]),
    *refused("cell_costs", lambda _, v: cell_costs(CELLS, v, image_size=(8, 8), **SMALL), "kind",
             ["no", "", None, 3, ["flops"]]),
    *refused("cell_costs", lambda _, v: cell_costs(CELLS, "flops", image_size=v, **SMALL), "image_size",
             [None, 3, "8", (8,), (8, 8, 8), (0, 8), (-8, 8), (8.0, 8), ("8", 8), (True, 8)]),
    *refused("Latencies", lambda _, v: Latencies(measured=v), "measured",
             [3, "part", ["part"], {"part": 0}, {"part": -1}, {"part": "1"}, {"part": math.nan}, {"part": None}]),
    *refused("Relaxation", lambda _, v: Relaxation(v), "weights",
             [None, 3, "ab", [0.5], [[0.5, 0.5]], [None], [np.ones(2)], [torch.ones(2, dtype=torch.int64)],
              Given([torch.ones(2, 1)], "(2, 1)"), Given([torch.ones(())], "()")]),
    *refused("Relaxation", lambda _, v: Relaxation((torch.ones(2),), v), "active",
             [3, "01", [3], [None], [[2]], [[-1]], [[0, 0]], [[0.0]], [[True]], [["0"]], Given([[]], "()"),
              Given([], "0"), Given([[0], [0]], "2")]),
    *refused("forward_relaxed", lambda s, v: s.forward_relaxed(torch.zeros(2, 3, 4, 4), v), "relaxation",
             [None, 3, ARCHITECTURE, Given(Relaxation((torch.ones(2),)), "1")],
             subject=lambda _: CellSupernet(CELLS, **SMALL)),
    *refused("MixedNode", lambda _, v: MixedNode(v, 2), "channels", COUNTS),
    *refused("MixedNode", lambda _, v: MixedNode(4, v), "inputs", COUNTS),
    *refused("MixedNode", lambda _, v: MixedNode(4, 2, v), "stride", [*COUNTS, 3]),
]  # fmt: skip

CAE_ROWS: list[Wrong] = [
    *refused("CaeCatSpace", lambda _, v: CaeCatSpace(layers=v), "layers", COUNTS),
    *refused("CaeCatSpace", lambda _, v: CaeCatSpace(levels_back=v), "levels_back", COUNTS),
    *refused("CaeCatSpace", lambda _, v: CaeCatSpace(kernels=v), "kernels",
             [None, 3, "13", Given([], "()"), (2,), (3, 3), (0,), (-1,), (1.0,), ("3",), (True,), (None,)]),
    *refused("CaeCatSpace", lambda _, v: CaeCatSpace(channels=v), "channels",
             [None, 3, "64", Given([], "()"), (4, 4), (0,), (-1,), (1.5,), ("4",), (True,)]),
    *refused("CaeIntSpace", lambda _, v: CaeIntSpace(low=v), "low", [*COUNTS, 300]),
    *refused("CaeIntSpace", lambda _, v: CaeIntSpace(high=v), "high", [*COUNTS, 10]),
    *refused("CaeSupernet", lambda _, v: CaeSupernet(v), "space", [None, 3, "cat", CELLS]),
    *refused("CaeSupernet", lambda _, v: CaeSupernet(CAE, v), "in_channels", COUNTS),
    *refused("CaeNetwork", lambda _, v: CaeNetwork(base_layers(1, 2), v), "in_channels", COUNTS),
    *refused("CaeNetwork", lambda _, v: CaeNetwork(base_layers(1, 2), 3, v), "image_size",
             [None, 3, "88", (8,), (8, 8, 8), (0, 8), (-1, 8), (8.0, 8), ("8", 8), (True, 8)]),
    *refused("CaeNetwork", lambda _, v: CaeNetwork(v), "layers", [None, 3, "ab", [3], [None], [(0, 3, 4, True)]]),
    *refused("base_layers", lambda _, v: base_layers(v), "depth", COUNTS),
    *refused("base_layers", lambda _, v: base_layers(1, v), "channels", COUNTS),
    *refused("base_layers", lambda _, v: base_layers(1, 2, v), "kernel", [*COUNTS, 2]),
    *refused("CaeCost", lambda _, v: CaeCost(CAE, v, in_channels=3, image_size=(8, 8)), "kind",
             ["no", "latency", None, 3]),
    *refused("decode", lambda _, v: CAE.decode(v), "values", [None, 3, "ab", Given({}, "'output/input'"), Given({"no": 1}, "'output/input'"), []]),
    *refused("encode", lambda _, v: CAE.encode(v), "layers", [None, 3, "ab", [3], [None]]),
    *refused("encode", lambda _, v: CAE.encode([v]), "",
             [Given(CaeLayer(2, 3, 2, True), "2"), Given(CaeLayer(-1, 3, 2, True), "-1"),
              Given(CaeLayer(0, 5, 2, True), "5"), Given(CaeLayer(0, 3, 3, True), "3"),
              Given(CaeLayer(0, 3, "2", True), "'2'"), Given(CaeLayer("0", 3, 2, True), "'0'")]),
]  # fmt: skip

CHOICES: list[Wrong] = [
    *refused("Choice", lambda _, v: Choice(v, [nn.ReLU()]), "name", ["", None, 3, b"op", ["op"]]),
    *refused(
        "Choice", lambda _, v: Choice("op", v), "candidate",
        [None, 3, "ab", Given([], "empty"), Given({}, "empty"), [3], [None], [nn.ReLU], {"a": 3}, {"": nn.ReLU()}, {"a.b": nn.ReLU()},
         {"type": nn.ReLU()}, {1: nn.ReLU()}, nn.ReLU()],
    ),
    *[
        row
        for function in (set_architecture, subnet, derive)
        for row in refused(function.__name__, lambda model, v, f=function: f(model, v), "", _CHOSEN[4:], _choices)
    ],
    *[
        row
        for function in (set_architecture, subnet, derive)
        for row in refused(function.__name__, lambda model, v, f=function: f(model, v), "values", _CHOSEN[:4], _choices)
    ],
    *refused("activate", lambda model, v: model[0].activate(v), "'op'", ["c", None, 0, ["a"]], _choices),
    *refused("search_space", lambda _, v: search_space(v), "model",
             [None, 3, "model", Given(nn.ReLU(), "Choice"), nn.ReLU, Choice]),
    *refused("choice_costs", lambda model, v: choice_costs(model, v), "kind", ["no", "", None, 3], _choices),
    *refused("choice_costs", lambda _, v: choice_costs(v, "parameters"), "model", [None, 3, "model"]),
]  # fmt: skip

TABLES = {"cells": CELL_ROWS, "cae": CAE_ROWS, "choices": CHOICES}
