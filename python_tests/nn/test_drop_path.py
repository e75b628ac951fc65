"""Drop-path in the network derived from the cell space."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from asng_ext.nn import CellNetwork, CellSpace
from asng_ext.nn.operations import FactorizedReduction, drop_path_factors


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def drop_path_network(operation: int) -> CellNetwork:
    """Every node is twice the newer input through one operation."""
    architecture = [1, 1, operation, operation] * 2
    return CellNetwork(CellSpace(1), architecture, cells=3, channels=4, auxiliary=False)


def test_drop_path_is_for_training_only() -> None:
    network = drop_path_network(3)
    x = torch.randn(8, 3, 8, 8)
    network.eval()
    expected = network(x)
    network.drop_path_rate = 0.9
    assert network.drop_path_rate == 0.9
    assert torch.equal(network(x), expected)


def test_drop_path_repeats_with_the_seed() -> None:
    network = drop_path_network(3).train()
    network.drop_path_rate = 0.5
    x = torch.randn(16, 3, 8, 8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(network(x))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_drop_path_draws_from_a_generator_of_its_own() -> None:
    network = drop_path_network(3).train()
    x = torch.randn(16, 3, 8, 8)
    kept = network(x)
    assert torch.equal(network(x, network.draw_drop_path(16)), kept)  # the rate is 0
    network.drop_path_rate = 0.5
    torch.manual_seed(1)
    expected = network(x)
    assert not torch.equal(expected, kept)
    network.generator = torch.Generator().manual_seed(1)
    state = torch.get_rng_state()
    factors = network.draw_drop_path(16)
    assert factors.shape == (16, 2 * len(network.cells))
    assert set(factors.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(network(x, factors), expected)
    assert not torch.equal(network(x, network.draw_drop_path(16)), expected)
    # The running statistics have moved: they decide in evaluation.
    factors = network.draw_drop_path(16)
    assert torch.equal(network.eval()(x, factors), network(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_drop_path_draws_rows_of_images() -> None:
    """So that ranks can divide them."""
    network = drop_path_network(3).train()
    network.drop_path_rate = 0.5
    x, factors = torch.randn(16, 3, 8, 8), network.draw_drop_path(16)
    changed = factors.clone()
    factors[5], changed[5] = 2, 0
    network.eval().training = True  # each image by itself
    different = (network(x, factors) != network(x, changed)).any(dim=1)
    assert different.tolist() == [i == 5 for i in range(16)]


def test_drop_path_keeps_the_expectation_of_a_node() -> None:
    network = drop_path_network(2).double()
    cell, architecture = network.cells[0], network.space.parse(network.architecture)[0]
    x = torch.randn(1, 12, 4, 4, dtype=torch.float64).expand(4000, -1, -1, -1)
    nodes: list[Tensor] = []
    cell.output.register_forward_pre_hook(lambda module, args: nodes.append(args[0][0]))
    cell(x, x, architecture)
    draws = torch.rand(2, 4000)
    cell(x, x, architecture, iter(drop_path_factors(draws, 0.4)))
    exact, dropped = nodes
    torch.testing.assert_close(dropped.mean(0), exact.mean(0), rtol=0.05, atol=0.05)
    # Each of the two equal edges is dropped by itself: none, one or both.
    pixel = exact[0].abs().argmax()
    ratio = (dropped.flatten(1)[:, pixel] / exact.flatten(1)[:, pixel] * 0.6).round(decimals=6)
    levels, counts = ratio.unique(return_counts=True)
    assert levels.tolist() == [0, 0.5, 1]
    frequencies = (counts / 4000).tolist()
    assert frequencies == pytest.approx([0.16, 0.48, 0.36], abs=0.04)


def test_drop_path_spares_identities_but_not_factorized_reductions() -> None:
    network = drop_path_network(0).train()
    cell = network.cells[0]
    architecture = network.space.parse(network.architecture)[0]
    x = torch.randn(4, 12, 4, 4)
    assert torch.equal(cell(x, x, architecture, iter(())), cell(x, x, architecture))
    assert isinstance(network.cells[1].operations["node0_input1_identity"], FactorizedReduction)
    x = torch.randn(64, 3, 8, 8)
    expected = network(x)
    network.drop_path_rate = 0.5
    assert not torch.allclose(network(x), expected)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_wrong_drop_path_rate(rate: float) -> None:
    network = drop_path_network(0)
    with pytest.raises(ValueError, match=f"drop_path_rate must be at least 0 .*, got {rate}"):
        network.drop_path_rate = rate
    with pytest.raises(ValueError, match="drop_path_rate must be"):
        CellNetwork(CellSpace(1), [0] * 8, cells=3, drop_path_rate=rate)


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_changing_drop_path_rate_does_not_recompile(generator: torch.Generator | None) -> None:
    torch.compiler.reset()
    network = drop_path_network(0)
    network.generator = generator
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network, fullgraph=True, backend=count)
    for rate in (0.0, 0.1, 0.2, 0.3):
        network.drop_path_rate = rate
        compiled(torch.randn(2, 3, 8, 8), compiled.draw_drop_path(2))
    assert len(graphs) == 1
