"""Nodes by themselves, for cells of any topology."""

from __future__ import annotations

import pytest
import torch
from mixed_node_samples import run

from asng_ext import ops
from asng_ext.nn import MixedNode
from asng_ext.ops import reference

pytestmark = pytest.mark.operators


@pytest.mark.parametrize("stride", [1, 2])
def test_a_node_is_that_of_the_reference(stride: int) -> None:
    torch.manual_seed(0)
    node = MixedNode(6, inputs=3, stride=stride).double()
    bank = torch.randn(3, 2, 4, 7, 6, 6, dtype=torch.float64, requires_grad=True)
    inputs, operations = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.tensor([[3, 4, 0], [1, 2, 4]])

    def function(bank: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        return node(bank, inputs, operations)

    def expected(bank: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        return reference.mixed_node(bank, inputs, operations, node.weights(), stride)

    weights = [weight for weight in node.weights() if weight is not None]
    assert len(weights) == len(list(node.parameters()))
    args = (bank, inputs, operations, weights)
    for got, wanted in zip(run(function, *args), run(expected, *args), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_nodes_make_cells_of_another_topology() -> None:
    """A chain of two nodes, the first halved, on one input."""
    first, second = MixedNode(4, 1, stride=2), MixedNode(4, 2)
    x = torch.randn(1, 1, 2, 8, 8, 4)
    one, both = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[0, 1]])
    hidden = first(x, one, one)
    out = second(torch.stack((hidden, hidden.flip(2))), both, both + 3)
    assert out.shape == (1, 2, 4, 4, 4)
    out.sum().backward()
    assert all(p.grad is not None for p in second.parameters())


def test_without_the_operators_it_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    node, bank = MixedNode(3, 1), torch.randn(1, 1, 2, 5, 5, 3)
    index = torch.zeros(1, 1, dtype=torch.int64)
    monkeypatch.setattr("asng_ext.ops._libraries.available", lambda: False)
    got = node(bank, index, index + 4)
    assert torch.equal(got, reference.mixed_node(bank, index, index + 4, node.weights()))


def test_names_of_weights_and_bad_arguments() -> None:
    node = MixedNode(2, 1, 2)
    assert tuple(dict(node.named_parameters())) == ops.NodeWeights._fields
    assert repr(node) == "MixedNode(channels=2, inputs=1, stride=2)"
    for args, match in (
        ((0, 1), "channels must be at least 1, got 0"),
        ((1, 1, 2), "channels must be at least 2, got 1"),
        ((2, 0), "inputs must be at least 1, got 0"),
        ((2, 1, 3), "stride must be 1 or 2, got 3"),
    ):
        with pytest.raises(ValueError, match=match):
            MixedNode(*args)
