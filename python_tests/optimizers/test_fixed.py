"""Variables that are fixed at a value."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import host_operators  # noqa: F401
import numpy as np
import pytest
import torch
from devices import DEVICES, GRID
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_task import StackedTask

import asng_ext as asng
from asng_ext import Categorical, Integer, Real, Samples, SearchSpace
from asng_ext.engine.search import search
from asng_ext.runs.config import SearchConfig
from asng_ext.runs.folder import RunFolder

KINDS = (asng.ASNG, asng.SNG, asng.NaturalAdam)
SPACE = SearchSpace(
    {
        "op": Categorical(["a", "b", "c"], labels=["A", "B", "C"]),
        "width": Integer(8, 64, step=8),
        "one": Integer(3, 3),
        "flag": Categorical([False, True]),
        "rate": Real(1e-5, 0.1, log=True),
        "hidden": Integer(1, 99),
        "act": Categorical(["relu", "tanh"]),
    }
)
VALUES = {
    "op": "c", "width": 24, "one": 3, "flag": True, "rate": 3e-4, "hidden": 40, "act": "tanh",
}  # fmt: skip
NAMES = list(VALUES)


def losses_of(samples: Any) -> list[float]:
    return [
        (s["op"] != "b") + s["width"] / 64 + s["hidden"] / 99 + (s["act"] == "relu") + s["rate"]
        for s in samples
    ]


def alone(names: list[str]) -> SearchSpace:
    """The space with single values of these variables, written by hand."""
    kinds = {
        "op": Categorical(["c"], labels=["C"]),
        "width": Integer(24, 24, step=8),
        "one": Integer(3, 3),
        "flag": Categorical([True]),
        "rate": Real(3e-4, 3e-4, log=True),
        "hidden": Integer(40, 40),
        "act": Categorical(["tanh"]),
    }
    return SearchSpace({n: kinds[n] if n in names else SPACE[n] for n in NAMES})


@settings(max_examples=120, deadline=None)
@given(
    names=st.lists(st.sampled_from(NAMES), unique=True, max_size=6),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**64 - 1),
    maximize=st.booleans(),
)
def test_all_is_as_if_there_were_single_values(
    names: list[str], kind: Any, seed: int, maximize: bool
) -> None:
    fixed = {name: VALUES[name] for name in names}
    common = {"population_size": 6, "seed": seed, "maximize": maximize}
    if alone(names).n_theta == 0:
        with pytest.raises(ValueError, match="more than one value that is not fixed"):
            kind(SPACE, fixed=fixed, **common)
        return
    optimizer, other = kind(SPACE, fixed=fixed, **common), kind(alone(names), **common)
    assert optimizer.n_theta == other.n_theta
    for _ in range(8):
        samples, others = optimizer.ask(), other.ask()
        assert samples.space is SPACE
        assert samples.categorical.shape == (6, 4)
        assert samples.numerical.shape == (6, 3)
        assert samples.categorical.dtype == np.int64
        assert list(samples) == list(others)
        assert [SPACE.encode(s)[0].tolist() for s in samples] == samples.categorical.tolist()
        losses = losses_of(samples)
        assert optimizer.tell(samples, losses) == other.tell(others, losses)
    assert optimizer.state_dict() == other.state_dict()
    assert optimizer.recommend() == other.recommend()
    assert optimizer.best == other.best
    assert optimizer.best.sample == optimizer.best.sample | fixed
    assert optimizer.recommend() == optimizer.recommend() | fixed
    assert (optimizer.progress, optimizer.entropy) == (other.progress, other.entropy)
    theta = optimizer.theta
    assert theta.categorical.shape == (4, 3)
    np.testing.assert_allclose(theta.categorical.sum(axis=1), 1)
    likeliest = theta.categorical.argmax(axis=1).tolist()
    assert SPACE.decode(likeliest, theta.numerical[0].tolist()) == optimizer.recommend()
    still = [name in fixed for name in SPACE.numerical]
    variance = theta.numerical[1] - theta.numerical[0] ** 2
    np.testing.assert_array_equal(variance == 0, still)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_fixed_is_nothing_new(kind: Any) -> None:
    plain, empty = kind(SPACE, seed=3), kind(SPACE, seed=3, fixed={})
    assert plain.ask().numerical.tolist() == empty.ask().numerical.tolist()
    assert plain.state_dict() == empty.state_dict()
    assert plain.theta.categorical.tolist() == empty.theta.categorical.tolist()


def test_fixed_variables_do_not_count_as_converged() -> None:
    optimizer = asng.ASNG(SPACE, seed=0, fixed={"op": "b"})
    assert optimizer.convergence == 0.5
    assert optimizer.progress == 0
    reals = {name: VALUES[name] for name in ("op", "flag", "act")}
    optimizer = asng.ASNG(SPACE, seed=0, fixed=reals)
    assert optimizer.convergence == optimizer.progress == 0


def test_dicts_and_rows_may_be_told_if_they_have_the_values() -> None:
    optimizer = asng.ASNG(SPACE, population_size=4, seed=0, fixed={"op": "b", "width": 24})
    samples = optimizer.ask()
    rows = [dict(row) for row in samples]
    assert optimizer.tell(rows[::-1], losses_of(rows[::-1]))
    assert optimizer.tell(samples[[2, 0]], losses_of(samples[[2, 0]]))
    # What is rounded to the value has it.
    near = samples.numerical.copy()
    near[:, 0] = 25.5
    assert optimizer.tell(Samples(SPACE, samples.categorical, near), losses_of(samples))
    before = optimizer.state_dict()
    for name, value in (("op", "a"), ("width", 32)):
        wrong = [*rows[1:], {**rows[0], name: value}]
        with pytest.raises(
            ValueError, match=f"samples must have '{name}' at .*, where it is fixed"
        ):
            optimizer.tell(wrong, losses_of(wrong))
    for categorical, numerical, words in (
        (samples.categorical[:, 1:], samples.numerical, r"categorical must have shape \(λ, 4\)"),
        (samples.categorical, samples.numerical[:, 1:], r"numerical must have shape \(λ, 3\)"),
        (samples.categorical, samples.numerical[:3], "numerical must have shape"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.tell(Samples(SPACE, categorical, numerical), [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(TypeError, match="must hold"):
        optimizer.tell(Samples(SPACE, samples.categorical / 1, samples.numerical), [1.0] * 4)
    assert optimizer.state_dict() == before


@pytest.mark.parametrize("kind", KINDS)
def test_states_fit_where_the_same_is_fixed(kind: Any) -> None:
    fixed = {"op": "b", "rate": 0.01}
    source = kind(SPACE, population_size=4, seed=0, fixed=fixed)
    for _ in range(5):
        samples = source.ask()
        source.tell(samples, losses_of(samples))
    state = json.loads(json.dumps(source.state_dict()))
    target = kind(SPACE, population_size=4, seed=1, fixed=fixed)
    target.load_state_dict(state)
    assert target.best == source.best
    for other in ({}, {"op": "b"}, {**fixed, "op": "c"}, {**fixed, "rate": 0.02}):
        with pytest.raises(ValueError, match="state must be of the optimizer's space"):
            kind(SPACE, population_size=4, seed=1, fixed=other).load_state_dict(state)
    copies = copy.deepcopy(source), pickle.loads(pickle.dumps(source))
    expected = list(target.ask())
    for again in copies:
        assert again.fixed == fixed
        assert list(again.ask()) == expected
        assert again.state_dict() == target.state_dict()
    assert "fixed={'op': 'b', 'rate': 0.01}" in repr(source)


@pytest.mark.operators
@pytest.mark.grid
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "names", [["op"], ["width", "rate"], ["op", "flag", "act"], ["hidden", "op"], NAMES[:-1]]
)
def test_tensors_agree_with_arrays(names: list[str], device: str) -> None:
    common: dict[str, Any] = {"seed": 5, "fixed": {name: VALUES[name] for name in names}}
    host, other = asng.ASNG(SPACE, **common), asng.ASNG(SPACE, **common, device=device)
    if device == "cpu":
        other._use_device("cpu")
    tolerance = 0.0 if device == "cpu" and not GRID else 1e-9
    for step in range(12):
        samples, others = host.ask(), other.ask()
        assert others.categorical.device.type == others.numerical.device.type == device
        assert np.array_equal(others.categorical.cpu(), samples.categorical)
        np.testing.assert_allclose(others.numerical.cpu(), samples.numerical, rtol=tolerance)
        losses = losses_of(samples)
        told = samples if step % 3 == 0 else others  # arrays may be told as well
        moved = other.tell(told, torch.tensor(losses, dtype=torch.float64, device=device))
        assert bool(moved) == host.tell(samples, losses)
    for mine, theirs in zip(host.theta, other.theta, strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=tolerance)
    assert other.best.sample == pytest.approx(host.best.sample)


@pytest.mark.cuda
def test_a_graph_repeats_the_iteration() -> None:
    fixed = {"op": "b", "rate": 0.01}
    optimizers = [asng.ASNG(SPACE, seed=2, device="cuda", fixed=fixed) for _ in range(2)]

    def step(optimizer: asng.ASNG) -> torch.Tensor:
        samples = optimizer.ask()
        losses = samples.categorical.sum(1).double() + samples.numerical.sum(1)
        optimizer.tell(samples, losses)
        return losses

    for optimizer in optimizers:
        step(optimizer)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(optimizers[0])
    for _ in range(5):
        graph.replay()
        assert torch.equal(captured, step(optimizers[1]))
    assert optimizers[0].state_dict() == optimizers[1].state_dict()


@pytest.mark.operators
@pytest.mark.grid
@pytest.mark.parametrize("tensors", [False, True])
def test_a_supernet_is_searched_with_a_choice_fixed(tmp_path: Path, tensors: bool) -> None:
    """It reads the columns of its samples, and need not know."""
    seen = []

    class Watched(StackedTask):
        def losses(self, supernet: Any, batch: Any, samples: Any) -> Any:
            seen.append(torch.as_tensor(samples.categorical).tolist())
            return super().losses(supernet, batch, samples)

    task = Watched()
    optimizer = asng.ASNG(task.space, population_size=2, seed=7, fixed={"out": "b"})
    if tensors:
        optimizer._use_device("cpu")
    run = RunFolder.create(tmp_path / "run")
    result = search(task, optimizer, SearchConfig(epochs=2), seed=0, run=run, stream=None)
    assert result.architecture["out"] == "b"
    columns = np.concatenate(seen)
    assert set(columns[:, 1]) == {1}
    assert set(columns[:, 0]) == {0, 1, 2}


def test_init_of_what_is_fixed_says_nothing() -> None:
    optimizer = asng.ASNG(SPACE, seed=0, init=VALUES, fixed={"op": "a", "hidden": 7})
    assert optimizer.recommend() == {**VALUES, "op": "a", "hidden": 7}
    assert optimizer.theta.categorical[2].tolist() == [0.25, 0.75, 0]


def test_without_categorical_variables() -> None:
    space = SearchSpace({"x": Integer(1, 9), "y": Real(0, 1), "z": Integer(2, 8)})
    optimizer = asng.ASNG(space, seed=0, fixed={"x": 4, "z": 8})
    samples = optimizer.ask()
    assert samples.categorical.shape == (8, 0)
    assert {(s["x"], s["z"]) for s in samples} == {(4, 8)}
    assert optimizer.tell(samples, [s["y"] for s in samples])
    assert optimizer.theta.categorical.shape == (0, 0)
    assert optimizer.theta.numerical[:, [0, 2]].tolist() == [[4, 8], [16, 64]]


@pytest.mark.parametrize(
    ("fixed", "error", "words"),
    [
        (["op"], TypeError, "fixed must map names to values, got"),
        ({"oper": "a"}, ValueError, r"fixed must name .*, which lacks \['oper'\]"),
        ({"op": "d"}, ValueError, "fixed: value of 'op' must be one of .*, got 'd'"),
        ({"width": 25}, ValueError, "fixed: value of 'width' must be 8 plus a multiple of 8"),
        (VALUES, ValueError, "space must hold .* more than one value that is not fixed"),
    ],
)
def test_bad_arguments_are_named(fixed: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        asng.ASNG(SPACE, seed=0, fixed=fixed)
