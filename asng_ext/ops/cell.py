"""Tells PyTorch the shapes, derivatives and autocast rules of the compiled operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asng_ext.ops._libraries import available
from asng_ext.ops._registration import call_backward, register_autocast, register_operator

__all__ = ["CHANNEL_BLOCK", "allows_tf32", "padded_channels", "runs_chains", "stores_halves"]

CHANNEL_BLOCK = 16
"""Images have a multiple of so many channels, those beyond the real ones zero."""


def padded_channels(channels: int) -> int:
    """`channels` rounded up to a multiple of `CHANNEL_BLOCK`."""
    return (channels + CHANNEL_BLOCK - 1) // CHANNEL_BLOCK * CHANNEL_BLOCK


def runs_chains(device: torch.device) -> bool:
    """Whether `asng::cells`, a whole chain of cells, can be used on a device, or only `cell`."""
    return device.type == "cpu"


def _halved(size: int, stride: int) -> int:
    return (size + stride - 1) // stride


def stores_halves(device: torch.device) -> bool:
    """Whether the operators take images as bfloat16 on a device, with weights in float32."""
    return device.type in ("cuda", "meta")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def allows_tf32() -> bool:
    """Whether products of float32 matrices may be in TF32 on a CUDA device.

    They may where PyTorch's own convolutions may: by its setting when the operator is called, or
    compiled.
    """
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    return bool(conv.fp32_precision == "tf32")


def _new_saved(images: Tensor, weight: Tensor, statistics: int, values: int) -> Tensor:
    """What is kept for the backward pass: statistics, and values of images.

    It has the dtype of the weights; see saved_values of csrc/platform/bfloat16.h for images
    that have another.
    """
    size = statistics + values * images.dtype.itemsize // weight.dtype.itemsize
    return weight.new_empty((size,))


def _node_saved(archs: int, edges: int, out_size: int, padded: int) -> tuple[int, int]:
    """Statistics, and values of images, that a node keeps.

    See GraphShape::saved_bound of csrc/ops/cell/cpu_dag.h, node_saved_size of csrc/ops/cell/cuda.h.
    """
    return archs * edges * 4 * padded, archs * edges * 2 * out_size


def _mixed_node_fake(
    bank: Tensor,
    inputs: Tensor,
    operations: Tensor,
    depthwise3: Tensor,
    pointwise3: Tensor,
    depthwise5: Tensor,
    pointwise5: Tensor,
    reduction: Tensor | None,
    stride: int,
    save: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    _, archs, images, height, width, padded = bank.shape
    size = (images, _halved(height, stride), _halved(width, stride), padded)
    out_size = size[0] * size[1] * size[2] * size[3]
    kept = _node_saved(archs, inputs.shape[1], out_size, padded) if save else (0, 0)
    return bank.new_empty((archs, *size)), _new_saved(bank, pointwise3, *kept)


def _mixed_node_backward_fake(
    grad: Tensor, bank: Tensor, saved: Tensor, inputs: Tensor, operations: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *weights, reduction, _stride, _tf32 = rest
    return (
        torch.empty_like(bank),
        *(torch.empty_like(weight) for weight in weights),
        weights[0].new_empty((0,)) if reduction is None else torch.empty_like(reduction),
    )


def _mixed_node_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    bank, index, operations, *weights, stride, save, tf32 = inputs
    ctx.save_for_backward(bank, output[1], index, operations, *weights)
    ctx.stride, ctx.save, ctx.tf32 = stride, save, tf32
    ctx.set_materialize_grads(False)


def _check_saved(ctx: Any) -> None:
    if not ctx.save:
        raise RuntimeError("the operator was called with save=False, so it has no backward pass")


def _mixed_node_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    _check_saved(ctx)
    if grad is None:
        return (None,) * 11
    bank, saved, index, operations, *weights = ctx.saved_tensors
    grad_bank, *grads = call_backward(
        "mixed_node",
        grad.contiguous(),
        bank,
        saved,
        index,
        operations,
        *weights,
        ctx.stride,
        ctx.tf32,
    )
    if weights[-1] is None:
        grads[-1] = None
    return (grad_bank, None, None, *grads, None, None, None)


def _cell_fake(
    prev_prev: Tensor,
    prev: Tensor,
    inputs: Tensor,
    operations: Tensor,
    prev_prev_weight: Tensor,
    prev_weight: Tensor,
    depthwise3: Tensor,
    pointwise3: Tensor,
    depthwise5: Tensor,
    pointwise5: Tensor,
    reduction: Tensor | None,
    output_weight: Tensor,
    prev_prev_is_larger: bool,
    save: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    size, kept = _cell_sizes(
        prev.shape, inputs.shape[0], inputs.shape[1], prev_prev_weight, reduction
    )
    saved = _new_saved(prev, prev_prev_weight, *(kept if save else (0, 0)))
    return prev.new_empty(size), saved


def _cell_sizes(
    prev: Sequence[int], archs: int, nodes: int, prev_prev_weight: Tensor, reduction: Tensor | None
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Shape of a cell's output; statistics, and values of images, that it keeps."""
    _, images, height, width, _ = prev
    padded = padded_channels(prev_prev_weight.shape[0])
    stride = 1 if reduction is None else 2
    size = (images, _halved(height, stride), _halved(width, stride), padded)
    in_size, out_size = images * height * width * padded, size[0] * size[1] * size[2] * size[3]
    # CellShape::saved_bound of csrc/ops/cell/cpu_forward.cpp, cell_saved_size of cuda.h there.
    statistics, values = _node_saved(archs, 2, out_size, padded)
    statistics = nodes * statistics + archs * 6 * padded
    values = nodes * values + archs * (2 * in_size + nodes * out_size)
    return (archs, *size), (statistics, values)


def _cell_backward_fake(
    grad: Tensor,
    prev_prev: Tensor,
    prev: Tensor,
    output: Tensor,
    saved: Tensor,
    inputs: Tensor,
    operations: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    *weights, _prev_prev_is_larger, prev_prev_needs_grad, prev_needs_grad, _tf32 = rest
    nothing = prev.new_empty((0,))
    return (
        torch.empty_like(prev_prev) if prev_prev_needs_grad else nothing,
        torch.empty_like(prev) if prev_needs_grad else prev.new_empty((0,)),
        *(weights[0].new_empty((0,)) if w is None else torch.empty_like(w) for w in weights),
    )


def _cell_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    prev_prev, prev, index, operations, *weights, prev_prev_is_larger, save, tf32 = inputs
    ctx.save_for_backward(prev_prev, prev, *output, index, operations, *weights)
    ctx.prev_prev_is_larger, ctx.save, ctx.tf32 = prev_prev_is_larger, save, tf32
    ctx.set_materialize_grads(False)


def _cell_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    _check_saved(ctx)
    if grad is None:
        return (None,) * 15
    prev_prev_needs_grad, prev_needs_grad = ctx.needs_input_grad[:2]
    saved = ctx.saved_tensors
    grads = list(
        call_backward(
            "cell",
            grad.contiguous(),
            *saved,
            ctx.prev_prev_is_larger,
            prev_prev_needs_grad,
            prev_needs_grad,
            ctx.tf32,
        )
    )
    reduction = saved[12]
    if reduction is None:
        grads[8] = None
    prev_prev_grad, prev_grad, *weight_grads = grads
    return (
        prev_prev_grad if prev_prev_needs_grad else None,
        prev_grad if prev_needs_grad else None,
        None,
        None,
        *weight_grads,
        None,
        None,
        None,
    )


_TENSORS_PER_CELL = 8
"""In the weights of `asng::cells`; the seventh is the reduction, empty in a normal cell."""


def _cells_fake(
    images: Tensor, inputs: Tensor, operations: Tensor, weights: Sequence[Tensor], save: bool
) -> tuple[Tensor, Tensor]:
    _, archs, nodes, _ = inputs.shape
    size: tuple[int, ...] = tuple(images.shape)
    total = 0
    for i in range(0, len(weights), _TENSORS_PER_CELL):
        reduction = weights[i + 6] if weights[i + 6].numel() else None
        size, kept = _cell_sizes(size, archs, nodes, weights[i], reduction)
        # Chain::saved_bound of csrc/ops/cell/cpu_stack.cpp.
        total += sum(kept) + archs * 2 * size[-1] + math.prod(size)
    return images.new_empty(size), images.new_empty((total if save else 0,))


def _cells_backward_fake(
    grad: Tensor,
    images: Tensor,
    output: Tensor,
    saved: Tensor,
    inputs: Tensor,
    operations: Tensor,
    weights: Sequence[Tensor],
    images_need_grad: bool,
) -> tuple[Tensor, list[Tensor]]:
    grad_images = torch.empty_like(images) if images_need_grad else images.new_empty((0,))
    return grad_images, [torch.empty_like(weight) for weight in weights]


def _cells_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    images, index, operations, weights, save = inputs
    ctx.save_for_backward(images, *output, index, operations, *weights)
    ctx.save = save
    ctx.set_materialize_grads(False)


def _cells_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    _check_saved(ctx)
    images, output, saved, index, operations, *weights = ctx.saved_tensors
    if grad is None:
        return None, None, None, [None] * len(weights), None
    images_need_grad = ctx.needs_input_grad[0]
    grad_images, grads = call_backward(
        "cells",
        grad.contiguous(),
        images,
        output,
        saved,
        index,
        operations,
        weights,
        images_need_grad,
    )
    return grad_images if images_need_grad else None, None, None, grads, None


def _stem_fake(
    images: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, tf32: bool
) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = images.shape
    padded = padded_channels(weight.shape[0])
    # StemShape::saved_size of csrc/ops/stem/cpu.h and of csrc/ops/cell/cuda.h.
    saved = _new_saved(images, weight, 2 * padded, batch * height * width * padded)
    return images.new_empty((1, batch, height, width, padded)), saved


def _stem_backward_fake(
    grad: Tensor, images: Tensor, saved: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    *weights, _tf32 = rest
    return tuple(torch.empty_like(weight) for weight in weights)


def _stem_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    images, *weights, ctx.tf32 = inputs
    ctx.save_for_backward(images, output[1], *weights)
    ctx.set_materialize_grads(False)


def _stem_backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if ctx.needs_input_grad[0]:
        raise RuntimeError("asng::stem has no gradient with respect to the images")
    if grad is None:
        return (None,) * 5
    grads = call_backward("stem", grad.contiguous(), *ctx.saved_tensors, ctx.tf32)
    return (None, *grads, None)


def _image_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """Under autocast: bfloat16 where it asks for that and the operators store images so.

    Otherwise float32: statistics of a batch need more than the range of float16.
    """
    halves = stores_halves(torch.device(device_type)) and dtype == torch.bfloat16
    return torch.bfloat16 if halves else torch.float32


def _weight_dtype(device_type: str, dtype: torch.dtype) -> torch.dtype:
    """What is rounded to bfloat16 is what goes through memory, not what is computed."""
    return torch.float32


_IMAGES = {"mixed_node": (1, 8), "cell": (2, 12), "cells": (1, 4), "stem": (1, 4)}
"""How many images, the first of its arguments, each operator takes, and where its weights end."""


def _register() -> None:
    register_operator("stem", _stem_fake, _stem_setup, _stem_backward, _stem_backward_fake)
    register_operator(
        "mixed_node",
        _mixed_node_fake,
        _mixed_node_setup,
        _mixed_node_backward,
        _mixed_node_backward_fake,
    )
    register_operator("cell", _cell_fake, _cell_setup, _cell_backward, _cell_backward_fake)
    register_operator("cells", _cells_fake, _cells_setup, _cells_backward, _cells_backward_fake)
    for name, (images, end) in _IMAGES.items():
        register_autocast(
            name, {i: _image_dtype if i < images else _weight_dtype for i in range(end)}
        )


if available():
    _register()
