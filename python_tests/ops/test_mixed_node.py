"""The compiled operators against plain PyTorch.

With ASNG_CUDA_ON_CPU set (see conftest.py) the CPU's operators are those for CUDA.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mixed_node_samples import GRID, run, sample

from asng_ext import ops
from asng_ext.ops import reference as reference_ops

pytestmark = pytest.mark.skipif(not ops.available(), reason="the operators are not built")


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    """Runs the test with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def check_operation(
    operation: int, stride: int, archs: int, size: tuple[int, int], device: str
) -> None:
    bank, weights = sample(5, size, archs, inputs=2, device=device)
    inputs = torch.arange(archs, device=device)[:, None] % 2
    operations = torch.full((archs, 1), operation, device=device)
    args = (inputs, operations, weights, stride)
    for got, expected in zip(
        run(ops.mixed_node, bank, *args), run(reference_ops.mixed_node, bank, *args), strict=True
    ):
        # Of a single pixel or two, the variance is nearly nothing, and so is the precision.
        scale = 1 + expected.abs().max()
        torch.testing.assert_close(got / scale, expected / scale, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (1, 9), (2, 3), (33, 18)])
@pytest.mark.parametrize("archs", [1, 2, 3, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", range(5))
def test_each_operation(
    operation: int, stride: int, archs: int, size: tuple[int, int], threads: int
) -> None:
    check_operation(operation, stride, archs, size, "cpu")


@pytest.mark.cuda
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (2, 3), (33, 18)])
@pytest.mark.parametrize("archs", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", range(5))
def test_each_operation_on_a_gpu(
    operation: int, stride: int, archs: int, size: tuple[int, int]
) -> None:
    check_operation(operation, stride, archs, size, "cuda")


@pytest.mark.parametrize("channels", [1, 2, 3, 15, 16, 17, 32, 33, 48, 64, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operations", [(3, 4), (0, 1), (2, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_channels_and_precision(
    channels: int, dtype: torch.dtype, operations: tuple[int, int], stride: int, device: str
) -> None:
    if channels == 1 and stride == 2:
        pytest.skip("a factorized reduction needs two channels")
    bank, weights = sample(channels, (9, 8), 2, dtype=torch.float64, device=device)
    args = tuple(
        torch.tensor(rows, device=device)
        for rows in ([[0, 1], [2, 2]], [operations, operations[::-1]])
    )
    expected = run(reference_ops.mixed_node, bank, *args, weights, stride)
    given = [t.detach().to(dtype).requires_grad_() for t in (bank, *weights)]
    got = run(ops.mixed_node, given[0], *args, ops.NodeWeights(*given[1:]), stride)
    # Where a number is close to 0, ReLU and max may decide otherwise in single precision, so there
    # a few gradients may differ: compare as a whole.
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        # One channel's normalization makes some gradients vanish, so compare those with 1.
        error = (a.double() - b).norm() / (b.norm() + 1)
        assert error < (1e-10 if dtype == torch.float64 else 2e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_an_edge_may_occur_twice(device: str) -> None:
    bank, weights = sample(device=device)
    inputs = torch.tensor([[1, 1, 1], [0, 0, 2]], device=device)
    args = (inputs, torch.tensor([[4, 4, 4], [0, 0, 2]], device=device), weights)
    for got, expected in zip(
        run(ops.mixed_node, bank, *args), run(reference_ops.mixed_node, bank, *args), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("operation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_pools_treat_ties_and_nan_as_pytorch_does(operation: int, stride: int, device: str) -> None:
    bank, weights = sample(16, (7, 9), 1, 1, device=device)
    tied = bank.detach().round()
    index = torch.zeros(1, 1, dtype=torch.int32, device=device)
    args = (index, index + operation, weights, stride)
    for got, expected in zip(
        run(ops.mixed_node, tied.clone().requires_grad_(), *args),
        run(reference_ops.mixed_node, tied.clone().requires_grad_(), *args),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    tied[0, 0, 1, 3, 4, 5] = torch.nan
    torch.testing.assert_close(
        ops.mixed_node(tied, *args), reference_ops.mixed_node(tied, *args), equal_nan=True
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(stride: int, device: str) -> None:
    bank, weights = sample(2, (4, 3), 2, 2, 2, device=device)
    inputs = torch.tensor([[0, 1], [1, 0]], device=device)
    operations = torch.tensor([[3, 0], [1, 4]], device=device)

    def function(bank: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return ops.mixed_node(bank, inputs, operations, ops.NodeWeights(*weights), stride)

    assert torch.autograd.gradcheck(function, (bank, *weights), atol=1e-4)


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(save: bool, device: str) -> None:
    bank, weights = sample(16, (5, 6), dtype=torch.float32, device=device)
    index = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32, device=device)
    if not save:
        bank, weights = bank.detach(), [weight.detach() for weight in weights]
    args = (bank, index, index, list(weights), 2, save, False)
    torch.library.opcheck(
        torch.ops.asng.mixed_node,
        args,
        # `saved` holds places that no sampled operation fills, which differ from call to call.
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_opcheck_with_a_graph() -> None:
    bank, weights = sample(16, (5, 6), dtype=torch.float32)
    index = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32)
    # Separable convolutions alone fill all of `saved`, so that all outputs can be compared.
    kinds = torch.tensor([[3, 4], [4, 3]], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.asng.mixed_node, (bank, index, kinds, list(weights), 1, True, False)
    )


@pytest.mark.parametrize(("channels", "size"), [(3, (5, 6)), (1, (1, 1)), (4, (2, 9)), (2, (8, 8))])
@pytest.mark.parametrize("device", DEVICES)
def test_stem(channels: int, size: tuple[int, int], device: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    images, weights = draw(3, *size, channels), (draw(20, channels, 3, 3), draw(20), draw(20))
    for weight in weights:
        weight.requires_grad_()
    got, _ = torch.ops.asng.stem(images, *weights, False)
    y = torch.nn.functional.conv2d(images.permute(0, 3, 1, 2), weights[0], padding=1)
    y = reference_ops.normalize(y) * weights[1][:, None, None] + weights[2][:, None, None]
    expected = y.permute(0, 2, 3, 1)
    torch.testing.assert_close(got[0, ..., :20], expected, rtol=1e-10, atol=1e-10)
    assert got[..., 20:].abs().max() == 0
    probe = draw(*expected.shape)
    for a, b in zip(
        torch.autograd.grad((got[0, ..., :20] * probe).sum(), weights),
        torch.autograd.grad((expected * probe).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.library.opcheck(torch.ops.asng.stem, (images, *weights, False))
    got, _ = torch.ops.asng.stem(images.requires_grad_(), *weights, False)
    with pytest.raises(RuntimeError, match="no gradient with respect to the images"):
        got.sum().backward()


def test_threads_do_not_change_a_bit() -> None:
    before = torch.get_num_threads()
    bank, weights = sample(20, (12, 13), 3, batch=11, dtype=torch.float32)
    args = (torch.tensor([[0, 1], [2, 2], [1, 0]]), torch.tensor([[3, 4], [4, 2], [1, 3]]))
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(run(ops.mixed_node, bank, *args, weights))
    torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_used_has_a_gradient_of_zeros(device: str) -> None:
    bank, weights = sample(inputs=3, device=device)
    index = torch.ones(2, 1, dtype=torch.int32, device=device)
    args = (index, index * 3)
    _, grad_bank, depthwise3, pointwise3, depthwise5, pointwise5, reduction = run(
        ops.mixed_node, bank, *args, weights
    )
    assert depthwise3[1].abs().min() > 0
    for unused in (grad_bank, depthwise3, pointwise3):
        assert unused[[0, 2]].abs().max() == 0
    for unused in (depthwise5, pointwise5, reduction):
        assert unused.abs().max() == 0


def test_without_a_backward_pass_nothing_is_kept() -> None:
    bank, weights = sample()
    args = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [4, 0]]), weights)
    expected = ops.mixed_node(bank, *args)
    with torch.no_grad():
        out = ops.mixed_node(bank, *args)
        padded = torch.nn.functional.pad(bank, (0, 11))
        index = args[0].int()
        _, saved = torch.ops.asng.mixed_node(
            padded, index, args[1].int(), list(weights), 1, False, False
        )
    assert not out.requires_grad
    assert saved.numel() == 0
    assert torch.equal(out, expected)


def test_non_contiguous_arguments() -> None:
    bank, weights = sample(16, (6, 7))
    args = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [4, 0]]))
    other = bank.detach().transpose(3, 4).contiguous().transpose(3, 4)
    turned = ops.NodeWeights(*(t.transpose(0, -1).contiguous().transpose(0, -1) for t in weights))
    assert not other.is_contiguous()
    torch.testing.assert_close(
        ops.mixed_node(other, *(a.t().contiguous().t() for a in args), turned),
        ops.mixed_node(bank, *args, weights),
    )


@pytest.mark.slow
def test_compiled() -> None:
    bank, weights = sample(16, dtype=torch.float32)
    args = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [4, 0]]), weights)

    def step(bank: torch.Tensor, *args: Any) -> torch.Tensor:
        return torch.relu(ops.mixed_node(torch.tanh(bank), *args)) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(run(compiled, bank, *args), run(step, bank, *args), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.cuda
def test_on_a_gpu_nobody_waits_and_bad_indices_give_nan() -> None:
    bank, weights = sample(16, dtype=torch.float32, device="cuda")
    index = torch.tensor([[0, 1], [2, 2]], device="cuda")
    operations = torch.tensor([[3, 4], [1, 0]], device="cuda")
    expected = run(ops.mixed_node, bank, index, operations, weights)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = ops.mixed_node(bank, index, operations, weights)
        out.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, expected[0])
    operations[0, 1] = 5
    out = ops.mixed_node(bank, index, operations, weights)
    assert out[0].isnan().all()
    assert torch.equal(out[1], expected[0][1])
    again = run(ops.mixed_node, bank, index, operations.clamp(max=4), weights)
    for a, b in zip(again, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {"inputs": torch.zeros(2, 2, dtype=torch.int, device="meta")},
            ValueError,
            "must be on cpu",
        ),
        ({"inputs": torch.tensor([[0, 3], [0, 0]])}, ValueError, r"inputs must be from 0 to 2.*3"),
        ({"inputs": torch.tensor([[0, -1], [0, 0]])}, ValueError, "inputs must be from 0"),
        ({"inputs": torch.tensor([0, 1])}, ValueError, r"inputs must have shape \(λ, E\)"),
        ({"inputs": torch.zeros(2, 2)}, TypeError, "inputs must be int32 or int64"),
        ({"operations": torch.full((2, 2), 5)}, ValueError, "operations must be from 0 to 4"),
        ({"operations": torch.zeros(3, 2, dtype=torch.int)}, ValueError, "operations must have"),
        ({"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
        ({"bank": torch.zeros(3, 2, 3, 6, 5)}, ValueError, "bank must have 6 dimensions"),
        ({"bank": torch.zeros(3, 2, 0, 6, 5, 5)}, ValueError, "none of them 0"),
        ({"bank": torch.zeros(3, 2, 3, 6, 5, 5).half()}, TypeError, "bank must be float32"),
        ({"bank": [1.0]}, TypeError, "bank must be a tensor"),
        ({"bank": torch.zeros(3, 2, 3, 6, 5, 5)}, TypeError, "weights.depthwise3 must be"),
        ({"bank": torch.zeros(3, 2, 3, 6, 5, 6).double()}, ValueError, "depthwise3 must have sh"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    bank, weights = sample()
    index = torch.tensor([[0, 1], [2, 2]])
    arguments = {"bank": bank, "inputs": index, "operations": index, "stride": 1, **change}
    with pytest.raises(error, match=match):
        ops.mixed_node(weights=weights, **arguments)


def test_the_operator_checks_for_itself() -> None:
    bank, weights = sample(16)
    good = torch.zeros(2, 1, dtype=torch.int32)
    call = torch.ops.asng.mixed_node
    out_of_range = [
        ((bank, good + 3, good), r"inputs\[0, 0\] must be from 0 to 2, got 3"),
        ((bank, good, good - 1), r"operations\[0, 0\] must be from 0 to 4, got -1"),
    ]
    if GRID:  # On a device nobody looks at them.
        for args, _ in out_of_range:
            assert call(*args, list(weights), 1, False, False)[0].isnan().all()
        out_of_range = []
    for args, match in [
        *out_of_range,
        ((bank, good.long(), good), "inputs must have dtype"),
        ((bank[..., :8].contiguous(), good, good), "multiple of 16"),
        ((bank.transpose(3, 4), good, good), "must be contiguous"),
        ((bank[:2].contiguous(), good, good), "depthwise3 must have shape"),
    ]:
        with pytest.raises((RuntimeError, ValueError), match=match):
            call(*args, list(weights), 1, True, False)
    with pytest.raises(RuntimeError, match="reduction is needed"):
        call(bank, good, good, [*weights[:4], bank.new_empty(0)], 2, True, False)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_lesser_instruction_sets_give_the_same_numbers(capability: str) -> None:
    if ops.capability() == "default":
        pytest.skip("there is only one")
    code = (
        "import torch, mixed_nodes as t; from asng_ext import ops\n"
        "from asng_ext.ops import reference as r\n"
        f"assert ops.capability() == {capability!r}, ops.capability()\n"
        "for c in (16, 64):\n"
        "    b, w = t.sample(c, (9, 10)); w = (w, 2)\n"
        "    a = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [2, 0]]), *w)\n"
        "    for x, y in zip(t.run(ops.mixed_node, b, *a), t.run(r.mixed_node, b, *a)):\n"
        "        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-8)\n"
    )
    environment = {**os.environ, "ASNG_CPU_CAPABILITY": capability}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(GRID, reason="the operators keep no memory")
def test_released_memory() -> None:
    bank, weights = sample(16)
    index = torch.zeros(2, 1, dtype=torch.int32)
    ops.mixed_node(bank, index, index, weights)
    assert ops.release_memory() > 0
    assert ops.release_memory() == 0
