"""Compiled layers of convolutional autoencoders (Section 3.3): a convolution, the skip connection
and ReLU in one operator, with its checks, derivative and autocast rule.

They compute the channels of the weight they are given, which may be a leading slice of a larger
one. On the CPU they make 5 to 6 times fewer multiplications than direct convolution (Winograd
convolution with tiles of 8×8); in single precision the result differs from that of direct
convolution by about 1e-5 of the largest value. On CUDA devices the convolutions are PyTorch's
(cuDNN's are hard to beat at these sizes), with TF32 where its settings allow that. What eager
PyTorch loses around them is saved: a layer keeps its input, its output and the weight it was given,
not a copy of it; skip and ReLU take one pass, in place; one call gives both gradients.

On CUDA devices `chains` is whole autoencoders, those of a population, in one operator, so that the
host spends little time on a convolution. docs/gpu.md says whose convolutions it takes, how they are
launched, and which environment variables choose.

All have first derivatives and run under `torch.compile` and `torch.autocast`. On the CPU they take
float32 or float64, and compute in float32 under autocast; on CUDA devices they take bfloat16 and
float16, too, and autocast's dtype applies to feature maps. These are (N, C, H, W), best
channels-last; results are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from asng_ext.ops import _libraries
from asng_ext.ops._feature_maps import allows_tf32
from asng_ext.ops._libraries import available, cuda_available
from asng_ext.ops._registration import (
    LIBRARY,
    Cast,
    as_under_autocast,
    call,
    call_backward,
    check_tensor,
    register_fake,
    register_operator,
)

__all__ = [
    "KERNELS",
    "Chain",
    "available",
    "candidates",
    "chains",
    "convolutions",
    "cuda_available",
    "decode",
    "encode",
]

KERNELS = (3, 5)
"""Sides of kernels that the operators have."""

_CHOICE = "ASNG_CUDA_CONVOLUTIONS"
_LAYERS = "ASNG_CUDA_LAYERS"
_TENSOR_CORES = "ASNG_CUDA_TENSOR_CORES"
_WIDE = (torch.float32, torch.float64)
_HALF = (torch.bfloat16, torch.float16)


def encode(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """ReLU of a convolution padded with ⌊k/2⌋ zeros.

    Args:
        x: Feature maps (N, I, H, W).
        weight: (O, I, k, k), k 3 or 5; it may be a part of a larger tensor.
        stride: 1 or 2.

    Returns:
        (N, O, ⌈H/stride⌉, ⌈W/stride⌉), channels-last.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape, device or value.
        RuntimeError: The operators are not available.
    """
    weight = _checked(x, weight, 1, stride)
    out: Tensor = call("cae_encode", _to_nhwc(x), weight, stride)
    return out.permute(0, 3, 1, 2)


def decode(
    x: Tensor,
    weight: Tensor,
    skipped: Tensor | None = None,
    stride: int = 1,
    size: tuple[int, int] | None = None,
    relu: bool = True,
) -> Tensor:
    """Transposed convolution, the mirror image of `encode`'s, plus a skip, then ReLU.

    Args:
        x: Feature maps (N, I, h, w).
        weight: (I, O, k, k), k 3 or 5; it may be a part of a larger tensor.
        skipped: What to add before ReLU, (N, O, H, W).
        stride: 1 or 2.
        size: (H, W) of the result, where ⌈H/stride⌉ is h and ⌈W/stride⌉ is w;
            (stride·h, stride·w) if None.
        relu: Whether negative values become zeros.

    Returns:
        (N, O, H, W), channels-last.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape, device or value.
        RuntimeError: The operators are not available.
    """
    weight = _checked(x, weight, 0, stride)
    height, width = size or (stride * x.shape[2], stride * x.shape[3])
    if [-(-height // stride), -(-width // stride)] != list(x.shape[2:]):
        raise ValueError(
            f"size must be halved by stride {stride} to {tuple(x.shape[2:])}, got {size}"
        )
    if skipped is not None:
        _check_tensor(skipped, "skipped", x)
        expected = (x.shape[0], weight.shape[1], height, width)
        if tuple(skipped.shape) != expected:
            raise ValueError(f"skipped must have shape {expected}, got {tuple(skipped.shape)}")
        skipped = _to_nhwc(skipped)
    out: Tensor = call("cae_decode", _to_nhwc(x), weight, skipped, stride, height, width, relu)
    return out.permute(0, 3, 1, 2)


class Chain(NamedTuple):
    """A whole autoencoder of n layers for images of C channels."""

    encoder: Sequence[Tensor]
    """Weights of n layers, (Cᵢ, Cᵢ₋₁, k, k) with any odd k up to 31, where C₀ is C."""
    decoder: Sequence[Tensor]
    """Weights of their mirror images, (Cᵢ₊₁, Cᵢ, k, k), where Cₙ₊₁ is Cₙ."""
    output: Tensor
    """(C₁, C, k, k), or (C, C, k, k) where there are no layers."""
    strides: Sequence[int]
    """1 or 2, of each layer."""


def chains(x: Tensor, autoencoders: Sequence[Chain]) -> list[Tensor]:
    """Whole autoencoders, on CUDA devices alone: what `encode` and `decode` give, layer by layer.

    A layer with stride 1 has a skip: the encoder's output is added to the decoder's. ReLU follows
    every layer, and after them the output's convolution, without ReLU, gives the image. The bits do
    not depend on which autoencoders there are beside one.

    The arguments are checked by the operator alone.

    Args:
        x: Images (N, C, H, W), the same for all.
        autoencoders: One or more.

    Returns:
        (N, C, H, W) of each, channels-last.

    Raises:
        RuntimeError: An argument does not fit, or is not on a CUDA device.
    """
    weights = [
        weight if _has_contiguous_rows(weight) else weight.contiguous()
        for chain in autoencoders
        for weight in (*chain.encoder, *reversed(chain.decoder), chain.output)
    ]
    strides = [stride for chain in autoencoders for stride in chain.strides]
    layers = [len(chain.strides) for chain in autoencoders]
    images, save, tf32 = _to_nhwc(x), torch.is_grad_enabled(), allows_tf32()
    outs: Sequence[Tensor]
    if torch.compiler.is_compiling():
        outs = call("cae_chains", images, weights, strides, layers, save, tf32)[0]
    else:
        # The same in a third of the time that PyTorch's way takes with a list of weights.
        outs = _Chains.apply(  # type: ignore[no-untyped-call]
            as_under_autocast(images, _feature_map_dtype), strides, layers, save, tf32, *weights
        )
    return [out.permute(0, 3, 1, 2) for out in outs]


def convolutions(dtype: torch.dtype) -> str:
    """Whose convolutions `chains` takes for feature maps of a dtype, and why, in words."""
    choice = os.environ.get(_CHOICE) or "auto"
    if choice == "cudnn":
        return f"convolutions are cuDNN's, as {_CHOICE} says"
    ours = "convolutions are kernels of our own"
    if os.environ.get(_LAYERS) == "persistent":
        ours += ", persistent ones"
    if os.environ.get(_TENSOR_CORES) == "wgmma":
        ours += ", with products of warpgroups"
    if choice == "auto":
        ours += ", or cuDNN's where those are faster"
    if not _may_be_own(dtype):
        return "convolutions are cuDNN's: those of our own are for TF32 and bfloat16"
    return f"{ours}, in {'bfloat16' if dtype == torch.bfloat16 else 'TF32'}"


def _may_be_own(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 or (dtype == torch.float32 and allows_tf32())


def candidates(dtype: torch.dtype, device: torch.device) -> dict[str, dict[str, str]]:
    """The ways in which `chains` can compute on a GPU, as environment variables by name: first the
    one that is taken without any, then those that may be faster for feature maps of the dtype.
    Empty where cuDNN alone can."""
    if not _may_be_own(dtype):
        return {}
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    found = {
        f"{layers}, {products}": {_LAYERS: layers, _TENSOR_CORES: products}
        for layers in ("each", "persistent")
        for products in ("mma", *(("wgmma",) if hopper else ()))
    }
    return {**found, "cuDNN": {_CHOICE: "cudnn"}}


class _Chains(torch.autograd.Function):
    """See `chains`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        strides: list[int],
        layers: list[int],
        save: bool,
        tf32: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        inputs = x, list(weights), strides, layers, save, tf32
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.asng.cae_chains(*inputs)
        _chains_setup(ctx, inputs, output)
        return tuple(output[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad
        if all(grad is None for grad in grads):
            return (None,) * len(needed)
        given = [None if grad is None else grad.contiguous() for grad in grads]
        grad_x, of_weights = _chains_backward(ctx, given)
        found = (grad_x, None, None, None, None, *of_weights)
        return tuple(g if need else None for g, need in zip(found, needed))


def _has_contiguous_rows(weight: Tensor) -> bool:
    """A leading slice of a weight has, with one stride more; those of a side of 1 mean nothing."""
    kernel = weight.shape[3]
    strides = weight.stride()
    return strides[1] == kernel**2 and (kernel == 1 or strides[2:] == (kernel, 1))


def _to_nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _check_tensor(x: Tensor, name: str, like: Tensor) -> None:
    check_tensor(name, x, 4)
    on_gpu = x.device.type == "cuda"
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as x is, got {x.device}")
    if torch.is_autocast_enabled("cuda" if on_gpu else "cpu"):
        return
    if x.dtype not in _WIDE and not (on_gpu and x.dtype in _HALF):
        known = "float32, float64, bfloat16 or float16" if on_gpu else "float32 or float64"
        raise TypeError(f"{name} must be {known}, got {x.dtype}")
    if x.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype} as x is, got {x.dtype}")


def _checked(x: Tensor, weight: Tensor, channel_axis: int, stride: int) -> Tensor:
    """The weight, with each kernel contiguous, if all arguments fit."""
    _libraries.require()
    _check_tensor(x, "x", x)
    _check_tensor(weight, "weight", x)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride!r}")
    kernel = weight.shape[3]
    if weight.shape[2] != kernel or kernel not in KERNELS:
        raise ValueError(
            f"weight must have kernels of side {' or '.join(map(str, KERNELS))}, "
            f"got shape {tuple(weight.shape)}"
        )
    if weight.shape[channel_axis] != x.shape[1]:
        raise ValueError(
            f"weight must have {x.shape[1]} channels in dimension {channel_axis} as x has, "
            f"got shape {tuple(weight.shape)}"
        )
    return weight if weight.stride()[2:] == (kernel, 1) else weight.contiguous()


# Shapes and derivatives. From here on feature maps are (N, H, W, C), as in csrc/ops/library.cpp.


def _encode_fake(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    height, width = (-(-side // stride) for side in x.shape[1:3])
    return x.new_empty((x.shape[0], height, width, weight.shape[0]))


def _decode_fake(
    x: Tensor, weight: Tensor, skipped: Tensor | None, stride: int, height: int, width: int, *_: Any
) -> Tensor:
    return x.new_empty((x.shape[0], height, width, weight.shape[1]))


def _encode_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.save_for_backward(output, x, weight)


def _encode_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grads: tuple[Any, ...] = call_backward(
        "cae_encode", grad, *ctx.saved_tensors, ctx.stride, ctx.needs_input_grad[0]
    )
    return grads


def _decode_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.stride, _, _, relu = inputs
    ctx.save_for_backward(output if relu else None, x, weight)


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    output, x, weight = ctx.saved_tensors
    x_needs_grad, _, skipped_needs_grad = ctx.needs_input_grad[:3]
    if skipped_needs_grad and output is not None:
        # This is the gradient of `skipped`, and spares the others the ReLU mask.
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
        output = None
    grad_x, grad_weight = call_backward(
        "cae_decode", grad, output, x, weight, ctx.stride, x_needs_grad
    )
    return grad_x, grad_weight, grad


def _chains_fake(
    x: Tensor,
    weights: Sequence[Tensor],
    strides: Sequence[int],
    layers: Sequence[int],
    save: bool,
    *_: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    """What is kept are the images, and of each autoencoder all feature maps but the result."""
    batch, *size, channels = x.shape
    kept = [(batch, *size, _rounded_up(channels, 8))]
    given, steps = iter(weights), iter(strides)
    for count in layers:
        sizes, padded = [size], [kept[0][3]]
        for weight, stride in zip(list(islice(given, 2 * count + 1)), islice(steps, count)):
            sizes.append([-(-side // stride) for side in sizes[-1]])
            padded.append(_rounded_up(weight.shape[0], 32))
        # The decoder's layers lead back, in the size before each layer.
        sizes += sizes[-2::-1]
        padded += padded[:0:-1]
        kept += [(batch, *size, width) for size, width in zip(sizes[1:], padded[1:])]
    outs = [x.new_empty(x.shape) for _ in layers]
    return outs, [x.new_empty(shape) for shape in kept if save]


def _rounded_up(count: int, block: int) -> int:
    return -(-count // block) * block


def _chains_setup(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[list[Tensor], list[Tensor]]
) -> None:
    _, weights, ctx.strides, ctx.layers, ctx.save, ctx.tf32 = inputs
    ctx.save_for_backward(*output[1], *weights)


def _chains_backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """By those autoencoders whose result has a gradient."""
    image, *tensors = ctx.saved_tensors
    # Of each one's 2n + 1 convolutions all inputs are kept, but the image once.
    first_weight = 2 * len(ctx.strides)
    maps, weights = iter(tensors[:first_weight]), iter(tensors[first_weight:])
    strides = iter(ctx.strides)
    args: tuple[list[Any], ...] = ([], [image], [], [], [])
    for grad, n in zip(grads, ctx.layers):
        parts = islice(maps, 2 * n), islice(weights, 2 * n + 1), islice(strides, n)
        own = [grad], *map(list, parts), [n]
        if grad is not None:
            for all_of_them, part in zip(args, own):
                all_of_them += part
    grad_x, found = call_backward("cae_chains", *args, ctx.needs_input_grad[0], ctx.tf32)
    of_weights = iter(found)
    return grad_x, [
        None if grad is None else next(of_weights)
        for grad, n in zip(grads, ctx.layers)
        for _ in range(2 * n + 1)
    ]


def _chains_backward_fake(
    grads: Sequence[Tensor],
    saved: Sequence[Tensor],
    weights: Sequence[Tensor],
    strides: Sequence[int],
    layers: Sequence[int],
    x_needs_grad: bool,
    tf32: bool,
) -> tuple[Tensor, list[Tensor]]:
    grad = grads[0]
    of_weights = [weight.new_empty(weight.shape) for weight in weights]
    return grad.new_empty(grad.shape if x_needs_grad else (0,)), of_weights


# The kernels for CUDA devices; they take tensors of any device, so that tests can run them.


def _convolution(
    x: Tensor, weight: Tensor, stride: int, size: Sequence[int] | None = None
) -> Tensor:
    """Transposed if there is a size to reach."""
    y: Tensor = torch.ops.aten.convolution(
        x.permute(0, 3, 1, 2), _kernels(weight, x), None, *_options(x, weight, stride, size)
    )
    return y.permute(0, 2, 3, 1).contiguous()


def _convolution_backward(
    grad: Tensor,
    output: Tensor | None,
    x: Tensor,
    weight: Tensor,
    stride: int,
    x_needs_grad: bool,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, empty unless it needs one, and of the weight."""
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        _kernels(weight, x),
        None,
        *_options(x, weight, stride, grad.shape[1:3] if transposed else None),
        [x_needs_grad, True, False],
    )
    return (
        grad_x.permute(0, 2, 3, 1).contiguous() if x_needs_grad else x.new_empty(0),
        grad_weight.to(weight.dtype, memory_format=torch.contiguous_format),
    )


def _kernels(weight: Tensor, x: Tensor) -> Tensor:
    """The weight in the dtype of x and in the layout that convolutions want."""
    return weight.to(x.dtype, memory_format=torch.channels_last)


def _options(x: Tensor, weight: Tensor, stride: int, size: Sequence[int] | None) -> tuple[Any, ...]:
    """Stride, padding, dilation, whether transposed, output padding and groups."""
    padding, more = [weight.shape[2] // 2] * 2, [0, 0]
    if size is not None:  # ⌈H/2⌉ is half of two sizes
        more = [side - stride * (n - 1) - 1 for side, n in zip(size, x.shape[1:3])]
    return [stride] * 2, padding, [1, 1], size is not None, more, 1


def _encode_cuda(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    y = _convolution(x, weight, stride)
    torch.ops.asng._cae_finish(y, None, True)
    return y


def _decode_cuda(
    x: Tensor,
    weight: Tensor,
    skipped: Tensor | None,
    stride: int,
    height: int,
    width: int,
    relu: bool,
) -> Tensor:
    y = _convolution(x, weight, stride, (height, width))
    if skipped is not None or relu:
        torch.ops.asng._cae_finish(y, skipped, relu)
    return y


_encode_backward_cuda = _convolution_backward
_decode_backward_cuda = partial(_convolution_backward, transposed=True)


def _register_cuda(library: Library, device_type: str = "cuda") -> None:
    """Registers the kernels for CUDA devices on a type of device."""
    for name, kernel in (
        ("cae_encode", _encode_cuda),
        ("_cae_encode_backward", _encode_backward_cuda),
        ("cae_decode", _decode_cuda),
        ("_cae_decode_backward", _decode_backward_cuda),
    ):
        library.impl(name, kernel, device_type.upper())  # type: ignore[no-untyped-call]


def _feature_map_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Under autocast; on the CPU, Winograd transforms need more than half precision."""
    return torch.float32 if device_type == "cpu" else dtype


def _weight_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype | None:
    """On CUDA devices as it is, so that what is kept for the backward pass is no copy of it."""
    return torch.float32 if device_type == "cpu" else None


_CASTS: dict[str, dict[int, Cast]] = {
    "cae_encode": {0: _feature_map_dtype, 1: _weight_dtype},
    "cae_decode": {0: _feature_map_dtype, 1: _weight_dtype, 2: _feature_map_dtype},
    "cae_chains": {0: _feature_map_dtype, 1: _weight_dtype},
}
_GRADIENTS = {"x": "x_needs_grad", "weight": None}

if available():
    for _name, _fake, _setup, _backward in (
        ("cae_encode", _encode_fake, _encode_setup, _encode_backward),
        ("cae_decode", _decode_fake, _decode_setup, _decode_backward),
    ):
        register_operator(_name, _fake, _setup, _backward, _GRADIENTS, _CASTS[_name])
    register_operator(
        "cae_chains",
        _chains_fake,
        _chains_setup,
        _chains_backward,
        _chains_backward_fake,
        _CASTS["cae_chains"],
    )
    register_fake("_cae_finish", lambda y, skipped, relu: None)
    _register_cuda(LIBRARY)
