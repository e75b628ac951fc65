"""Optimizers: what they are made from, what they are told, and their states."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asng_ext import (
    ASNG,
    SNG,
    Categorical,
    CostTable,
    NaturalAdam,
    Penalty,
    SearchSpace,
    Theta,
    drive,
)
from asng_ext.costs import Term
from asng_ext.distributed import Ranks, SameSamples, same_samples
from asng_ext.optimizers import make, register
from asng_ext.toy.problem import ToyOptimizer, ToyProblem, ToySettings, simulate
from wrong_inputs.spaces import SAMPLE, SPACE
from wrong_inputs.table import Given, Wrong, refused
from wrong_inputs.values import (
    NOT_FINITE,
    NOT_INTEGERS,
    NOT_NUMBERS,
    NOT_TRUTH_VALUES,
)

FLAT = SearchSpace({"op": Categorical(["conv", "pool", "skip"]), "act": Categorical([0, 1])})
OTHER = SearchSpace({"op": Categorical(["conv", "pool"]), "act": Categorical([0, 1])})


def _started(folder: Path) -> ASNG:
    optimizer = ASNG(SPACE, population_size=4, seed=0, fixed={"rate": 0.1})
    optimizer.tell(optimizer.ask(), [3.0, 1.0, 2.0, 0.0])
    return optimizer


def _setting(name: str, values: list[Any], kind: Callable[..., Any] = ASNG) -> list[Wrong]:
    given = {} if name == "seed" else {"seed": 0}
    return refused(kind.__name__, lambda _, v: kind(FLAT, **given, **{name: v}), name, values)


_LIMITS = [*NOT_INTEGERS, -1, 2**63, 10**400]
_VALUES: list[Any] = [
    "op", 3, ["op"], {"no": 1}, {"op": "no"}, {"op": None}, {"act": 2}, {1: "conv"}, {"act": [0]},
    {"op": "conv", "Op": "pool"},
]  # fmt: skip
_THETA = ASNG(FLAT, seed=0).theta

SETTINGS: list[Wrong] = [
    *refused(
        "ASNG", lambda _, v: ASNG(v), "space",
        [None, "space", {}, {"op": Categorical([1, 2])}, [3, 2], SearchSpace, Categorical([1, 2])],
    ),
    *refused(
        "ASNG", lambda _, v: ASNG(v, seed=0), "space",
        [Given(SearchSpace({"op": Categorical([1])}), "more than one value")],
    ),
    *_setting("population_size", [*NOT_INTEGERS, 0, 1, -2, 2**30, None, "Auto", 10**400]),
    *_setting("alpha", [*NOT_NUMBERS, *NOT_FINITE, 0, -1.5, None]),
    *_setting("delta_init", [*NOT_NUMBERS, *NOT_FINITE, 0, -1.0]),
    *_setting("delta_max", [*NOT_NUMBERS, math.nan, -math.inf, 0.5, -1, None, 10**400]),
    *_setting("variance_ratio_min", [*NOT_NUMBERS, *NOT_FINITE, -0.1, 1.0, 2]),
    *_setting("margin", [b"paper", "Paper", "", None, True, [0.1], math.nan, -0.1, 0.5, 1, 1j,
                         np.complex128(0.1), np.array(0.1), 10**400, np.timedelta64(0)]),
    *_setting("init", _VALUES),
    *_setting("init_probability", [*NOT_NUMBERS, *NOT_FINITE, None, 0, -0.5, 1.5]),
    *_setting("fixed", [*_VALUES, {"op": "conv", "act": 2}]),
    *_setting("seed", [*NOT_INTEGERS, -1, 2**64, 10**400]),
    *_setting("maximize", [*NOT_TRUTH_VALUES, None]),
    *_setting("convergence_limit", [*NOT_NUMBERS, *NOT_FINITE, None, -0.1, 1.1]),
    *_setting("patience", [*_LIMITS, None]),
    *_setting("stall_limit", [*_LIMITS, 0]),
    *_setting("generation_limit", _LIMITS),
    *_setting("evaluation_limit", [*_LIMITS, 0, 1, 7]),
    *_setting("device", ["gpu", "CPU", "", None, 3, "meta", torch.device("meta"), ["cpu"], "cuda:x"]),
    *_setting("delta", [*NOT_NUMBERS, *NOT_FINITE, 0, -1, None], SNG),
    *_setting("device", ["cuda", "gpu", None], SNG),
    *_setting("step_size", [*NOT_NUMBERS, *NOT_FINITE, 0, -1, None], NaturalAdam),
    *_setting("beta1", [*NOT_NUMBERS, *NOT_FINITE, -0.1, 1.0, None], NaturalAdam),
    *_setting("beta2", [*NOT_NUMBERS, *NOT_FINITE, -0.1, 1.0, None], NaturalAdam),
    *refused(
        "ASNG",
        lambda _, v: ASNG(FLAT, seed=0, init=v),
        "init.categorical",
        [
            Theta(_THETA.categorical[:1], _THETA.numerical), Theta(np.zeros((2, 3)), _THETA.numerical),
            Theta(_THETA.categorical * math.nan, _THETA.numerical),
            Theta(-_THETA.categorical, _THETA.numerical),
        ],
    ),
    *refused(
        "ASNG",
        lambda _, v: ASNG(FLAT, seed=0, init=v),
        "init",
        [Theta("a", "b"), Given(Theta(None, None), "()"), Theta([[1], [1, 2]], _THETA.numerical),
         Theta(_THETA.categorical, np.zeros((2, 1)))],
    ),
    *refused("make", lambda _, v: make(v, FLAT, seed=0, population_size=2), "name",
             ["asng", "", None, 3, ["ASNG"], ASNG]),
    *refused("register", lambda _, v: register(v, ASNG), "name", [3, None, b"ASNG", "SNG"]),
    *refused("register", lambda _, v: register("another", v), "factory", [None, "ASNG", 3]),
]  # fmt: skip


def _told(optimizer: Any, losses: Any) -> object:
    return optimizer.tell(optimizer.space.samples([SAMPLE, SAMPLE | {"op": "pool"}]), losses)


TOLD: list[Wrong] = [
    *refused(
        "tell",
        _told,
        "losses",
        [
            None,
            1.0,
            "12",
            "ab",
            [],
            [1.0],
            [1.0, 2.0, 3.0],
            ["a", "b"],
            ["1", "2"],
            [None, 1.0],
            [[1.0], [2.0]],
            [1.0, [2.0]],
            np.zeros(3),
            np.zeros((2, 1)),
            np.array(1.0),
            {1: 2.0},
            np.array(["1", "2"]),
            np.array([1j, 2j]),
            [1j, 2j],
            torch.zeros(3),
            torch.zeros(2, 1),
            torch.tensor(1.0),
            torch.zeros(2, dtype=torch.complex64),
            {1.0, 2.0},
            Given([1.0, -math.inf], "losses[1]"),
            Given(np.array([-math.inf, 0.0]), "losses[0]"),
            Given(torch.tensor([-math.inf, 0.0]), "losses[0]"),
            np.array([1, 2], dtype="timedelta64[s]"),
            [10**400, 1],
            b"ab",
            [b"1", b"2"],
            np.array([None, 1.0]),
            (float(i) for i in range(2)),
            object(),
            [object(), object()],
            torch.zeros(2, device="meta"),
        ],
        _started,
    ),
    *refused(
        "tell",
        lambda optimizer, samples: optimizer.tell(samples, [1.0, 2.0]),
        "samples",
        [
            None,
            3,
            "ab",
            [1, 2],
            [SAMPLE, None],
            SAMPLE,
            [],
            [SAMPLE],
            [SAMPLE] * 3,
            [[SAMPLE], [SAMPLE]],
            Given(ASNG(FLAT, population_size=2, seed=0).ask(), "variable 1 is"),
            Given(ASNG(OTHER, population_size=2, seed=0).ask(), "variable 0 is"),
            Given(np.zeros((2, 4)), "array("),
        ],
        _started,
    ),
    *refused(
        "tell",
        lambda optimizer, v: optimizer.tell([SAMPLE, SAMPLE | v], [1.0, 2.0]),
        "values",
        [Given({"no": 1}, "'no'"), Given({1: 1}, "1"), Given({"Op": "conv"}, "'Op'")],
        _started,
    ),
    *refused(
        "tell",
        lambda optimizer, v: optimizer.tell([SAMPLE, SAMPLE | {"rate": v}], [1.0, 2.0]),
        "'rate'",
        [*NOT_NUMBERS, *NOT_FINITE, Given(0.2, "0.1, where it is fixed"), 2.0],
        _started,
    ),
]


def _state(optimizer: Any, changes: Any) -> object:
    state = copy.deepcopy(optimizer.state_dict())
    for name, value in changes.items():
        inner, _, last = name.rpartition("/")
        (state[inner] if inner else state)[last] = value
    return optimizer.load_state_dict(state)


def _in_state(name: str, values: list[Any]) -> list[Wrong]:
    last = name.rpartition("/")[2]
    return refused("state", lambda o, v: _state(o, {name: v}), last, values, _started)


_COUNTS = [*NOT_INTEGERS, None, -1, 2**63, 10**400]
_ARRAYS: list[Any] = [None, 3, "abc", [], ["a"] * 7, [math.nan] * 7, [[1.0] * 7], {"a": 1}, [1j] * 7,
                      [10**400] * 7, [True], object()]  # fmt: skip

STATES: list[Wrong] = [
    *refused(
        "load_state_dict", lambda o, v: o.load_state_dict(v), "state",
        [None, 3, "state", [], b"", Given({}, "lacks"), [("version", 2)], Given({1: 2}, "lacks")],
        _started,
    ),
    *[
        row
        for name in _started(Path()).state_dict()
        for row in refused(
            "lacking",
            lambda o, name: o.load_state_dict(
                {key: value for key, value in o.state_dict().items() if key != name}
            ),
            "state lacks",
            [name],
            _started,
        )
    ],
    *_in_state("version", [0, 3, "2", None, [], math.nan, 10**400]),
    *_in_state("optimizer", ["SNG", "asng", None, 3, [], ASNG]),
    *_in_state("space", [None, 3, "space", {}, Given([], "absent"), [1], Given([None], "absent"), [["op"]]]),
    *_in_state("seed", [*NOT_INTEGERS, None, -1, 2**64]),
    *_in_state("asked", _COUNTS),
    *_in_state("generation", _COUNTS),
    *_in_state("evaluations", _COUNTS),
    *_in_state("moved", _COUNTS),
    *_in_state("theta", _ARRAYS),
    *_in_state("mean", _ARRAYS),
    *_in_state("variance", [*_ARRAYS, [-1.0, -1.0], [0.0, 0.0], [1e9, 1e9]]),
    *_in_state("s", _ARRAYS),
    *_in_state("gamma", [*NOT_NUMBERS, *NOT_FINITE, None, -0.1, 1.1]),
    *_in_state("Delta", [*NOT_NUMBERS, *NOT_FINITE, None, -1, 0]),
    *_in_state("population_size", [2, "4", None, 4.5]),
    *_in_state("margin", ["catcma", 0.1, None]),
    *_in_state("maximize", [True, None, "no"]),
    *_in_state("alpha", [2.0, "1.5", None, math.nan]),
    *_in_state("best", [3, "best", [], Given({}, "{}"), {"loss": 1.0}]),
    *_in_state("best/loss", [*NOT_NUMBERS, *NOT_FINITE, None]),
    *_in_state("best/generation", [*NOT_INTEGERS, None, 0, -1]),
    *_in_state("best/categorical", [None, 3, "0", [], [0, 9], [0.0, 0], ["a", 0], [True, 0], {}]),
    *_in_state("best/numerical", [None, 3, "0", [], [math.nan, 0.0], ["a", 0.0], [0.0] * 3, {}]),
]  # fmt: skip

COSTS: list[Wrong] = [
    *refused("same_samples", lambda _, v: same_samples(v), "optimizer", [None, 3, "ASNG", [], SPACE]),
    *refused(
        "SameSamples",
        lambda _, v: SameSamples(ASNG(FLAT, seed=0), Ranks(0, 2)).tell([], v),
        "losses", [None, 3, "ab", ["a", "b"], [None], [[1.0, 2.0]], [1j]],
    ),
    *refused("CostTable", lambda _, v: CostTable(v), "space", [None, 3, {}, "space", SearchSpace]),
    *refused("CostTable", lambda _, v: CostTable(FLAT, base=v), "base", [*NOT_NUMBERS, *NOT_FINITE, None]),
    *refused("CostTable", lambda _, v: CostTable(FLAT, [Term(v)]), "cost", [*NOT_NUMBERS, *NOT_FINITE, None]),
    *refused("CostTable", lambda _, v: CostTable(FLAT, v), "terms", [None, 3, "terms", [3], [None], [{}]]),
    *refused(
        "CostTable", lambda _, v: CostTable(FLAT, [Term(1.0, v)]), "",
        [{"no": 1}, {"op": "no"}, {"act": 2}, {3: 1}, {"op": None}, {"op": ["conv"]}],
    ),
    *refused("CostTable", lambda _, v: CostTable(FLAT, [Term(1.0, v)]), "where", [3, None, ["op"], "op"]),
    *refused("CostTable", lambda _, v: CostTable(FLAT, [Term(1.0, {}, v)]), "unless", [3, None, ["op"], "op"]),
    *refused(
        "of_choices", lambda _, v: CostTable.of_choices(FLAT, v), "",
        [{"no": {"a": 1.0}}, {"op": {"no": 1.0}}, {"op": [1.0]}, {"op": [1.0] * 4}, {"no": [1.0]},
         {"op": {"conv": math.nan}}, {"op": {"conv": "1"}}, {"op": [1.0, 2.0, None]}],
    ),
    *refused("of_choices", lambda _, v: CostTable.of_choices(FLAT, v), "costs",
             [None, 3, "op", ["op"], {"op": 3}, {"op": None}, {"op": "abc"}]),
    *refused("CostTable-call", lambda _, v: CostTable(FLAT)(v), "samples",
             [None, 3, "ab", [{"op": "conv", "act": 0}], Given(ASNG(SPACE, seed=0).ask(), "{'op': 3}")]),
    *refused("CostTable-expected", lambda _, v: CostTable(FLAT).expected(v), "theta",
             [None, 3, "ab", [], np.zeros((2, 3)), ASNG(SPACE, seed=0).theta]),
    *refused("Penalty", lambda _, v: Penalty(v, {"size": 1.0}), "costs",
             [None, 3, Given({}, "[]"), "size", {"other": CostTable(FLAT)}, {"size": 3}, {"size": None}, {3: CostTable(FLAT)}]),
    *refused("Penalty", lambda _, v: Penalty({"size": CostTable(FLAT)}, v), "limits",
             [None, 3, {}, "size", {"other": 1.0}, {"size": 0}, {"size": -1}, {"size": "1"},
              {"size": math.nan}, {"size": math.inf}, {"size": True}, {"size": None}, {3: 1.0}]),
    *refused("Penalty", lambda _, v: Penalty({"size": CostTable(FLAT)}, {"size": 1.0}, maximize=v),
             "maximize", [*NOT_TRUTH_VALUES, None]),
    *refused("Penalty", lambda p, v: p.losses(ASNG(FLAT, population_size=2, seed=0).ask(), v), "losses",
             [None, 1.0, "ab", ["a", "b"], Given([1.0], "got 2"), Given([1.0] * 3, "got 2"), np.zeros((2, 1)),
              Given(torch.zeros(3), "got 2"), [1j, 2j], torch.zeros(2, 1), Given(torch.tensor(1.0), "()"), Given([], "got 2")],
             lambda folder: Penalty({"size": CostTable(FLAT)}, {"size": 1.0})),
    *refused("Penalty", lambda _, v: Penalty({"size": lambda samples: v}, {"size": 1.0}).losses(
                 ASNG(FLAT, population_size=2, seed=0).ask(), [1.0, 2.0]), "cost",
             [None, 1.0, "ab", Given([1.0], "got 1"), Given([1.0] * 3, "got 3"), np.zeros((2, 1)), ["a", "b"]]),
]  # fmt: skip


def _toy(name: str, values: list[Any]) -> list[Wrong]:
    return refused("ToySettings", lambda _, v: ToySettings(**{name: v}), name, values)


def _toy_optimizer(name: str, values: list[Any]) -> list[Wrong]:
    return refused("ToyOptimizer", lambda _, v: ToyOptimizer(**{name: v}), name, values)


_FEW = ToySettings(variables=3, categories=2, iteration_limit=5)

TOY: list[Wrong] = [
    *_toy("problem", ["no", "", None, 3, ["squared_error"]]),
    *_toy("variables", [*NOT_INTEGERS, 0, -1, 10**12]),
    *_toy("categories", [*NOT_INTEGERS, 0, 1, 10**12]),
    *_toy("population_size", [*NOT_INTEGERS, 1, 10**12]),
    *_toy("learning_rate", [*NOT_NUMBERS, *NOT_FINITE, -1]),
    *_toy("momentum", [*NOT_NUMBERS, *NOT_FINITE, -1, 1]),
    *_toy("iteration_limit", [*NOT_INTEGERS, -1, 10**30]),
    *_toy_optimizer("name", ["no", "", None, 3, ["ASNG"]]),
    *_toy_optimizer("step_size", [*NOT_NUMBERS, *NOT_FINITE, 0, -1]),
    *_toy_optimizer("alpha", [*NOT_NUMBERS, *NOT_FINITE, 0, -1]),
    *_toy_optimizer("beta1", [*NOT_NUMBERS, *NOT_FINITE, -1, 1]),
    *refused("ToyProblem", lambda _, v: ToyProblem(_FEW, seed=v), "seed", [*NOT_INTEGERS, -1, 2**64]),
    *refused("ToyProblem", lambda _, v: ToyProblem(v), "settings", [None, 3, {}, ToySettings]),
    *refused("simulate", lambda _, v: simulate(v, ToyOptimizer()), "settings", [None, 3, {}, ToySettings]),
    *refused("simulate", lambda _, v: simulate(_FEW, v), "optimizer", [None, 3, {}, "ASNG", ToyOptimizer]),
    *refused("simulate", lambda _, v: simulate(_FEW, ToyOptimizer(), runs=v), "runs", [*NOT_INTEGERS, -1, 10**30]),
    *refused("simulate", lambda _, v: simulate(_FEW, ToyOptimizer(), threads=v), "threads", [*NOT_INTEGERS, 0, 10**30]),
]  # fmt: skip


def _evaluate(sample: dict[str, Any]) -> float:
    return 0.0


def _driven(name: str, values: list[Any]) -> list[Wrong]:
    return refused("drive", lambda o, v: drive(o, _evaluate, **{name: v}), name, values, _started)


def _in_folder(names: list[Any]) -> list[Wrong]:
    def call(folder: Path, name: Any) -> object:
        return drive(_started(folder), _evaluate, journal=folder / name)

    return refused("drive-in-folder", call, "", names, lambda folder: folder)


DRIVEN: list[Wrong] = [
    *refused("drive", lambda _, v: drive(v, _evaluate), "optimizer", [None, 3, "ASNG", ASNG, SPACE, {}]),
    *refused("drive", lambda o, v: drive(o, v), "evaluate",
             [None, 3, "loss", [1.0], {}, lambda sample: 0.0], _started),
    *_driven("workers", [*NOT_INTEGERS, 0, -1, 10**400, [2]]),
    *refused("drive", lambda o, v: drive(o, _evaluate, workers=lambda: v), "workers",
             [*NOT_INTEGERS, None, -1], _started),
    *_driven("executor", [3, "ray", True, {}, [ThreadPoolExecutor], ThreadPoolExecutor, ProcessPoolExecutor]),
    *refused("drive", lambda o, v: drive(o, _evaluate, executor=ThreadPoolExecutor(1), workers=v),
             "workers", [None], _started),
    *_driven("timeout", [*NOT_NUMBERS, *NOT_FINITE, 0, -1]),
    *_driven("retries", [*NOT_INTEGERS, -1, None, 10**400]),
    *_driven("failure_limit", [*NOT_INTEGERS, -1, 0, 10**400]),
    *_driven("synchronous", [*NOT_TRUTH_VALUES, None]),
    *_driven("report", [3, "print", {}]),
    *_driven("journal", [3, 1.5, ["journal"], {}, True, b"journal", Given("a\0b", "a\\x00b")]),
    *_in_folder([Given(".", "Is a directory"), "no/journal", "a" * 300]),
]  # fmt: skip

TABLES = {
    "settings": SETTINGS,
    "told": TOLD,
    "states": STATES,
    "costs": COSTS,
    "toy": TOY,
    "driven": DRIVEN,
}
