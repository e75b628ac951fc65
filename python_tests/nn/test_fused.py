"""The fused supernet against the plain one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cell_supernets import SPACE, draw, gradients, pair
from devices import DEVICES, GRID

from asng_ext.nn import CellNetwork, CellSpace, CellSupernet, FusedCellSupernet, cell_supernet
from asng_ext.nn import fused as fused_module
from asng_ext.nn.operations import OPERATIONS
from asng_ext.training.cuda_graphs import CudaGraphs

pytestmark = [pytest.mark.operators, pytest.mark.grid]

GOLDEN = Path(__file__).parents[1] / "golden" / "cell_network.npz"


def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean loss over architectures and images."""
    return F.cross_entropy(logits.flatten(0, 1), target.repeat(len(logits)))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(("channels", "size", "batch"), [(16, (8, 8), 3), (5, (13, 9), 2)])
@pytest.mark.parametrize("device", DEVICES)
def test_population_and_gradients(
    count: int, channels: int, size: tuple[int, int], batch: int, device: str
) -> None:
    plain, fused = (model.to(device) for model in pair(channels=channels))
    x = torch.randn(batch, 3, *size).double().to(device)
    target = torch.randint(10, (batch,)).to(device)
    architectures = draw(count)
    expected = torch.stack([plain(x, a) for a in architectures])
    got = fused.forward_population(x, architectures)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    loss_of(expected, target).backward()
    loss_of(got, target).backward()
    want, have = gradients(plain), gradients(fused)
    assert sorted(want) == sorted(have)
    for name in want:
        error = (have[name] - want[name].reshape_as(have[name])).norm()
        assert error <= 1e-9 * (1 + want[name].norm()), name
    with torch.no_grad():
        assert torch.equal(fused.forward_population(x, architectures), got)
        torch.testing.assert_close(fused(x, architectures[0]), expected[0])


def test_single_precision() -> None:
    plain, fused = pair(torch.float32)
    x, architectures = torch.randn(4, 3, 16, 16), draw(2, seed=5)
    exact, _ = pair(torch.float64)
    with torch.no_grad():
        expected = torch.stack([exact(x.double(), a) for a in architectures])
        got = fused.forward_population(x, architectures).double()
        by_plain = torch.stack([plain(x, a) for a in architectures]).double()
    # As close to double precision as plain PyTorch is, give or take.
    assert (got - expected).norm() < 5 * (by_plain - expected).norm() + 1e-5


@pytest.mark.parametrize("operation", range(len(OPERATIONS)))
@pytest.mark.parametrize("size", [(7, 7), (6, 11)])
def test_one_operation_everywhere(operation: int, size: tuple[int, int]) -> None:
    plain, fused = pair(space=CellSpace(operations=OPERATIONS), channels=4, cells=3)
    architectures = draw(2)
    architectures.reshape(2, -1, 4)[:, :, 2:] = operation
    x = torch.randn(2, 3, *size).double()
    with torch.no_grad():
        torch.testing.assert_close(
            fused.forward_population(x, architectures),
            torch.stack([plain(x, a) for a in architectures]),
            rtol=1e-9,
            atol=1e-10,
        )


@pytest.mark.parametrize(
    "operations",
    [OPERATIONS[::-1], ("sep_conv_5x5", "avg_pool_3x3"), ("max_pool_3x3",), ("identity",)],
    ids=",".join,
)
@pytest.mark.parametrize("device", DEVICES)
def test_spaces_with_other_operations(operations: tuple[str, ...], device: str) -> None:
    space = CellSpace(2, operations)
    plain, fused = (m.to(device) for m in pair(space=space, channels=5, cells=4))
    assert fused.state_dict().keys() == plain.state_dict().keys()
    parameters = [sum(p.numel() for p in model.parameters()) for model in (plain, fused)]
    assert parameters[0] == parameters[1]
    x = torch.randn(2, 3, 9, 8).double().to(device)
    architectures = draw(3, space=space)
    expected = torch.stack([plain(x, a) for a in architectures])
    got = fused.forward_population(x, architectures)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    for logits in (expected, got):
        logits.square().sum().backward()
    want, have = gradients(plain), gradients(fused)
    assert want.keys() == have.keys()
    for name in want:
        error = (have[name] - want[name].reshape_as(have[name])).norm()
        assert error <= 1e-9 * (1 + want[name].norm()), name


def test_values_are_numbered_as_the_operators_number_operations() -> None:
    _, fused = pair(space=CellSpace(1, ("sep_conv_5x5", "identity")), channels=4, cells=3)
    numbers = [OPERATIONS.index("sep_conv_5x5"), OPERATIONS.index("identity"), -1, -1, -1]
    assert fused._number(torch.tensor([0, 1, 2, -1, 99], dtype=torch.int32)).tolist() == numbers
    # The first of the table are not renumbered, but a pool that is left out would work.
    _, fused = pair(space=CellSpace(1, OPERATIONS[:2]), channels=4, cells=3)
    assert fused._number(torch.tensor([0, 1, 2], dtype=torch.int32)).tolist() == [0, 1, -1]


def test_golden_network() -> None:
    golden = np.load(GOLDEN)
    plain = CellSupernet(SPACE, cells=6, channels=8).double()
    weights = {k[2:]: golden[k] for k in golden.files if k.startswith("w/")}
    state = {}
    for key, value in plain.state_dict().items():
        state[key] = torch.from_numpy(weights[_golden_role(key)]).double().reshape(value.shape)
    fused = FusedCellSupernet(SPACE, cells=6, channels=8).double()
    fused.load_state_dict(state)
    x, target = torch.from_numpy(golden["x"]).double(), torch.from_numpy(golden["target"])
    norms = json.loads(str(golden["grad_norms"]))
    for row, architecture in enumerate(golden["architectures"]):
        # On the grid a row takes seconds; these have every operation in both kinds of cells.
        if GRID and row % 3 > 0:
            continue
        fused.zero_grad()
        logits = fused(x, architecture)
        np.testing.assert_allclose(
            logits.detach().numpy(), golden["logits"][row], rtol=1e-6, atol=1e-8
        )
        F.cross_entropy(logits, target.long()).backward()
        found = {_golden_role(k): float(g.norm()) for k, g in gradients(fused).items()}
        wanted = norms[str(row)]
        assert wanted.keys() <= found.keys()
        for role, norm in found.items():
            np.testing.assert_allclose(norm, wanted.get(role, 0.0), rtol=1e-6, atol=1e-9)


def _golden_role(key: str) -> str:
    """The role under which the golden file has a weight."""
    parts = key.split(".")
    if parts[0] == "stem":
        return {"conv.weight": "stem/conv", "norm.weight": "stem/bn_weight"}.get(
            ".".join(parts[1:]), "stem/bn_bias"
        )
    if parts[0] == "classifier":
        return f"classifier/{parts[1]}"
    cell, rest = f"cell{parts[1]}", parts[2:]
    if rest[0] == "operations":
        node, i, operation = rest[1].split("_", 2)
        return "/".join((cell, node, i, operation, *rest[2:-1]))
    return "/".join((cell, *rest[:-1]))


def test_state_dicts_are_interchangeable(tmp_path: Path) -> None:
    plain, fused = pair(torch.float32, channels=6, auxiliary=True)
    a, b = plain.state_dict(), fused.state_dict()
    assert sorted(a) == sorted(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    torch.save(b, tmp_path / "fused.pt")
    other = CellSupernet(SPACE, channels=6, auxiliary=True)
    other.load_state_dict(torch.load(tmp_path / "fused.pt"))
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(other.eval()(x, draw(1)[0]), fused.eval()(x, draw(1)[0]))
    back = FusedCellSupernet(SPACE, channels=6, auxiliary=True)
    back.load_state_dict(other.state_dict())
    for name, weight in back.state_dict().items():
        assert torch.equal(weight, a[name])


def test_a_wrong_state_dict_is_named() -> None:
    _, fused = pair(torch.float32, channels=4, cells=3)
    state = dict(fused.state_dict())
    name = "cells.1.operations.node2_input1_sep_conv_5x5.half1.depthwise.weight"
    whole = state.pop(name)
    with pytest.raises(RuntimeError, match=rf"Missing key.*{name}"):
        fused.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*cells\.1\.what"):
        fused.load_state_dict({**state, name: whole, "cells.1.what": whole})
    with pytest.raises(RuntimeError, match=rf"size mismatch for {name}"):
        fused.load_state_dict({**state, name: whole[:1]})


def test_auxiliary_head() -> None:
    plain, fused = pair(channels=4, auxiliary=True, image_size=16)
    x, architectures = torch.randn(2, 3, 16, 16).double(), draw(2)
    logits, auxiliary = fused.forward_population(x, architectures)
    for i, a in enumerate(architectures):
        expected = plain(x, a)
        torch.testing.assert_close(logits[i], expected[0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(auxiliary[i], expected[1], rtol=1e-9, atol=1e-10)
    assert isinstance(fused.eval().forward_population(x, architectures), torch.Tensor)


def test_a_derived_network_inherits_the_weights() -> None:
    _, fused = pair(torch.float32, channels=4, cells=3)
    architecture = draw(1)[0]
    network = CellNetwork(SPACE, architecture, cells=3, channels=4, auxiliary=False)
    network.inherit_weights(fused)
    state = fused.state_dict()
    # Norms have no weights in a supernet, and outputs weights for inputs that are no leaves, too.
    inherited = dict(network.named_parameters())
    for name in list(inherited):
        if name.startswith("cells") and name.endswith(
            (".norm.weight", ".norm.bias", "output.conv.weight")
        ):
            del inherited[name]
    assert len(inherited) > 50
    for name, weight in inherited.items():
        assert torch.equal(weight, state[name]), name


def test_gradients_reach_the_images() -> None:
    plain, fused = pair(channels=4, cells=3)
    x, architectures = torch.randn(2, 3, 6, 6).double().requires_grad_(), draw(2)
    expected = torch.autograd.grad(sum(plain(x, a).square().sum() for a in architectures), x)[0]
    got = torch.autograd.grad(fused.forward_population(x, architectures).square().sum(), x)[0]
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("device", DEVICES)
def test_an_input_that_nobody_reads(device: str) -> None:
    plain, fused = (model.to(device) for model in pair(channels=4, cells=3))
    architectures = draw(2)
    nodes = architectures.reshape(2, 2, 5, 4)
    nodes[:, :, :, :2] = 0  # every node reads prev_prev, all nodes are leaves
    x = torch.randn(2, 3, 6, 6).double().to(device)
    got = fused.forward_population(x, architectures)
    expected = torch.stack([plain(x, a) for a in architectures])
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    got.square().sum().backward()
    expected.square().sum().backward()
    want, have = gradients(plain), gradients(fused)
    for name in want:
        error = (have[name] - want[name].reshape_as(have[name])).norm()
        assert error <= 1e-9 * (1 + want[name].norm()), name


def test_two_graphs_at_once() -> None:
    """Memory that is used again must not be memory that is still needed."""
    _, fused = pair(channels=4, cells=3)
    x = torch.randn(2, 2, 3, 6, 6).double()
    first = fused.forward_population(x[0], draw(2)).square().sum()
    second = fused.forward_population(x[1], draw(2, 1)).square().sum()
    weight = fused.cells[0].pointwise3
    late = torch.autograd.grad(first, weight)[0], torch.autograd.grad(second, weight)[0]
    alone = torch.autograd.grad(fused.forward_population(x[0], draw(2)).square().sum(), weight)[0]
    assert torch.equal(late[0], alone)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device: str) -> None:
    settings = {"channels": 4, "cells": 3, "auxiliary": True, "image_size": 8}
    _, fused = pair(torch.float32, **settings)
    fused = fused.to(device)
    x = torch.randn(8, 3, 8, 8).to(device)
    loss, grads = [], []
    for enabled in (False, True):
        fused.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            logits, auxiliary = fused.forward_population(x, draw(2))
        loss.append(torch.cat([logits, auxiliary]).float())
        loss[-1].square().sum().backward()
        grads.append(torch.cat([g.flatten() for g in gradients(fused).values()]))
        assert all(p.grad.dtype == torch.float32 for p in fused.parameters() if p.grad is not None)
    assert (loss[1] - loss[0]).norm() < 0.1 * loss[0].norm()
    assert (grads[1] - grads[0]).norm() < 0.5 * grads[0].norm()


def test_architectures_on_a_device_are_not_looked_at() -> None:
    """The values of a meta tensor cannot be looked at, by nobody."""
    settings = {"channels": 4, "cells": 3, "auxiliary": True, "image_size": 6}
    fused = FusedCellSupernet(SPACE, **settings).to("meta")
    x = torch.empty(2, 3, 9, 6, device="meta")
    for dtype in (torch.int32, torch.int64):
        architectures = torch.empty(2, 40, dtype=dtype, device="meta")
        logits, auxiliary = fused.forward_population(x, architectures)
        assert logits.shape == auxiliary.shape == (2, 2, 10)
        logits.sum().backward()
        assert fused.eval()(x, architectures[0]).shape == (2, 10)
        fused.train()
    with pytest.raises(ValueError, match=r"must have shape \(λ, 40\)"):
        fused.forward_population(x, architectures[:, 1:])
    with pytest.raises(ValueError, match=r"must be integers, got torch\.float32"):
        fused.forward_population(x, architectures.float())
    with pytest.raises(ValueError, match="on the CPU or on cpu as the images are, got meta"):
        fused.forward_population(torch.zeros(2, 3, 9, 6), architectures)


@pytest.mark.cuda
def test_a_captured_pass_takes_new_architectures() -> None:
    _, fused = pair(torch.float32, cells=3)
    fused = fused.cuda()
    x = torch.randn(4, 3, 8, 8, device="cuda")
    populations = [torch.from_numpy(draw(2, seed)).cuda() for seed in range(3)]
    weight = fused.cells[0].pointwise3

    def step(architectures: torch.Tensor) -> list[torch.Tensor]:
        logits = fused.forward_population(x, architectures)
        return [logits.detach(), *torch.autograd.grad(logits.square().sum(), weight)]

    # On the stream of the capture: a backward pass goes where its leaves were first used.
    graphs = CudaGraphs(torch.device("cuda"))
    expected: list[list[torch.Tensor]] = []
    graphs.run(lambda: expected.extend(step(p) for p in populations))
    given = populations[0].clone()
    got: list[torch.Tensor] = []
    replay = graphs.capture(lambda: got.extend(step(given)))
    for population, want in zip(populations, expected, strict=True):
        given.copy_(population)
        replay()
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)
    given[0, 5] = 99
    replay()
    assert got[0][0].isnan().all()
    assert torch.equal(got[0][1], expected[2][0][1])


def test_compiled() -> None:
    _, fused = pair(torch.float32, channels=4, cells=3)
    x = torch.randn(2, 3, 6, 6)
    architectures = torch.from_numpy(draw(2))
    step = torch.compile(fused.forward_population, backend="aot_eager")
    for _ in range(2):
        fused.zero_grad()
        got = step(x, architectures)
        got.square().sum().backward()
        have = gradients(fused)
        fused.zero_grad()
        expected = fused.forward_population(x, architectures)
        expected.square().sum().backward()
        torch.testing.assert_close(got, expected)
        for name, want in gradients(fused).items():
            torch.testing.assert_close(have[name], want)


@pytest.mark.parametrize(
    ("architectures", "match"),
    [
        (np.zeros((0, 40), int), "must have shape"),
        (np.zeros((2, 39), int), "must have shape"),
        (np.zeros(40, int), "must have shape"),
        (np.full((2, 40), 7), r"architecture\[0\]"),
        (-np.ones((2, 40), int), r"architecture\[0\]"),
        (np.zeros((2, 40)), "must be"),
    ],
)
def test_bad_architectures(architectures: np.ndarray, match: str) -> None:
    _, fused = pair(torch.float32, channels=4, cells=3)
    with pytest.raises(ValueError, match=match):
        fused.forward_population(torch.zeros(2, 3, 6, 6), architectures)


def test_choice_of_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"cells": 3, "channels": 4}
    assert isinstance(cell_supernet(SPACE, **settings), FusedCellSupernet)
    assert type(cell_supernet(SPACE, implementation="plain", **settings)) is CellSupernet
    with pytest.raises(ValueError, match="implementation must be"):
        cell_supernet(SPACE, implementation="fast", **settings)
    assert next(cell_supernet(SPACE, device="meta", **settings).parameters()).is_meta
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            cell_supernet(SPACE, implementation="fused", device="cuda", **settings)
    monkeypatch.setattr(fused_module._libraries, "_problem", "not built")
    assert type(cell_supernet(SPACE, **settings)) is CellSupernet
    with pytest.raises(RuntimeError, match="not built"):
        cell_supernet(SPACE, implementation="fused", **settings)
