"""The operator of mixtures against plain PyTorch.

With ASNG_CUDA_ON_CPU set (see conftest.py) the CPU's operators are those for CUDA.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from devices import CUDA, DEVICES, GRID
from torch import Tensor

from asng_ext import _host, ops
from asng_ext.ops import reference
from asng_ext.ops._feature_maps import padded_channels
from asng_ext.training.cuda_graphs import CudaGraphs

pytestmark = [pytest.mark.operators, pytest.mark.grid]

# On a CUDA device `saved` holds places that nothing fills, which differ from call to call.
WITHOUT_GRAPHS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Where tensors are."""
    return str(request.param)


class Mixture(NamedTuple):
    inputs: list[Tensor]
    coefficients: Tensor
    edges: list[tuple[int, int, int]]
    weights: list[Tensor]
    nodes: int
    stride: int

    def to(self, dtype: torch.dtype) -> Mixture:
        def cast(x: Tensor) -> Tensor:
            return x.detach().to(dtype).requires_grad_()

        return self._replace(
            inputs=[cast(x) for x in self.inputs],
            coefficients=cast(self.coefficients),
            weights=[cast(x) for x in self.weights],
        )

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.inputs, self.coefficients, *self.weights]

    def with_tensors(self, tensors: Any) -> Mixture:
        count = len(self.inputs)
        return self._replace(
            inputs=list(tensors[:count]),
            coefficients=tensors[count],
            weights=list(tensors[count + 1 :]),
        )


def sample(
    edges: list[tuple[int, int, int]],
    channels: int = 5,
    size: tuple[int, int] = (6, 5),
    stride: int = 1,
    inputs: int = 2,
    batch: int = 3,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> Mixture:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=dtype)
        return drawn.to(device).requires_grad_()

    weights = []
    for _, i, number in edges:
        kind = _host.OPERATIONS[number]
        if kind.form == "separable":
            for _ in range(2):
                weights += [draw(channels, 1, kind.kernel, kind.kernel)]
                weights += [draw(channels, channels, 1, 1)]
        elif kind.form == "identity" and stride == 2 and i < inputs:
            odd = channels // 2
            weights += [draw(channels - odd, channels, 1, 1), draw(odd, channels, 1, 1)]
    return Mixture(
        [draw(batch, *size, channels) for _ in range(inputs)],
        draw(len(edges)),
        edges,
        weights,
        1 + max(node for node, _, _ in edges),
        stride,
    )


def padded(given: Mixture) -> Tensor:
    """The operator on feature maps of any number of channels."""
    channels = given.inputs[0].shape[-1]
    padding = padded_channels(channels) - channels
    maps = [F.pad(x, (0, padding)) for x in given.inputs]
    out = ops.mixture.mixture(maps, *given[1:])
    assert out.shape[-1] == channels + padding
    assert not out[..., channels:].any()
    return out[..., :channels]


def run(function: Any, given: Mixture) -> list[Tensor]:
    """The nodes, and all gradients of a scalar of them."""
    out = function(given)
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    grads = torch.autograd.grad((out * probe).sum(), given.tensors, materialize_grads=True)
    return [out, *grads]


def by_reference(given: Mixture) -> Tensor:
    return reference.mixture(*given)


def every_edge(nodes: int) -> list[tuple[int, int, int]]:
    return [
        (node, i, number)
        for node in range(nodes)
        for i in range(node + 2)
        for number in range(ops.OPERATION_COUNT)
    ]


def some_edges(nodes: int) -> list[tuple[int, int, int]]:
    """Two thirds of them, in no order."""
    edges = [edge for i, edge in enumerate(every_edge(nodes)) if i % 3]
    return edges[1::2] + edges[::2]


def check(given: Mixture, tolerance: float = 1e-10) -> None:
    for got, expected in zip(run(padded, given), run(by_reference, given), strict=True):
        # Of a single pixel or two, the variance is nearly nothing, and so is the precision.
        scale = 1 + expected.abs().max()
        torch.testing.assert_close(got / scale, expected / scale, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (1, 9), (2, 3), (33, 18)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", range(ops.OPERATION_COUNT))
def test_each_operation(operation: int, stride: int, size: tuple[int, int], device: str) -> None:
    check(sample([(0, 0, operation), (0, 1, operation)], 5, size, stride, device=device))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("nodes", [1, 2, 3])
@pytest.mark.parametrize("edges", [every_edge, some_edges])
def test_nodes(edges: Any, nodes: int, stride: int, device: str) -> None:
    check(sample(edges(nodes), 6, (7, 6), stride, device=device), 1e-9)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_batches_and_inputs(batch: int, device: str) -> None:
    edges = [(0, 0, 3), (0, 2, 0), (1, 3, 4), (1, 2, 2), (1, 1, 1)]
    check(sample(edges, 5, (6, 5), inputs=3, batch=batch, device=device))


@pytest.mark.parametrize("channels", [2, 3, 15, 16, 17, 33, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2])
def test_channels_and_precision(
    channels: int, dtype: torch.dtype, stride: int, device: str
) -> None:
    given = sample(every_edge(1), channels, (9, 8), stride, device=device)
    expected = run(by_reference, given)
    got = run(padded, given.to(dtype))
    # Where a number is close to 0, ReLU and max may decide otherwise in single precision, so there
    # a few gradients may differ: compare as a whole.
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).norm() / (b.norm() + 1) < (
            1e-10 if dtype == torch.float64 else 5e-3
        )


@pytest.mark.parametrize("stride", [1, 2])
def test_coefficients_of_any_sign(stride: int, device: str) -> None:
    """0 stops what flows through an edge, but not its own gradient."""
    given = sample(every_edge(2), 4, (6, 6), stride, device=device)
    values = torch.linspace(-1, 1, len(given.edges), dtype=torch.float64)
    values[::4] = 0
    given = given._replace(coefficients=values.to(device).requires_grad_())
    check(given)
    grads = run(padded, given)[1 + len(given.inputs)]
    assert grads.count_nonzero() == len(given.edges)


@pytest.mark.parametrize("operation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_pools_treat_ties_and_nan_as_pytorch_does(operation: int, stride: int, device: str) -> None:
    given = sample([(0, 0, operation)], 16, (7, 9), stride, inputs=1, device=device)
    tied = given.inputs[0].detach().round()
    check(given._replace(inputs=[tied.clone().requires_grad_()]))
    tied[1, 3, 4, 5] = torch.nan
    given = given._replace(inputs=[tied])
    torch.testing.assert_close(padded(given), by_reference(given), equal_nan=True)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride: int, device: str) -> None:
    edges = [(0, 0, 0), (0, 1, 3), (1, 2, 1), (1, 1, 2), (1, 2, 4)]
    given = sample(edges, 2, (4, 3), stride, batch=2, device=device)

    def function(*tensors: Tensor) -> Tensor:
        return padded(given.with_tensors(tensors))

    assert torch.autograd.gradcheck(function, given.tensors, atol=1e-4)


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(save: bool, stride: int, device: str) -> None:
    given = sample(some_edges(2), 16, (5, 6), stride, dtype=torch.float32, device=device)
    if not save:
        given = given.with_tensors([x.detach() for x in given.tensors])
    edges = [number for edge in given.edges for number in edge]
    args = (*given[:2], edges, *given[3:], save, False)
    kept = {"test_utils": WITHOUT_GRAPHS} if GRID or device == "cuda" else {}
    torch.library.opcheck(torch.ops.asng.mixture, args, **kept)


def test_what_is_not_used_has_a_gradient_of_zeros(device: str) -> None:
    given = sample([(0, 1, 3)], inputs=3, device=device)
    _, *grads = run(padded, given)
    assert not grads[0].any()
    assert grads[1].any()
    assert not grads[2].any()


def test_gradients_of_some_arguments_alone(device: str) -> None:
    given = sample(some_edges(2), 16, device=device)
    everything = run(padded, given)[1:]
    for wanted in (0, len(given.inputs), -1):
        tensors = [x.detach() for x in given.tensors]
        tensors[wanted].requires_grad_()
        alone = given.with_tensors(tensors)
        out = padded(alone)
        generator = torch.Generator().manual_seed(1)
        probe = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        (grad,) = torch.autograd.grad((out * probe).sum(), tensors[wanted])
        assert torch.equal(grad, everything[wanted])


def test_without_a_backward_pass_nothing_is_kept(device: str) -> None:
    given = sample(every_edge(3), 16, device=device)
    expected = padded(given)
    with torch.no_grad():
        out = padded(given)
        edges = [number for edge in given.edges for number in edge]
        args = (given.inputs, given.coefficients, edges, given.weights, 3, 1, False, False)
        _, saved = torch.ops.asng.mixture(*args)
    assert saved.numel() == 0
    assert torch.equal(out, expected)


def test_non_contiguous_arguments(device: str) -> None:
    given = sample(some_edges(2), 16, device=device)
    other = given.with_tensors(
        [x.detach().transpose(0, -1).contiguous().transpose(0, -1) for x in given.tensors]
    )
    assert not all(x.is_contiguous() for x in other.tensors)
    assert torch.equal(ops.mixture.mixture(*other), ops.mixture.mixture(*given))


def test_compiled(device: str) -> None:
    given = sample(some_edges(2), 16, dtype=torch.float32, device=device)

    def step(given: Mixture) -> Tensor:
        maps = [torch.tanh(x) for x in given.inputs]
        return torch.relu(ops.mixture.mixture(maps, *given[1:])) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled, given), run(step, given), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_bfloat16_rounds_feature_maps_alone(stride: int, device: str) -> None:
    """Where autocast asks for it and the operators store it; ReLU and max may decide otherwise."""
    given = sample(some_edges(2), 16, (9, 8), stride, dtype=torch.float32, device=device)
    rounded = given._replace(inputs=[x.detach().bfloat16().float() for x in given.inputs])
    rounded = rounded.with_tensors([x.detach().requires_grad_() for x in rounded.tensors])
    half = rounded._replace(inputs=[x.bfloat16() for x in rounded.inputs])
    stores = GRID or device == "cuda"

    def function(given: Mixture) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            out = ops.mixture.mixture(*given)
        assert out.dtype == (torch.bfloat16 if stores else torch.float32)
        return out.float()

    probe = torch.randn(function(half).shape, generator=torch.Generator().manual_seed(1)).to(device)
    results = []
    for out in (function(half), ops.mixture.mixture(*rounded)):
        results.append([out, *torch.autograd.grad((out * probe).sum(), rounded.tensors)])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() <= (0.2 if stores else 5e-3) * (expected.norm() + 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_tf32_is_of_products_alone(stride: int, device: str, tf32: None) -> None:
    given = sample(every_edge(1), 64, (9, 8), stride, device=device)
    expected = run(by_reference, given)
    for got, wanted in zip(run(padded, given.to(torch.float32)), expected, strict=True):
        assert (got.double() - wanted).norm() < 0.05 * (wanted.norm() + 1)


def test_results_are_the_same_each_time(device: str) -> None:
    given = sample(every_edge(2), 20, (17, 16), 2, batch=8, dtype=torch.float32, device=device)
    first, second = (run(padded, given) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": []}, "inputs must not be empty"),
        ({"inputs": [torch.ones(3, 6, 5, 16), torch.ones(3, 6, 4, 16)]}, "must have shape"),
        ({"inputs": [torch.ones(3, 6, 5, 15)] * 2}, "must be a multiple of 16"),
        ({"inputs": [torch.ones(3, 6, 5, 32)] * 2}, "must have 16 channels for weights of 16"),
        ({"coefficients": torch.ones(2)}, r"coefficients must have shape \(3\), got \(2\)"),
        ({"coefficients": torch.ones(3).double()}, "coefficients must have dtype"),
        ({"edges": []}, "edges must be a node, an input and an operation"),
        (
            {"edges": [(0, 0, 3), (0, 1, 0), (2, 1, 1)]},
            "a node of edges must be from 0 to 1, got 2",
        ),
        (
            {"edges": [(0, 0, 3), (0, 2, 0), (1, 1, 1)]},
            "input of node 0 must be from 0 to 1, got 2",
        ),
        ({"edges": [(0, 0, 3), (0, 1, 6), (1, 1, 1)]}, "operation of edges .* 0 to 5, got 6"),
        ({"edges": [(0, 0, 3), (0, 1, 0), (0, 1, 0)]}, "must be different, got node 0, input 1"),
        ({"edges": [(0, 0, 3), (0, 1, 0), (0, 1, 1)]}, "edges must be some of every node"),
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"nodes": 10**15}, "edges must be some of every node"),
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
        ({"weights": [torch.ones(16, 1, 3, 3)]}, "weights must be 4 for these edges, got 1"),
        (
            {"weights": [torch.ones(16, 1, 5, 5)] * 4},
            r"weights\[0\] must have shape \(16, 1, 3, 3\)",
        ),
        ({"weights": [torch.ones(16, 1)] * 4}, "weights must have 4 dimensions, got 2"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str, device: str) -> None:
    given = sample([(0, 0, 3), (0, 1, 0), (1, 1, 1)], 16, dtype=torch.float32, device=device)

    def there(value: Any) -> Any:
        if isinstance(value, list):
            return [there(item) for item in value]
        return value.to(device) if isinstance(value, Tensor) else value

    with pytest.raises(RuntimeError, match=message):
        ops.mixture.mixture(*given._replace(**{k: there(v) for k, v in changes.items()}))


def test_more_edges_than_a_launch_takes(device: str) -> None:
    """On a CUDA device, where edges are parameters of kernels."""
    edges = every_edge(4)
    assert len(edges) > 64
    check(sample(edges, 3, (4, 5), batch=2, device=device), 1e-8)


@pytest.mark.parametrize("device", [CUDA])
def test_captured_in_a_graph(device: str) -> None:
    given = sample(every_edge(2), 16, (8, 8), 2, dtype=torch.float32, device=device)
    probe = torch.randn(padded(given).shape, generator=torch.Generator().manual_seed(1)).to(device)
    results: list[Tensor] = []

    def step() -> None:
        out = padded(given)
        results[:] = [out, *torch.autograd.grad((out * probe).sum(), given.tensors)]

    graphs = CudaGraphs(torch.device(device))
    graphs.run(step)
    expected = [x.clone() for x in results]
    replay = graphs.capture(step)
    replay()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
