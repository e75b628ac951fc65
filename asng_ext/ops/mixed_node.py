"""A node of the cell space (Section 3.2) as a compiled operator, for cells of any topology.

It works on the CPU and on CUDA devices with float32 or float64, has a derivative, and runs under
`torch.compile` and `torch.autocast`. On CUDA devices feature maps may be bfloat16, with weights in
float32: what lies in memory is rounded, and all arithmetic is float32. So it is under autocast to
bfloat16, which on the CPU, and to float16 everywhere, means float32. λ architectures go through one
call; what differs between them are small index tensors, and only operations that some architecture
uses cost time.
`asng_ext.ops.reference` says the same in plain PyTorch; `asng_ext.nn.MixedNode` holds the weights.

Feature maps are channels-last, (λ, B, H, W, C), with any number of channels.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asng_ext import _host
from asng_ext.ops import _feature_maps, _libraries
from asng_ext.ops._feature_maps import (
    allows_tf32,
    cast_feature_maps,
    cast_weights,
    halved,
    new_saved,
    padded_channels,
)
from asng_ext.ops._registration import call, call_backward, check_tensor, register_operator

__all__ = ["OPERATION_COUNT", "NodeWeights", "mixed_node"]

OPERATION_COUNT = len(_host.OPERATIONS)
"""Operations are numbered from 0; see `asng_ext.nn.operations.OPERATIONS` for their names."""

NodeWeights: Any = namedtuple(  # type: ignore[misc]
    "NodeWeights",
    _host.OPERATION_WEIGHTS,
    defaults=[*(None for _ in _host.OPERATION_WEIGHTS)],
    module=__name__,
)
NodeWeights.__doc__ = """Weights of the operations on the S inputs of a node with C channels.

For each separable convolution, of kernel k, the two stages of its depthwise weights, (S, 2, C, 1,
k, k), and of its pointwise weights, (S, 2, C, C); depthwise3 and pointwise3 are those of
sep_conv_3x3, say. Then reduction (S, C, C), the factorized reductions that identities are with
stride 2: ⌈C/2⌉ rows for the even pixels, then those for the odd; with stride 1 it may be None. So
may both weights of a separable convolution that no edge applies.
"""


def _under_autocast(device: torch.device) -> bool:
    return torch.is_autocast_enabled("cuda" if device.type == "cuda" else "cpu")


def _check_bank(bank: Tensor) -> None:
    check_tensor("bank", bank, 6)
    halves = _feature_maps.stores_bfloat16(bank.device.type)
    if not (
        bank.dtype in (torch.float32, torch.float64)
        or (halves and bank.dtype == torch.bfloat16)
        or _under_autocast(bank.device)
    ):
        allowed = "float32, float64 or bfloat16" if halves else "float32 or float64"
        raise TypeError(f"bank must be {allowed} on {bank.device.type}, got {bank.dtype}")


def _weight_dtype(bank: Tensor) -> torch.dtype:
    return torch.float32 if bank.dtype == torch.bfloat16 else bank.dtype


def _check_weight(x: Tensor, name: str, shape: tuple[int, ...], like: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
    wanted = _weight_dtype(like)
    if x.dtype != wanted and not _under_autocast(like.device):
        raise TypeError(f"{name} must be {wanted} with a bank of {like.dtype}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the bank is, got {x.device}")


def _check_indices(
    x: Tensor, name: str, shape: tuple[int, int], count: int, device: torch.device
) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64, got {x.dtype}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
    if x.device != device and device.type != "meta":
        raise ValueError(f"{name} must be on {device} as the bank is, got {x.device}")
    # Values are unknown while a graph is traced; the operator itself checks them again. Those on a
    # device stay there: looking at them would mean to synchronize with it.
    if not torch.compiler.is_compiling() and x.device.type == "cpu":
        # As a list: reductions of a small tensor take longer than all of this.
        rows = x.tolist()
        low, high = min(map(min, rows)), max(map(max, rows))
        if low < 0 or high >= count:
            raise ValueError(
                f"{name} must be from 0 to {count - 1}, got {low if low < 0 else high}"
            )
    return x.to(device, torch.int32).contiguous()


def mixed_node(
    bank: Tensor, inputs: Tensor, operations: Tensor, weights: Sequence[Any], stride: int = 1
) -> Tensor:
    """A node for λ architectures at once: the sum of E edges, each an operation on one input.

    Edge e of architecture a applies operation `operations[a, e]`, an index of
    `asng_ext.nn.operations.OPERATIONS`, to `bank[inputs[a, e], a]`. An identity with stride 2 is a
    factorized reduction. Batch normalization is non-affine and takes the statistics of the batch
    for one architecture. Gradients of weights and inputs that no edge uses are zeros.

    Args:
        bank: The S candidate inputs, (S, λ, B, H, W, C), in float32, float64 or, on a CUDA
            device, bfloat16; the weights are float32 then.
        inputs: (λ, E) integers from 0 to S - 1, on the device of the bank.
        operations: (λ, E) integers, likewise. On a CUDA device the values are not validated: an
            architecture with one out of range, or of an operation without weights, gives NaN.
        weights: `NodeWeights` of all operations on all inputs.
        stride: 1, or 2 to halve height and width.

    Returns:
        (λ, B, ⌈H/stride⌉, ⌈W/stride⌉, C), of the dtype of the bank

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape, device or values.
        RuntimeError: The operators are not available.
    """
    _libraries.require()
    _check_bank(bank)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride!r}")
    if stride == 2 and weights[-1] is None:
        raise ValueError("weights.reduction must be given with stride 2, got None")
    count, archs, _, _, _, channels = bank.shape
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.shape[1] == 0:
        raise ValueError(f"inputs must have shape (λ, E), got {getattr(inputs, 'shape', inputs)}")
    shape = (archs, inputs.shape[1])
    index = _check_indices(inputs, "inputs", shape, count, bank.device)
    kinds = _check_indices(operations, "operations", shape, OPERATION_COUNT, bank.device)
    if not torch.compiler.is_compiling():  # the operator itself checks them again
        shapes = _host.operation_weights(count, count, channels)
        for (name, expected), weight in zip(shapes.items(), weights, strict=True):
            if weight is not None:
                _check_weight(weight, f"weights.{name}", expected, bank)
    if stride == 2 and channels < 2:
        raise ValueError(f"bank must have at least 2 channels with stride 2, got {channels}")
    none = bank.new_empty(0, dtype=_weight_dtype(bank))
    padding = padded_channels(channels) - channels
    out: Tensor = call(
        "mixed_node",
        F.pad(bank, (0, padding)) if padding else bank.contiguous(),
        index,
        kinds,
        [none if weight is None else weight.contiguous() for weight in weights],
        stride,
        torch.is_grad_enabled(),
        allows_tf32(),
    )[0]
    return out[..., :channels] if padding else out


def _fake(
    bank: Tensor,
    inputs: Tensor,
    operations: Tensor,
    weights: Sequence[Tensor],
    stride: int,
    save: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    _, archs, batch, height, width, padded = bank.shape
    size = (archs, batch, halved(height, stride), halved(width, stride), padded)
    saved = new_saved(_host.node_saved_units(int(inputs.shape[1])), bank, weights[0], size)
    return bank.new_empty(size), saved if save else saved.new_empty((0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    bank, index, operations, weights, ctx.stride, ctx.save, ctx.tf32 = inputs
    ctx.save_for_backward(bank, output[1], index, operations, *weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    bank, saved, index, operations, *weights = ctx.saved_tensors
    args = (grad, bank, saved, index, operations, weights, ctx.stride, ctx.tf32)
    grad_bank, grads = call_backward("mixed_node", *args)
    return grad_bank, None, None, grads


if _libraries.available():
    _gradients = {"bank": None, "weights": None}
    _casts = {0: cast_feature_maps, 3: cast_weights}
    register_operator("mixed_node", _fake, _setup, _backward, _gradients, _casts)
