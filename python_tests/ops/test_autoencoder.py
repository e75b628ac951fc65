"""The compiled layers of autoencoders against PyTorch's convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from autoencoders import (
    assert_same,
    check_finite_differences,
    plain_decode,
    plain_encode,
    run,
    sample,
)
from torch import Tensor

from asng_ext import ops
from asng_ext.ops import autoencoder as cae_ops

pytestmark = pytest.mark.skipif(not ops.available(), reason="the operators are not built")

SIZES = [(1, 1), (1, 9), (2, 3), (8, 8), (13, 10), (33, 18)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_encode(kernel: int, stride: int, size: tuple[int, int], threads: int) -> None:
    x, _, weight, _, _ = sample(size, (3, 5), kernel, stride)
    got = run(cae_ops.encode, [x, weight], stride)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert_same(got, run(plain_encode, [x, weight], stride))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_decode(kernel: int, stride: int, size: tuple[int, int], skip: bool, relu: bool) -> None:
    skipped, x, weight, _, _ = sample(size, (3, 5), kernel, stride)
    tensors = [x, weight, skipped if skip else None]
    assert_same(
        run(cae_ops.decode, tensors, stride, size, relu),
        run(plain_decode, tensors, stride, size, relu),
    )


@pytest.mark.parametrize("channels", [(1, 1), (3, 16), (16, 3), (17, 33), (32, 64), (65, 40)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_and_precision(channels: tuple[int, int], stride: int, dtype: torch.dtype) -> None:
    exact = sample((9, 8), channels, 5, stride)
    given = [t.to(dtype) if isinstance(t, Tensor) else t for t in exact]
    for function, plain, chosen in (
        (cae_ops.encode, plain_encode, (0, 2)),
        (cae_ops.decode, plain_decode, (1, 2, 0)),
    ):
        options = (stride,) if plain is plain_encode else (stride, (9, 8))
        # Without ReLU, which decides otherwise where a number is close to 0.
        if plain is plain_decode:
            options = (*options, False)
        got = run(function, [given[i] for i in chosen], *options)
        expected = run(plain, [exact[i] for i in chosen], *options)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == dtype
            error = (a.double() - b).norm() / (b.norm() + 1e-6)
            assert error < (1e-12 if dtype == torch.float64 else 1e-4)


def test_more_tiles_than_one_task_takes() -> None:
    """Several blocks of tiles, the last of them not full."""
    x, low, weight, _, size = sample((50, 43), (4, 6), 5, 1, batch=3)
    assert_same(run(cae_ops.encode, [x, weight]), run(plain_encode, [x, weight], 1))
    tensors = [low, weight, x]
    assert_same(run(cae_ops.decode, tensors, 1, size), run(plain_decode, tensors, 1, size))


def test_results_do_not_depend_on_threads() -> None:
    x, low, weight, _, size = sample((40, 37), (20, 24), 5, 2, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                run(cae_ops.encode, [x, weight], 2) + run(cae_ops.decode, [low, weight, x], 2, size)
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_any_strides() -> None:
    x, low, weight, stride, size = sample()
    expected = run(cae_ops.encode, [x, weight])
    spread = torch.zeros(2, 3, 14, 12, dtype=torch.float64)[:, :, ::2, ::2].copy_(x)
    turned = weight.transpose(2, 3).contiguous().transpose(2, 3)
    assert turned.stride() != weight.stride()
    for images in (x.contiguous(), spread):
        assert_same(run(cae_ops.encode, [images, turned]), expected, 0.0)
    tensors = [low.contiguous(memory_format=torch.channels_last), weight, x]
    others = [low.contiguous(), turned, spread]
    assert_same(
        run(cae_ops.decode, others, stride, size), run(cae_ops.decode, tensors, stride, size), 0.0
    )


def test_gradients_of_any_strides() -> None:
    """A compiled graph may hand over others than it was traced with."""
    x, low, weight, stride, _ = sample()
    high, small = (t.permute(0, 2, 3, 1).contiguous() for t in (x, low))
    for backward, grad, output, images in (
        (torch.ops.asng._cae_encode_backward, small, small, high),
        (torch.ops.asng._cae_decode_backward, high, None, small),
    ):
        expected = backward(grad, output, images, weight, stride, True)
        other = grad.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        assert not other.is_contiguous()
        got = backward(other, output, images, weight, stride, True)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_the_image_needs_no_gradient() -> None:
    x, low, weight, _, _ = sample()
    for function, images in ((cae_ops.encode, x), (cae_ops.decode, low)):
        without, with_it = weight.detach().requires_grad_(), weight.detach().requires_grad_()
        function(images, without).sum().backward()
        function(images.detach().requires_grad_(), with_it).sum().backward()
        assert without.grad is not None
        assert with_it.grad is not None
        assert torch.equal(without.grad, with_it.grad)


def test_nan_passes_relu_as_in_pytorch() -> None:
    x, _, weight, _, _ = sample((20, 20))
    x[0, 0, 10, 10] = torch.nan
    got, expected = cae_ops.encode(x, weight), plain_encode(x, weight, 1)
    # A tile of outputs mixes its inputs: more values may be lost than those around the pixel.
    assert got.isnan()[expected.isnan()].all()
    assert not got[1].isnan().any()


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_finite_differences(kernel: int, stride: int) -> None:
    check_finite_differences(kernel, stride)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("skip", [True, False])
def test_opcheck(stride: int, skip: bool) -> None:
    x, low, weight, _, (height, width) = sample((6, 5), (2, 3), 3, stride)
    high, small = (
        t.permute(0, 2, 3, 1).contiguous().requires_grad_() for t in (x.detach(), low.detach())
    )
    weight = weight.detach().requires_grad_()
    checked = torch.library.opcheck
    checked(torch.ops.asng.cae_encode, (high, weight, stride))
    skipped = high.detach().clone().requires_grad_() if skip else None
    for relu in (True, False):
        checked(torch.ops.asng.cae_decode, (small, weight, skipped, stride, height, width, relu))
    plain = [t.detach() for t in (high, small, weight)]
    high, small, weight = plain
    for wants_x in (True, False):
        checked(torch.ops.asng._cae_encode_backward, (small, small, high, weight, stride, wants_x))
        output = high if skip else None
        checked(torch.ops.asng._cae_decode_backward, (high, output, small, weight, stride, wants_x))


def test_autocast_computes_in_float32() -> None:
    x, low, weight, _, _ = sample(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = x.bfloat16()
        assert torch.equal(cae_ops.encode(half, weight), cae_ops.encode(half.float(), weight))
        assert cae_ops.decode(low, weight).dtype == torch.float32


def test_errors() -> None:
    x, low, weight, _, _ = sample()
    wrong: list[tuple[Callable[[], Tensor], type[Exception], str]] = [
        (lambda: cae_ops.encode(x[0], weight), ValueError, "x must have 4 dimensions"),
        (lambda: cae_ops.encode([1], weight), TypeError, "x must be a tensor, got list"),  # type: ignore[arg-type]
        (lambda: cae_ops.encode(x.half(), weight.half()), TypeError, "x must be float32 or"),
        (lambda: cae_ops.encode(x.float(), weight), TypeError, "weight must be torch.float32"),
        (lambda: cae_ops.encode(x, weight, 3), ValueError, "stride must be 1 or 2, got 3"),
        (lambda: cae_ops.encode(x, weight[:, :2]), ValueError, "weight must have 3 channels in"),
        (lambda: cae_ops.decode(x, weight), ValueError, "weight must have 3 channels in dim"),
        (lambda: cae_ops.encode(x, weight[:, :, :1, :1]), ValueError, "kernels of side 3 or 5"),
        (lambda: cae_ops.encode(x[:0], weight), ValueError, "none of them 0"),
        (lambda: cae_ops.decode(low, weight, x[:1]), ValueError, "skipped must have shape"),
        (lambda: cae_ops.decode(low, weight, size=(3, 3)), ValueError, "size must be halved by"),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()


def test_the_operators_check_shapes_themselves() -> None:
    x, low, weight, _, _ = sample()
    high, small = (t.permute(0, 2, 3, 1).contiguous() for t in (x, low))
    encode, decode = torch.ops.asng.cae_encode, torch.ops.asng.cae_decode
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: encode(high[0], weight, 1), "4 dimensions"),
        (lambda: encode(high, weight, 3), "stride must be 1 or 2"),
        (lambda: encode(high.permute(0, 2, 1, 3), weight, 1), "contiguous"),
        (lambda: encode(high, weight.transpose(2, 3), 1), "each kernel of weight"),
        (lambda: encode(small, weight, 1), "feature maps must have shape"),
        (lambda: decode(small, weight, high[:1].contiguous(), 1, 7, 6, True), "skipped must have"),
        (lambda: decode(small, weight, None, 2, 7, 6, True), "feature maps must have shape"),
    ]
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()
