"""Trajectories of the authors' code, recorded for fixed samples and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asng_ext as asng
from asng_ext import compat

GOLDEN = Path(__file__).parents[1] / "golden"
CATEGORICAL = sorted(path.stem for path in GOLDEN.glob("cat_*.npz"))
MIXED = sorted(path.stem for path in GOLDEN.glob("mixed_*.npz"))


def load(name: str) -> dict[str, Any]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-8)


def test_all_recordings_are_here() -> None:
    assert len(CATEGORICAL) == 8
    assert len(MIXED) == 2


@pytest.mark.parametrize("name", CATEGORICAL)
def test_asng_categorical(name: str) -> None:
    golden = load(name)
    space = asng.SearchSpace.from_sizes(golden["categories"])
    optimizer = asng.ASNG(
        space,
        population_size=int(golden["lam"]),
        alpha=float(golden["alpha"]),
        delta_init=float(golden["delta_init"]),
        delta_max=float(golden["Delta_max"]),
        margin="paper" if golden["range_restriction"] else 0.0,
    )
    close(optimizer.theta.categorical, golden["theta"][0])
    for t, losses in enumerate(golden["losses"]):
        categorical = golden["samples"][t]
        numerical = np.empty((len(categorical), 0))
        optimizer.tell(asng.Samples(space, categorical, numerical), losses)
        close(optimizer.theta.categorical, golden["theta"][t + 1])
        close(optimizer.s, golden["s"][t])
        close(optimizer.gamma, golden["gamma"][t])
        close(optimizer.Delta, golden["Delta"][t])


@pytest.mark.parametrize("name", MIXED)
def test_asng_mixed(name: str) -> None:
    """For a mean of exactly 0 the authors' code takes another root than F's (see compat). One
    recording starts that way: there the replay begins after the first update."""
    golden = load(name)
    space = asng.SearchSpace.from_sizes(golden["categories"], golden["integers"])
    optimizer = asng.ASNG(space, population_size=int(golden["lam"]))
    first = int((golden["theta_int"][0, 0] == 0).any())
    if first:
        state = optimizer.state_dict()
        sizes = golden["categories"]
        theta = golden["theta_cat"][1]
        state["theta"] = theta[np.arange(theta.shape[1]) < sizes[:, None]].tolist()
        mean, second = golden["theta_int"][1]
        state |= {"mean": mean.tolist(), "variance": (second - mean**2).tolist()}
        state |= {"s": golden["s"][0].tolist()}
        state |= {"gamma": float(golden["gamma"][0]), "Delta": float(golden["Delta"][0])}
        optimizer.load_state_dict(state)
    for t in range(first, len(golden["losses"])):
        samples = asng.Samples(space, golden["samples_cat"][t], golden["samples_int"][t])
        optimizer.tell(samples, golden["losses"][t])
        close(optimizer.theta.categorical, golden["theta_cat"][t + 1])
        close(optimizer.theta.numerical, golden["theta_int"][t + 1])
        close(optimizer.s, golden["s"][t])
        close(optimizer.gamma, golden["gamma"][t])
        close(optimizer.Delta, golden["Delta"][t])


def one_hot(indices: np.ndarray, width: int) -> np.ndarray:
    return np.eye(width, dtype=bool)[indices]


@pytest.mark.parametrize("name", CATEGORICAL)
def test_compat_categorical(name: str) -> None:
    golden = load(name)
    settings = {"alpha": float(golden["alpha"]), "Delta_max": float(golden["Delta_max"])}
    delta_init = float(golden["delta_init"])
    adaptive = compat.AdaptiveSNG(
        golden["categories"], delta_init=delta_init, lam=int(golden["lam"]), **settings
    )
    model = compat.CategoricalASNG(golden["categories"], init_delta=delta_init, **settings)
    restricted = bool(golden["range_restriction"])
    for t, losses in enumerate(golden["losses"]):
        samples = one_hot(golden["samples"][t], adaptive.Cmax)
        adaptive.update(samples, losses, restricted)
        model.update(samples.astype(np.float64), list(losses), range_restriction=restricted)
        for theta in (adaptive.theta, model.p_model.theta):
            close(theta, golden["theta"][t + 1])
        for optimizer in (adaptive, model):
            close(optimizer.s, golden["s"][t])
            close(optimizer.gamma, golden["gamma"][t])
            close(optimizer.Delta, golden["Delta"][t])
        if name != "cat_classification_lam2":
            close(adaptive.delta, golden["delta"][t])


@pytest.mark.parametrize("name", MIXED)
def test_compat_mixed(name: str) -> None:
    golden = load(name)
    optimizer = compat.MixedAdaptiveSNG(golden["categories"], golden["integers"])
    close(optimizer.theta_int, golden["theta_int"][0])
    for t, losses in enumerate(golden["losses"]):
        samples = one_hot(golden["samples_cat"][t], optimizer.Cmax), golden["samples_int"][t]
        optimizer.update(samples, losses)
        close(optimizer.theta_cat, golden["theta_cat"][t + 1])
        close(optimizer.theta_int, golden["theta_int"][t + 1])
        close(optimizer.s, golden["s"][t])
        close(optimizer.gamma, golden["gamma"][t])
        close(optimizer.Delta, golden["Delta"][t])
