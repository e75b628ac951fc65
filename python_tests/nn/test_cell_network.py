"""Supernet and derived network of the cell space against recorded numbers and each other."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext.nn import CellNetwork, CellSpace, CellSupernet, parameter_count, widest_channels
from asng_ext.nn.operations import OPERATIONS

GOLDEN = Path(__file__).parent.parent / "golden"
COUNTS = json.loads((GOLDEN / "cell_parameter_counts.json").read_text())
SPACE = CellSpace()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_architecture(space: CellSpace, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    return [int(generator.integers(k)) for k in space.categories]


def uniform_architecture(space: CellSpace, operation: str) -> list[int]:
    """Random inputs, the same operation everywhere."""
    values = random_architecture(space, 0)
    index = OPERATIONS.index(operation)
    return [index if k % 4 >= 2 else value for k, value in enumerate(values)]


def parameter_name(role: str) -> str:
    """Name of the parameter that plays a role in the golden file."""
    name = re.sub(r"^cell(\d+)/", r"cells.\1.", role)
    name = re.sub(r"(node\d)/(input\d)/(\w+)/", r"operations.\1_\2_\3.", name)
    name = name.replace("stem/bn_", "stem.norm.").replace("/", ".")
    return name if name.endswith(("weight", "bias")) else f"{name}.weight"


# ------------------------------------------------------------------------------------ recorded


@pytest.fixture(scope="module")
def golden() -> tuple[CellSupernet, dict[str, Any]]:
    with np.load(GOLDEN / "cell_network.npz") as file:
        data = {key: file[key] for key in file.files}
    supernet = CellSupernet(SPACE, cells=int(data["cells"]), channels=int(data["channels"]))
    weights = {
        parameter_name(key.removeprefix("w/")): torch.from_numpy(value)
        for key, value in data.items()
        if key.startswith("w/")
    }
    supernet.load_state_dict(weights)
    return supernet.double(), data


@pytest.mark.parametrize("row", range(10))
def test_recorded_outputs_and_gradients(
    golden: tuple[CellSupernet, dict[str, Any]], row: int
) -> None:
    supernet, data = golden
    supernet.zero_grad()
    logits = supernet(torch.from_numpy(data["x"]).double(), data["architectures"][row])
    loss = F.cross_entropy(logits, torch.from_numpy(data["target"]))
    loss.backward()
    np.testing.assert_allclose(logits.detach().numpy(), data["logits"][row], rtol=1e-6, atol=1e-9)
    assert loss.item() == pytest.approx(data["loss"][row], rel=1e-6)
    norms = json.loads(str(data["grad_norms"]))[str(row)]
    expected = {parameter_name(role): norm for role, norm in norms.items()}
    found = {n: p.grad.norm().item() for n, p in supernet.named_parameters() if p.grad is not None}
    assert found == pytest.approx(expected, rel=1e-6)


def test_size_of_the_search_network() -> None:
    assert parameter_count(CellSupernet(SPACE, auxiliary=True), auxiliary=True) == 2_274_052


@pytest.mark.parametrize("row", range(len(COUNTS)))
def test_recorded_parameter_counts(row: int) -> None:
    case = COUNTS[row]
    with torch.device("meta"):
        network = CellNetwork(
            SPACE, case["architecture"], cells=case["cells"], channels=case["channels"]
        )
    without = parameter_count(network)
    assert without == case["parameters_without_auxiliary"]
    assert parameter_count(network, auxiliary=True) - without == case["auxiliary"]


# ------------------------------------------------------------------------------------ supernet


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_alone(operation: str) -> None:
    space = CellSpace(2, OPERATIONS)
    supernet = CellSupernet(space, cells=3, channels=4)
    supernet(torch.randn(2, 3, 8, 8), uniform_architecture(space, operation)).sum().backward()
    used = {n for n, p in supernet.named_parameters() if ".operations." in n and p.grad is not None}
    assert all(f"_{operation}." in name for name in used)
    # Identities have weights in the reduction cells, pools nowhere.
    assert bool(used) == ("pool" not in operation)


@pytest.mark.parametrize("nodes", [1, 2, 5])
@pytest.mark.parametrize("cells", [3, 4, 8])
@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_nodes_cells_and_channels(nodes: int, cells: int, channels: int) -> None:
    space = CellSpace(nodes)
    supernet = CellSupernet(space, 7, cells, channels, in_channels=2, stem_multiplier=2)
    network = CellNetwork(
        space, random_architecture(space, 1), 7, cells, channels, 2, 2, auxiliary=False
    )
    x = torch.randn(2, 2, 8, 8)
    assert supernet(x, random_architecture(space, 1)).shape == (2, 7)
    assert network(x).shape == (2, 7)


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (9, 10), (5, 6), (29, 3)])
def test_any_image_size(size: tuple[int, int]) -> None:
    space = CellSpace(3)
    supernet = CellSupernet(space, cells=6, channels=4)
    for seed in range(4):
        logits = supernet(torch.randn(2, 3, *size), random_architecture(space, seed))
        assert logits.shape == (2, 10)
        assert bool(logits.isfinite().all())


def test_memory_format_of_the_images_does_not_matter() -> None:
    supernet = CellSupernet(SPACE, cells=3, channels=8).double()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    architecture = random_architecture(SPACE, 3)
    expected = supernet(x, architecture)
    torch.testing.assert_close(
        supernet(x.contiguous(memory_format=torch.channels_last), architecture), expected
    )
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(supernet(strided, architecture), expected)


def test_weights_and_activations_are_channels_last() -> None:
    supernet = CellSupernet(SPACE, cells=3, channels=8)
    assert supernet.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []

    def check(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.dim() == 4:
            seen.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in supernet.modules():
        if not list(module.children()):
            module.register_forward_hook(check)
    for seed in range(3):
        supernet(torch.randn(2, 3, 10, 10), random_architecture(SPACE, seed))
    assert len(seen) > 50
    assert all(seen)


def test_a_pass_leaves_no_trace_and_modes_agree() -> None:
    supernet = CellSupernet(SPACE, cells=3, channels=4)
    assert not list(supernet.buffers())
    x, architecture = torch.randn(4, 3, 8, 8), random_architecture(SPACE, 5)
    before = copy.deepcopy(supernet.state_dict())
    trained = supernet.train()(x, architecture)
    evaluated = supernet.eval()(x, architecture)
    assert torch.equal(trained, evaluated)
    assert all(torch.equal(before[k], v) for k, v in supernet.state_dict().items())


def test_equal_edges_of_a_node_share_one_module() -> None:
    space = CellSpace(1)
    architecture = [1, 1, 3, 3, 0, 0, 4, 4]
    supernet = CellSupernet(space, cells=3, channels=4)
    operation = supernet.cells[0].operations["node0_input1_sep_conv_3x3"]
    calls: list[Tensor] = []
    operation.register_forward_hook(lambda module, inputs, output: calls.append(output))
    supernet(torch.randn(2, 3, 8, 8), architecture)
    assert len(calls) == 1
    network = CellNetwork(space, architecture, cells=3, channels=4, auxiliary=False)
    assert len(network.cells[0].operations) == 1


def test_weights_follow_the_seed() -> None:
    networks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        networks.append(CellSupernet(CellSpace(1), cells=3, channels=2).stem.conv.weight)
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])


# ----------------------------------------------------------------------------- derived network


@pytest.mark.parametrize("seed", range(3))
def test_network_with_inherited_weights_equals_the_supernet(seed: int) -> None:
    architecture = random_architecture(SPACE, seed)
    supernet = CellSupernet(SPACE, cells=4, channels=4).double()
    network = CellNetwork(SPACE, architecture, cells=4, channels=4, auxiliary=False).double()
    network.inherit_weights(supernet)
    x = torch.randn(3, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(network(x), supernet(x, architecture))
    with torch.no_grad():
        supernet.stem.conv.weight.zero_()
    assert bool((network.stem.conv.weight != 0).any())
    with pytest.raises(ValueError, match="supernet must have the settings of the network"):
        network.inherit_weights(CellSupernet(SPACE, cells=4, channels=5))


def test_network_holds_only_what_it_uses() -> None:
    architecture = uniform_architecture(SPACE, "sep_conv_3x3")
    network = CellNetwork(SPACE, architecture, cells=3, channels=4).train()
    logits, auxiliary_logits = network(torch.randn(4, 3, 32, 32))
    (logits.sum() + auxiliary_logits.sum()).backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert not {name for name in idle if not re.match(r"cells\.\d+\.(older|newer)\.", name)}
    assert all(buffer.isfinite().all() for buffer in network.buffers())


def test_output_in_both_modes() -> None:
    network = CellNetwork(CellSpace(1), [0] * 8, 7, cells=3, channels=4)
    x = torch.randn(2, 3, 32, 32)
    logits, auxiliary_logits = network.train()(x)
    assert logits.shape == auxiliary_logits.shape == (2, 7)
    first, second = network.eval()(x[:1]), network(x)[:1]
    torch.testing.assert_close(first, second)  # running statistics: images do not interact


@pytest.mark.parametrize(
    ("image_size", "pool", "kernel"),
    [(32, 5, 2), (29, 5, 2), (28, None, 2), (8, None, 2), (4, None, 1)],
)
def test_auxiliary_head_fits_the_image(image_size: int, pool: int | None, kernel: int) -> None:
    network = CellNetwork(CellSpace(1), [0] * 8, cells=3, channels=4, image_size=image_size).train()
    head = network.auxiliary
    assert head is not None
    assert getattr(head.pool, "kernel_size", None) == pool
    assert head.conv1.kernel_size == (kernel, kernel)
    for size in (image_size, image_size + 5):
        assert network(torch.randn(2, 3, size, size))[1].shape == (2, 10)


def test_auxiliary_head_of_the_supernet() -> None:
    supernet = CellSupernet(CellSpace(1), cells=3, channels=4, auxiliary=True)
    x = torch.randn(2, 3, 32, 32)
    assert [y.shape for y in supernet.train()(x, [0] * 8)] == [(2, 10), (2, 10)]
    assert supernet.eval()(x, [0] * 8).shape == (2, 10)
    assert not list(supernet.buffers())


# ----------------------------------------------------------------------- precision and compiling


def test_bfloat16_autocast() -> None:
    x, target = torch.randn(4, 3, 32, 32), torch.randint(10, (4,))
    architecture = random_architecture(SPACE, 2)
    supernet = CellSupernet(SPACE, cells=3, channels=8)
    network = CellNetwork(SPACE, architecture, cells=3, channels=8, drop_path_rate=0.2).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = supernet(x, architecture)
        loss = F.cross_entropy(logits, target)
        loss = loss + sum(F.cross_entropy(y, target) for y in network(x))
    loss.backward()
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), supernet(x, architecture), rtol=0.1, atol=0.15)
    for parameter in (*supernet.parameters(), *network.parameters()):
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


def check_compiled(backend: str, auxiliary: bool, rates: Sequence[float] = ()) -> None:
    """Both pools, outputs and gradients of the weights; rates of drop-path make no new graph."""
    torch.compiler.reset()
    architecture = [0, 1, 3, 3, 0, 1, 2, 2]
    network = CellNetwork(
        CellSpace(1), architecture, cells=3, channels=4, image_size=8, auxiliary=auxiliary
    )
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x = torch.randn(4, 3, 8, 8)
    reference = copy.deepcopy(network)
    outputs = [run(x) if auxiliary else (run(x),) for run in (compiled, reference)]
    for got, expected in zip(*outputs, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    for output in outputs:
        sum(F.cross_entropy(y, torch.arange(4)) for y in output).backward()
    for (name, parameter), other in zip(network.named_parameters(), reference.parameters()):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-2, atol=1e-3)
    for rate in rates:
        network.drop_path_rate = rate
        assert [y.shape for y in compiled(x)] == [(4, 10), (4, 10)]


def test_compiles_to_one_graph() -> None:
    check_compiled("aot_eager", auxiliary=True, rates=(0.1, 0.2))


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    """Without the auxiliary head: the number of kernels decides how long it takes."""
    check_compiled("inductor", auxiliary=False)


# -------------------------------------------------------------------------- counting and errors


@pytest.mark.parametrize(
    ("row", "limit", "cells"),
    [(0, 4_000_000, 3), (10, 4_000_000, 5), (16, 4_000_000, 20), (16, 100_000, 3)],
)
def test_widest_channels(row: int, limit: int, cells: int) -> None:
    architecture = COUNTS[row]["architecture"]
    widest = widest_channels(SPACE, architecture, limit, cells=cells)

    def count(channels: int) -> int:
        with torch.device("meta"):
            network = CellNetwork(SPACE, architecture, cells=cells, channels=channels)
        return parameter_count(network)

    most = count(widest)
    assert most <= limit < count(widest + 1)
    if cells < 20:  # of the paper's size each takes a second
        assert widest_channels(SPACE, architecture, most, cells=cells) == widest


def test_widest_channels_of_a_limit_too_small() -> None:
    with pytest.raises(ValueError, match=r"limit must be at least \d+, what this .* got 100"):
        widest_channels(SPACE, [0] * 40, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cells": 2}, "cells must be at least 3, .*, got 2"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
        ({"in_channels": -1}, "in_channels must be at least 1, got -1"),
        ({"stem_multiplier": 0}, "stem_multiplier must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_wrong_settings(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CellSupernet(SPACE, **arguments)
    with pytest.raises(ValueError, match=message):
        CellNetwork(SPACE, [0] * 40, **arguments)


def test_wrong_architecture() -> None:
    with pytest.raises(ValueError, match="architecture must be one-dimensional with 40"):
        CellNetwork(SPACE, [0] * 39)
    with pytest.raises(ValueError, match=r"architecture\[39\] .* from 0 to 4, got 5"):
        CellSupernet(SPACE, cells=3, channels=1)(torch.randn(2, 3, 8, 8), [0] * 39 + [5])


def test_a_population_is_its_architectures_one_after_the_other() -> None:
    torch.manual_seed(0)
    space = CellSpace(2)
    supernet = CellSupernet(space, cells=3, channels=4, auxiliary=True, image_size=16)
    x = torch.randn(3, 3, 16, 16)
    rows = np.array([[0] * 16, [1, 1, 4, 3] * 4])
    logits, auxiliary = supernet.train().forward_population(x, rows)
    expected = [supernet(x, row) for row in rows]
    assert torch.equal(logits, torch.stack([pair[0] for pair in expected]))
    assert torch.equal(auxiliary, torch.stack([pair[1] for pair in expected]))
    assert torch.equal(supernet.eval().forward_population(x, rows), logits)
    with pytest.raises(ValueError, match="at least one architecture"):
        supernet.forward_population(x, rows[:0])
