"""SGD on what is active against PyTorch's SGD on everything."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asng_ext.nn import CaeIntSpace, CaeLayer, CaeSupernet, SliceableWeight
from asng_ext.training.active_sgd import ActiveSGD

SPACE = CaeIntSpace(layers=4, low=1, high=6)
Chains = list[list[tuple[CaeLayer, ...]]]


@pytest.fixture
def supernet() -> CaeSupernet:
    torch.manual_seed(0)
    return CaeSupernet(SPACE).double()


def some_chains(steps: int) -> Chains:
    """Two architectures for each step."""
    generator = np.random.default_rng(0)
    variables = SPACE.search_space()

    def chain() -> tuple[CaeLayer, ...]:
        categorical = [generator.integers(size) for size in variables.sizes]
        numerical = [generator.uniform(v.low, v.high) for v in variables.numerical.values()]
        return SPACE.decode(variables.decode(categorical, numerical))

    return [[chain(), chain()] for _ in range(steps)]


def loss(supernet: CaeSupernet, chains: Sequence[tuple[CaeLayer, ...]]) -> Tensor:
    x = torch.linspace(0, 1, 3 * 36, dtype=torch.float64).reshape(1, 3, 6, 6)
    losses = [(supernet(x, chain) - 1 + x).square().mean() for chain in chains]
    return torch.stack(losses).mean()


def train_densely(
    supernet: CaeSupernet, chains: Chains, rates: list[float], momentum: float, max_norm: float
) -> None:
    """What the active steps are to equal: zeroed gradients, every weight in every step."""
    sgd = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=momentum)
    for rate, pair in zip(rates, chains):
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad(set_to_none=False)
        loss(supernet, pair).backward()
        nn.utils.clip_grad_norm_(supernet.parameters(), max_norm)
        sgd.step()


def train_actively(
    supernet: CaeSupernet, sgd: ActiveSGD, chains: Chains, rates: list[float]
) -> None:
    for rate, pair in zip(rates, chains):
        sgd.param_groups[0]["lr"] = rate
        sgd.zero_grad()
        loss(supernet, pair).backward()
        sgd.step()


@pytest.mark.grid
@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("max_norm", [0.05, 1e9])
def test_equals_dense_sgd(supernet: CaeSupernet, momentum: float, max_norm: float) -> None:
    dense = copy.deepcopy(supernet)
    chains = some_chains(60)
    rates = [0.05 * (1 - step / 60) for step in range(60)]
    sgd = ActiveSGD(supernet, 0.1, momentum, max_norm)
    before = supernet.state_dict()["output.weight"].clone()
    train_densely(dense, chains, rates, momentum, max_norm)
    train_actively(supernet, sgd, chains, rates)
    assert not torch.equal(before, supernet.output.materialized())
    for name, weight in supernet.state_dict().items():
        torch.testing.assert_close(weight, dense.state_dict()[name], rtol=1e-9, atol=1e-12)
    for x_chain in chains[0]:
        with torch.no_grad():
            torch.testing.assert_close(loss(supernet, [x_chain]), loss(dense, [x_chain]))


@pytest.mark.grid
def test_a_reader_sees_every_step(supernet: CaeSupernet) -> None:
    """Evaluations between the steps, as the search makes them, change nothing."""
    dense = copy.deepcopy(supernet)
    chains, rates = some_chains(20), [0.05] * 20
    sgd = ActiveSGD(supernet, 0.1, 0.9, 5.0)
    reference = torch.optim.SGD(dense.parameters(), lr=0.05, momentum=0.9)
    for step in range(20):
        train_actively(supernet, sgd, chains[step : step + 1], rates)
        reference.zero_grad(set_to_none=False)
        loss(dense, chains[step]).backward()
        nn.utils.clip_grad_norm_(dense.parameters(), 5.0)
        reference.step()
        with torch.no_grad():
            others = chains[(step + 7) % 20]
            torch.testing.assert_close(loss(supernet, others), loss(dense, others))


def test_work_is_that_of_what_is_active(supernet: CaeSupernet) -> None:
    chain = (CaeLayer(1, 3, 2, True), CaeLayer(3, 5, 4, False))
    sgd = ActiveSGD(supernet, 0.1, 0.9)
    before = {name: weight.clone() for name, weight in supernet.state_dict().items()}
    train_actively(supernet, sgd, [[chain]], [0.1])
    assert all(parameter.grad is None for parameter in supernet.parameters())
    velocities = [v for v in sgd.state_dict()["velocity"] if v is not None]
    assert {tuple(v.shape) for v in velocities} == {
        (2, 3, 3, 3), (4, 2, 5, 5), (4, 4, 5, 5), (4, 2, 3, 3), (2, 3, 3, 3)
    }  # fmt: skip
    changed = {n for n, w in supernet.state_dict().items() if not torch.equal(w, before[n])}
    assert changed == {
        "encoder.layer1_kernel3_skip1.weight",
        "encoder.layer3_kernel5_skip0.weight",
        "decoder.layer1_kernel3_skip1.weight",
        "decoder.layer3_kernel5_skip0.weight",
        "output.weight",
    }


@pytest.mark.grid
def test_resuming_is_exact(supernet: CaeSupernet) -> None:
    chains, rates = some_chains(12), [0.05] * 12
    through = copy.deepcopy(supernet)
    sgd = ActiveSGD(through, 0.1, 0.9, 5.0)
    train_actively(through, sgd, chains[:6], rates)
    file = io.BytesIO()
    torch.save({"weights": through.state_dict(), "sgd": sgd.state_dict()}, file)
    train_actively(through, sgd, chains[6:], rates)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed_sgd = ActiveSGD(supernet, 0.1, 0.5, 5.0)
    supernet.load_state_dict(saved["weights"])
    resumed_sgd.load_state_dict(saved["sgd"])
    assert resumed_sgd.param_groups[0]["momentum"] == 0.9
    train_actively(supernet, resumed_sgd, chains[6:], rates)
    for name, weight in through.state_dict().items():
        assert torch.equal(weight, supernet.state_dict()[name])


def test_long_idleness(supernet: CaeSupernet) -> None:
    """After hundreds of steps momentum is gone, without an underflow."""
    dense = copy.deepcopy(supernet)
    first, second = (CaeLayer(3, 3, 4, True),), (CaeLayer(2, 3, 4, True), CaeLayer(3, 1, 3, True))
    chains, rates = [[first], *[[second]] * 700, [first]], [1e-3] * 702
    train_actively(supernet, ActiveSGD(supernet, 0.1, 0.9), chains, rates)
    train_densely(dense, chains, rates, 0.9, 1e9)
    for name, weight in supernet.state_dict().items():
        torch.testing.assert_close(weight, dense.state_dict()[name], rtol=1e-6, atol=1e-9)


def test_wrong_arguments(supernet: CaeSupernet) -> None:
    for arguments, message in [
        ((-1.0,), "lr"),
        ((0.1, 1.1), "momentum"),
        ((0.1, 0.9, 0.0), "max_norm"),
    ]:
        with pytest.raises(ValueError, match=message):
            ActiveSGD(supernet, *arguments)
    with pytest.raises(ValueError, match="sliceable weights only"):
        ActiveSGD(nn.Sequential(nn.Linear(1, 1), SliceableWeight(1, 1, 1)), 0.1)
    sgd = ActiveSGD(supernet, 0.1, 0.9)
    with pytest.raises(ValueError, match="sliceable weights, got one of 1"):
        sgd.load_state_dict({"groups": [], "velocity": [None]})
    state = sgd.state_dict()
    state["velocity"][0] = torch.zeros(99, 1, 1, 1)
    with pytest.raises(ValueError, match="must fit into"):
        sgd.load_state_dict(state)
