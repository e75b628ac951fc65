"""What ASNG is told: in which order and form, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mixed_space import MIXED, loss, state_of

import asng_ext as asng
from asng_ext import Samples, SearchSpace, _host
from asng_ext.optimizers._evaluations import as_array


def test_pending_asks_may_be_told_in_any_order_and_rows_reordered() -> None:
    optimizer = asng.ASNG(MIXED, population_size=3, seed=0)
    first, second, third = (optimizer.ask() for _ in range(3))
    assert not np.array_equal(first.numerical, second.numerical)
    twin = copy.deepcopy(optimizer)
    for samples in (third, first, second):
        losses = [loss(sample) for sample in samples]
        optimizer.tell(samples, losses)
        twin.tell(samples[[2, 0, 1]], [losses[i] for i in (2, 0, 1)])
    np.testing.assert_allclose(optimizer.theta.categorical, twin.theta.categorical, rtol=1e-12)
    np.testing.assert_allclose(optimizer.s, twin.s, rtol=1e-9, atol=1e-12)


def test_dicts_and_strided_arrays_may_be_told() -> None:
    space = SearchSpace.from_sizes([3, 4, 5])
    optimizer, twin = (asng.ASNG(space, population_size=2, seed=2) for _ in range(2))
    for _ in range(20):
        samples = optimizer.ask()
        wide = np.zeros((4, 6), dtype=np.int32)
        wide[::2, ::2] = samples.categorical
        losses = [float(row["x0"] + row["x1"] * row["x2"]) for row in samples]
        optimizer.tell(list(samples), losses)
        twin.ask()
        twin.tell(Samples(space, wide[::2, ::2], samples.numerical), losses)  # type: ignore[arg-type]
    assert state_of(optimizer) == state_of(twin)


@pytest.mark.parametrize(
    "convert",
    [
        tuple,
        np.array,
        lambda x: np.array(x, dtype=np.float32),
        lambda x: np.array([x, x]).T[:, 0],
        torch.tensor,
        lambda x: torch.tensor(x, dtype=torch.bfloat16),
        lambda x: torch.tensor(x, dtype=torch.float16, requires_grad=True),
        lambda x: torch.tensor(x, dtype=torch.float64).requires_grad_() * 1,
        lambda x: [torch.tensor(value) for value in x],
        lambda x: [torch.tensor(value, requires_grad=True) for value in x],
        lambda x: tuple(torch.tensor([value], requires_grad=True) * 1 for value in x),
        lambda x: [*x[:3], torch.tensor(x[3], requires_grad=True)],
        lambda x: [np.float32(value) for value in x],
        lambda x: [int(value * 2) for value in x],
    ],
)
def test_losses_of_any_kind(convert: Any) -> None:
    optimizer, twin = (asng.ASNG(MIXED, population_size=4, seed=0) for _ in range(2))
    losses = [1.5, -2.0, 0.0, 3.0]
    assert optimizer.tell(optimizer.ask(), convert(losses))
    twin.tell(twin.ask(), as_array(convert(losses)).tolist())
    assert state_of(optimizer) == state_of(twin)


@pytest.mark.parametrize(
    ("losses", "error", "words"),
    [
        ([1.0], ValueError, "one number per sample"),
        ([1.0, 2.0, 3.0], ValueError, "one number per sample"),
        ([1.0, -math.inf], ValueError, "infinitely good"),
        (["a", "b"], TypeError, "numbers"),
        (("a", "b"), TypeError, "numbers"),
        ([torch.zeros(2), 1.0], ValueError, "one element"),
        ([1.0, None], TypeError, "numbers"),
        (np.zeros((2, 1)), ValueError, "shape"),
        (torch.zeros(2, 2), ValueError, "shape"),
        ({"a": 1}, TypeError, "numbers"),
        (3.0, TypeError, "numbers"),
        (None, TypeError, "numbers"),
    ],
)
def test_bad_losses_change_nothing(losses: Any, error: type[Exception], words: str) -> None:
    optimizer = asng.ASNG(MIXED, population_size=2, seed=0)
    samples = optimizer.ask()
    before = state_of(optimizer)
    with pytest.raises(error, match=words):
        optimizer.tell(samples, losses)
    assert state_of(optimizer) == before


def test_bad_samples_change_nothing() -> None:
    optimizer = asng.ASNG(MIXED, population_size=2, seed=0)
    other = asng.ASNG(SearchSpace.from_sizes([3, 3]), population_size=2, seed=0)
    good = optimizer.ask()
    before = state_of(optimizer)
    out_of_range = Samples(MIXED, good.categorical + 3, good.numerical)
    not_finite = Samples(MIXED, good.categorical, good.numerical * math.nan)
    wrong_shape = Samples(MIXED, good.categorical[:, :1], good.numerical)
    for samples, words in (
        (other.ask(), "samples must be of"),
        (out_of_range, r"samples.categorical\[0, 0\]"),
        (not_finite, "finite"),
        (wrong_shape, "categorical"),
        ([{"op": "a"}, {"op": "b"}], "missing"),
    ):
        with pytest.raises(ValueError, match=words):
            optimizer.tell(samples, [1.0, 2.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2"):
        optimizer.tell(good[:1], [1.0])
    assert state_of(optimizer) == before


def test_maximize_refuses_what_is_infinitely_good() -> None:
    optimizer = asng.ASNG(MIXED, population_size=2, seed=0, maximize=True)
    samples = optimizer.ask()
    with pytest.raises(ValueError, match="infinitely good"):
        optimizer.tell(samples, [1.0, math.inf])
    assert optimizer.tell(samples, [1.0, -math.inf])


class Meddling:
    """A loss that does something while it is read."""

    def __init__(self, value: float, deed: Callable[[], Any]) -> None:
        self.value, self.deed = value, deed

    def __float__(self) -> float:
        self.deed()
        return self.value


def test_losses_may_change_their_list_while_they_are_read() -> None:
    optimizer, twin = (asng.ASNG(MIXED, population_size=200, seed=0) for _ in range(2))
    losses: list[Any] = []
    losses += [0.5, Meddling(7.0, losses.clear), *(float(k) for k in range(198))]
    assert optimizer.tell(optimizer.ask(), losses)
    assert not losses
    twin.tell(twin.ask(), [0.5, 7.0, *(float(k) for k in range(198))])
    assert state_of(optimizer) == state_of(twin)


def test_losses_may_tell_while_they_are_read() -> None:
    optimizer, twin = (asng.ASNG(MIXED, population_size=2, seed=0) for _ in range(2))
    samples, other = optimizer.ask(), optimizer.ask()
    optimizer.tell(samples, [Meddling(2.0, lambda: optimizer.tell(other, [1.0, 3.0])), 1.0])
    twin.ask(), twin.ask()
    twin.tell(other, [1.0, 3.0])
    twin.tell(samples, [2.0, 1.0])
    assert state_of(optimizer) == state_of(twin)


def test_sizes_and_numbers_have_limits() -> None:
    common: Any = asng.ASNG(SearchSpace.from_sizes([3]), seed=0)._common
    step = {"alpha": 1.5, "delta_init": 1.0, "delta_max": 9.0}
    for change, words in (
        ({"sizes": [2**62] * 4 + [10], "margin": [0.0] * 5}, "sizes must be"),
        ({"sizes": [2**31] * 3, "margin": [0.0] * 3}, "sizes must sum"),
        ({"sizes": [-1]}, "sizes"),
        ({"margin": []}, "margin"),
        ({"population_size": 2**62}, "population_size"),
    ):
        with pytest.raises(ValueError, match=words):
            _host.ASNG({**common, **change}, **step)
    with pytest.raises(ValueError, match="population_size"):
        asng.ASNG(MIXED, population_size=2**24 + 1)
    for values in (range(2**24 + 1), range(2**70)):
        with pytest.raises(ValueError, match="at most 16777216 choices"):
            asng.Categorical(values)
    for draw in (lambda: _host.toy_start(0, 2**40), lambda: _host.toy_noise(0, 0, 2**62)):
        with pytest.raises(ValueError, match="count must be in"):
            draw()
