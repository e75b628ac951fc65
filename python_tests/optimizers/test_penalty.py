"""Limits of costs: how samples are ranked, and that searches end at the constrained optimum."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import asng_ext as asng
from asng_ext import Categorical, CostTable, Integer, Penalty, Real, Samples, SearchSpace
from asng_ext.costs import Term
from asng_ext.optimizers import Theta

SPACE = SearchSpace(
    {
        "a": Categorical(["x", "y", "z"]),
        "width": Integer(1, 9),
        "b": Categorical([1, 2]),
        "c": Categorical(["x", "y"]),
        "rate": Real(0.0, 1.0),
    }
)
TERMS = [
    Term(5, {"a": "y"}),
    Term(2.5, {"a": "z", "b": 2}),
    Term(-1, {"a": "y"}, {"b": 1, "c": "x"}),
    Term(7, unless={"a": "x", "c": "y"}),
    Term(0.25),
]


def by_hand(sample: Any) -> float:
    total = 3.25
    total += 5 * (sample["a"] == "y") + 2.5 * (sample["a"] == "z" and sample["b"] == 2)
    total -= sample["a"] == "y" and sample["b"] != 1 and sample["c"] != "x"
    return total + 7 * (sample["a"] != "x" and sample["c"] != "y")


def every(space: SearchSpace) -> Samples:
    """All samples that differ in their categorical variables."""
    rows = list(itertools.product(*map(range, space.sizes)))
    numbers = np.full((len(rows), len(space.numerical)), 0.5)
    return Samples(space, np.array(rows, dtype=np.int64), numbers)


def test_a_table_adds_up_terms() -> None:
    table, samples = CostTable(SPACE, TERMS, 3.0), every(SPACE)
    costs = table(samples)
    assert costs.dtype == np.float64
    assert costs.tolist() == [by_hand(sample) for sample in samples]
    tensors = Samples(SPACE, torch.tensor(samples.categorical), samples.numerical)  # type: ignore[arg-type]
    assert table(tensors).tolist() == costs.tolist()
    assert table(tensors).dtype == torch.float64


def test_the_expected_cost_is_that_of_the_distribution() -> None:
    table, samples = CostTable(SPACE, TERMS, 3.0), every(SPACE)
    theta = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0], [0.25, 0.75, 0.0]])
    likely = theta[range(3), samples.categorical].prod(axis=1)
    expected = table.expected(Theta(theta, np.zeros((2, 2))))
    assert expected == pytest.approx(likely @ table(samples), rel=1e-12)
    optimizer = asng.ASNG(SPACE, seed=0, fixed={"b": 2})
    free = [sample["b"] == 2 for sample in samples]
    assert table.expected(optimizer.theta) == pytest.approx(table(samples)[free].mean())
    assert CostTable(SPACE, base=2.0).expected(optimizer.theta) == 2
    assert CostTable(SPACE, base=2.0)(samples).tolist() == [2.0] * len(samples)


def test_costs_of_choices() -> None:
    table = CostTable.of_choices(SPACE, {"a": {"y": 2.0, "z": 4}, "b": [10, 20]}, base=1)
    assert table(SPACE.samples([_row("x", 2), _row("z", 1)])).tolist() == [21, 15]
    same = CostTable.of_choices(SPACE, {"a": {"y": 2.0, "z": 4}, "b": {1: 10, 2: 20}}, base=1)
    assert table.fingerprint() == same.fingerprint()
    other = CostTable.of_choices(SPACE, {"a": {"y": 2.0, "z": 4}, "b": [10, 21]}, base=1)
    assert table.fingerprint() != other.fingerprint()


def _row(a: str, b: int) -> dict[str, Any]:
    return {"a": a, "width": 3, "b": b, "c": "x", "rate": 0.5}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CostTable(SPACE, [Term(1, {"rate": 0.5})]), "categorical variables.*'rate'"),
        (lambda: CostTable(SPACE, [Term(1, unless={"q": 1})]), "categorical variables.*'q'"),
        (lambda: CostTable(SPACE, [Term(1, {"b": 3})]), r"value of 'b' must be one of \[1, 2\]"),
        (lambda: CostTable(SPACE, [Term(math.inf)]), "the cost of a term must be finite"),
        (lambda: CostTable(SPACE, base=math.nan), "base must be finite"),
        (lambda: CostTable.of_choices(SPACE, {"b": [1]}), "one for each of its 2 choices, got 1"),
        (lambda: Penalty({}, {}), "limits must hold at least one"),
        (lambda: Penalty({"a": len}, {"b": 1}), r"same names, got \['a'\] and \['b'\]"),
        (lambda: Penalty({"a": len}, {"a": 0}), r"limits\['a'\] must be finite and above 0"),
    ],
)
def test_what_is_wrong_is_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


COSTS = [90, 110, 100, 150, 100, 300, 90, math.nan, math.inf]
LOSSES = [3.0, 0.1, -5.0, -9.0, math.nan, 1.0, math.inf, 0.0, 0.0]
ORDER = [2, 0, 1, 3, 5, 8]
"""Best first; what is not finite, or has no cost, is behind."""


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
@pytest.mark.parametrize("maximize", [False, True])
def test_ranks(form: Any, maximize: bool) -> None:
    sign = -1.0 if maximize else 1.0
    samples = every(SPACE)[: len(COSTS)]
    penalty = Penalty({"c": lambda samples: COSTS}, {"c": 100}, maximize=maximize)
    told = penalty.losses(samples, form([sign * loss for loss in LOSSES]))
    assert isinstance(told, torch.Tensor) == (form is torch.tensor)
    told = sign * np.array(told.tolist())
    assert np.argsort(told, kind="stable")[: len(ORDER)].tolist() == ORDER
    assert [told[i] for i in (0, 2)] == [3.0, -5.0]
    assert not np.isfinite(told[[4, 6, 7]]).any()
    assert np.isfinite(told[ORDER]).all()


def test_the_excess_is_the_sum_over_the_limits() -> None:
    samples = every(SPACE)[:3]
    costs = {"c": lambda samples: [50.0, 150.0, 200.0], "d": lambda samples: [4.0, 1.0, 3.0]}
    penalty = Penalty(costs, {"c": 100, "d": 2})
    excess = penalty.excess_of(penalty.costs_of(samples))
    np.testing.assert_allclose(excess, [1.0, 0.5, 1.5])
    _, shown = penalty.ranked(samples, torch.zeros(3))
    assert {name: values.tolist() for name, values in shown.items()} == {
        "c": [50, 150, 200],
        "d": [4, 1, 3],
        "within_limits": [0, 0, 0],
    }
    with pytest.raises(ValueError, match="costs must be one for each of 2 losses, got 3"):
        penalty.losses(samples, [1.0, 2.0])


def test_nothing_changes_within_the_limits() -> None:
    """As good as without a penalty, bit for bit."""
    plain, limited = (asng.ASNG(SPACE, seed=1) for _ in range(2))
    penalty = Penalty({"c": CostTable(SPACE, TERMS)}, {"c": 100})
    for _ in range(20):
        samples = plain.ask()
        losses = [by_hand(sample) + sample["rate"] for sample in samples]
        plain.tell(samples, losses)
        limited.tell(limited.ask(), penalty.losses(samples, losses))
    assert plain.state_dict() == limited.state_dict()


# A problem of which all optima are known: each variable may be small, or big at a cost, which gains
# as much as GAINS says.
GAINS = np.array([1.0, 0.1, 1.0, 0.1, 0.1, 1.0])
SIZES = SearchSpace({f"x{i}": Categorical(["small", "big"]) for i in range(len(GAINS))})


def loss_of(samples: Samples) -> Any:
    return (GAINS * (1 - samples.categorical)).sum(axis=1)


@pytest.mark.parametrize("limit", [3, 6])
def test_the_constrained_optimum_is_found(limit: int) -> None:
    bigs = CostTable.of_choices(SIZES, {name: {"big": 1.0} for name in SIZES})
    allowed = [s for s in every(SIZES) if sum(v == "big" for v in s.values()) <= limit]
    optimum = min(allowed, key=lambda s: loss_of(SIZES.samples([s]))[0])
    assert sum(value == "big" for value in optimum.values()) == limit
    penalty = Penalty({"bigs": bigs}, {"bigs": limit})
    for seed in range(5):
        optimizer = asng.ASNG(SIZES, seed=seed, margin=0.02, population_size=8, delta_init=0.2)
        for _ in range(1000):
            samples = optimizer.ask()
            optimizer.tell(samples, penalty.losses(samples, loss_of(samples)))
        assert optimizer.recommend() == penalty.recommend(optimizer) == optimum
        assert optimizer.best == (optimum, pytest.approx(loss_of(SIZES.samples([optimum]))[0]))
        assert bigs.expected(optimizer.theta) <= limit


def test_without_the_limit_another_optimum_is_found() -> None:
    optimizer = asng.ASNG(SIZES, seed=0, margin=0.02, population_size=8, delta_init=0.2)
    for _ in range(1000):
        samples = optimizer.ask()
        optimizer.tell(samples, loss_of(samples))
    assert set(optimizer.recommend().values()) == {"big"}


def test_what_is_recommended_is_within_the_limits() -> None:
    """The variable changes of which the other choice is the likeliest."""
    optimizer = asng.ASNG(SIZES, seed=0, margin=0.01)
    state = optimizer.state_dict()
    big = [0.9, 0.8, 0.55, 0.7, 0.2, 0.6]
    optimizer.load_state_dict({**state, "theta": [p for b in big for p in (1 - b, b)]})
    bigs = CostTable.of_choices(SIZES, {name: {"big": 1.0} for name in SIZES})

    def found(limit: float) -> list[int]:
        values = Penalty({"bigs": bigs}, {"bigs": limit}).recommend(optimizer)
        return [i for i, value in enumerate(values.values()) if value == "big"]

    assert found(5) == [0, 1, 2, 3, 5]
    assert found(4) == [0, 1, 3, 5]
    assert found(2.5) == [0, 1]
    # As far as it goes, where nothing is within.
    more = CostTable.of_choices(SIZES, {"x0": {"big": 1.0}}, base=2.0)
    values = Penalty({"more": more}, {"more": 1.0}).recommend(optimizer)
    assert values == optimizer.recommend() | {"x0": "small"}


def test_numbers_and_what_is_fixed_are_recommended_within_the_limits() -> None:
    optimizer = asng.ASNG(SPACE, seed=0, fixed={"a": "y"}, init={"width": 7})
    penalty = Penalty({"w": lambda samples: [s["width"] + 0.0 for s in samples]}, {"w": 4})
    found = penalty.recommend(optimizer)
    assert found["width"] <= 4
    assert found == optimizer.recommend() | {"width": found["width"]}
    costly = Penalty({"a": CostTable.of_choices(SPACE, {"a": {"y": 2.0}})}, {"a": 1})
    assert costly.recommend(optimizer) == optimizer.recommend()


def test_an_optimizer_without_a_distribution_recommends_what_it_does() -> None:
    class Other:
        def recommend(self) -> dict[str, Any]:
            return _row("x", 1)

    assert Penalty({"c": CostTable(SPACE, base=3)}, {"c": 1}).recommend(Other()) == _row("x", 1)
