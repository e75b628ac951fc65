"""Whatever is told, θ stays a distribution and δ finite."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import asng_ext as asng

any_loss = st.one_of(
    st.floats(allow_infinity=False, allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, 1e-320, 1e308]),
)
strategies = st.sampled_from(["drawn", "constant", "best is first", "worst wins", "alternate"])


@st.composite
def spaces(draw: st.DrawFn) -> asng.SearchSpace:
    shape = draw(st.sampled_from(["tiny", "small", "large"]))
    if shape == "tiny":
        return draw(
            st.sampled_from(
                [
                    asng.SearchSpace.from_sizes([2]),
                    asng.SearchSpace.from_sizes([2, 2]),
                    asng.SearchSpace.from_sizes([1, 3]),
                    asng.SearchSpace.from_sizes(integers=[(0, 1)]),
                    asng.SearchSpace.from_sizes(reals=[(-1e-6, 1e-6)]),
                    asng.SearchSpace.from_sizes(integers=[(-(10**9), 10**9)]),
                    asng.SearchSpace({"x": asng.Integer(1, 10**9, log=True)}),
                    asng.SearchSpace(
                        {
                            "one": asng.Integer(3, 3),
                            "step": asng.Integer(-8, 64, step=8),
                            "rate": asng.Real(1e-9, 1e9, log=True),
                        }
                    ),
                ]
            )
        )
    most = 6 if shape == "small" else 300
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=most))
    bounds = st.tuples(st.integers(-500, 500), st.integers(1, 300))
    integers = [(low, low + width) for low, width in draw(st.lists(bounds, max_size=most))]
    reals = [(low / 7, low / 7 + width / 50) for low, width in draw(st.lists(bounds, max_size=5))]
    if max(sizes) == 1 and not integers and not reals:
        sizes.append(2)
    return asng.SearchSpace.from_sizes(sizes, integers, reals)


Optimizer = asng.ASNG | asng.SNG | asng.NaturalAdam
KINDS = (asng.ASNG, asng.SNG, asng.NaturalAdam)


def make(kind: type[Optimizer], space: asng.SearchSpace, step: float, **settings: Any) -> Optimizer:
    """``step`` is the step size under whatever name."""
    name = {"ASNG": "delta_init", "SNG": "delta", "NaturalAdam": "step_size"}[kind.__name__]
    return kind(space, **{name: step}, **settings)


def check(optimizer: Optimizer) -> None:
    theta = optimizer.theta
    sizes = optimizer.space.sizes
    for row, size, margin in zip(theta.categorical, sizes, asng.optimizers.margins(sizes)):
        assert np.isfinite(row).all()
        assert abs(row.sum() - 1) < 1e-9
        assert (row[:size] >= margin - 1e-9).all()
        assert (row[size:] == 0).all()
    variance = np.array(optimizer.state_dict()["variance"])
    for mean, var, variable in zip(
        theta.numerical[0], variance, optimizer.space.numerical.values()
    ):
        low, high = variable.bounds
        assert low <= mean <= high
        half = (high - low) / 2
        assert min(variable.std_min, half) * (1 - 1e-9) <= math.sqrt(var) <= half * (1 + 1e-9)
    if isinstance(optimizer, asng.ASNG):
        assert 0 < optimizer.delta <= math.sqrt(optimizer.n_theta) * (1 + 1e-9)
        assert math.isfinite(optimizer.Delta)
        assert math.isfinite(optimizer.gamma)
        assert np.isfinite(optimizer.s).all()
    assert 0 < optimizer.convergence <= 1 + 1e-9 or max(sizes, default=1) == 1


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    space=spaces(),
    population_size=st.integers(2, 9),
    alpha=st.floats(0.5, 10),
    delta_init=st.floats(0.01, 50),
    seed=st.integers(0, 2**64 - 1),
    strategy=strategies,
    data=st.data(),
)
def test_theta_stays_a_distribution(
    kind: type[Optimizer],
    space: asng.SearchSpace,
    population_size: int,
    alpha: float,
    delta_init: float,
    seed: int,
    strategy: str,
    data: st.DataObject,
) -> None:
    settings = {"alpha": alpha} if kind is asng.ASNG else {}
    optimizer = make(
        kind, space, delta_init, population_size=population_size, seed=seed, **settings
    )
    steps = data.draw(st.integers(1, 40))
    check(optimizer)
    for step in range(steps):
        samples = optimizer.ask()
        if strategy == "drawn":
            losses = data.draw(
                st.lists(any_loss, min_size=population_size, max_size=population_size)
            )
        elif strategy == "constant":
            losses = [3.0] * population_size
        elif strategy == "best is first":
            losses = [float(row.sum()) for row in samples.categorical]
        elif strategy == "worst wins":  # always against where theta leans
            theta = optimizer.theta.categorical
            losses = [float(theta[np.arange(len(row)), row].sum()) for row in samples.categorical]
        else:
            losses = [float((k + step) % 2) for k in range(population_size)]
        before = optimizer.state_dict()
        moved = optimizer.tell(samples, losses)
        if not moved:
            after = optimizer.state_dict()
            assert after.pop("generation") == before.pop("generation") + 1
            assert after.pop("evaluations") == before.pop("evaluations") + population_size
            del after["best"], before["best"]
            assert after == before
        check(optimizer)
    twin = pickle.loads(pickle.dumps(optimizer))
    samples = optimizer.ask()
    losses = [float(k) for k in range(population_size)]
    optimizer.tell(samples, losses)
    twin.tell(twin.ask(), losses)
    assert twin.state_dict() == optimizer.state_dict()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    losses=st.lists(st.integers(-20, 20), min_size=2, max_size=12),
    seed=st.integers(0, 1000),
)
def test_only_the_order_of_losses_counts(
    kind: type[Optimizer], losses: list[int], seed: int
) -> None:
    space = asng.SearchSpace.from_sizes([3, 4], [(0, 9)])
    states = []
    for transform in (float, lambda x: math.atan(x) - 3, lambda x: float(x) ** 3 * 1e6):
        optimizer = kind(space, population_size=len(losses), seed=seed)
        optimizer.tell(optimizer.ask(), [transform(x) for x in losses])
        states.append(optimizer.state_dict())
        del states[-1]["best"]  # holds a loss itself
    assert states[0] == states[1] == states[2]


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.5, 1.0), sizes=st.lists(st.integers(2, 4), min_size=1, max_size=3))
def test_long_runs_with_a_low_threshold(alpha: float, sizes: list[int]) -> None:
    """For α ≤ 1 the adaptation pushes δ up for ever; it must stop at √n_θ."""
    optimizer = asng.ASNG(
        asng.SearchSpace.from_sizes(sizes), population_size=2, alpha=alpha, seed=0
    )
    for step in range(1500):
        optimizer.tell(optimizer.ask(), [float(step % 2), float((step + 1) % 2)])
    check(optimizer)
