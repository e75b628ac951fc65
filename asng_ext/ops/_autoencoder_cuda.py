"""The layers of autoencoders on CUDA devices: PyTorch's convolutions with ours around them.

The library's convolutions (cuDNN) are hard to beat at these sizes; what eager PyTorch loses around
them is saved here. A layer keeps its image, its result and the weight it was given, not a copy of
it; skip and ReLU take one pass, in place; both gradients come from one call, channels-last.

The functions are for tensors of any device, so that they can be tried on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

__all__ = ["register"]


def _convolution(
    x: Tensor, weight: Tensor, stride: int, transposed: bool, even: list[int]
) -> Tensor:
    """Of images (N, H, W, C), and back to such."""
    padding = [weight.shape[2] // 2] * 2
    steps = [stride] * 2
    y: Tensor = torch.ops.aten.convolution(
        x.permute(0, 3, 1, 2), _filter(weight, x), None, steps, padding, [1, 1], transposed, even, 1
    )
    return y.permute(0, 2, 3, 1).contiguous()


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    transposed: bool,
    even: list[int],
    x_needs_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the image (N, H, W, C), empty unless wanted, and of the weight."""
    padding = [weight.shape[2] // 2] * 2
    steps = [stride] * 2
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        _filter(weight, x),
        None,
        steps,
        padding,
        [1, 1],
        transposed,
        even,
        1,
        [x_needs_grad, True, False],
    )
    return (
        grad_x.permute(0, 2, 3, 1).contiguous() if x_needs_grad else x.new_empty(0),
        grad_weight.to(weight.dtype, memory_format=torch.contiguous_format),
    )


def _filter(weight: Tensor, x: Tensor) -> Tensor:
    """The weight in the type of the images and in the layout that convolutions want."""
    return weight.to(x.dtype, memory_format=torch.channels_last)


def _evenness(low: torch.Size, high: tuple[int, int], stride: int) -> list[int]:
    """What a transposed convolution must add to reach the size `high`: ⌈H/2⌉ is half of two."""
    return [size - stride * (n - 1) - 1 for size, n in zip(high, low[1:3])]


def _encode(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    y = _convolution(x, weight, stride, False, [0, 0])
    torch.ops.asng._cae_finish(y, None, True)
    return y


def _encode_backward(
    grad: Tensor, output: Tensor, x: Tensor, weight: Tensor, stride: int, x_needs_grad: bool
) -> tuple[Tensor, Tensor]:
    gated = torch.ops.aten.threshold_backward(grad, output, 0)
    return _convolution_backward(gated, x, weight, stride, False, [0, 0], x_needs_grad)


def _decode(
    x: Tensor,
    weight: Tensor,
    skipped: Tensor | None,
    stride: int,
    height: int,
    width: int,
    relu: bool,
) -> Tensor:
    even = _evenness(x.shape, (height, width), stride)
    y = _convolution(x, weight, stride, True, even)
    if skipped is not None or relu:
        torch.ops.asng._cae_finish(y, skipped, relu)
    return y


def _decode_backward(
    grad: Tensor, output: Tensor | None, x: Tensor, weight: Tensor, stride: int, x_needs_grad: bool
) -> tuple[Tensor, Tensor]:
    even = _evenness(x.shape, (grad.shape[1], grad.shape[2]), stride)
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    return _convolution_backward(grad, x, weight, stride, True, even, x_needs_grad)


def _under_autocast(
    function: Callable[..., Any], device_type: str, images: tuple[int, ...]
) -> Callable[..., Any]:
    """The function with its arguments number `images` in the type of autocast.

    The weight stays as it is, so that what is kept for the backward pass is no copy of it.
    """
    key = getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}")

    def call(*arguments: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        given = list(arguments)
        for i in images:
            # As for PyTorch's own operators: double precision is meant.
            if given[i] is not None and given[i].dtype != torch.float64:
                given[i] = given[i].to(dtype)
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
            return function(*given)

    return call


def register(library: Library, device_type: str = "cuda") -> None:
    """Makes these the operators' kernels on a type of device, and registers the autocast rules."""
    key = device_type.upper()
    for name, kernel in (
        ("cae_encode", _encode),
        ("_cae_encode_backward", _encode_backward),
        ("cae_decode", _decode),
        ("_cae_decode_backward", _decode_backward),
    ):
        library.impl(name, kernel, key)  # type: ignore[no-untyped-call]
    for name, images in (("cae_encode", (0,)), ("cae_decode", (0, 2))):
        function = getattr(torch.ops.asng, name).default
        rule = _under_autocast(function, device_type, images)
        library.impl(name, rule, f"Autocast{key}")  # type: ignore[no-untyped-call]
