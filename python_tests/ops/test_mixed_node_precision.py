"""Precision of the compiled operators: autocast, images in bfloat16, and TF32.

On the CPU there is neither of the latter; see test_ops.py for how the operators for CUDA run there.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mixed_node_samples import GRID, run, sample

from asng_ext import ops
from asng_ext.ops import reference as reference_ops

pytestmark = pytest.mark.skipif(not ops.available(), reason="the operators are not built")

CUDA_DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not GRID, reason="for CUDA devices")),
    pytest.param("cuda", marks=pytest.mark.cuda),
]
"""Where the operators are those for CUDA."""


@pytest.mark.skipif(GRID, reason="the operators are those for CUDA")
def test_autocast_on_the_cpu_computes_in_single_precision() -> None:
    bank, weights = sample(16, dtype=torch.float32)
    args = tuple(torch.tensor(i) for i in ([[0, 1], [2, 2]], [[3, 4], [4, 0]]))
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.mixed_node(bank.bfloat16(), *args, weights)
    assert out.dtype == torch.float32
    torch.testing.assert_close(
        out, ops.mixed_node(bank.bfloat16().float(), *args, weights), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(TypeError, match="bank must be float32 or float64 on cpu"):
        ops.mixed_node(bank.bfloat16(), *args, weights)


@pytest.mark.parametrize("device", CUDA_DEVICES)
def test_autocast_on_cuda_devices_stores_images_as_bfloat16(device: str) -> None:
    bank, weights = sample(16, dtype=torch.float32, device=device)
    args = tuple(torch.tensor(i, device=device) for i in ([[0, 1], [2, 2]], [[3, 4], [4, 0]]))
    narrow = ops.NodeWeights(*(w.bfloat16() for w in weights))
    single = ops.mixed_node(bank, *args, weights)
    with torch.autocast(device, torch.bfloat16):
        out = ops.mixed_node(bank, *args, weights)
        from_narrow = ops.mixed_node(bank.bfloat16(), *args, narrow)
    assert out.dtype == from_narrow.dtype == torch.bfloat16
    assert torch.equal(out, ops.mixed_node(bank.bfloat16(), *args, weights))
    wide = ops.NodeWeights(*(w.float() for w in narrow))
    assert torch.equal(from_narrow, ops.mixed_node(bank.bfloat16(), *args, wide))
    with torch.autocast(device, torch.float16):
        half = ops.mixed_node(bank.half(), *args, weights)
    assert half.dtype == torch.float32
    assert torch.equal(half, ops.mixed_node(bank.half().float(), *args, weights))
    with torch.autocast(device, torch.bfloat16):
        bank, weights = (bank.double(), ops.NodeWeights(*(w.double() for w in weights)))
        assert ops.mixed_node(bank, *args, weights).dtype == torch.float64
    torch.testing.assert_close(out.float(), single, rtol=0, atol=0.1)


@pytest.mark.parametrize("device", CUDA_DEVICES)
def test_bfloat16_images_have_gradients(device: str) -> None:
    bank, weights = sample(20, (9, 8), 3, dtype=torch.float32, device=device)
    bank = bank.detach().bfloat16().requires_grad_()
    args = tuple(
        torch.tensor(rows, device=device)
        for rows in ([[0, 1], [2, 2], [1, 0]], [[3, 4], [1, 2], [0, 3]])
    )
    got = run(ops.mixed_node, bank, *args, weights, 2)
    exact = [t.detach().double().requires_grad_() for t in (bank, *weights)]
    expected = run(reference_ops.mixed_node, exact[0], *args, ops.NodeWeights(*exact[1:]), 2)
    for tensor, a, b in zip((None, bank, *weights), got, expected, strict=True):
        assert a.dtype == (torch.bfloat16 if tensor is None else tensor.dtype)
        # See csrc/tests/test_cuda_precision.cpp for what three rounded images may do.
        assert (a.double() - b).norm() <= (0.007 if tensor is None else 0.11) * b.norm()
    with pytest.raises(TypeError, match=r"depthwise3 must be torch\.float32 with"):
        ops.mixed_node(bank, *args, ops.NodeWeights(*(w.bfloat16() for w in weights)), 2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("device", CUDA_DEVICES)
def test_opcheck_of_bfloat16(stride: int, device: str) -> None:
    bank, weights = sample(16, (5, 6), dtype=torch.float32, device=device)
    bank = bank.detach().bfloat16().requires_grad_()
    index = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32, device=device)
    reduction = weights.reduction if stride == 2 else bank.new_empty(0, dtype=torch.float32)
    torch.library.opcheck(
        torch.ops.asng.mixed_node,
        (bank, index, index, [*weights[:4], reduction], stride, True, False),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    kinds = torch.tensor([[3, 4], [4, 3]], dtype=torch.int32, device=device)
    torch.library.opcheck(
        torch.ops.asng.mixed_node,
        (bank, index, kinds, [*weights[:4], reduction], stride, True, False),
    )
    images = torch.randn(3, 4, 5, 3, device=device).bfloat16()
    stem = [
        torch.randn(*n, device=device, requires_grad=True) for n in ((20, 3, 3, 3), (20,), (20,))
    ]
    torch.library.opcheck(torch.ops.asng.stem, (images, *stem, False))


@pytest.fixture
def tf32() -> Iterator[None]:
    """PyTorch allows TF32 for convolutions."""
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = False


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("device", CUDA_DEVICES)
def test_tf32_where_pytorch_allows_it(device: str) -> None:
    bank, weights = sample(32, (9, 8), 3, batch=12, dtype=torch.float32, device=device)
    args = tuple(
        torch.tensor(rows, device=device)
        for rows in ([[0, 1], [2, 2], [1, 0]], [[3, 4], [1, 2], [0, 3]])
    )
    allowed = run(ops.mixed_node, bank, *args, weights, 2)
    torch.backends.cudnn.allow_tf32 = False
    forbidden = run(ops.mixed_node, bank, *args, weights, 2)
    exact = [t.detach().double().requires_grad_() for t in (bank, *weights)]
    expected = run(reference_ops.mixed_node, exact[0], *args, ops.NodeWeights(*exact[1:]), 2)
    # TF32 has a 10-bit mantissa: rounded to the nearest a factor is off by at most 2⁻¹¹ of itself,
    # a product of two by 2⁻¹⁰. Sums of random terms and normalizations pass relative errors on as
    # they are, and those of two products in a row add up in squares. Gradients are off by as much
    # again; and an error δ of ReLU's argument turns the sign of 2δ/π of those that it lets pass,
    # which changes the norm by the square root of that, in front of either product.
    forward = 2**0.5 * 2**-10
    backward = 2 * forward + math.sqrt(2 * 2 * forward / math.pi)
    bounds = (forward, *6 * [backward])
    for a, b, c, bound in zip(allowed, forbidden, expected, bounds, strict=True):
        assert not torch.equal(a, b)
        assert (a.double() - c).norm() <= bound * c.norm()
        assert (b.double() - c).norm() <= 2e-3 * c.norm()
    double = run(ops.mixed_node, exact[0], *args, ops.NodeWeights(*exact[1:]), 2)
    torch.backends.cudnn.allow_tf32 = True
    again = run(ops.mixed_node, exact[0], *args, ops.NodeWeights(*exact[1:]), 2)
    assert all(torch.equal(a, b) for a, b in zip(double, again, strict=True))


@pytest.mark.usefixtures("tf32")
@pytest.mark.skipif(GRID, reason="the operators are those for CUDA")
def test_tf32_is_nothing_to_a_cpu() -> None:
    bank, weights = sample(16, dtype=torch.float32)
    args = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [4, 0]]), weights)
    allowed = run(ops.mixed_node, bank, *args)
    torch.backends.cudnn.allow_tf32 = False
    for a, b in zip(allowed, run(ops.mixed_node, bank, *args), strict=True):
        assert torch.equal(a, b)


def test_every_way_to_allow_tf32_is_followed(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from asng_ext.ops.cell import allows_tf32\n"
        "seen = [allows_tf32()]\n"
        "torch.backends.cudnn.allow_tf32 = False\n"
        "seen.append(allows_tf32())\n"
        "torch.backends.fp32_precision = 'tf32'\n"
        "seen.append(allows_tf32())\n"
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'\n"
        "seen.append(allows_tf32())\n"
        "torch.backends.cudnn.conv.fp32_precision = 'tf32'\n"
        "seen.append(allows_tf32())\n"
        "assert seen == [True, False, True, False, True], seen\n"
    )
    command = [sys.executable, "-c", code]
    # Elsewhere than among the sources, where the package has no compiled parts.
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("device", CUDA_DEVICES)
def test_opcheck_with_tf32(device: str) -> None:
    bank, weights = sample(16, (5, 6), dtype=torch.float32, device=device)
    index = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32, device=device)
    kinds = torch.tensor([[3, 4], [4, 3]], dtype=torch.int32, device=device)
    torch.library.opcheck(
        torch.ops.asng.mixed_node, (bank, index, kinds, list(weights), 1, True, True)
    )
