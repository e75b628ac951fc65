"""Optimizers by name."""

from __future__ import annotations

from typing import Any

import pytest

from asng_ext import ASNG, SNG, NaturalAdam, SearchSpace, optimizers
from asng_ext.optimizers import registry
from asng_ext.toy.problem import OPTIMIZERS, ToyOptimizer, ToySettings

SPACE = SearchSpace.from_sizes([3, 2, 4])


@pytest.mark.parametrize(
    ("name", "cls", "settings"),
    [
        ("ASNG", ASNG, {"alpha": 2.0}),
        ("SNG", SNG, {"delta": 0.1}),
        ("NaturalAdam", NaturalAdam, {"step_size": 0.1, "beta1": 0.5}),
    ],
)
def test_a_name_and_settings_make_an_optimizer(
    name: str, cls: type, settings: dict[str, Any]
) -> None:
    made = optimizers.make(name, SPACE, seed=3, population_size=4, **settings)
    assert type(made) is cls
    same = cls(SPACE, seed=3, population_size=4, **settings)
    assert made.state_dict() == same.state_dict()
    assert name in optimizers.names()
    built = ToyOptimizer(name, 0.25).build(ToySettings(variables=3))
    assert type(built) is cls
    assert built.delta == 0.25


def test_the_toy_problem_has_the_same_names() -> None:
    assert set(OPTIMIZERS) <= set(optimizers.names())


def test_an_optimizer_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(SNG):
        """One with another default."""

    monkeypatch.setattr(registry, "REGISTRY", dict(optimizers.REGISTRY))
    optimizers.register("Own", Own)
    optimizers.register("Own", Own)
    assert optimizers.names()[-1] == "Own"
    made = optimizers.make("Own", SPACE, seed=0, population_size=2, delta=0.5)
    assert isinstance(made, Own)
    assert made.delta == 0.5
    with pytest.raises(ValueError, match="name must not be taken, got 'SNG'"):
        optimizers.register("SNG", Own)
    with pytest.raises(TypeError, match="name must be a string, got 3"):
        optimizers.register(3, Own)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="factory must be callable, got 'SNG'"):
        optimizers.register("X", "SNG")  # type: ignore[arg-type]


def test_names_and_settings_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"name must be one of \('ASNG', .*, got 'Adam'"):
        optimizers.make("Adam", SPACE, seed=0, population_size=2)
    with pytest.raises(TypeError, match="alpha"):
        optimizers.make("SNG", SPACE, seed=0, population_size=2, alpha=1.5)
    with pytest.raises(ValueError, match="delta must be"):
        optimizers.make("SNG", SPACE, seed=0, population_size=2, delta=-1.0)
