"""Of which space states and samples are, in every form in which they are saved."""

from __future__ import annotations

import copy
import enum
import functools
import io
import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixed_space import MIXED, advance
from tensor_task import StackedTask, asng_in_tensors
from torch import nn

import asng_ext as asng
from asng_ext import Categorical, Integer, Real, SearchSpace
from asng_ext.engine.search import search
from asng_ext.nn import Choice, search_space
from asng_ext.runs.config import SearchConfig
from asng_ext.runs.folder import RunFolder

Optimizer = asng.ASNG | asng.SNG | asng.NaturalAdam
KINDS = (asng.ASNG, asng.SNG, asng.NaturalAdam)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Block:
    """Without a repr of its own."""


VARIABLES = {
    "op": Categorical(["conv", "pool"]),
    "depth": Integer(1, 5),
    "rate": Real(0.0, 1.0),
    "act": Categorical([None, (1, "a"), Color.RED, Block, math.sin]),
}
SPACE = SearchSpace(VARIABLES)
OTHERS: dict[str, tuple[Mapping[str, Any], str]] = {
    "choices": ({**VARIABLES, "op": Categorical(["pool", "conv"])}, r"'op': Categorical\('pool', "),
    "types": ({**VARIABLES, "op": Categorical([1, True])}, r"Categorical\(1, True\)"),
    "objects": (
        {**VARIABLES, "act": Categorical([None, (1, "a"), Color.BLUE, Block, math.sin])},
        "<Color.BLUE: 2>",
    ),
    "kind": ({**VARIABLES, "depth": Real(1.0, 5.0, 1.0)}, r"'depth': Real\(low=1.0, "),
    "range": ({**VARIABLES, "depth": Integer(1, 6)}, "high=6"),
    "resolution": ({**VARIABLES, "rate": Real(0.0, 1.0, 0.1)}, "resolution=0.1"),
    "step": ({**VARIABLES, "depth": Integer(1, 5, step=2)}, r"high=5, step=2\), not .*high=5\)"),
    "log": ({**VARIABLES, "depth": Integer(1, 5, log=True)}, r"high=5, log=True\), not"),
    "one value": ({**VARIABLES, "depth": Integer(1, 1)}, r"Integer\(low=1, high=1\), not"),
    "order": ({name: VARIABLES[name] for name in ("act", "op", "depth", "rate")}, "variable 0"),
    "names": ({"o": VARIABLES["op"], **dict(list(VARIABLES.items())[1:])}, "variable 0 is 'o'"),
    "more": ({**VARIABLES, "one": Categorical([0])}, r"variable 4 is 'one': .*, not absent"),
    "fewer": (dict(list(VARIABLES.items())[:3]), "variable 3 is absent, not 'act'"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", OTHERS)
def test_states_and_samples_of_another_space_are_refused(kind: type[Optimizer], other: str) -> None:
    variables, words = OTHERS[other]
    source = kind(SearchSpace(variables), population_size=2, seed=0)
    target = kind(SPACE, population_size=2, seed=1)
    samples = source.ask()
    source.tell(samples, [1.0, 2.0])
    before = target.state_dict()
    with pytest.raises(ValueError, match="state must be of the optimizer's space.*" + words):
        target.load_state_dict(source.state_dict())
    with pytest.raises(ValueError, match="samples must be of the optimizer's space.*" + words):
        target.tell(samples, [1.0, 2.0])
    assert target.state_dict() == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_equal_space_will_do(kind: type[Optimizer]) -> None:
    source = kind(SPACE, population_size=2, seed=0)
    advance(source, 5, lambda sample: sample["depth"])
    target = kind(SearchSpace(VARIABLES), population_size=2, seed=1)
    target.load_state_dict(source.state_dict())
    samples = source.ask()
    assert target.tell(samples, [1.0, 2.0]) == source.tell(samples, [1.0, 2.0])
    assert target.tell(copy.deepcopy(samples), [1.0, 2.0])
    assert target.tell(pickle.loads(pickle.dumps(samples)), [1.0, 2.0])


def test_values_of_numpy_are_their_numbers() -> None:
    space = SearchSpace({"x": Categorical(list(np.arange(2))), "y": Categorical([np.float32(0.5)])})
    plain = SearchSpace({"x": Categorical([0, 1]), "y": Categorical([0.5])})
    assert space.difference(plain.description) is None


def test_a_state_means_the_same_in_another_process(tmp_path: Path) -> None:
    """Sets are ordered by the hashes of text, which differ between processes, as addresses do."""
    (tmp_path / "choices.py").write_text(
        "import enum, functools, math, numpy as np, asng_ext as a\n"
        "Kind = enum.Enum('Kind', ['A', 'B'])\n"
        "class Block: pass\n"
        "def block(): pass\n"
        "space = a.SearchSpace({'x': a.Categorical([\n"
        "    None, (1, [block, {'k': Block()}]), Kind.A, Block, block, Block(), lambda: 0, b'1',\n"
        "    frozenset('abcdef'), {('x', 'y'), 'z'}, functools.partial(block, 1), math.sin,\n"
        "    np.sin, Block().__init__])})\n"
        "print(a.ASNG(space).state_dict()['space'])\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, *how],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, how in (("1", ["choices.py"]), ("2", ["-c", "import choices"]))
    ]
    assert outputs[0] == outputs[1]
    assert "<Kind.A: 1>, <class Block>, <function block>, <Block object>" in outputs[0]
    assert " at 0x" not in outputs[0]


def test_labels_tell_apart_what_looks_the_same() -> None:
    choices = [lambda: 1, lambda: 2]
    spaces = [
        SearchSpace({"f": Categorical(c, labels=labels)})
        for c, labels in ((choices, ["one", "two"]), (choices[::-1], ["two", "one"]))
    ]
    with pytest.raises(ValueError, match=r"'f': Categorical\(one, two\), not .*\(two, one\)"):
        asng.ASNG(spaces[1]).load_state_dict(asng.ASNG(spaces[0]).state_dict())
    with pytest.raises(ValueError, match="one for each of 2 values, got 1"):
        Categorical([1, 2], labels=["a"])
    with pytest.raises(TypeError, match="labels"):
        Categorical([1, 2], labels="ab")


def test_states_are_plain_in_every_format() -> None:
    optimizer = asng.ASNG(SPACE, seed=0)
    state = optimizer.state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    for saved in (
        torch.load(buffer, weights_only=True),
        json.loads(json.dumps(state, sort_keys=True)),
        pickle.loads(pickle.dumps(state)),
    ):
        assert saved == state
        asng.ASNG(SPACE).load_state_dict(saved)
    assert pickle.loads(pickle.dumps(optimizer)).state_dict() == state
    state["space"].clear()
    assert optimizer.state_dict()["space"]


def version_1(optimizer: Optimizer) -> dict[str, Any]:
    state = {**optimizer.state_dict(), "version": 1}
    for name in ("space", "variance_ratio_min", "evaluations", "moved", "best"):
        state.pop(name, None)
    numbers = optimizer.space.numerical.values()
    ranges = [[float(bound) for bound in v.bounds] for v in numbers]
    return {**state, "sizes": optimizer.space.sizes, "ranges": ranges}


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_version_1_load_with_a_warning_if_they_fit(kind: type[Optimizer]) -> None:
    source, target = (kind(MIXED, population_size=2, seed=seed) for seed in (0, 1))
    advance(source, 5)
    old = version_1(source)
    with pytest.warns(UserWarning, match="does not say of which space"):
        target.load_state_dict(old)
    assert target.state_dict() == {**source.state_dict(), "best": None}
    before = target.state_dict()
    for change, words in (
        ({"sizes": [3, 1, 3]}, "sizes"),
        ({"ranges": [[0.0, 1.0]] * 2}, "ranges"),
        ({"mean": [0.0, 0.0]}, "mean"),
    ):
        with pytest.raises(ValueError, match=words):
            target.load_state_dict({**old, **change})
    del old["ranges"]
    with pytest.raises(ValueError, match=r"state lacks .*ranges"):
        target.load_state_dict(old)
    assert target.state_dict() == before


@pytest.mark.parametrize("options", [{"step": 2}, {"log": True}])
def test_states_of_version_1_are_of_plain_numbers(options: dict[str, Any]) -> None:
    """They have the ranges only, which do not say what draws mean."""
    plain = SearchSpace({"x": Integer(1, 5)})
    target = asng.ASNG(SearchSpace({"x": Integer(1, 5, **options)}), population_size=2, seed=0)
    before = target.state_dict()
    old = version_1(asng.ASNG(plain, population_size=2, seed=0))
    with pytest.raises(
        ValueError, match=r"ranges=\[\[1.0, 5.0\]\], this .*Integer\(low=1, high=5, "
    ):
        target.load_state_dict(old)
    assert target.state_dict() == before


def test_what_is_no_state_is_named() -> None:
    optimizer = asng.ASNG(MIXED, seed=0)
    with pytest.raises(TypeError, match="state must be a mapping, got list"):
        optimizer.load_state_dict([])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"state\['space'\] must be a list, got 3"):
        optimizer.load_state_dict({**optimizer.state_dict(), "space": 3})


@pytest.mark.operators
def test_an_optimizer_in_tensors_checks_the_same() -> None:
    space = StackedTask().space
    optimizer = asng_in_tensors(space)
    before = optimizer.state_dict()
    for change, words in (
        ({"theta": [0.9] * 5}, "'act' sum to 2.7"),
        ({"gamma": 1e300}, "gamma"),
        ({"Delta": 0.0}, "Delta"),
        ({"space": before["space"][::-1]}, "variable 0 is 'out'"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.load_state_dict({**before, **change})
        assert optimizer.state_dict() == before


@pytest.mark.parametrize("named", [True, False])
def test_candidates_in_another_order_are_another_space(named: bool) -> None:
    candidates = {"a": nn.Linear(2, 2), "b": nn.Tanh()}

    def space(order: str) -> SearchSpace:
        picked = {name: candidates[name] for name in order}
        return search_space(Choice("op", picked if named else list(picked.values())))

    state = asng.ASNG(space("ab"), seed=0).state_dict()
    asng.ASNG(space("ab")).load_state_dict(state)
    with pytest.raises(ValueError, match="variable 0 is 'op'"):
        asng.ASNG(space("ba")).load_state_dict(state)


def test_a_search_is_not_resumed_in_another_space(tmp_path: Path) -> None:
    class Reordered(StackedTask):
        def __init__(self) -> None:
            super().__init__()
            self.space = SearchSpace(
                {"act": Categorical(["id", "relu", "drop"]), "out": Categorical(["a", "b"])}
            )

    run = RunFolder.create(tmp_path / "run")

    def resumed(task: StackedTask) -> Any:
        optimizer = asng.ASNG(task.space, seed=0)
        config = SearchConfig(epochs=1)
        return search(task, optimizer, config, seed=0, run=run, stream=None)

    assert resumed(StackedTask()).architecture == resumed(StackedTask()).architecture
    with pytest.raises(ValueError, match=r"'act': Categorical\('relu', .*, not 'act': .*\('id'"):
        resumed(Reordered())


def test_a_partial_is_what_it_calls() -> None:
    space = SearchSpace({"f": Categorical([functools.partial(max, 1), functools.partial(min, 1)])})
    assert space.description == (
        "'f': Categorical(functools.partial(<built-in function max>, 1), "
        "functools.partial(<built-in function min>, 1))",
    )
