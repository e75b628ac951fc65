"""Where a search starts: at a known sample."""

from __future__ import annotations

import copy
import json
from typing import Any

import host_operators  # noqa: F401
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_space import MIXED, advance

import asng_ext as asng
from asng_ext import Categorical, Integer, Real, SearchSpace
from asng_ext.optimizers import margins

KINDS = (asng.ASNG, asng.SNG, asng.NaturalAdam)
SAMPLE = {"op": "c", "one": 7, "flag": True, "width": 100, "rate": 0.25}


@pytest.mark.parametrize("kind", KINDS)
def test_a_distribution_starts_at_a_sample(kind: Any) -> None:
    plain = kind(MIXED, seed=0)
    optimizer = kind(MIXED, seed=0, init=SAMPLE, margin=0.01)
    theta = optimizer.theta
    np.testing.assert_allclose(
        theta.categorical, [[0.125, 0.125, 0.75], [1, 0, 0], [0.25, 0.75, 0]], atol=1e-15
    )
    assert theta.numerical[0].tolist() == [100, 0.25]
    assert optimizer.recommend() == SAMPLE
    assert optimizer.state_dict()["variance"] == plain.state_dict()["variance"]
    assert (optimizer.generation, optimizer.best) == (0, None)


def test_of_some_variables_only() -> None:
    optimizer = asng.ASNG(MIXED, seed=0, init={"width": 80}, init_probability=0.9)
    plain = asng.ASNG(MIXED, seed=0)
    assert optimizer.theta.categorical.tolist() == plain.theta.categorical.tolist()
    assert optimizer.theta.numerical[0].tolist() == [80, plain.theta.numerical[0, 1]]
    assert asng.ASNG(MIXED, seed=0, init={}).state_dict() == plain.state_dict()


def test_of_logarithms_and_steps() -> None:
    space = SearchSpace(
        {"rate": Real(1e-5, 0.1, log=True), "width": Integer(8, 64, step=8), "one": Integer(3, 3)}
    )
    init = {"rate": 3e-4, "width": 24, "one": 3}
    assert asng.ASNG(space, seed=0, init=init).recommend() == init


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    probability=st.floats(0, 1, exclude_min=True),
    margin=st.sampled_from(["paper", "catcma", 0.0, 0.05]),
    kind=st.sampled_from(KINDS),
    random=st.randoms(use_true_random=False),
)
def test_the_start_is_one_that_a_state_can_have(
    sizes: list[int], probability: float, margin: Any, kind: Any, random: Any
) -> None:
    """Between the uniform distribution and the margins."""
    space = SearchSpace.from_sizes([2, *sizes], [(1, 9)])
    init = {name: random.randrange(size) for name, size in zip(space.categorical, space.sizes)}
    optimizer = kind(space, seed=0, margin=margin, init=init, init_probability=probability)
    for row, size, least, index in zip(
        optimizer.theta.categorical, space.sizes, margins(space.sizes, margin), init.values()
    ):
        assert row.sum() == pytest.approx(1, abs=1e-12)
        assert row[:size].min() >= least - 1e-12
        most = max(1 - (size - 1) * least, 1 / size)
        assert row[index] == pytest.approx(min(max(probability, 1 / size), most))
    again = kind(space, seed=1, margin=margin)
    again.load_state_dict(json.loads(json.dumps(optimizer.state_dict())))
    assert again.ask().categorical.tolist() == optimizer.ask().categorical.tolist()


@pytest.mark.operators
def test_on_tensors_it_is_the_same() -> None:
    host = asng.ASNG(MIXED, seed=4, init=SAMPLE)
    other = asng.ASNG(MIXED, seed=4, init=SAMPLE)
    other._use_device("cpu")
    assert other.state_dict() == host.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_copies_keep_it(kind: Any) -> None:
    optimizer = kind(MIXED, population_size=4, seed=0, init=SAMPLE, init_probability=0.6)
    advance(optimizer, 3)
    other = copy.deepcopy(optimizer)
    assert other.state_dict() == optimizer.state_dict()
    assert (other.init, other.init_probability) == (SAMPLE, 0.6)
    assert other.init is not optimizer.init


def test_a_good_start_helps() -> None:
    """The fewer evaluations are left, the more."""
    space = SearchSpace({f"x{i}": Categorical(range(8)) for i in range(10)})
    goal = {name: i % 8 for i, name in enumerate(space)}

    def found(init: Any) -> list[float]:
        losses = []
        for seed in range(10):
            optimizer = asng.ASNG(space, seed=seed, init=init, evaluation_limit=80)
            while not optimizer.should_stop():
                samples = optimizer.ask()
                optimizer.tell(samples, [sum(s[n] != goal[n] for n in space) for s in samples])
            assert optimizer.best is not None
            losses.append(optimizer.best.loss)
        return losses

    assert np.mean(found({**goal, "x0": 5})) < np.mean(found(None)) - 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"init": ["op"]}, TypeError, "init must map names to values, got"),
        ({"init": {"oper": "a"}}, ValueError, r"init must name .*, which lacks \['oper'\]"),
        ({"init": {"op": "d"}}, ValueError, "init: value of 'op' must be one of .*, got 'd'"),
        ({"init": {"width": 300}}, ValueError, r"init: value of 'width' must be in \[64, 256\]"),
        ({"init": {"width": "x"}}, TypeError, "init: value of 'width' must be an integer"),
        ({"init_probability": 0}, ValueError, "init_probability must be finite and above 0"),
        ({"init_probability": 1.5}, ValueError, "init_probability must be .* at most 1, got 1.5"),
        ({"init_probability": "x"}, TypeError, "init_probability must be a number"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_arguments_are_named(
    kind: Any, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        kind(MIXED, seed=0, **arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_distribution_starts_at_that_of_another_search(kind: Any) -> None:
    source = kind(MIXED, population_size=4, seed=0)
    advance(source, 30)
    theta = source.theta
    optimizer = kind(MIXED, population_size=4, seed=1, init=theta, margin=0.01)
    np.testing.assert_allclose(optimizer.theta.categorical, theta.categorical, rtol=1e-9)
    np.testing.assert_allclose(optimizer.theta.numerical, theta.numerical, rtol=1e-9)
    assert optimizer.recommend() == source.recommend()
    assert (optimizer.generation, optimizer.best) == (0, None)
    assert optimizer.delta == kind(MIXED, population_size=4, seed=1).delta
    theta.categorical[:] = 0  # a copy is kept
    other = copy.deepcopy(optimizer)
    assert other.state_dict() == optimizer.state_dict()
    # Variables that are fixed keep their value, and the others start there.
    fixed = {"op": "b", "width": 70}
    optimizer = kind(MIXED, seed=1, init=source.theta, fixed=fixed, margin=0.01)
    assert optimizer.recommend() == source.recommend() | {"op": "b", "width": 70}
    np.testing.assert_allclose(optimizer.theta.categorical[2], source.theta.categorical[2])


def test_a_distribution_is_moved_to_where_the_search_may_be() -> None:
    space = SearchSpace({"a": Categorical(["x", "y", "z"]), "b": Real(0.0, 1.0)})
    sharp = asng.Theta(np.array([[1.0, 0.0, 0.0]]), np.array([[2.0], [4.0]]))
    optimizer = asng.ASNG(space, seed=0, init=sharp, margin=0.1)
    np.testing.assert_allclose(optimizer.theta.categorical, [[0.8, 0.1, 0.1]])
    state = optimizer.state_dict()
    assert state["mean"] == [1.0]
    assert state["variance"] == [0.0025**2]
    wide = asng.Theta(np.array([[1.0, 0.0, 0.0]]), np.array([[0.5], [9.0]]))
    assert asng.ASNG(space, seed=0, init=wide).state_dict()["variance"] == [0.25]
    again = asng.ASNG(space, seed=0, margin=0.1)
    again.load_state_dict(json.loads(json.dumps(state)))


@pytest.mark.operators
def test_on_tensors_a_distribution_is_the_same() -> None:
    source = asng.ASNG(MIXED, population_size=4, seed=0)
    advance(source, 9)
    host, other = (asng.ASNG(MIXED, seed=4, init=source.theta) for _ in range(2))
    other._use_device("cpu")
    assert other.state_dict() == host.state_dict()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda c, n: (c[:2], n), ValueError, r"init.categorical must hold .* \(3, 3\), got"),
        (
            lambda c, n: (c, n[:1]),
            ValueError,
            r"init.numerical must hold .* got \(1, 2\)",
        ),
        (lambda c, n: (c * np.nan, n), ValueError, "init.categorical must hold finite"),
        (lambda c, n: (c / 2, n), ValueError, "probabilities of the 3 choices of 'op' that sum"),
        (lambda c, n: (c[:, ::-1], n), ValueError, "probabilities of the 1 choices of 'one'"),
        (lambda c, n: (c, -n), ValueError, "moments of a variance of 0 or more"),
        (lambda c, n: ("abc", n), TypeError, "init must hold arrays of numbers"),
    ],
)
def test_a_distribution_of_something_else_is_refused(
    change: Any, error: type[Exception], words: str
) -> None:
    theta = asng.ASNG(MIXED, seed=0).theta
    with pytest.raises(error, match=words):
        asng.ASNG(MIXED, seed=0, init=asng.Theta(*change(*theta)))
