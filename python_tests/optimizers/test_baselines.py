"""SNG and NaturalAdam: agreement with the reference, state, errors."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from mixed_space import advance, state_of

import asng_ext as asng
from asng_ext import SearchSpace
from asng_ext.optimizers.reference import ReferenceNaturalAdam, ReferenceSNG

Baseline = asng.SNG | asng.NaturalAdam
KINDS = [asng.SNG, asng.NaturalAdam]
MIXED = SearchSpace(
    {
        "op": asng.Categorical(["a", "b", "c"]),
        "one": asng.Categorical([7]),
        "flag": asng.Categorical([False, True]),
        "width": asng.Integer(0, 8),
        "rate": asng.Real(0.1, 0.9),
    }
)


def loss(sample: dict[str, Any]) -> float:
    return float(
        (sample["op"] != "b") + (not sample["flag"]) + abs(sample["width"] - 2) / 4
    ) + 2 * abs(sample["rate"] - 0.3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("population_size", [2, 3, 4, 9])
def test_agrees_with_the_reference(kind: type[Baseline], population_size: int) -> None:
    rng = np.random.default_rng(population_size)
    for case in range(12):
        sizes = rng.integers(1, 7, rng.integers(0 if case % 2 else 1, 9)).tolist()
        ranges = [(int(low), int(low) + int(w)) for low, w in rng.integers(1, 9, (case % 4, 2))]
        if sum(sizes) - len(sizes) + len(ranges) == 0:
            continue
        space = SearchSpace.from_sizes(sizes, ranges)
        bounds = [(*pair, 0.25) for pair in ranges]
        step = float(rng.uniform(0.01, 0.5))
        if kind is asng.SNG:
            optimizer: Baseline = asng.SNG(space, population_size=population_size, delta=step)
            reference: ReferenceSNG | ReferenceNaturalAdam = ReferenceSNG(
                sizes, bounds, delta_init=step
            )
        else:
            optimizer = asng.NaturalAdam(
                space, population_size=population_size, step_size=step, beta1=0.8, beta2=0.95
            )
            reference = ReferenceNaturalAdam(sizes, bounds, delta_init=step, beta1=0.8, beta2=0.95)
        for _ in range(50):
            samples = optimizer.ask()
            losses = rng.choice([0.0, -1.0, 1.5, math.nan, math.inf, *rng.normal(size=4)],
                                population_size)  # fmt: skip
            optimizer.tell(samples, losses)
            reference.update(samples.categorical, samples.numerical, losses.tolist())
            theta = optimizer.theta
            for row, expected in zip(theta.categorical, reference.theta, strict=True):
                np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(theta.numerical, reference.moments, rtol=1e-7)
        if isinstance(optimizer, asng.NaturalAdam):
            assert isinstance(reference, ReferenceNaturalAdam)
            assert optimizer.updates == reference.updates > 0
            state = optimizer.state_dict()
            np.testing.assert_allclose(
                state["second_moment"], reference.second_moment, rtol=1e-6, atol=1e-12
            )


@pytest.mark.parametrize(("kind", "step"), [(asng.SNG, 0.1), (asng.NaturalAdam, 0.02)])
def test_finds_the_best_sample(kind: type[Baseline], step: float) -> None:
    found = []
    for seed in range(9):
        name = "delta" if kind is asng.SNG else "step_size"
        optimizer = kind(MIXED, seed=seed, **{name: step})  # type: ignore[arg-type]
        advance(optimizer, 3000, loss)
        found.append(optimizer.recommend())
    assert sum(best["op"] == "b" for best in found) >= 7
    assert sum(best["flag"] is True for best in found) >= 7
    # Steps of one length for μ and μ² + σ² whatever their scale: no way to treat Gaussians.
    if kind is asng.SNG:
        assert np.median([abs(best["width"] - 2) for best in found]) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_resume_bit_for_bit(kind: type[Baseline]) -> None:
    whole = kind(MIXED, seed=9)
    advance(whole, 40, loss)
    first = kind(MIXED, seed=9)
    advance(first, 17, loss)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    resumed = kind(MIXED, seed=1234)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    through_json = kind(MIXED)
    through_json.load_state_dict(json.loads(state_of(first)))
    copies = [first, resumed, through_json, copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    for optimizer in copies:
        advance(optimizer, 23, loss)
        assert state_of(optimizer) == state_of(whole)
        assert type(optimizer) is kind


def test_same_draws_as_asng() -> None:
    drawn = [
        kind(MIXED, population_size=2, seed=3).ask()
        for kind in (asng.ASNG, asng.SNG, asng.NaturalAdam)
    ]
    for samples in drawn[1:]:
        np.testing.assert_array_equal(samples.categorical, drawn[0].categorical)
        np.testing.assert_array_equal(samples.numerical, drawn[0].numerical)


def test_states_of_other_kinds_are_refused() -> None:
    optimizers = [asng.ASNG(MIXED, seed=0), asng.SNG(MIXED, seed=0), asng.NaturalAdam(MIXED)]
    for source in optimizers:
        for target in optimizers:
            if source is not target:
                before = json.dumps(target.state_dict())
                with pytest.raises(ValueError, match="optimizer="):
                    target.load_state_dict(source.state_dict())
                assert json.dumps(target.state_dict()) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"second_moment": [-1.0] * 10}, "second_moment"),
        ({"second_moment": [0.0] * 9 + [1e300]}, r"state\['second_moment'\]\[9\]"),
        ({"first_moment": [1.1] + [0.0] * 9}, r"state\['first_moment'\]\[0\] must be in \[-1"),
        ({"first_moment": [0.0]}, "first_moment"),
        ({"updates": -1}, "updates"),
        ({"step_size": 1.0}, "step_size"),
        ({"theta": [math.nan] * 6}, "theta"),
        ({"theta": [0.5, 0.5, 0.5, 1.0, 0.5, 0.5]}, "theta"),
        ({"variance": [17.0, 0.1]}, "variance"),
        ({"mean": [8.1, 0.5]}, "mean"),
    ],
)
def test_an_adam_state_that_does_not_fit_is_refused_whole(
    change: dict[str, Any], words: str
) -> None:
    source, target = asng.NaturalAdam(MIXED, seed=0), asng.NaturalAdam(MIXED, seed=1)
    advance(source, 5, loss)
    before = state_of(target)
    with pytest.raises(ValueError, match=words):
        target.load_state_dict({**source.state_dict(), **change})
    assert state_of(target) == before


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "words"),
    [
        (asng.SNG, {"delta": 0.0}, ValueError, "delta"),
        (asng.SNG, {"delta": "1"}, TypeError, "delta"),
        (asng.SNG, {"population_size": 1}, ValueError, "population_size"),
        (asng.NaturalAdam, {"step_size": math.inf}, ValueError, "step_size"),
        (asng.NaturalAdam, {"beta1": 1.0}, ValueError, "beta1"),
        (asng.NaturalAdam, {"beta2": -0.1}, ValueError, "beta2"),
        (asng.NaturalAdam, {"beta2": None}, TypeError, "beta2"),
    ],
)
def test_bad_arguments_are_named(
    kind: Any, arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        kind(MIXED, **arguments)


def test_what_people_plot() -> None:
    sng, adam = asng.SNG(MIXED, delta=0.25), asng.NaturalAdam(MIXED, step_size=0.5)
    assert sng.delta == 0.25
    assert adam.delta == adam.step_size == 0.5
    assert sng.progress == adam.progress == pytest.approx(0)
    assert sng.entropy == adam.entropy
    assert "SNG(" in repr(sng)
    assert "delta=0.25" in repr(sng)
    advance(adam, 3, loss)
    assert adam.generation == 3


@pytest.mark.parametrize("kind", KINDS)
def test_losses_without_information_change_nothing(kind: type[Baseline]) -> None:
    optimizer = kind(MIXED, seed=0)
    advance(optimizer, 3, loss)
    before = optimizer.state_dict()
    assert not optimizer.tell(optimizer.ask(), [1.0, 1.0])
    after = optimizer.state_dict()
    for key in ("theta", "mean", "variance", "updates"):
        assert before.get(key) == after.get(key)
