"""Search spaces, decoding and encoding."""

from __future__ import annotations

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
    ("make", "error", "words"),
    [
        (lambda: Categorical([]), ValueError, "at least one"),
        (lambda: Categorical("abc"), TypeError, "list or tuple"),
        (lambda: Categorical(3), TypeError, "list or tuple"),  # type: ignore[arg-type]
        (lambda: Integer(3, 3), ValueError, "low must be below high"),
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
