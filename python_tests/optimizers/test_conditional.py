"""Variables that only some samples have."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest

import asng_ext as asng
from asng_ext import Categorical, CostTable, Integer, Real, Samples, SearchSpace
from asng_ext.costs import Term
from asng_ext.optimizers.reference import ReferenceASNG, ReferenceNaturalAdam, ReferenceSNG

VARIABLES = {
    "kind": Categorical(["sgd", "adam", "none"]),
    "momentum": Real(0.0, 1.0),
    "nesterov": Categorical([False, True]),
    "warmup": Integer(1, 9),
    "beta": Real(0.5, 0.999),
    "shape": Categorical([(1, 1), (2, 2)]),
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "warmup": {"nesterov": True, "shape": (2, 2)},
    "nesterov": {"kind": "sgd"},
    "momentum": {"kind": ["sgd"]},
    "beta": {"kind": ("sgd", "adam")},
}
SPACE = SearchSpace(VARIABLES, active_if=CONDITIONS)
ALWAYS = SearchSpace(VARIABLES, active_if={"beta": {"kind": ["sgd", "adam", "none"]}})
KINDS = (asng.ASNG, asng.SNG, asng.NaturalAdam)


def names_by_hand(kind: str, nesterov: bool, shape: tuple[int, int]) -> set[str]:
    names = {"kind", "shape"}
    if kind != "none":
        names.add("beta")
    if kind == "sgd":
        names |= {"momentum", "nesterov"}
        if nesterov and shape == (2, 2):
            names.add("warmup")
    return names


def loss_of(sample: Any) -> float:
    loss: float = {"sgd": 0.0, "adam": 0.5, "none": 1.0}[sample["kind"]]
    loss += (sample.get("momentum", 0.9) - 0.9) ** 2 + sample.get("nesterov", False) * 0.2
    return loss + (sample.get("beta", 0.7) - 0.7) ** 2 + sample.get("warmup", 0) / 10


def test_samples_lack_what_is_not_active() -> None:
    samples = asng.ASNG(SPACE, population_size=200, seed=0).ask()
    has, has_number = SPACE.activity(samples.categorical)
    seen = set()
    for i, sample in enumerate(samples):
        kind, nesterov, shape = (
            SPACE.categorical[name].values[column]
            for name, column in zip(SPACE.categorical, samples.categorical[i])
        )
        expected = names_by_hand(kind, nesterov, shape)
        assert set(sample) == expected
        assert list(sample) == [name for name in VARIABLES if name in expected]
        there = dict(zip([*SPACE.categorical, *SPACE.numerical], [*has[i], *has_number[i]]))
        assert {name for name, active in there.items() if active} == expected
        seen.add(frozenset(expected))
    assert len(seen) == 4
    again = SPACE.samples(list(samples))
    assert list(again) == list(samples)
    whole = {
        name: v.values[0] if isinstance(v, Categorical) else v.low for name, v in VARIABLES.items()
    }
    assert set(SPACE.samples([{**whole, "kind": "none"}])[0]) == {"kind", "shape"}
    with pytest.raises(ValueError, match=r"missing: \['momentum'\]"):
        SPACE.samples([{"kind": "sgd", "nesterov": False, "shape": (1, 1), "beta": 0.6}])
    with pytest.raises(ValueError, match="value of 'kind' must be one of"):
        SPACE.samples([{"kind": "adagrad"}])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"population_size": 5, "maximize": True}])
def test_where_all_is_active_it_is_the_compiled_update(kind: Any, settings: dict[str, Any]) -> None:
    plain, active = (kind(space, seed=3, **settings) for space in (SearchSpace(VARIABLES), ALWAYS))
    sign = -1 if settings.get("maximize") else 1
    for step in range(40):
        samples, others = plain.ask(), active.ask()
        np.testing.assert_allclose(samples.numerical, others.numerical, rtol=1e-9)
        assert samples.categorical.tolist() == others.categorical.tolist()
        losses = [sign * loss_of(sample) for sample in samples]
        if step % 7 == 1:
            losses[0] = math.nan
        if step % 7 == 2:
            losses = [1.0] * len(losses)
        if step % 7 == 3:
            losses[0] = losses[1] = sign * 2.0
        assert plain.tell(samples, losses) == active.tell(others, losses)
    one, other = plain.state_dict(), active.state_dict()
    for name, value in one.items():
        if name in ("best", "space"):
            continue
        if isinstance(value, (list, float)):
            np.testing.assert_allclose(other[name], value, rtol=1e-7, atol=1e-12, err_msg=name)
        else:
            assert other[name] == value, name
    assert active.best.loss == pytest.approx(plain.best.loss)


REFERENCES = {
    asng.ASNG: (ReferenceASNG, {"delta_init": 0.7, "variance_ratio_min": 0.5}),
    asng.SNG: (ReferenceSNG, {"delta": 0.7}),
    asng.NaturalAdam: (ReferenceNaturalAdam, {"step_size": 0.02}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_active_does_not_count(kind: Any) -> None:
    """As written for reading, and whatever was drawn where a sample lacks a variable."""
    make, settings = REFERENCES[kind]
    optimizer = kind(SPACE, seed=1, population_size=6, **settings)
    twin = kind(SPACE, seed=1, population_size=6, **settings)
    named = {"delta_init": next(iter(settings.values()))}
    if "variance_ratio_min" in settings:
        named["variance_ratio_min"] = settings["variance_ratio_min"]
    ranges = [(*v.bounds, v.std_min) for v in SPACE.numerical.values()]
    reference = make(sizes=SPACE.sizes, ranges=ranges, **named)
    rng = np.random.default_rng(0)
    for _ in range(25):
        samples = optimizer.ask()
        losses = [loss_of(sample) for sample in samples]
        has, has_number = SPACE.activity(samples.categorical)
        reference.update(samples.categorical, samples.numerical, losses, (has, has_number))
        optimizer.tell(samples, losses)
        other_choices = (samples.categorical + 1) % np.array(SPACE.sizes)
        other = Samples(
            SPACE,
            np.where(has, samples.categorical, other_choices),
            np.where(has_number, samples.numerical, rng.normal(size=samples.numerical.shape)),
        )
        assert list(other) == list(samples)
        twin.ask()
        twin.tell(other, losses)
        theta = optimizer.theta
        for own, expected in zip(theta.categorical, reference.theta):
            np.testing.assert_allclose(own[: len(expected)], expected, rtol=1e-9)
        np.testing.assert_allclose(theta.numerical, reference.moments, rtol=1e-8)
        own, others = optimizer.state_dict(), twin.state_dict()
        assert {**own, "best": 0} == {**others, "best": 0}
        assert optimizer.best == twin.best
    if kind is asng.ASNG:
        np.testing.assert_allclose(optimizer.s, reference.s, rtol=1e-7, atol=1e-12)
        assert optimizer.Delta == pytest.approx(reference.Delta)


def test_a_variable_that_no_sample_has_stays() -> None:
    optimizer = asng.ASNG(SPACE, seed=0, population_size=4)
    rows = [
        {"kind": "adam", "beta": b, "shape": shape}
        for b, shape in itertools.product((0.6, 0.9), ((1, 1), (2, 2)))
    ]
    before = optimizer.theta
    assert optimizer.tell(rows, [4.0, 3.0, 2.0, 1.0])
    after = optimizer.theta
    moved = (before.categorical != after.categorical).any(axis=1)
    assert dict(zip(SPACE.categorical, moved)) == {"kind": False, "nesterov": False, "shape": True}
    moved = (before.numerical != after.numerical).any(axis=0)
    assert dict(zip(SPACE.numerical, moved)) == {"momentum": False, "warmup": False, "beta": True}


def test_a_search_ends_where_what_counts_is_found() -> None:
    for seed in range(3):
        optimizer = asng.ASNG(SPACE, seed=seed, evaluation_limit=20_000)
        while not optimizer.should_stop():
            samples = optimizer.ask()
            optimizer.tell(samples, [loss_of(sample) for sample in samples])
        assert optimizer.evaluations < 15_000  # converged, though warmup never is
        found = optimizer.recommend()
        assert found["kind"] == "sgd"
        assert not found["nesterov"]
        assert found["momentum"] == pytest.approx(0.9, abs=0.05)
        assert "warmup" not in found
        assert optimizer.convergence > 0.6
        assert optimizer.best is not None
        assert optimizer.best.loss == pytest.approx(loss_of(optimizer.best.sample))


def test_a_condition_on_what_is_fixed() -> None:
    optimizer = asng.ASNG(SPACE, seed=0, population_size=8, fixed={"kind": "adam"})
    free = SearchSpace({name: VARIABLES[name] for name in ("beta", "shape")})
    assert optimizer.n_theta == free.n_theta
    for _ in range(5):
        samples = optimizer.ask()
        assert all(set(sample) == {"kind", "beta", "shape"} for sample in samples)
        optimizer.tell(samples, [loss_of(sample) for sample in samples])
        rows = [dict(sample) for sample in samples]
        optimizer.tell(rows, [loss_of(sample) for sample in samples])
    assert set(optimizer.recommend()) == {"kind", "beta", "shape"}
    assert optimizer.best is not None
    assert set(optimizer.best.sample) == {"kind", "beta", "shape"}

    optimizer = asng.ASNG(SPACE, seed=0, population_size=8, fixed={"kind": "sgd", "momentum": 0.5})
    samples = optimizer.ask()
    assert all(sample["momentum"] == 0.5 for sample in samples)
    assert {"warmup" in sample for sample in samples} == {False, True}
    optimizer.tell([dict(sample) for sample in samples], [loss_of(sample) for sample in samples])

    # A fixed value of a variable that a sample lacks is no part of it.
    optimizer = asng.ASNG(SPACE, seed=0, population_size=8, fixed={"momentum": 0.25})
    rows = [dict(sample) for sample in optimizer.ask()]
    assert {row.get("momentum") for row in rows} == {0.25, None}
    optimizer.tell(rows, [loss_of(row) for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_states(kind: Any) -> None:
    source = kind(SPACE, seed=0, population_size=4)
    for _ in range(6):
        samples = source.ask()
        source.tell(samples, [loss_of(sample) for sample in samples])
    state = json.loads(json.dumps(source.state_dict()))
    assert "'nesterov': Categorical(False, True) if 'kind' in ['sgd']" in state["space"]
    copies = [copy.deepcopy(source), pickle.loads(pickle.dumps(source))]
    target = kind(SPACE, seed=1, population_size=4)
    target.load_state_dict(state)
    expected = list(source.ask())
    for other in (*copies, target):
        assert list(other.ask()) == expected
        assert other.best == source.best
    for space in (SearchSpace(VARIABLES), ALWAYS):
        with pytest.raises(ValueError, match="state must be of the optimizer's space"):
            kind(space, seed=1, population_size=4).load_state_dict(state)


def test_losses_and_samples_are_checked_and_nothing_changes() -> None:
    optimizer = asng.ASNG(SPACE, seed=0, population_size=4)
    samples = optimizer.ask()
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="inf"):
        optimizer.tell(samples, [1.0, 2.0, -math.inf, 3.0])
    wrong = samples.categorical.copy()
    wrong[0, 0] = 7
    with pytest.raises(ValueError, match="7"):
        optimizer.tell(Samples(SPACE, wrong, samples.numerical), [1.0, 2.0, 3.0, 4.0])
    assert optimizer.state_dict() == before
    assert not optimizer.tell(samples, [math.nan] * 4)
    assert optimizer.stalled == 1


@pytest.mark.parametrize(
    ("active_if", "error", "words"),
    [
        ({"q": {"kind": "sgd"}}, ValueError, "variables of the space, got 'q'"),
        ({"beta": {"q": 1}}, ValueError, "categorical variables, got 'q'"),
        ({"beta": {"momentum": 0.5}}, ValueError, "categorical variables, got 'momentum'"),
        ({"beta": {"kind": "rmsprop"}}, ValueError, "value of 'kind' must be one of"),
        ({"beta": {"kind": ["sgd", "rmsprop"]}}, ValueError, "value of 'kind' must be one of"),
        ({"beta": {"kind": []}}, ValueError, "value of 'kind' must be one of"),
        ({"beta": {}}, TypeError, "must map names to values, at least one"),
        ({"beta": "sgd"}, TypeError, "must map names to values"),
        (["beta"], TypeError, "active_if must map names to conditions"),
        ({"kind": {"kind": "sgd"}}, ValueError, "circle, got kind → kind"),
        (
            {"kind": {"nesterov": True}, "nesterov": {"kind": "sgd"}},
            ValueError,
            "circle, got (kind → nesterov → kind|nesterov → kind → nesterov)",
        ),
    ],
)
def test_conditions_that_make_no_sense(active_if: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        SearchSpace(VARIABLES, active_if=active_if)


def test_they_are_refused_on_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is none."""
    monkeypatch.setattr(asng.ASNG, "_check_device", lambda self, device: "cuda:0")
    words = r'device must be "cpu" for .* conditional variables \(active_if\), got \'cuda:0\''
    for fixed in (None, {"shape": (1, 1)}):
        with pytest.raises(ValueError, match=words):
            asng.ASNG(SPACE, device="cuda", fixed=fixed)


def test_costs_of_what_a_sample_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'nesterov', which is conditional.*'kind' is one of"):
        CostTable(SPACE, [Term(1, {"nesterov": True})])
    table = CostTable(SPACE, [Term(1, {"nesterov": True, "kind": "sgd"})])
    samples = asng.ASNG(SPACE, population_size=50, seed=0).ask()
    assert table(samples).tolist() == [float(s.get("nesterov", False)) for s in samples]


def test_the_conditions_are_shown() -> None:
    assert "active_if={'beta': {'kind': ('sgd', 'adam', 'none')}}" in repr(ALWAYS)
    assert "active_if" not in repr(SearchSpace(VARIABLES))
    assert SPACE.active_if["momentum"] == {"kind": ("sgd",)}
