"""Relaxations: mixtures of all architectures of the cell space."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import small_classification as small
import torch
import torch.nn.functional as F
from cell_supernets import draw
from cell_supernets import gradients as gradients_by_name
from devices import DEVICES
from torch import Tensor

from asng_ext.nn import CellSpace, CellSupernet, FusedCellSupernet, Relaxation
from asng_ext.nn.mixture import cell_mixtures
from asng_ext.nn.operations import OPERATIONS

SETTINGS: dict[str, Any] = {"cells": 3, "channels": 4, "classes": 3}


@pytest.fixture(params=["plain", pytest.param("fused", marks=pytest.mark.operators)])
def compiled(request: pytest.FixtureRequest) -> bool:
    """Whether the supernet is one on compiled operators."""
    return bool(request.param == "fused")


def towards(logits: Tensor) -> Tensor:
    """A number that depends on all of them."""
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return (logits * weights.to(logits.device)).sum()


def supernet(space: CellSpace, compiled: bool = False, **changes: Any) -> CellSupernet:
    torch.manual_seed(0)
    kind = FusedCellSupernet if compiled else CellSupernet
    return kind(space, **{**SETTINGS, **changes}).double()


def images(count: int = 3, size: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def gates(space: CellSpace, architecture: Any, known: bool = True) -> Relaxation:
    """One choice with weight 1 in each variable, with or without saying that the others are 0."""
    weights = tuple(
        F.one_hot(torch.tensor(int(value)), k).double().requires_grad_()
        for value, k in zip(architecture, space.categories, strict=True)
    )
    return Relaxation(weights, tuple((int(value),) for value in architecture) if known else None)


def random_relaxation(space: CellSpace, seed: int = 0, active: Any = None) -> Relaxation:
    generator = torch.Generator().manual_seed(seed)
    return Relaxation(
        tuple(
            torch.randn(k, generator=generator, dtype=torch.float64).softmax(0).requires_grad_()
            for k in space.categories
        ),
        active,
    )


def by_slots(network: CellSupernet, x: Tensor, weights: list[Tensor]) -> Tensor:
    """The logits of a mixture, slot by slot and node by node."""
    nodes, names = network.space.nodes, network.space.operations
    prev_prev = prev = network.stem(x)
    for cell, reduction in zip(network.cells, network.is_reduction, strict=True):
        of_cell: Any = cell
        first = 4 * nodes if reduction else 0
        states = [of_cell.older(prev_prev), of_cell.newer(prev)]
        for n in range(nodes):
            node: Any = 0
            for slot in (0, 1):
                p, q = weights[first + 4 * n + slot], weights[first + 4 * n + 2 + slot]
                for i, k in itertools.product(range(n + 2), range(len(names))):
                    o = of_cell.operations[f"node{n}_input{i}_{names[k]}"]
                    node = node + p[i] * q[k] * o(states[i])
            states.append(node)
        out: Any = 0
        for n in range(nodes):
            share: Any = 1.0
            for later, slot in itertools.product(range(n + 1, nodes), (0, 1)):
                share = share * (1 - weights[first + 4 * later + slot][n + 2])
            channels = slice(n * of_cell.output.channels, (n + 1) * of_cell.output.channels)
            columns = of_cell.output.conv.weight[:, channels]
            out = out + share * F.conv2d(F.relu(states[n + 2]), columns)
        prev_prev, prev = prev, of_cell.output.norm(out)
    logits: Tensor = network.classifier(prev.mean((2, 3)))
    return logits


def gradients(logits: Tensor, of: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(towards(logits), of, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, of, strict=True)]


class Calls:
    """Counts how often each operation and projection of a network runs."""

    def __init__(self, network: CellSupernet) -> None:
        self.counts: dict[str, int] = {}
        for name, module in network.named_modules():
            parts = name.split(".")
            if parts[0] == "cells" and (
                (len(parts) == 4 and parts[2] == "operations")
                or (len(parts) == 3 and parts[2] in ("older", "newer"))
            ):
                module.register_forward_hook(lambda *_, name=name: self._count(name))

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, int]:
        counts, self.counts = self.counts, {}
        return counts


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_gates_of_one_architecture_are_the_architecture(
    nodes: int, known: bool, compiled: bool
) -> None:
    """Values, gradients of the weights and, if the zeros are known, the work, for all operations
    and both kinds of cells."""
    space = CellSpace(nodes, OPERATIONS)
    network, x = supernet(space, compiled), images()
    calls, parameters = Calls(network), list(network.parameters())
    for architecture in draw(6, seed=nodes, space=space):
        expected = network(x, architecture)
        needed = calls.take()
        relaxation = gates(space, architecture, known)
        found = network.forward_relaxed(x, relaxation)
        ran = calls.take()
        exact = known and not compiled
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if exact else 1e-10)
        if not compiled:  # whose operations do not run as modules
            assert ran == needed if known else ran.keys() >= needed.keys()
        for a, b in zip(gradients(found, parameters), gradients(expected, parameters), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gates_have_the_gradients_of_a_factor() -> None:
    """Against differences; choices that are not active get none."""
    space = CellSpace(2)
    network, x = supernet(space), images()
    architecture = draw(1, seed=5, space=space)[0]
    relaxation = gates(space, architecture)
    found = gradients(network.forward_relaxed(x, relaxation), list(relaxation.weights))
    numeric = []
    step = 1e-6
    for v, value in enumerate(architecture):
        sides = []
        for sign in (1, -1):
            weights = [w.detach().clone() for w in relaxation.weights]
            weights[v][value] += sign * step
            moved = Relaxation(tuple(weights), relaxation.active)
            logits: Any = network.forward_relaxed(x, moved)
            sides.append(float(towards(logits.detach())))
        numeric.append((sides[0] - sides[1]) / (2 * step))
    for v, (gradient, value) in enumerate(zip(found, architecture, strict=True)):
        assert float(gradient[value]) == pytest.approx(numeric[v], abs=1e-6)
        assert int(gradient.count_nonzero()) <= 1
    assert any(abs(slope) > 1e-3 for slope in numeric)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_mixture_by_slots(nodes: int, compiled: bool) -> None:
    space = CellSpace(nodes, OPERATIONS)
    network, plain, x = supernet(space, compiled), supernet(space), images()
    relaxation, same = (random_relaxation(space, nodes) for _ in range(2))
    found: Any = network.forward_relaxed(x, relaxation)
    expected = by_slots(plain, x, list(same.weights))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    for logits in (found, expected):
        towards(logits).backward()
    of_weights, wanted = gradients_by_name(network), gradients_by_name(plain)
    assert of_weights.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(of_weights[name], gradient, rtol=1e-7, atol=1e-9)
    for a, b in zip(relaxation.weights, same.weights, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)


def test_active_choices_by_slots(compiled: bool) -> None:
    """What is not active has the weight 0 whatever it says, and no gradient."""
    space = CellSpace(3)
    network, x = supernet(space, compiled), images()
    rng = np.random.default_rng(0)
    active = tuple(
        tuple(rng.choice(k, size=min(k, 1 + v % 3), replace=False).tolist())
        for v, k in enumerate(space.categories)
    )
    relaxation = random_relaxation(space, active=active)
    masked = [
        w * torch.tensor([float(i in choices) for i in range(len(w))], dtype=w.dtype)
        for w, choices in zip(relaxation.weights, active, strict=True)
    ]
    # A node that a slot is certain to read is not in the output, whatever its weight there.
    for n, v in itertools.product((1, 2), (0, 1)):
        for first in (0, 12):
            position = first + 4 * n + v
            if len(active[position]) == 1:
                masked[position] = masked[position] / masked[position].detach().sum()
    scaled = tuple(
        w.where(torch.tensor([i in choices for i in range(len(w))]), 7.0)
        for w, choices in zip(masked, active, strict=True)
    )
    found = network.forward_relaxed(x, Relaxation(scaled, active))
    expected = by_slots(supernet(space), x, masked)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    of = list(relaxation.weights)
    for gradient, choices in zip(gradients(found, of), active, strict=True):
        others = [i for i in range(len(gradient)) if i not in choices]
        assert not gradient[others].any()


@pytest.mark.operators
def test_the_operator_does_without_inputs_that_are_not_read() -> None:
    space = CellSpace(2)
    networks, x = [supernet(space, compiled) for compiled in (False, True)], images()
    for read in (0, 1):
        node = ((read,), (read,), (0, 3, 4), (1, 2))
        relaxation = random_relaxation(space, active=node * 4)
        found = []
        for network in networks:
            logits = network.forward_relaxed(x, relaxation)
            found.append([logits, *gradients(logits, list(relaxation.weights))])  # type: ignore[arg-type]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.operators
@pytest.mark.grid
@pytest.mark.parametrize("device", DEVICES)
def test_the_operator_gives_the_numbers_of_plain_pytorch(device: str) -> None:
    space = CellSpace(2)
    x, found = images().to(device), []
    for compiled in (False, True):
        network = supernet(space, compiled).to(device)
        weights = [w.detach().to(device).requires_grad_() for w in random_relaxation(space).weights]
        logits: Any = network.forward_relaxed(x, Relaxation(tuple(weights)))
        towards(logits).backward()
        of_weights = {str(v): w.grad for v, w in enumerate(weights)}
        found.append({"logits": logits, **of_weights, **gradients_by_name(network)})
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-9)


def test_active_choices_decide_what_runs() -> None:
    space = CellSpace(2)
    network, x = supernet(space), images()
    calls = Calls(network)
    network.forward_relaxed(x, random_relaxation(space))
    everything = calls.take()
    assert set(everything.values()) == {1}
    assert len(everything) == 3 * (5 * (2 + 3) + 2)

    # Slot 0 reads the newer input by operation 1 or 2, slot 1 by 2 or 3: together three edges.
    node = ((1,), (1,), (1, 2), (2, 3))
    network.forward_relaxed(x, random_relaxation(space, active=node * 4))
    ran = calls.take()
    assert set(ran.values()) == {1}
    assert not [name for name in ran if name.endswith("older") or "input0" in name]
    assert sorted(name for name in ran if name.startswith("cells.0.operations.node1")) == [
        f"cells.0.operations.node1_input1_{name}"
        for name in ("avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3")
    ]
    assert len(ran) == 3 * (1 + 2 * 3)


def test_derivatives_by_the_weights_of_choices(compiled: bool) -> None:
    space = CellSpace(2, ("identity", "avg_pool_3x3", "sep_conv_3x3"))
    network, x = supernet(space, compiled, channels=2), images(2, 4)
    weights = random_relaxation(space).weights

    def run(*given: Tensor) -> Any:
        return network.forward_relaxed(x, Relaxation(given))

    assert torch.autograd.gradcheck(run, weights)


def _node_outputs(network: CellSupernet) -> list[list[Tensor]]:
    seen: list[list[Tensor]] = []
    first: Any = network.cells[0]
    first.output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    return seen


def test_node_is_the_expectation_of_nodes() -> None:
    """With probabilities for weights, over architectures whose variables are independent."""
    space = CellSpace(1, ("identity", "max_pool_3x3", "sep_conv_3x3"))
    network, x = supernet(space), images()
    seen = _node_outputs(network)
    relaxation = random_relaxation(space)
    with torch.no_grad():
        network.forward_relaxed(x, relaxation)
        found = seen.pop()[0]
        expected = torch.zeros_like(found)
        for values in itertools.product(*map(range, space.categories[:4])):
            probability = math.prod(
                w[i].item() for i, w in zip(values, relaxation.weights, strict=False)
            )
            network(x, [*values, 0, 0, 0, 0])
            expected += probability * seen.pop()[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_weight_in_the_output_is_the_probability_of_a_leaf() -> None:
    space = CellSpace(3, ("identity",))
    relaxation = random_relaxation(space)
    normal, reduction = cell_mixtures(space, relaxation)
    for kind, (mixture, first) in enumerate(((normal, 0), (reduction, 12))):
        expected = [0.0] * 3
        choices = [range(k) if v % 4 < 2 else range(1) for v, k in enumerate(space.categories[:12])]
        for values in itertools.product(*choices):
            architecture = [0] * 24
            architecture[first : first + 12] = values
            probability = math.prod(
                w[i].item()
                for i, w in zip(values, relaxation.weights[first : first + 12], strict=True)
            )
            for node in space.parse(architecture)[kind].leaf_nodes:
                expected[node] += probability
        assert expected[2] == pytest.approx(1)
        assert mixture.in_output == (0, 1, 2)
        assert mixture.output_weights is not None
        assert mixture.output_weights.tolist() == pytest.approx(expected)


def test_losses(compiled: bool) -> None:
    space = CellSpace(2)
    network, x = supernet(space, compiled, auxiliary=True, image_size=6), images(5)
    relaxation, labels = random_relaxation(space), torch.tensor([0, 1, 2, 1, 0])
    logits, auxiliary = network.forward_relaxed(x, relaxation)
    assert logits.shape == auxiliary.shape == (5, 3)
    network.eval()
    assert torch.equal(network.forward_relaxed(x, relaxation), logits)  # type: ignore[arg-type]
    weights = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    for given in (None, weights):
        loss, accuracy = network.relaxed_losses(x, labels, relaxation, given)
        assert loss.shape == accuracy.shape == ()
        torch.testing.assert_close(loss, F.cross_entropy(logits, labels, given))
        assert float(accuracy) == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    loss.backward()
    assert all(w.grad is not None and w.grad.any() for w in relaxation.weights)


def test_precision_of_weights_is_their_own() -> None:
    """bfloat16 feature maps stay so, and weights in single precision get such gradients."""
    space = CellSpace(2)
    torch.manual_seed(0)
    network, x = CellSupernet(space, **SETTINGS), images().float()
    weights = [w.detach().float() for w in random_relaxation(space).weights]
    for dtype in (torch.float32, torch.float64):
        relaxation = Relaxation(tuple(w.to(dtype, copy=True).requires_grad_() for w in weights))
        seen = _node_outputs(network)
        logits = network.forward_relaxed(x, relaxation)
        assert isinstance(logits, Tensor)
        assert logits.dtype == torch.float32
        assert all(y.dtype == torch.float32 for y in seen[0])
        full = logits.detach()
        with torch.autocast("cpu", torch.bfloat16):
            seen.clear()
            half: Any = network.forward_relaxed(x, relaxation)
        assert any(y.dtype == torch.bfloat16 for y in seen[0])
        half.float().sum().backward()
        assert all(w.grad is not None and w.grad.dtype == dtype for w in relaxation.weights)
        torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    "implementation", ["plain", pytest.param("auto", marks=pytest.mark.operators)]
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_task(precision: str, implementation: str) -> None:
    task = small.task(precision=precision, class_weights="balanced", implementation=implementation)
    torch.manual_seed(0)
    network = task.supernet()
    logits = [torch.zeros(k, requires_grad=True) for k in task.cell_space.categories]
    relaxation = Relaxation(tuple(v.softmax(0) for v in logits))
    batch = next(iter(task.theta_batches(0)))
    loss, metrics = task.relaxed_losses(network, batch, relaxation)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert metrics.keys() == {"accuracy"}
    assert 0 <= float(metrics["accuracy"]) <= 1
    loss.backward()
    assert all(v.grad is not None and v.grad.isfinite().all() for v in logits)
    tested = task.test_relaxed(network, relaxation)
    assert tested.keys() == task.test_supernet(network, task.space.decode([0] * 16)).keys()

    # With gates all of it is what the task says of the architecture; where the operator stays in
    # single precision, nearly.
    tolerance = 0.03 if precision == "bfloat16" and implementation == "auto" else 1e-4
    samples = small.optimizer(task).ask()
    architecture = samples.categorical[0]
    chosen = gates(task.cell_space, architecture)
    one_loss, _ = task.relaxed_losses(network, batch, chosen)
    losses, _ = task.losses(network, batch, samples)
    torch.testing.assert_close(one_loss, losses[0], rtol=tolerance, atol=0)
    of_one = task.test_relaxed(network, chosen)["loss"]
    of_other = task.test_supernet(network, task.space.decode(architecture))["loss"]
    assert of_one == pytest.approx(of_other, rel=tolerance)


def _weights() -> list[Tensor]:
    return [w.detach() for w in random_relaxation(CellSpace(1)).weights]


_ALL = tuple(tuple(range(k)) for k in CellSpace(1).categories)


@pytest.mark.parametrize(
    ("weights", "active", "error", "message"),
    [
        (3, None, TypeError, "weights must be a sequence of tensors, got 3"),
        ([[0.5, 0.5]], None, TypeError, r"weights\[0\] must be a floating-point tensor, got \[0"),
        ([torch.ones(2).long()], None, TypeError, r"weights\[0\] must be a floating-point tensor"),
        ([torch.ones(2, 2)], None, ValueError, r"weights\[0\] must have .* got shape \(2, 2\)"),
        ([torch.ones(0)], None, ValueError, r"weights\[0\] must have .* got shape \(0,\)"),
        (_weights(), 3, TypeError, "active must be a sequence of sequences of choices, got 3"),
        (_weights(), _ALL[1:], ValueError, "active must have the choices of 8 variables .* got 7"),
        (_weights(), (0, *_ALL[1:]), TypeError, r"active\[0\] must be a sequence of choices"),
        (_weights(), ((), *_ALL[1:]), ValueError, r"active\[0\] must be .* from 0 to 1, .* got \("),
        (_weights(), ((0, 2), *_ALL[1:]), ValueError, r"active\[0\] must be different choices"),
        (_weights(), ((1, 1), *_ALL[1:]), ValueError, r"active\[0\] must be different choices"),
        (_weights(), ((0.0,), *_ALL[1:]), ValueError, r"active\[0\] .* at least one, got \(0.0"),
    ],
)
def test_no_relaxations(weights: Any, active: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Relaxation(weights, active)


def test_relaxations_of_other_spaces() -> None:
    network, x = supernet(CellSpace(1)), images()
    with pytest.raises(ValueError, match="weights of 8 variables, got those of 16"):
        network.forward_relaxed(x, random_relaxation(CellSpace(2)))
    wrong = [*_weights()[:2], torch.ones(4), *_weights()[3:]]
    with pytest.raises(
        ValueError, match=r"weights\[2\] \(normal/node0/operation0\) must have shape \(5,\).* \(4,"
    ):
        network.forward_relaxed(x, Relaxation(tuple(wrong)))
    with pytest.raises(TypeError, match="relaxation must be a Relaxation, got "):
        network.forward_relaxed(x, _weights())  # type: ignore[arg-type]


@pytest.mark.operators
def test_weights_stay_where_they_are() -> None:
    """A supernet that has run a mixture has the weights, and the state, of one that has not; and a
    copy of it has its own."""
    space = CellSpace(2)
    network, x = supernet(space, compiled=True), images()
    before = dict(network.state_dict())
    relaxation = random_relaxation(space)
    found: Any = network.forward_relaxed(x, relaxation)
    assert network.state_dict().keys() == before.keys() == supernet(space).state_dict().keys()
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1)
    assert not torch.allclose(network.forward_relaxed(x, relaxation), found)  # type: ignore[arg-type]
    torch.testing.assert_close(copied.forward_relaxed(x, relaxation), found)
