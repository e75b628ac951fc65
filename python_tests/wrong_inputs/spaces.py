"""Search spaces, variables and samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from asng_ext import Categorical, Integer, Real, Samples, SearchSpace
from wrong_inputs.table import Given, Wrong, refused
from wrong_inputs.values import (
    NOT_FINITE,
    NOT_INTEGERS,
    NOT_NUMBERS,
    NOT_TRUTH_VALUES,
)

SPACE = SearchSpace(
    {
        "op": Categorical(["conv", "pool", "skip"]),
        "depth": Integer(1, 5),
        "rate": Real(0.001, 1.0, log=True),
        "momentum": Real(0.0, 1.0),
    },
    active_if={"momentum": {"op": ["conv", "pool"]}},
)
SAMPLE: dict[str, Any] = {"op": "conv", "depth": 2, "rate": 0.1, "momentum": 0.9}


def _with(name: str) -> Any:
    return lambda _, value: SPACE.samples([SAMPLE | {name: value}])


VARIABLES: list[Wrong] = [
    *refused(
        "Categorical",
        lambda _, value: Categorical(value),
        "values",
        [
            "abc",
            b"abc",
            "",
            [],
            (),
            {},
            {"a": 1},
            {1, 2},
            None,
            3,
            3.5,
            iter([1, 2]),
            range(0),
            [1, 1],
            ["a", "b", "a"],
            [1.0, np.float64(1.0)],
            ["é", "é"],
            [[1], [1]],
            [None, None],
            np.zeros((2, 2)),
            np.array(1),
            np.zeros(0),
            range(2**40),
            range(2**80),
            object(),
            int,
        ],
    ),
    *refused(
        "Categorical",
        lambda _, value: Categorical(["a", "b"], value),
        "labels",
        ["ab", ["a"], ["a", "b", "c"], [1, 2], ["a", None], 3, object()],
    ),
    *refused("Integer", lambda _, v: Integer(v, 5), "low", [*NOT_INTEGERS, None, 6, 10**31]),
    *refused("Integer", lambda _, v: Integer(0, v), "high", [*NOT_INTEGERS, None, -1, 10**400]),
    *refused(
        "Integer", lambda _, v: Integer(0, 4, step=v), "step", [*NOT_INTEGERS, 0, -1, 10**400]
    ),
    *refused("Integer", lambda _, v: Integer(0, v, step=3), "high", [4, -3]),
    *refused("Integer", lambda _, v: Integer(1, 4, log=v), "log", NOT_TRUTH_VALUES),
    *refused("Integer-log", lambda _, v: Integer(v, 4, log=True), "low", [0, -3]),
    *refused("Real", lambda _, v: Real(v, 1.0), "low", [*NOT_NUMBERS, *NOT_FINITE, None, 2, -1e31]),
    *refused(
        "Real", lambda _, v: Real(0.0, v), "high", [*NOT_NUMBERS, *NOT_FINITE, -1, 1e300, 1e-40]
    ),
    *refused(
        "Real",
        lambda _, v: Real(0.0, 1.0, v),
        "resolution",
        [*NOT_NUMBERS, 0, -0.1, math.inf, -math.inf, 2.1, 10**400],
    ),
    *refused("Real", lambda _, v: Real(0.1, 1.0, log=v), "log", NOT_TRUTH_VALUES),
    *refused("Real-log", lambda _, v: Real(v, 1.0, log=True), "low", [0.0, -1.0]),
    *refused("Real-narrow", lambda _, v: Real(1.0, v), "high", [math.nextafter(1.0, 2.0)]),
]

SPACES: list[Wrong] = [
    *refused(
        "SearchSpace",
        lambda _, v: SearchSpace(v),
        "variables",
        [{}, [], None, 3, "op", [("op", Categorical([1]))], Categorical([1]), iter([])],
    ),
    *refused(
        "SearchSpace",
        lambda _, v: SearchSpace({v: Categorical([1, 2])}),
        "name",
        [1, None, ("a",), b"op", 1.5, np.int64(3)],
    ),
    *refused(
        "SearchSpace",
        lambda _, v: SearchSpace({"op": v}),
        "'op'",
        [[1, 2], "conv", None, 3, Categorical, range(2), {"values": [1]}],
    ),
    *refused(
        "SearchSpace",
        lambda _, v: SearchSpace(SPACE, active_if=v),
        "active_if",
        [
            "depth",
            3,
            ["depth"],
            {"no": {"op": "conv"}},
            {"depth": "conv"},
            {"depth": {}},
            {"depth": {"rate": 0.1}},
            {"depth": {"op": "no"}},
            {"depth": {"op": []}},
            {"depth": {"op": ["conv", "no"]}},
            {"depth": {"no": 1}},
            {"op": {"op": "conv"}},
            {"depth": None},
            {"depth": {"op": None}},
            {3: {"op": "conv"}},
            {"depth": {"op": {"conv"}}},
        ],
    ),
    *refused(
        "from_sizes",
        lambda _, v: SearchSpace.from_sizes(v),
        "categories",
        [
            [0],
            [-1],
            [2.0],
            ["2"],
            [True],
            [None],
            [[2]],
            3,
            "3",
            None,
            [2**40],
            [np.timedelta64(2)],
        ],
    ),
    *refused(
        "from_sizes",
        lambda _, v: SearchSpace.from_sizes([2], integers=v),
        "integers",
        [[3], [(1,)], [(1, 2, 3)], [("1", 2)], [(1.5, 2)], [(2, 1)], 3, "12", [None], [(1, None)]],
    ),
    *refused(
        "from_sizes",
        lambda _, v: SearchSpace.from_sizes([2], reals=v),
        "reals",
        [
            [3],
            [(1,)],
            [(0, 1, 2)],
            [("0", 1)],
            [(0, math.nan)],
            [(1, 0)],
            3,
            [None],
            [(0, 10**400)],
        ],
    ),
]

SAMPLES: list[Wrong] = [
    *refused("samples", _with("op"), "'op'", ["no", 0, None, 1.0, ["conv"], "Conv", np.array(["conv"])]),
    *refused("samples", _with("depth"), "'depth'", [*NOT_INTEGERS, None, 0, 6, -(10**400)]),
    *refused("samples", _with("rate"), "'rate'", [*NOT_NUMBERS, *NOT_FINITE, None, 0.0, 1.1]),
    *refused("samples", _with("momentum"), "'momentum'", [-0.1, math.nan, "0.5", True]),
    *refused(
        "samples",
        lambda _, v: SPACE.samples(v),
        "rows",
        [[], None, 3, "op", [1], ["op"], [None], SAMPLE, {"op": "conv"}, [[SAMPLE]]],
    ),
    *refused(
        "encode",
        lambda _, v: SPACE.encode(v),
        "values",
        [
            {"op": "conv"}, SAMPLE | {"no": 1}, SAMPLE | {3: 1}, SAMPLE | {"Op": "conv"}, None, 3,
            list(SAMPLE), "op",
        ],
    ),
    *refused(
        "decode",
        lambda _, v: SPACE.decode(v, [1.0, 0.0, 0.0]),
        "categorical",
        [[], [0, 1], [3], [-1], ["conv"], [None], [0.5], [math.nan], [True], 0, "0", None, [[0]], [10**30]],
    ),
    *refused(
        "decode",
        lambda _, v: SPACE.decode([0], v),
        "numerical",
        [
            [], [1.0], [1.0] * 4, ["a", 0, 0], [None, 0, 0], [math.nan, 0, 0], [0, math.nan, 0],
            [0, 0, math.nan], 3.0, None, [[1.0], 0, 0], [1j, 0, 0], [10**400, 0, 0], "abc",
        ],
    ),
    *refused("position", lambda _, v: SPACE.position(v, 1), "name", ["no", 3, None, ["op"]]),
    *[
        row._replace(raises=(IndexError, TypeError))  # as of any sequence
        for row in refused(
            "of_samples",
            lambda samples, value: samples[value],
            "index",
            ["0", 1.0, None, True, 4, -5, [0.5], ["0"], [9], [-5], {"a": 1}],
            lambda folder: SPACE.samples([SAMPLE] * 4),
        )
    ],
    *refused(
        "read-samples",
        lambda _, v: Samples(SPACE, v, np.zeros((2, 3)))[0],
        "categorical",
        [Given(np.zeros((2, 1)), "0.0"), Given(np.array([["a"], ["b"]]), "'a'"),
         Given(np.array([[True], [True]]), "True"), Given(np.array([[7], [7]]), "7")],
    ),
    *refused(
        "read-samples",
        lambda _, v: Samples(SPACE, np.zeros((2, 1), dtype=np.int64), v)[0],
        "numerical",
        [Given(np.full((2, 3), "a"), "'a'"), Given(np.full((2, 3), math.nan), "nan"),
         Given(np.full((2, 3), 1j), "1j"), Given(np.full((2, 3), True), "True")],
    ),
]  # fmt: skip

TABLES = {"variables": VARIABLES, "spaces": SPACES, "samples": SAMPLES}
