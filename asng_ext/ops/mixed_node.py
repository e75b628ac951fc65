"""Compiled operators of the supernet: what they take, checked, and what they give.

All work on the CPU and on CUDA devices with float32 or float64, have derivatives, and run under
`torch.compile` and `torch.autocast`. On CUDA devices images may be bfloat16, with weights in
float32: what lies in memory is rounded, and all arithmetic is float32. So it is under autocast to
bfloat16, which on the CPU, and to float16 everywhere, means float32. λ architectures go through one
call; what differs between them are small index tensors, and only operations that some architecture
uses cost time.
`asng_ext.ops.reference` says the same in plain PyTorch.

Images are channels-last, (λ, B, H, W, C), any number of channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from asng_ext.ops import _libraries
from asng_ext.ops import cell as _operators
from asng_ext.ops._libraries import available
from asng_ext.ops._registration import call
from asng_ext.ops.cell import padded_channels

__all__ = ["NodeWeights", "available", "capability", "mixed_node", "release_memory"]

OPERATION_COUNT = 5
"""Identity, 3×3 average pool, 3×3 max pool, 3×3 and 5×5 separable convolution."""


class NodeWeights(NamedTuple):
    """Weights of the operations on the S inputs of a node with C channels."""

    depthwise3: Tensor
    """(S, 2, C, 1, 3, 3), the two halves of a 3×3 separable convolution."""
    pointwise3: Tensor
    """(S, 2, C, C)"""
    depthwise5: Tensor
    """(S, 2, C, 1, 5, 5)"""
    pointwise5: Tensor
    """(S, 2, C, C)"""
    reduction: Tensor | None = None
    """(S, C, C), the factorized reductions that identities are with stride 2: ⌈C/2⌉ rows for the
    even pixels, then those for the odd. Not needed with stride 1."""


def capability() -> str:
    """Instruction set that the operators use: "default", "avx2" or "avx512".

    It is the best that the processor has, or a lesser one that the environment variable
    ASNG_CPU_CAPABILITY names when the operators are first used.

    Raises:
        RuntimeError: The operators are not available.
    """
    _libraries.require()
    return ("default", "avx2", "avx512")[torch.ops.asng._cpu_capability()]


def release_memory() -> int:
    """Gives the memory that the operators keep for the next call back to the system.

    Returns:
        The number of bytes.

    Raises:
        RuntimeError: The operators are not available.
    """
    _libraries.require()
    return int(torch.ops.asng._release_cached())


def _under_autocast(device: torch.device) -> bool:
    return torch.is_autocast_enabled("cuda" if device.type == "cuda" else "cpu")


def _check_images(x: Tensor, name: str, dim: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dim() != dim or 0 in x.shape:
        raise ValueError(
            f"{name} must have {dim} dimensions, none of them 0, got shape {tuple(x.shape)}"
        )
    halves = _operators.stores_halves(x.device)
    if not (
        x.dtype in (torch.float32, torch.float64)
        or (halves and x.dtype == torch.bfloat16)
        or _under_autocast(x.device)
    ):
        allowed = "float32, float64 or bfloat16" if halves else "float32 or float64"
        raise TypeError(f"{name} must be {allowed} on {x.device.type}, got {x.dtype}")
    if x.device.type == "cuda":
        _libraries.require_cuda()
    elif x.device.type not in ("cpu", "meta"):
        raise ValueError(f"{name} must be on the CPU or a CUDA device, got {x.device}")


def _check_weight(x: Tensor, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
    wanted = torch.float32 if like.dtype == torch.bfloat16 else like.dtype
    if x.dtype != wanted and not _under_autocast(like.device):
        raise TypeError(f"{name} must be {wanted} with images of {like.dtype}, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} as the images are, got {x.device}")
    return x.contiguous()


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
        raise ValueError(f"{name} must be on {device} as the images are, got {x.device}")
    # Values are unknown while a graph is traced; the operator itself checks them again. Those on a
    # device stay there: looking at them would mean to wait for it.
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
    bank: Tensor, inputs: Tensor, operations: Tensor, weights: NodeWeights, stride: int = 1
) -> Tensor:
    """A node for λ architectures at once: the sum of E edges, each an operation on one input.

    Edge e of architecture a applies operation `operations[a, e]` to `bank[inputs[a, e], a]`. The
    operations are, by number: identity (with stride 2 a factorized reduction), 3×3 average pool,
    3×3 max pool, 3×3 and 5×5 separable convolution. Normalization takes the statistics of the B
    images of one architecture and has no weights. Gradients of weights and inputs that no edge
    uses are zeros.

    Args:
        bank: The S candidate inputs, (S, λ, B, H, W, C), in float32, float64 or, on a CUDA
            device, bfloat16; the weights are float32 then.
        inputs: (λ, E) integers from 0 to S - 1, on the device of the bank.
        operations: (λ, E) integers from 0 to 4, likewise. On a CUDA device the values are not
            looked at: an architecture with one out of range gives NaN.
        weights: Of all operations on all inputs.
        stride: 1, or 2 to halve the images.

    Returns:
        (λ, B, ⌈H/stride⌉, ⌈W/stride⌉, C), of the dtype of the bank

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape, device or values.
        RuntimeError: The operators are not available.
    """
    _libraries.require()
    _check_images(bank, "bank", 6)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride!r}")
    if stride == 2 and weights.reduction is None:
        raise ValueError("weights.reduction must be given with stride 2, got None")
    count, archs, _, _, _, channels = bank.shape
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.shape[1] == 0:
        raise ValueError(f"inputs must have shape (λ, E), got {getattr(inputs, 'shape', inputs)}")
    shape = (archs, inputs.shape[1])
    index = _check_indices(inputs, "inputs", shape, count, bank.device)
    kinds = _check_indices(operations, "operations", shape, OPERATION_COUNT, bank.device)
    depthwise3 = _check_weight(
        weights.depthwise3, "weights.depthwise3", (count, 2, channels, 1, 3, 3), bank
    )
    pointwise3 = _check_weight(
        weights.pointwise3, "weights.pointwise3", (count, 2, channels, channels), bank
    )
    depthwise5 = _check_weight(
        weights.depthwise5, "weights.depthwise5", (count, 2, channels, 1, 5, 5), bank
    )
    pointwise5 = _check_weight(
        weights.pointwise5, "weights.pointwise5", (count, 2, channels, channels), bank
    )
    reduction = weights.reduction
    if reduction is not None:
        reduction = _check_weight(reduction, "weights.reduction", (count, channels, channels), bank)
        if channels < 2 and stride == 2:
            raise ValueError(f"bank must have at least 2 channels with stride 2, got {channels}")
    padding = padded_channels(channels) - channels
    padded = F.pad(bank, (0, padding)) if padding else bank.contiguous()
    out: Tensor = call(
        "mixed_node",
        padded,
        index,
        kinds,
        depthwise3,
        pointwise3,
        depthwise5,
        pointwise5,
        reduction,
        stride,
        torch.is_grad_enabled(),
        _operators.allows_tf32(),
    )[0]
    return out[..., :channels] if padding else out
