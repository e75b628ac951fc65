"""ASNG with its state in tensors against ASNG on the host: on tensors of the CPU, and on a GPU.

With ASNG_CUDA_ON_CPU set (see conftest.py) the CPU's operators are those for CUDA, otherwise those
of host_operators.py.
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import host_operators  # noqa: F401
import numpy as np
import pytest
import torch
from devices import DEVICES, GRID

import asng_ext as asng
from asng_ext import Integer, Real, SearchSpace
from asng_ext.ops import _libraries
from asng_ext.optimizers import _device
from asng_ext.optimizers._device import ASNGEngine, ASNGTensors, cuda_device

pytestmark = [pytest.mark.operators, pytest.mark.grid]

SPACES = {
    "cell": SearchSpace.from_sizes([2, 2, 5, 5, 3, 3, 5, 5]),
    "mixed": SearchSpace.from_sizes([3, 1, 7], integers=[(1, 9), (64, 256)], reals=[(0, 1)]),
    "one": SearchSpace.from_sizes([4]),
    "gaussian": SearchSpace.from_sizes(integers=[(1, 3)]),
    "scales": SearchSpace(
        {
            "width": Integer(8, 64, step=8),
            "depth": Integer(2, 2),
            "hidden": Integer(1, 1024, log=True),
            "rate": Real(1e-4, 0.1, log=True),
        }
    ),
}
MIXED = SPACES["mixed"]


def on_tensors(space: SearchSpace, device: str, **settings: Any) -> asng.ASNG:
    """An optimizer whose state is in tensors, also for the CPU."""
    optimizer = asng.ASNG(space, **settings, device=device)
    if device == "cpu":
        optimizer._use_device("cpu")
    return optimizer


def losses_of(optimizer: asng.ASNG, samples: asng.Samples) -> list[float]:
    """Some, with ties and NaN, from samples on any device."""
    categorical = torch.as_tensor(samples.categorical).cpu().double()
    numerical = torch.as_tensor(samples.numerical).cpu()
    losses = ((categorical - 1) ** 2).sum(1) + (numerical - 2).abs().sum(1).round()
    losses[losses % 7 == 3] = math.nan
    return [float(loss) for loss in losses]


def assert_same_state(a: asng.ASNG, b: asng.ASNG, tolerance: float) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    best, other = left.pop("best"), right.pop("best")
    assert (best is None) == (other is None)
    if best is not None:
        np.testing.assert_allclose(
            other.pop("numerical"), best.pop("numerical"), rtol=max(tolerance, 1e-9)
        )
        assert other == best
    for key, value in left.items():
        if isinstance(value, float) or key in ("theta", "mean", "variance", "s"):
            np.testing.assert_allclose(right[key], value, rtol=tolerance, atol=tolerance)
        else:
            assert right[key] == value, key


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("population", [2, 5, 16])
@pytest.mark.parametrize("name", SPACES)
def test_same_samples_and_states_as_on_the_host(name: str, population: int, device: str) -> None:
    settings = {"population_size": population, "seed": 2**64 - 3, "delta_init": 0.7}
    settings["variance_ratio_min"] = 0.5 if population == 5 else 0.0
    host = asng.ASNG(SPACES[name], **settings)
    other = on_tensors(SPACES[name], device, **settings)
    # On the CPU it is the same code, so there it is the same to the last bit.
    tolerance = 0.0 if device == "cpu" and not GRID else 1e-9
    assert_same_state(host, other, 0.0)
    for _ in range(60):
        samples, others = host.ask(), other.ask()
        assert others.categorical.dtype is torch.int64
        assert others.numerical.dtype is torch.float64
        assert others.categorical.device.type == device
        assert np.array_equal(samples.categorical, others.categorical.cpu())
        np.testing.assert_allclose(others.numerical.cpu(), samples.numerical, rtol=1e-9)
        losses = losses_of(host, samples)
        moved = other.tell(others, torch.tensor(losses, dtype=torch.float64, device=device))
        assert bool(moved) == host.tell(samples, losses)
        assert_same_state(host, other, tolerance)
    assert other.generation == host.generation == 60
    assert other.progress == pytest.approx(host.progress, abs=1e-9)
    assert other.best is not None
    assert host.best is not None
    assert other.best.sample == pytest.approx(host.best.sample)
    assert other.should_stop() == host.should_stop()
    assert other.recommend() == pytest.approx(host.recommend(), abs=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_states_go_from_one_device_to_the_other(device: str) -> None:
    def advance(optimizer: asng.ASNG) -> None:
        for _ in range(20):
            samples = optimizer.ask()
            optimizer.tell(samples, losses_of(optimizer, samples))

    settings = {"population_size": 4, "seed": 11}
    whole = asng.ASNG(MIXED, **settings)
    first = on_tensors(MIXED, device, **settings)
    advance(whole)
    advance(first)
    second = asng.ASNG(MIXED, **settings)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    advance(whole)
    advance(second)
    third = on_tensors(MIXED, device, **{**settings, "seed": 12})
    tensors = [third._engine.tensors.theta, third._engine.tensors.step]
    third.load_state_dict(second.state_dict())
    advance(whole)
    advance(third)
    assert_same_state(whole, third, 1e-9)
    # A captured graph goes on reading the tensors that it was captured with.
    assert third._engine.tensors.theta is tensors[0]
    assert third._engine.tensors.step is tensors[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cell", "mixed", "one"])
def test_instances_of_a_batch_are_independent(name: str, device: str) -> None:
    seeds = [3, 2**63 + 1, 5]
    settings = {"population_size": 3, "alpha": 1.2, "delta_init": 0.8, "delta_max": 50.0}
    single = [asng.ASNG(SPACES[name], seed=seed, **settings) for seed in seeds]
    tensors = ASNGTensors(
        single[0]._common,
        alpha=1.2,
        delta_init=0.8,
        delta_max=50.0,
        seeds=seeds,
        device=torch.device(device),
    )
    for generation in range(30):
        categorical, numerical = tensors.ask()
        told = []
        for p, optimizer in enumerate(single):
            samples = optimizer.ask()
            assert np.array_equal(samples.categorical, categorical[p].cpu())
            losses = losses_of(optimizer, samples)
            if generation % 4 == p:  # nothing to learn from for one of them
                losses = [1.0, 1.0, 1.0]
            optimizer.tell(samples, losses)
            told.append(losses)
        moved = tensors.tell(
            categorical, numerical, torch.tensor(told, dtype=torch.float64, device=device)
        )
        assert moved.shape == (3,)
        if generation % 4 < 3:
            assert not moved[generation % 4]
    for p, optimizer in enumerate(single):
        state = optimizer.state_dict()
        for field in ("theta", "mean", "variance", "s"):
            row = getattr(tensors, field)[p].cpu()
            np.testing.assert_allclose(row, state[field], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(tensors.step[p].cpu(), [state["gamma"], state["Delta"]])
        names = ("asked", "generation", "evaluations", "moved")
        expected = [*(state[name] for name in names), state["best"]["generation"], 0, 0]
        assert tensors.counters[p, 1:].tolist() == expected
        assert tensors.best_loss[p] == state["best"]["loss"]
        assert tensors.best_categorical[p].tolist() == state["best"]["categorical"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["cell", "mixed", "gaussian"])
def test_a_row_of_a_batch_is_one_of_its_optimizers(name: str, device: str) -> None:
    common = asng.ASNG(SPACES[name], population_size=5, seed=0)._common
    step = {"alpha": 1.5, "delta_init": 1.0, "delta_max": math.inf}
    batch, other = (
        ASNGTensors(common, **step, seeds=[4, 9], device=torch.device(device)) for _ in range(2)
    )
    rows = [other.row(0), other.row(1)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        losses = torch.rand(2, 5, generator=generator).to(device)
        samples = batch.ask()
        moved = batch.tell(*samples, losses.double())  # the same numbers
        for p, row in enumerate(rows):
            own = row.ask()
            assert all(torch.equal(a[p], b) for a, b in zip(samples, own, strict=True))
            assert row.tell(*own, losses[p]).shape == ()
        assert moved.all()
        for field in ("counters", "theta", "mean", "variance", "s", "step", "best_loss"):
            assert torch.equal(getattr(batch, field), getattr(other, field)), field
    if GRID:
        with pytest.raises(
            RuntimeError, match="losses must have 1 dimensions, as state has, got 2"
        ):
            rows[0].tell(*own, losses)


@pytest.mark.parametrize("device", DEVICES)
def test_what_can_be_told(device: str) -> None:
    optimizer = on_tensors(MIXED, device, population_size=3, seed=1)
    reference = asng.ASNG(MIXED, population_size=3, seed=1)
    samples, dicts = optimizer.ask(), list(reference.ask())
    assert list(samples) == dicts
    assert samples[1] == dicts[1]
    forms: list[tuple[Any, Any]] = [
        (samples, [3, 1, 2]),
        (samples, (3.0, 1.0, 2.0)),
        (samples, np.array([3, 1, 2], dtype=np.float32)),
        (samples, torch.tensor([3.0, 1.0, 2.0], device=device)),
        (samples, torch.tensor([3, 1, 2], dtype=torch.bfloat16, device=device)),
        (samples, torch.tensor([3.0, 1.0, 2.0], requires_grad=True)),
        (samples, list(torch.tensor([3.0, 1.0, 2.0], requires_grad=True, device=device))),
        (samples, (torch.tensor([3.0], requires_grad=True), 1.0, torch.tensor(2))),
        (samples[[2, 0, 1]], [2, 3, 1]),
    ]
    states = []
    for told, losses in forms:
        other = copy.deepcopy(optimizer)
        if device == "cpu":
            other = on_tensors(MIXED, device, population_size=3, seed=1)
            other.load_state_dict(optimizer.state_dict())
        moved = other.tell(told, losses)
        assert isinstance(moved, torch.Tensor)
        assert moved.shape == ()
        assert moved
        states.append(other.state_dict())
    for state in states[1:-1]:
        assert state == states[0]
    np.testing.assert_allclose(states[-1]["theta"], states[0]["theta"], atol=1e-12)
    # Dicts hold rounded values; both optimizers get the same.
    optimizer.tell(dicts, [3, 1, 2])
    reference.tell(dicts, [3, 1, 2])
    assert_same_state(reference, optimizer, 1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("maximize", [False, True])
def test_losses_that_are_not_finite(maximize: bool, device: str) -> None:
    optimizer = on_tensors(MIXED, device, population_size=4, seed=3, maximize=maximize)
    samples = optimizer.ask()
    before = optimizer.state_dict()
    assert not optimizer.tell(samples, [math.nan, math.inf, -math.inf, math.nan])
    assert optimizer.state_dict() == {**before, "generation": 1, "evaluations": 4}
    reference = asng.ASNG(MIXED, population_size=4, seed=3, maximize=maximize)
    drawn = reference.ask()
    reference.tell(drawn, [math.nan] * 4)
    worst = -math.inf if maximize else math.inf
    assert optimizer.tell(samples, [math.nan, 1.0, math.inf, -math.inf])
    assert reference.tell(drawn, [worst, 1.0, worst, worst])
    assert_same_state(reference, optimizer, 1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_errors_leave_the_optimizer_as_it_was(device: str) -> None:
    optimizer = on_tensors(MIXED, device, population_size=3, seed=1)
    samples = optimizer.ask()
    state = optimizer.state_dict()
    other_space = SPACES["cell"].samples([{f"x{i}": 0 for i in range(8)}] * 3)
    floats = asng.Samples(MIXED, samples.categorical.double(), samples.numerical)
    narrow = asng.Samples(MIXED, samples.categorical[:, 1:], samples.numerical)
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (samples, [1, 2], ValueError, "one number per sample"),
        (samples, ["a", "b", "c"], TypeError, "losses must be"),
        (samples, [torch.ones(2), 1.0, "c"], TypeError, "losses must be"),
        (samples, torch.ones(3, 1), ValueError, r"shape \(λ,\)"),
        (samples, 1.0, ValueError, r"shape \(λ,\)"),
        (samples, torch.ones(3, dtype=torch.complex64), TypeError, "real numbers"),
        (other_space, [1, 2, 3], ValueError, "samples must be of"),
        (floats, [1, 2, 3], TypeError, "integers"),
        (narrow, [1, 2, 3], ValueError, r"samples.categorical must have shape \(3, 3\)"),
    ]
    for told, losses, error, match in cases:
        with pytest.raises(error, match=match):
            optimizer.tell(told, losses)
        assert optimizer.state_dict() == state


def test_the_population_has_a_limit_on_a_device() -> None:
    common = asng.ASNG(MIXED, population_size=1025, seed=0)._common
    with pytest.raises(ValueError, match="population_size must be at most 1024 on a CUDA device"):
        ASNGEngine(
            common, alpha=1.5, delta_init=1.0, delta_max=math.inf, device=torch.device("cpu")
        )
    optimizer = on_tensors(MIXED, "cpu", population_size=2, seed=0)
    samples = optimizer.ask()[[0] * 1025]
    with pytest.raises(ValueError, match="losses must hold at most 1024 numbers"):
        optimizer.tell(samples, np.arange(1025.0))
    if GRID:
        tensors = optimizer._engine.tensors
        tensors.population_size = 1025
        with pytest.raises(RuntimeError, match="population must be from 1 to 1024, got 1025"):
            tensors.ask()


def test_the_operators_change_what_their_schemas_say() -> None:
    tensors = on_tensors(MIXED, "cpu", population_size=3, seed=1)._engine.tensors
    ask, tell = torch.ops.asng._asng_ask, torch.ops.asng._asng_tell
    own = (tensors._state, tensors._space, 3, 7)
    torch.library.opcheck(ask.default, (*own, 3), test_utils="test_schema")
    told = (*tensors.ask(), torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64))
    settings = (*tensors.settings, False)
    torch.library.opcheck(tell.default, (*own, *told, *settings), test_utils="test_schema")
    wrong = torch.full_like(told[0], 9) * torch.tensor([0, 0, 1])
    if not GRID:
        with pytest.raises(ValueError, match=r"must be in \[0, 7\), got 9"):
            tensors.tell(wrong, *told[1:])
        return
    with pytest.raises(RuntimeError, match="losses must have dtype Double"):
        tell(*own, *told[:2], told[2].half(), *settings)
    with pytest.raises(
        RuntimeError, match=r"numerical must have shape \(1, 3, 3\), got \(1, 3, 2\)"
    ):
        tell(*own, told[0], told[1][..., :2].contiguous(), told[2], *settings)
    with pytest.raises(RuntimeError, match="state must have dtype Double"):
        ask(tensors._state.view(torch.int64), *own[1:], 3)
    with pytest.raises(RuntimeError, match="state must be contiguous"):
        ask(tensors._state.repeat(1, 2)[:, ::2], *own[1:], 3)
    with pytest.raises(RuntimeError, match="numerical must be a tensor with 3 Gaussian variables"):
        tell(*own, told[0], None, told[2], *settings)
    for state, space, gaussian in (
        (own[0], own[1][1:], 3),
        (own[0][:, 1:].contiguous(), own[1], 3),
        (own[0], own[1], 2),
    ):
        with pytest.raises(RuntimeError, match="state and space must be of at least one variable"):
            ask(state, space, gaussian, 7, 3)
    for largest in (3, 12):  # of 11 categories of 3 variables
        with pytest.raises(RuntimeError, match="largest must be"):
            ask(*own[:3], largest, 3)
    # A device does not check categories, and the variable stays as it is.
    before = tensors.theta.clone()
    tensors.tell(wrong, *told[1:])
    assert torch.equal(tensors.theta[:, 4:], before[:, 4:])


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("tpu", "meta", torch.device("meta"), 3.5):
        with pytest.raises(ValueError, match='device must be "cpu" or "cuda"'):
            asng.ASNG(MIXED, device=device)
    with pytest.raises(ValueError, match='device must be "cpu", got'):
        asng.SNG(MIXED, delta=0.1, device="cuda")
    monkeypatch.setattr(_libraries, "_cuda_problem", "_C_cuda is not built")
    with pytest.raises(RuntimeError, match="_C_cuda is not built"):
        asng.ASNG(MIXED, device="cuda")
    monkeypatch.setattr(_libraries, "_cuda_problem", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    with pytest.raises(RuntimeError, match="no device cuda:2: torch sees 2"):
        asng.ASNG(MIXED, device="cuda:2")
    assert cuda_device("cuda") == torch.device("cuda:1")
    assert cuda_device(torch.device("cuda:0")) == torch.device("cuda:0")


def test_a_device_is_used_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands in for a GPU: the tensors are on the CPU, all else is as it is there.
    def engine(*args: Any, device: torch.device, **settings: Any) -> ASNGEngine:
        assert device == torch.device("cuda:1")
        return ASNGEngine(*args, device=torch.device("cpu"), **settings)

    monkeypatch.setattr(_device, "cuda_device", lambda _: torch.device("cuda:1"))
    optimizer = asng.ASNG(MIXED, seed=2, device="cpu")
    monkeypatch.setattr(_device, "ASNGEngine", engine)
    optimizer = asng.ASNG(MIXED, population_size=2, seed=2, device="cuda")
    assert optimizer.device == "cuda:1"
    samples = optimizer.ask()
    optimizer.tell(samples, torch.tensor([1.0, 2.0]))
    twin = copy.deepcopy(optimizer)
    assert twin.device == "cuda:1"
    assert twin.state_dict() == optimizer.state_dict()
    assert torch.equal(twin.ask().categorical, optimizer.ask().categorical)


@pytest.mark.cuda
@pytest.mark.parametrize("fixed", [{}, {"x0": 1, "x3": 4}])
def test_asking_and_telling_do_not_synchronize(fixed: dict[str, int]) -> None:
    optimizer = asng.ASNG(MIXED, population_size=4, seed=1, device="cuda", fixed=fixed)
    weights = torch.rand(3, device="cuda", dtype=torch.float64)
    optimizer.tell(optimizer.ask(), torch.rand(4, device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            samples = optimizer.ask()
            optimizer.tell(samples, samples.categorical.double() @ weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.generation == 4


@pytest.mark.cuda
@pytest.mark.parametrize("count", [30, 5000])
def test_a_graph_repeats_the_iteration(count: int) -> None:
    space = SearchSpace.from_sizes([5] * count, integers=[(1, 9)] * 3)
    weights = torch.linspace(-1, 1, count, device="cuda", dtype=torch.float64)

    def iterate(optimizer: asng.ASNG) -> None:
        samples = optimizer.ask()
        optimizer.tell(samples, samples.categorical.double() @ weights)

    eager = asng.ASNG(space, population_size=4, seed=1, device="cuda")
    replayed = asng.ASNG(space, population_size=4, seed=1, device="cuda")
    for _ in range(12):
        iterate(eager)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            iterate(replayed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        iterate(replayed)
    for _ in range(10):
        graph.replay()
    assert replayed.state_dict() == eager.state_dict()
