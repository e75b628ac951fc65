"""Search spaces, decoding and encoding."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asng_ext as asng
from asng_ext import Categorical, Integer, Real, Samples, SearchSpace

MIXED = SearchSpace(
    {
        "op": Categorical(["conv3", "conv5", "pool"]),
        "width": Integer(64, 256),
        "dropout": Real(0.0, 0.5),
        "flag": Categorical([False, True, 0, 1]),
    }
)

ONE_VALUE = SearchSpace({"depth": Integer(3, 3), "rate": Real(0.5, 0.5)})


def test_n_theta_counts_free_parameters() -> None:
    assert MIXED.n_theta == 2 + 2 + 2 + 3
    assert SearchSpace.from_sizes([5] * 30).n_theta == 120
    assert SearchSpace.from_sizes([1, 2], [(0, 9)], [(0.0, 1.0)]).n_theta == 0 + 1 + 2 + 2


def test_decode_clips_and_rounds_only_numbers() -> None:
    assert MIXED.decode([1, 3], [300.2, -1.0]) == {
        "op": "conv5",
        "width": 256,
        "dropout": 0.0,
        "flag": 1,
    }
    values = MIXED.decode([2, 0], [100.6, 0.25])
    assert values["width"] == 101
    assert isinstance(values["width"], int)
    assert values["dropout"] == 0.25


def test_equal_values_of_different_types_stay_apart() -> None:
    for index, value in enumerate([False, True, 0, 1]):
        encoded, _ = MIXED.encode({"op": "pool", "width": 64, "dropout": 0.1, "flag": value})
        assert encoded.tolist() == [2, index]


@given(
    st.lists(st.integers(1, 6), max_size=5),
    st.lists(st.tuples(st.integers(-1000, 999), st.integers(1, 1000)), max_size=4),
    st.randoms(use_true_random=False),
)
def test_decode_and_encode_are_inverse(
    sizes: list[int], ranges: list[tuple[int, int]], random: Any
) -> None:
    integers = [(low, low + width) for low, width in ranges]
    reals = [(float(low), low + width / 3) for low, width in ranges]
    if not sizes and not ranges:
        return
    space = SearchSpace.from_sizes(sizes, integers, reals)
    indices = [random.randrange(size) for size in sizes]
    numbers = [float(random.randint(low, high)) for low, high in integers]
    numbers += [random.uniform(low, high) for low, high in reals]
    decoded = space.decode(indices, numbers)
    categorical, numerical = space.encode(decoded)
    assert categorical.tolist() == indices
    assert numerical.tolist() == numbers


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (np.arange(3), (0, 1, 2)),
        (np.array([0.5, 0.25], dtype=np.float32), (0.5, 0.25)),
        (np.array(["a", "bc"]), ("a", "bc")),
        (np.array([True, False]), (True, False)),
        (np.array([None, "a"], dtype=object), (None, "a")),
        (range(8, 33, 8), (8, 16, 24, 32)),
        ([np.int64(3), "b", np.bool_(True)], (3, "b", True)),
    ],
)
def test_choices_are_plain_python(given: Any, values: tuple[Any, ...]) -> None:
    variable = Categorical(given)
    assert variable.values == values
    assert list(map(type, variable.values)) == list(map(type, values))
    assert json.loads(json.dumps(variable.values)) == list(values)
    assert [variable.index(value) for value in given] == list(range(len(values)))
    space = SearchSpace({"x": variable})
    assert space.difference(SearchSpace({"x": Categorical(values)}).description) is None


def test_choices_that_cannot_be_hashed_or_compared_are_taken() -> None:
    arrays = [np.zeros(2), np.zeros(2)]
    assert len(Categorical([*arrays, [1], [2], {"a": 1}, {"a": 2}]).values) == 6
    with pytest.raises(ValueError, match="twice, at 0 and 2"):
        Categorical([*arrays, arrays[0]])


@given(st.lists(st.one_of(st.integers(0, 9), st.text(max_size=1), st.booleans()), min_size=1))
def test_duplicates_are_equal_values_of_one_type(values: list[Any]) -> None:
    if len({(type(value), value) for value in values}) < len(values):
        with pytest.raises(ValueError, match="twice"):
            Categorical(values)
    else:
        variable = Categorical(values)
        assert [variable.index(value) for value in values] == list(range(len(values)))


@st.composite
def integers(draw: st.DrawFn) -> Integer:
    log = draw(st.booleans())
    low = draw(st.integers(1 if log else -(10**6), 10**6))
    step = draw(st.integers(1, 10**4))
    return Integer(low, low + step * draw(st.integers(1, 10**4)), step=step, log=log)


@given(integers(), st.randoms(use_true_random=False))
def test_an_integer_is_rounded_to_the_nearest_of_its_values(variable: Integer, random: Any) -> None:
    low, high, step = variable.low, variable.high, variable.step
    assert eval(repr(variable)) == variable
    for value in (low, low + step, high - step, high, random.randrange(low, high + 1, step)):
        assert variable.decode(variable.encode(value)) == value
    for draw in (-math.inf, -1e300, variable.bounds[0]):
        assert variable.decode(draw) == low
    for draw in (math.inf, 1e300, variable.bounds[1]):
        assert variable.decode(draw) == high
    draw = random.uniform(*variable.bounds)
    value = variable.decode(draw)
    assert type(value) is int
    assert (value - low) % step == 0
    distance = abs(variable.encode(value) - draw)
    for other in (value - step, value + step):
        if low <= other <= high:
            assert distance <= abs(variable.encode(other) - draw) + 1e-12
            # The least distance of two values is four times the smallest standard deviation.
            apart = abs(variable.encode(other) - variable.encode(value))
            assert apart >= 4 * variable.std_min * (1 - 1e-6)


@given(st.floats(1e-300, 1e20), st.floats(1.001, 1e9), st.randoms(use_true_random=False))
def test_a_logarithm_gives_back_what_it_was_given(low: float, ratio: float, random: Any) -> None:
    variable = Real(low, low * ratio, log=True)
    assert eval(repr(variable)) == variable
    assert variable.decode(-math.inf) == variable.decode(variable.encode(low)) == low
    high = variable.high
    assert variable.decode(math.inf) == variable.decode(variable.encode(high)) == high
    value = variable.decode(random.uniform(*variable.bounds))
    assert low <= value <= high
    assert variable.decode(variable.encode(value)) == value
    ends = math.log(low), math.log(high)
    assert variable.std_min == pytest.approx((ends[1] - ends[0]) / 400)


def test_values_of_a_step_and_of_a_logarithm() -> None:
    stepped = Integer(64, 256, step=8)
    assert [stepped.decode(x) for x in (0, 67.9, 68.1, 251, 300)] == [64, 64, 72, 248, 256]
    assert (stepped.bounds, stepped.std_min) == ((64, 256), 2)
    doubled = Integer(1, 1024, log=True)
    # 1 and 2 meet at the square root of 2, 512 and 513 at that of their product.
    for low in (1, 2, 512):
        border = (math.log(low) + math.log(low + 1)) / 2
        assert doubled.decode(border - 1e-9) == low
        assert doubled.decode(border + 1e-9) == low + 1
    assert doubled.std_min == pytest.approx(math.log(1024 / 1023) / 4)
    rate = Real(1e-5, 0.1, log=True)
    assert rate.decode(math.log(1e-3)) == 1e-3
    assert rate.decode((math.log(1e-5) + math.log(0.1)) / 2) == 1e-3
    assert Integer(1, 9, step=1, log=False) == Integer(1, 9)


def test_variables_without_options_read_as_before() -> None:
    """States of optimizers hold these texts."""
    space = SearchSpace(
        {"a": Integer(1, 9), "b": Real(0, 1), "c": Integer(8, 64, step=8, log=True)}
    )
    assert space.description == (
        "'a': Integer(low=1, high=9)",
        "'b': Real(low=0.0, high=1.0, resolution=0.01)",
        "'c': Integer(low=8, high=64, step=8, log=True)",
    )


def test_numbers_of_one_value_are_choices_of_one() -> None:
    assert ONE_VALUE.n_theta == 0
    assert (ONE_VALUE.sizes, ONE_VALUE.numerical) == ([1, 1], {})
    values = {"depth": 3, "rate": 0.5}
    assert ONE_VALUE.decode([0, 0]) == values
    assert ONE_VALUE.samples([values])[0] == values
    other = SearchSpace({"depth": Categorical([3]), "rate": Real(0.5, 0.5, resolution=0.1)})
    assert ONE_VALUE.difference(ONE_VALUE.description) is None
    assert "'depth': Categorical(3)" in str(ONE_VALUE.difference(other.description))
    assert other["rate"] == ONE_VALUE["rate"]


@pytest.mark.parametrize("kind", [asng.ASNG, asng.SNG, asng.NaturalAdam])
def test_numbers_of_one_value_cost_nothing(kind: Any) -> None:
    """All else is drawn and learned as if they were not there."""
    variables = {"op": Categorical(["a", "b", "c"]), "width": Integer(1, 9), "rate": Real(0, 1)}
    whole = SearchSpace({"width": variables["width"], "op": variables["op"]} | ONE_VALUE.variables)
    few = SearchSpace({"width": variables["width"], "op": variables["op"]})
    assert whole.n_theta == few.n_theta
    optimizers = [kind(space, population_size=6, seed=3) for space in (whole, few)]
    for _ in range(30):
        populations = [optimizer.ask() for optimizer in optimizers]
        rows = [list(samples) for samples in populations]
        assert rows[0] == [row | {"depth": 3, "rate": 0.5} for row in rows[1]]
        for optimizer, samples in zip(optimizers, populations, strict=True):
            optimizer.tell(samples, [abs(row["width"] - 4) + (row["op"] != "b") for row in samples])
    first, second = optimizers
    assert first.theta.numerical.tolist() == second.theta.numerical.tolist()
    assert first.theta.categorical[0].tolist() == second.theta.categorical[0].tolist()
    assert (first.progress, first.entropy) == (second.progress, second.entropy)
    assert first.recommend() == second.recommend() | {"depth": 3, "rate": 0.5}
    assert first.best.sample == second.best.sample | {"depth": 3, "rate": 0.5}
    again = kind(whole, population_size=6, seed=0)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert again.ask().numerical.tolist() == first.ask().numerical.tolist()


def test_convergence_is_of_categorical_variables_only() -> None:
    optimizer = asng.ASNG(SearchSpace({"one": Integer(3, 3), "rate": Real(0, 1)}), seed=0)
    assert optimizer.convergence == optimizer.progress == 0
    space = SearchSpace({"one": Integer(3, 3), "op": Categorical(range(4))})
    assert asng.ASNG(space, seed=0).convergence == 0.25


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Categorical([]), ValueError, "at least one"),
        (lambda: Categorical("abc"), TypeError, "list or tuple"),
        (lambda: Categorical(3), TypeError, "list or tuple"),  # type: ignore[arg-type]
        (lambda: Categorical(np.zeros((2, 2))), ValueError, r"one dimension, got shape \(2, 2\)"),
        (lambda: Categorical(["a", "b", "a"]), ValueError, "'a' twice, at 0 and 2"),
        (lambda: Categorical([[1], [2], [2]]), ValueError, r"\[2\] twice, at 1 and 2"),
        (lambda: Categorical([0.5, np.float64(0.5)]), ValueError, "0.5 twice, at 0 and 1"),
        (lambda: Categorical(np.array([3, 1, 3])), ValueError, "3 twice, at 0 and 2"),
        (lambda: Integer(4, 3), ValueError, "low must be at most high"),
        (lambda: Real(0.5, 0.25), ValueError, "low must be at most high"),
        (
            lambda: ONE_VALUE.encode({"depth": 4, "rate": 0.5}),
            ValueError,
            r"'depth' must be in \[3",
        ),
        (lambda: ONE_VALUE.encode({"depth": 3.0, "rate": 0.5}), TypeError, "'depth' must be an in"),
        (lambda: Integer(0.5, 3), TypeError, "low must be an integer"),  # type: ignore[arg-type]
        (lambda: Integer(True, 3), TypeError, "low must be an integer"),
        (lambda: Real(0.0, float("inf")), ValueError, "finite"),
        (lambda: Real(1.0, 1.0 + 1e-12), ValueError, "1e-9"),
        (lambda: Real(0.0, 1.0, resolution=3.0), ValueError, "resolution"),
        (lambda: SearchSpace({}), ValueError, "at least one variable"),
        (lambda: SearchSpace([1]), TypeError, "map names"),  # type: ignore[arg-type]
        (lambda: SearchSpace({1: Integer(0, 1)}), TypeError, "name"),  # type: ignore[dict-item]
        (lambda: SearchSpace({"a": 3}), TypeError, "'a'"),  # type: ignore[dict-item]
        (lambda: SearchSpace.from_sizes([2, 0]), ValueError, "categories"),
        (lambda: MIXED.decode([0], [1.0, 2.0]), ValueError, "categorical must have 2"),
        (lambda: MIXED.decode([0, 4], [1.0, 2.0]), ValueError, "'flag'"),
        (lambda: MIXED.encode({"op": "conv3"}), ValueError, "missing"),
        (
            lambda: MIXED.encode({"op": "conv9", "width": 64, "dropout": 0.1, "flag": 1}),
            ValueError,
            "'op' must be one of",
        ),
        (
            lambda: MIXED.encode({"op": "pool", "width": 64.5, "dropout": 0.1, "flag": 1}),
            TypeError,
            "'width' must be an integer",
        ),
        (
            lambda: MIXED.encode({"op": "pool", "width": 63, "dropout": 0.1, "flag": 1}),
            ValueError,
            "'width' must be in",
        ),
        (lambda: MIXED.samples([]), ValueError, "at least one sample"),
    ],
)
def test_bad_input_is_named(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_samples_are_a_sequence_of_dicts() -> None:
    samples = Samples(MIXED, np.array([[0, 1], [2, 3]]), np.array([[64.4, 0.1], [70.0, 0.2]]))
    assert len(samples) == 2
    assert samples[1] == {"op": "pool", "width": 70, "dropout": 0.2, "flag": 1}
    assert [row["op"] for row in samples] == ["conv3", "pool"]
    swapped = samples[[1, 0]]
    assert isinstance(swapped, Samples)
    assert swapped.numerical[1, 0] == 64.4
    assert len(samples[:1]) == 1
    with pytest.raises(IndexError):
        samples[2]


def test_a_space_reads_as_a_mapping() -> None:
    assert list(MIXED) == ["op", "width", "dropout", "flag"] == list(MIXED.names)
    assert MIXED["width"] == Integer(64, 256)
    assert "Integer(low=64, high=256)" in repr(MIXED)
    assert repr(asng.SearchSpace.from_sizes([2] * 9)) == (
        "SearchSpace(9 categorical, 0 numerical variables, n_theta=9)"
    )
