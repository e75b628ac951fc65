"""The layers of autoencoders as CUDA devices compute them, there and on the CPU.

Where the operators for CUDA run on a grid on the CPU, their own kernel finishes the layers;
elsewhere PyTorch stands in for it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from autoencoders import (
    Case,
    assert_same,
    check_finite_differences,
    plain_decode,
    plain_encode,
    run,
    sample,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import Library

from asng_ext.nn import CaeCatSpace, CaeIntSpace, CaeSpace, CaeSupernet
from asng_ext.nn import autoencoder as layers
from asng_ext.ops import autoencoder as cae_ops

pytestmark = pytest.mark.skipif(not cae_ops.available(), reason="the operators are not built")

ON_GRID = bool(os.environ.get("ASNG_CUDA_ON_CPU"))
on_grid = pytest.mark.skipif(not ON_GRID, reason="needs ASNG_CUDA_ON_CPU")
SIZES = [(1, 1), (1, 9), (2, 3), (8, 8), (13, 10)]
HALF = [torch.bfloat16, torch.float16]


def plain_finish(y: Tensor, skipped: Tensor | None, relu: bool) -> None:
    if skipped is not None:
        y.add_(skipped)
    if relu:
        y.relu_()


@pytest.fixture
def twins() -> Iterator[None]:
    """The CPU computes the layers as a CUDA device does."""
    library = Library("asng", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        cae_ops._register_cuda(library, "cpu")
        if not ON_GRID:
            library.impl("_cae_finish", plain_finish, "CPU")
    yield
    library._destroy()


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu":
        request.getfixturevalue("twins")
    return str(request.param)


def to(device: str, case: Case) -> Any:
    return [t.to(device) if isinstance(t, Tensor) else t for t in case]


def on_cpu(tensors: list[Tensor]) -> list[Tensor]:
    return [t.cpu() for t in tensors]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_encode(kernel: int, stride: int, size: tuple[int, int], device: str) -> None:
    case = sample(size, (3, 5), kernel, stride)
    x, _, weight, _, _ = to(device, case)
    got = run(cae_ops.encode, [x, weight], stride)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert got[2].is_contiguous()
    assert_same(on_cpu(got), run(plain_encode, [case[0], case[2]], stride))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_decode(
    kernel: int, stride: int, size: tuple[int, int], skip: bool, relu: bool, device: str
) -> None:
    case = sample(size, (3, 5), kernel, stride)
    skipped, x, weight, _, _ = to(device, case)
    got = run(cae_ops.decode, [x, weight, skipped if skip else None], stride, size, relu)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    given = [case[1], case[2], case[0] if skip else None]
    assert_same(on_cpu(got), run(plain_decode, given, stride, size, relu))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_is_what_the_cpu_computes(kernel: int, stride: int) -> None:
    """Without the operators in between, and with them."""
    x, low, weight, _, size = sample((9, 6), (6, 4), kernel, stride)
    high, small = (t.permute(0, 2, 3, 1).contiguous() for t in (x, low))
    ops = torch.ops.asng
    expected = [
        ops.cae_encode(high, weight, stride),
        *ops._cae_encode_backward(small, small, high, weight, stride, True),
        ops.cae_decode(small, weight, high, stride, *size, False),
        *ops._cae_decode_backward(high, high, small, weight, stride, True),
        *ops._cae_decode_backward(high, None, small, weight, stride, False),
    ]
    library = Library("asng", "IMPL")
    if not ON_GRID:
        library.impl("_cae_finish", plain_finish, "CPU")
    try:
        got = [
            cae_ops._encode_cuda(high, weight, stride),
            *cae_ops._encode_backward_cuda(small, small, high, weight, stride, True),
            cae_ops._decode_cuda(small, weight, high, stride, *size, False),
            *cae_ops._decode_backward_cuda(high, high, small, weight, stride, True),
            *cae_ops._decode_backward_cuda(high, None, small, weight, stride, False),
        ]
    finally:
        library._destroy()
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_finite_differences(kernel: int, stride: int) -> None:
    check_finite_differences(kernel, stride)


@pytest.mark.usefixtures("twins")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(stride: int, dtype: torch.dtype) -> None:
    """With images of another type than the weight, as under autocast, too."""
    x, low, weight, _, size = sample((6, 5), (2, 3), 3, stride)
    high, small = (t.permute(0, 2, 3, 1).contiguous().to(dtype) for t in (x, low))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    checked = torch.library.opcheck
    ops = torch.ops.asng
    for relu, skipped in ((True, high), (False, None)):
        arguments = (small, weight, skipped, stride, *size, relu)
        checked(ops.cae_decode, arguments, test_utils=checks)
    checked(ops.cae_encode, (high, weight, stride), test_utils=checks)
    for wants_x in (True, False):
        checked(
            ops._cae_encode_backward,
            (small, small, high, weight, stride, wants_x),
            test_utils=checks,
        )
        checked(
            ops._cae_decode_backward,
            (high, high, small, weight, stride, wants_x),
            test_utils=checks,
        )
    if dtype == torch.float64:
        leaves = [t.requires_grad_() for t in (high, small, weight.detach())]
        checked(ops.cae_encode, (leaves[0], leaves[2], stride))
        checked(ops.cae_decode, (leaves[1], leaves[2], leaves[0], stride, *size, True))


@pytest.mark.parametrize("dtype", HALF)
def test_autocast(dtype: torch.dtype, device: str) -> None:
    """Images and convolutions in half precision, weights and their gradients not."""
    case = sample((12, 9), (16, 24), 3, 1, torch.float32)
    x, low, weight, stride, size = to(device, case)
    with torch.autocast(device, dtype):
        encoded = run(cae_ops.encode, [x, weight], stride)
        decoded = run(cae_ops.decode, [low, weight, x], stride, size)
        inner = cae_ops.decode(low.to(dtype), weight, x.to(dtype), stride, size)
        exact = cae_ops.encode(x.double(), weight.double())
    for got, expected in (
        (encoded, run(plain_encode, [case[0], case[2]], stride)),
        (decoded, run(plain_decode, [case[1], case[2], case[0]], stride, size)),
    ):
        assert got[0].dtype == dtype
        for a, b in zip(got[1:], expected[1:], strict=True):
            assert a.dtype == torch.float32  # these are leaves that autocast converts
            assert (a.cpu() - b).norm() < 0.05 * b.norm()
    assert torch.equal(inner, decoded[0])
    assert exact.dtype == torch.float64
    assert cae_ops.encode(x, weight).dtype == torch.float32


@pytest.mark.usefixtures("twins")
def test_the_weight_is_kept_and_no_copy_of_it() -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    bank = torch.randn(8, 8, 3, 3, requires_grad=True)
    x = torch.rand(1, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            out = cae_ops.encode(x, bank[:5, :4])
            cae_ops.decode(out, bank[:5, :4], x)
        out.float().sum().backward()
    of_bank = [t for t in kept if t.shape == (5, 4, 3, 3)]
    assert len(of_bank) == 2
    for t in of_bank:
        assert t.untyped_storage().data_ptr() == bank.untyped_storage().data_ptr()
    # Beside it, image and result of each layer.
    assert len(kept) == 6
    assert bank.grad is not None
    assert not bank.grad[5:].any()


def random_chain(space: CaeSpace, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    variables = space.search_space()
    draws = [int(torch.randint(n, (), generator=generator)) for n in variables.sizes]
    numbers = [
        v.low + (v.high - v.low) * float(torch.rand((), generator=generator))
        for v in variables.numerical.values()
    ]
    return space.decode(variables.decode(draws, numbers))


@pytest.mark.parametrize(
    "space",
    [CaeCatSpace(layers=6, channels=(3, 5, 8)), CaeIntSpace(layers=6, low=2, high=8)],
    ids=["cat", "int"],
)
def test_a_supernet_like_the_plain_one(
    space: CaeSpace, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers but those with 1×1 kernels take this way."""
    torch.manual_seed(0)
    plain = CaeSupernet(space).double()
    ours = CaeSupernet(space).double().to(device)
    ours.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 13, 10, dtype=torch.float64)
    for seed in range(8):
        chain = random_chain(space, seed)
        results = []
        for supernet, fuses in ((plain, False), (ours, True)):
            if device == "cpu":
                ways = _any_kernel if fuses else _never
                monkeypatch.setattr(layers, "_fuses", ways)
            supernet.zero_grad()
            out = supernet(x.to(next(supernet.parameters()).device), chain)
            out.square().mean().backward()
            grads = [p.grad.cpu() for p in supernet.parameters() if p.grad is not None]
            results.append([out.detach().cpu(), *grads])
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def _never(*_: Any) -> bool:
    return False


def _any_kernel(x: Tensor, weight: Tensor, *_: Any) -> bool:
    return weight.shape[2] in cae_ops.KERNELS


@pytest.mark.parametrize("available", [True, False])
def test_where_the_supernet_takes_this_way(
    available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA devices everywhere, but for 1×1 kernels and where the operators were not built."""
    monkeypatch.setattr(cae_ops, "cuda_available", lambda: available)
    with FakeTensorMode():
        for dtype in (torch.float32, torch.float64, *HALF):
            x = torch.empty(2, 3, 6, 6, device="cuda", dtype=dtype)
            for kernel in (1, 3, 5):
                weight = torch.empty(4, 3, kernel, kernel, device="cuda", dtype=dtype)
                for stride in (1, 2):
                    fuses = layers._fuses(x, weight, stride, x.shape[2:])
                    assert fuses == (available and kernel != 1)


# --------------------------------------------------------------------------- the kernel itself


def check_finish(device: str) -> None:
    for dtype in (torch.float32, torch.float64, *HALF):
        for count in (1, 7, 8, 33, 3 * 5 * 7 * 11):
            for offset in (0, 1):
                bank = torch.randn(2, count + offset, device=device).to(dtype)
                bank[0, offset] = torch.nan
                for skip in (True, False):
                    for relu in (True, False):
                        y, skipped = bank[0, offset:].clone(), bank[1, offset:]
                        expected = y + skipped if skip else y.clone()
                        expected = expected.relu() if relu else expected
                        torch.ops.asng._cae_finish(y, skipped if skip else None, relu)
                        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@on_grid
def test_the_kernel_finishes_layers() -> None:
    check_finish("cpu")


@pytest.mark.cuda
def test_the_kernel_finishes_layers_on_a_gpu() -> None:
    check_finish("cuda")


@on_grid
def test_the_kernel_checks_its_tensors() -> None:
    finish = torch.ops.asng._cae_finish
    y = torch.ones(2, 3)
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: finish(y.t(), None, True), "y must be contiguous"),
        (lambda: finish(y.int(), None, True), "y must be float32, float64, bfloat16 or float16"),
        (lambda: finish(y, y[:1], True), r"skipped must have shape \(2, 3\)"),
        (lambda: finish(y, y.half(), True), "skipped must have dtype"),
        (lambda: finish(y, y.view(3, 2).t(), True), "skipped must be contiguous"),
    ]
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()
    assert torch.equal(y, torch.ones(2, 3))
    empty = torch.empty(0, 3)
    finish(empty, empty.clone(), True)
    torch.library.opcheck(finish, (y, y.clone(), True))
    torch.library.opcheck(finish, (y, None, True))


# ------------------------------------------------------------------------------- on a device


@pytest.mark.cuda
@pytest.mark.parametrize("stride", [1, 2])
def test_a_gpu_agrees_with_the_cpu_in_single_precision(stride: int) -> None:
    case = sample((17, 14), (40, 24), 5, stride, torch.float32)
    x, low, weight, _, size = to("cuda", case)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        got = run(cae_ops.encode, [x, weight], stride)
        got += run(cae_ops.decode, [low, weight, x], stride, size, False)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    expected = run(cae_ops.encode, [case[0], case[2]], stride)
    expected += run(cae_ops.decode, [case[1], case[2], case[0]], stride, size, False)
    for a, b in zip(got, expected, strict=True):
        assert (a.cpu() - b).norm() < 1e-3 * b.norm()


@pytest.mark.cuda
def test_nobody_waits_for_the_device() -> None:
    x, low, weight, stride, size = to("cuda", sample((12, 9), (16, 24), 3, 2, torch.float32))
    for mode in ("default", "error"):  # libraries set themselves up in the first round
        torch.cuda.set_sync_debug_mode(mode)
        try:
            leaves = [t.detach().requires_grad_() for t in (x, low, weight)]
            with torch.autocast("cuda", torch.bfloat16):
                out = cae_ops.encode(leaves[0], leaves[2], stride)
                back = cae_ops.decode(leaves[1] + out, leaves[2], leaves[0], stride, size)
            torch.autograd.grad(back.float().sum(), leaves)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_other_devices_and_types_are_errors() -> None:
    x, _, weight, _, _ = to("cuda", sample(dtype=torch.float32))
    with pytest.raises(ValueError, match="weight must be on cuda"):
        cae_ops.encode(x, weight.cpu())
    with pytest.raises(TypeError, match="x must be float32, float64, bfloat16 or float16"):
        cae_ops.encode(x.int(), weight)
    with pytest.raises(TypeError, match=r"weight must be torch\.bfloat16"):
        cae_ops.encode(x.bfloat16(), weight)
