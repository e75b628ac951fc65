"""ASNG: protocol, state, errors, agreement with the reference."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixed_space import MIXED, advance, loss, state_of

import asng_ext as asng
from asng_ext import SearchSpace
from asng_ext.optimizers import margins
from asng_ext.optimizers.reference import (
    ReferenceASNG,
    fisher_matrix_categorical,
    fisher_root_categorical,
)


def test_finds_the_best_sample() -> None:
    found = []
    for seed in range(9):
        optimizer = asng.ASNG(MIXED, delta_init=0.2, seed=seed)
        while not optimizer.should_stop() and optimizer.generation < 20000:
            advance(optimizer, 1)
        assert optimizer.progress >= 0.95
        found.append(optimizer.recommend())
    assert sum(best["op"] == "b" for best in found) >= 7
    assert sum(best["flag"] is True for best in found) >= 7
    assert all(best["one"] == 7 for best in found)
    assert np.median([abs(best["width"] - 130) for best in found]) < 25
    assert np.median([abs(best["rate"] - 0.3) for best in found]) < 0.1


@pytest.mark.parametrize("population_size", [2, 3, 4, 5, 6, 9, 16])
def test_agrees_with_the_reference(population_size: int) -> None:
    """Random spaces and losses, many with ties, NaN and infinities."""
    rng = np.random.default_rng(population_size)
    for case in range(12):
        sizes = rng.integers(1, 7, rng.integers(0 if case % 2 else 1, 9)).tolist()
        ranges = [(int(low), int(low) + int(w)) for low, w in rng.integers(1, 90, (case % 4, 2))]
        if sum(sizes) - len(sizes) + len(ranges) == 0:
            continue
        space = SearchSpace.from_sizes(sizes, ranges)
        settings = {"alpha": float(rng.uniform(1.1, 4)), "delta_init": float(rng.uniform(0.1, 2))}
        settings["variance_ratio_min"] = [0.0, 0.5][case // 4 % 2]
        optimizer = asng.ASNG(space, population_size=population_size, seed=case, **settings)
        reference = ReferenceASNG(sizes, [(*pair, 0.25) for pair in ranges], **settings)
        reference.Delta = optimizer.Delta
        for _ in range(60):
            samples = optimizer.ask()
            losses = rng.choice([0.0, -1.0, 1.5, 2.5, math.nan, math.inf, *rng.normal(size=4)],
                                population_size)  # fmt: skip
            optimizer.tell(samples, losses)
            reference.update(samples.categorical, samples.numerical, losses.tolist())
            theta = optimizer.theta
            for row, expected in zip(theta.categorical, reference.theta, strict=True):
                np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(theta.numerical, reference.moments, rtol=1e-8)
            np.testing.assert_allclose(optimizer.s, reference.s, rtol=1e-6, atol=1e-8)
            np.testing.assert_allclose(optimizer.Delta, reference.Delta, rtol=1e-8)


def test_the_reference_root_is_a_root_of_fishers_matrix() -> None:
    theta = np.array([0.1, 0.25, 0.3, 0.35])
    root = fisher_root_categorical(theta)
    np.testing.assert_allclose(root.T @ root, fisher_matrix_categorical(theta), rtol=1e-12)


def test_samples_follow_the_distribution() -> None:
    space = SearchSpace.from_sizes([5, 3], [(0, 100)])
    optimizer = asng.ASNG(space, population_size=1000, seed=3)
    counts = np.zeros(5)
    draws = []
    for _ in range(50):
        samples = optimizer.ask()
        counts += np.bincount(samples.categorical[:, 0], minlength=5)
        draws.append(samples.numerical[:, 0])
    # Standard errors: 0.0018 of a frequency, 0.22 of a mean (0 for antithetic pairs), 0.16.
    np.testing.assert_allclose(counts / 50000, 0.2, atol=0.009)
    values = np.concatenate(draws)
    assert values.mean() == pytest.approx(50, abs=1e-9)
    assert values.std() == pytest.approx(50, abs=1.0)


def test_draws_of_different_variables_and_samples_are_independent() -> None:
    optimizer = asng.ASNG(SearchSpace.from_sizes([2] * 40), population_size=4000, seed=0)
    bits = optimizer.ask().categorical
    again = optimizer.ask().categorical
    columns = np.concatenate([bits, again], axis=1) - 0.5
    correlation = (columns.T @ columns) / 1000
    assert np.abs(correlation - np.eye(80)).max() < 0.08  # 5 standard errors


def test_same_seed_same_run_and_other_seed_other_run() -> None:
    runs = []
    for seed in (5, 5, 6):
        optimizer = asng.ASNG(MIXED, seed=seed)
        advance(optimizer, 30)
        runs.append(optimizer.state_dict()["theta"])
    assert runs[0] == runs[1] != runs[2]
    assert asng.ASNG(MIXED).seed != asng.ASNG(MIXED).seed


def test_no_global_generator_is_touched_and_optimizers_do_not_interact() -> None:
    before = random.getstate(), torch.get_rng_state()
    np.random.seed(0)
    numbers = np.random.random(20)
    np.random.seed(0)
    alone = asng.ASNG(MIXED, seed=1)
    advance(alone, 20)
    first, second = asng.ASNG(MIXED, seed=1), asng.ASNG(MIXED, seed=2)
    for _ in range(20):
        advance(second, 1)
        advance(first, 1)
    assert state_of(first) == state_of(alone)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    np.testing.assert_array_equal(np.random.random(20), numbers)


@pytest.mark.parametrize("maximize", [False, True])
def test_maximize_turns_losses_round(maximize: bool) -> None:
    a = asng.ASNG(MIXED, seed=3)
    b = asng.ASNG(MIXED, seed=3, maximize=True)
    for _ in range(30):
        samples = a.ask()
        b.ask()
        losses = [loss(sample) for sample in samples]
        a.tell(samples, losses)
        b.tell(samples, [-value for value in losses])
    assert a.state_dict()["theta"] == b.state_dict()["theta"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"population_size": 1}, ValueError, "population_size must be at least 2"),
        ({"population_size": 2.5}, TypeError, "population_size"),
        ({"alpha": 0.0}, ValueError, "alpha"),
        ({"alpha": "1"}, TypeError, "alpha"),
        ({"delta_init": math.nan}, ValueError, "delta_init"),
        ({"delta_init": -1.0}, ValueError, "delta_init"),
        ({"delta_max": 0.5}, ValueError, "delta_max"),
        ({"margin": "none"}, ValueError, "margin"),
        ({"margin": 0.4}, ValueError, "margin"),
        ({"margin": True}, TypeError, "margin"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64}, ValueError, "seed"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"convergence_limit": 2}, ValueError, "convergence_limit"),
        ({"generation_limit": -1}, ValueError, "generation_limit"),
        ({"patience": -1}, ValueError, "patience"),
        ({"stall_limit": 0}, ValueError, "stall_limit"),
        ({"evaluation_limit": 10.0}, TypeError, "evaluation_limit"),
    ],
)
def test_bad_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        asng.ASNG(MIXED, **arguments)


def test_a_space_must_leave_something_to_choose() -> None:
    with pytest.raises(ValueError, match="more than one value"):
        asng.ASNG(SearchSpace.from_sizes([1, 1]))
    with pytest.raises(TypeError, match="SearchSpace"):
        asng.ASNG({"a": asng.Integer(0, 1)})  # type: ignore[arg-type]


def test_margins() -> None:
    assert margins([5] * 30) == [1 / 120] * 30
    assert margins([2, 5, 1]) == [1 - 0.73**0.5, 1 / 8, 0.0]
    assert margins([2]) == [1 - 0.73]
    assert margins([3]) == [(1 - 0.73) / 2]
    assert margins([4, 4], "catcma") == [(1 - 0.73**0.5) / 3] * 2
    assert margins([4, 1], 0.1) == [0.1, 0.0]
    assert margins([]) == []


def test_delta_max_bounds_the_radius_from_below() -> None:
    optimizer = asng.ASNG(MIXED, delta_max=1.5, seed=0, population_size=2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        optimizer.tell(optimizer.ask(), rng.random(2))
    assert optimizer.Delta == 1.5
    assert optimizer.delta == pytest.approx(1 / 1.5)


def test_should_stop() -> None:
    optimizer = asng.ASNG(MIXED, seed=0, generation_limit=3)
    assert not optimizer.should_stop()
    advance(optimizer, 3)
    assert optimizer.should_stop()
    assert asng.ASNG(MIXED, seed=0, convergence_limit=0.0, patience=0).should_stop()


def test_what_people_plot() -> None:
    optimizer = asng.ASNG(SearchSpace.from_sizes([4, 2], [(0, 8)]), population_size=2, seed=0)
    assert optimizer.convergence == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert optimizer.progress == pytest.approx(0)
    gaussian = 0.5 * math.log(2 * math.pi * math.e * 16)
    assert optimizer.entropy == pytest.approx(math.log(4) + math.log(2) + gaussian)
    assert optimizer.delta == 1.0
    assert optimizer.generation == 0
    assert optimizer.snr == 0.0
    np.testing.assert_allclose(optimizer.theta.numerical, [[4.0], [32.0]])
    numbers = asng.ASNG(SearchSpace.from_sizes(integers=[(0, 8)]), seed=0)
    assert numbers.convergence == numbers.progress == pytest.approx(0)
    assert "generation=0" in repr(optimizer)


@pytest.mark.parametrize("population_size", [2, 5])
def test_resume_bit_for_bit(population_size: int) -> None:
    whole = asng.ASNG(MIXED, population_size=population_size, seed=9)
    advance(whole, 40)
    first = asng.ASNG(MIXED, population_size=population_size, seed=9)
    advance(first, 17)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    resumed = asng.ASNG(MIXED, population_size=population_size, seed=1234)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    advance(resumed, 23)
    assert state_of(resumed) == state_of(whole)
    through_json = asng.ASNG(MIXED, population_size=population_size)
    through_json.load_state_dict(json.loads(state_of(first)))
    copies = [first, through_json, copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    for optimizer in copies:
        advance(optimizer, 23)
        assert state_of(optimizer) == state_of(whole)


def test_copies_do_not_share_state() -> None:
    optimizer = asng.ASNG(MIXED, seed=0)
    twin = copy.deepcopy(optimizer)
    before = state_of(twin)
    advance(optimizer, 5)
    assert state_of(twin) == before
    theta = optimizer.theta
    theta.categorical[:] = 0
    assert optimizer.theta.categorical.sum() > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta": [0.1]}, "'theta'"),
        ({"s": [math.nan] * 7}, "'s'"),
        ({"theta": [0.9, 0.9, 0.9, 1.0, 0.5, 0.5]}, "'op' sum to 2.7"),
        ({"theta": [0.0, 0.0, 0.0, 1.0, 0.5, 0.5]}, r"state\['theta'\]\[0\] must be in \[0.249"),
        ({"theta": ["a"] * 6}, "'theta'"),
        ({"mean": [1e6, 0.5]}, r"state\['mean'\]\[0\] must be in \[63.9"),
        ({"mean": [128.0, 0.05]}, r"state\['mean'\]\[1\]"),
        ({"variance": [1e-320, 0.1]}, r"state\['variance'\]\[0\]"),
        ({"variance": [96.0**2, 0.41**2]}, r"state\['variance'\]\[1\]"),
        ({"space": []}, r"variable 0 is absent, not 'op': Categorical\('a', 'b', 'c'\)"),
        ({"alpha": 2.0}, "alpha"),
        ({"version": 99}, "version"),
        ({"optimizer": "SNG"}, "optimizer"),
        ({"seed": -5}, "seed"),
        ({"Delta": math.inf}, "Delta"),
        ({"Delta": 0.3}, r"state\['Delta'\] must be in \[0.377964473, inf\]"),
        ({"gamma": math.nan}, "gamma"),
        ({"gamma": 1e300}, r"state\['gamma'\] must be in \[0, 1\]"),
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": "0"}, "gamma"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(change: dict[str, Any], words: str) -> None:
    source, target = (asng.ASNG(MIXED, population_size=2, seed=seed) for seed in (0, 1))
    advance(source, 5)
    before = state_of(target)
    with pytest.raises((ValueError, TypeError), match=words):
        target.load_state_dict({**source.state_dict(), **change})
    assert state_of(target) == before
    incomplete = source.state_dict()
    del incomplete["gamma"]
    with pytest.raises(ValueError, match="gamma"):
        target.load_state_dict(incomplete)
    assert state_of(target) == before


def test_import_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import asng_ext as a;"
        "o = a.ASNG(a.SearchSpace.from_sizes([3, 3]), seed=0); o.tell(o.ask()[:2], [1.0, 2.0]);"
        "a.compat.AdaptiveSNG([3, 3]).sampling(); print(o.generation)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.strip() == "1", result.stderr


def test_recommends_without_categorical_variables() -> None:
    space = SearchSpace({"width": asng.Integer(1, 9), "rate": asng.Real(0.0, 1.0)})
    assert asng.ASNG(space, seed=0).recommend() == {"width": 5, "rate": 0.5}
