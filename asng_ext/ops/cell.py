"""Cells of the cell space (Section 3.2) as compiled operators: one cell, or a stack of cells.

λ architectures go through one call; only operations that some architecture uses cost time, and
what architectures share is computed once. `asng_ext.nn.FusedCellSupernet` is made of these.
Feature maps are channels-last and padded, (λ, B, H, W, P).
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asng_ext import _host
from asng_ext.ops import _libraries
from asng_ext.ops._feature_maps import (
    allows_tf32,
    cast_feature_maps,
    cast_weights,
    halved,
    new_saved,
    padded_channels,
)
from asng_ext.ops._libraries import available
from asng_ext.ops._registration import (
    as_under_autocast,
    call,
    call_backward,
    register_autocast,
    register_fake,
    register_operator,
)

__all__ = [
    "CANDIDATES",
    "CellWeights",
    "Plan",
    "cell",
    "cell_passing_on",
    "cells",
    "plans",
    "runs_stacks",
]

CANDIDATES = {
    "one launch": {"ASNG_CUDA_PATH": "auto"},
    "many launches": {"ASNG_CUDA_PATH": "generic"},
}
"""The ways in which cells can be computed on a GPU, as environment variables by name: first the one
that is taken without any, where a shape allows it."""

CellWeights: Any = namedtuple("CellWeights", _host.CELL_WEIGHTS)  # type: ignore[misc]
"""The weights of a cell by name, in the order in which the operators take them; their shapes are
those of `_host.cell_weights`. A cell other than a reduction cell has an empty tensor for its
reduction."""


class Plan(NamedTuple):
    """What the kernels of one cell look up and pack, for CUDA devices: see `plans`."""

    forward: Tensor
    backward: Tensor | None
    """None where there will be no backward pass."""


def runs_stacks(device: torch.device) -> bool:
    """Whether `cells` can be used on a device, or only `cell`."""
    return device.type == "cpu"


def cell(
    prev_prev: Tensor,
    prev: Tensor,
    inputs: Tensor,
    operations: Tensor,
    weights: Sequence[Tensor],
    prev_prev_is_larger: bool = False,
) -> Tensor:
    """A cell of N nodes and C channels, for λ architectures at once.

    The arguments are checked by the operator alone.

    Args:
        prev_prev, prev: The outputs of the cell before the last and of the last cell, (λ or 1, B,
            H, W, P); a first dimension of 1 means that all architectures share them.
        inputs: (λ, N, 2) int32: 0 is prev_prev, 1 is prev, k + 2 is node k.
        operations: (λ, N, 2) int32.
        weights: `CellWeights`.
        prev_prev_is_larger: Whether prev_prev has twice the height and width of prev.

    Returns:
        (λ, B, H, W, P), with half of height and width, rounded up, of a reduction cell.

    Raises:
        RuntimeError: An argument does not fit.
        ValueError: On the CPU, an index is out of range. On a CUDA device, which would have to be
            synchronized to see that, the result of its architecture is NaN.
    """
    save, tf32 = torch.is_grad_enabled(), allows_tf32()
    args = (prev_prev, prev, inputs, operations, list(weights), prev_prev_is_larger, save, tf32)
    out: Tensor = call("cell", *args)[0]
    return out


def plans(
    images: Tensor, inputs: Tensor, operations: Tensor, weights: Sequence[Sequence[Tensor]]
) -> list[Plan | None]:
    """What the kernels of each cell of a stack look up and pack, for all cells at once.

    On CUDA devices a cell that is called without a plan makes it itself, in launches of its own for
    each pass. Elsewhere there are no plans.

    Args: see `cells`. Later `images` may be others of the same size and type; the weights must not
        change before the cells are called.

    Returns:
        Of each cell the plan for one call of `cell_passing_on`, or None.

    Raises:
        RuntimeError: An argument does not fit.
    """
    if not _libraries.has_cuda_kernels(images.device) or torch.compiler.is_compiling():
        return [None] * len(weights)
    flat = [weight for cell_weights in weights for weight in cell_weights]
    args, backward = (images, inputs, operations, flat), torch.is_grad_enabled()
    with torch.no_grad():
        forward = torch.ops.asng._cell_plans(*args, False)
        others = torch.ops.asng._cell_plans(*args, True) if backward else [None] * len(forward)
    return [Plan(*pair) for pair in zip(forward, others, strict=True)]


def cell_passing_on(
    prev_prev: Tensor,
    prev: Tensor,
    inputs: Tensor,
    operations: Tensor,
    weights: Sequence[Tensor],
    prev_prev_is_larger: bool = False,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor]:
    """`cell`, and prev again, for the cell after the next, which reads it as its prev_prev.

    On CUDA devices this cell's gradient of prev is added to the one that comes back from there,
    where that lies, without a launch of its own. `plan` is used up.

    Returns:
        The output, and what has the values of prev, which nothing but a cell may read: other
        operations of PyTorch may send a gradient that they send elsewhere, too.

    Raises:
        RuntimeError, ValueError: See `cell`.
    """
    on_host = not _libraries.has_cuda_kernels(prev.device)
    grad, tf32 = torch.is_grad_enabled(), allows_tf32()
    if on_host or torch.compiler.is_compiling() or (plan is None and not grad):
        return cell(prev_prev, prev, inputs, operations, weights, prev_prev_is_larger), prev
    if plan is not None and not grad:
        args = (plan.forward, prev_prev, prev, inputs, operations, list(weights))
        return torch.ops.asng._planned_cell(*args, prev_prev_is_larger, False, tf32)[0], prev
    prev_prev, prev = (as_under_autocast(x, cast_feature_maps) for x in (prev_prev, prev))
    out, passed_on = _PassingOn.apply(  # type: ignore[no-untyped-call]
        plan, prev_prev, prev, inputs, operations, prev_prev_is_larger, tf32, *weights
    )
    return out, passed_on


class _PassingOn(torch.autograd.Function):
    """See `cell_passing_on`."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan | None,
        prev_prev: Tensor,
        prev: Tensor,
        inputs: Tensor,
        operations: Tensor,
        prev_prev_is_larger: bool,
        tf32: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.flags = prev_prev_is_larger, tf32
        args = (prev_prev, prev, inputs, operations, list(weights), prev_prev_is_larger, True, tf32)
        if plan is None:
            out, saved = torch.ops.asng.cell(*args)
        else:
            out, saved = torch.ops.asng._planned_cell(plan.forward, *args)
        ctx.plan = None if plan is None else plan.backward
        ctx.save_for_backward(prev_prev, prev, out, saved, inputs, operations, *weights)
        return out, prev

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_prev: Tensor | None) -> tuple[Any, ...]:
        tensors, weights = ctx.saved_tensors[:6], list(ctx.saved_tensors[6:])
        larger, tf32 = ctx.flags
        if grad is None:
            return None, None, grad_prev, *[None] * (4 + len(weights))
        # A further backward pass has no plan.
        plan, ctx.plan = ctx.plan, None
        needed = ctx.needs_input_grad[1:]
        # No one else has it: the cell that prev was passed on to has just made it.
        onto = grad_prev.contiguous() if grad_prev is not None and needed[1] else None
        args = (grad.contiguous(), *tensors, weights, larger, *needed[:2], onto, plan, tf32)
        grad_prev_prev, new_prev, grads = torch.ops.asng._cell_backward_onto(*args)
        grad_prev = new_prev if onto is None else onto
        return (
            None,
            grad_prev_prev if needed[0] else None,
            grad_prev if needed[1] else None,
            *(None, None, None, None),
            *(g if need else None for g, need in zip(grads, needed[6:], strict=True)),
        )


def cells(
    images: Tensor, inputs: Tensor, operations: Tensor, weights: Sequence[Sequence[Tensor]]
) -> Tensor:
    """A stack of cells; the first reads `images` twice, each other the last two outputs.

    Args:
        images: (1 or λ, B, H, W, P).
        inputs, operations: (2, λ, N, 2), as for `cell`; first those of normal cells.
        weights: `CellWeights` of each cell.

    Returns:
        The output of the last cell, (λ, B, H', W', P').

    Raises:
        RuntimeError, ValueError: See `cell`.
    """
    flat = [weight for cell_weights in weights for weight in cell_weights]
    out: Tensor = call("cells", images, inputs, operations, flat, torch.is_grad_enabled())[0]
    return out


def _out_size(prev: Sequence[int], archs: int, weights: Any) -> tuple[int, ...]:
    _, batch, height, width, _ = prev
    stride = 2 if weights.reduction.numel() else 1
    padded = padded_channels(weights.prev_prev_weight.shape[0])
    return archs, batch, halved(height, stride), halved(width, stride), padded


def _cell_fake(
    prev_prev: Tensor,
    prev: Tensor,
    inputs: Tensor,
    operations: Tensor,
    weights: Sequence[Tensor],
    prev_prev_is_larger: bool,
    save: bool,
    tf32: bool,
) -> tuple[Tensor, Tensor]:
    archs, nodes, _ = inputs.shape
    size = _out_size(prev.shape, archs, CellWeights(*weights))
    saved = new_saved(_host.cell_saved_units(int(nodes)), prev, weights[0], size, prev.shape)
    return prev.new_empty(size), saved if save else saved.new_empty((0,))


def _cell_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    prev_prev, prev, index, operations, weights, ctx.prev_prev_is_larger, ctx.save, ctx.tf32 = (
        inputs
    )
    ctx.save_for_backward(prev_prev, prev, *output, index, operations, *weights)


def _cell_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors, weights = ctx.saved_tensors[:6], list(ctx.saved_tensors[6:])
    flags = (ctx.prev_prev_is_larger, *ctx.needs_input_grad[:2], ctx.tf32)
    grad_prev_prev, grad_prev, grads = call_backward("cell", grad, *tensors, weights, *flags)
    return grad_prev_prev, grad_prev, None, None, grads


def _planned_cell_fake(plan: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return _cell_fake(*args)


def _cell_backward_onto_fake(
    grad: Tensor, prev_prev: Tensor, prev: Tensor, *args: Any
) -> tuple[Tensor, Tensor, list[Tensor]]:
    weights, needs_grad, prev_needs_grad, grad_prev = args[4], *args[6:9]
    return (
        prev_prev.new_empty(prev_prev.shape if needs_grad else (0,)),
        prev.new_empty(prev.shape if prev_needs_grad and grad_prev is None else (0,)),
        [w.new_empty(w.shape) for w in weights],
    )


def _of_cells(weights: Sequence[Tensor]) -> list[Any]:
    """The weights of each cell of a stack."""
    count = len(_host.CELL_WEIGHTS)
    return [CellWeights(*weights[i : i + count]) for i in range(0, len(weights), count)]


def _cells_fake(
    images: Tensor, inputs: Tensor, operations: Tensor, weights: Sequence[Tensor], save: bool
) -> tuple[Tensor, Tensor]:
    _, archs, nodes, _ = inputs.shape
    units = _host.stacked_cell_saved_units(int(nodes))
    size: tuple[int, ...] = tuple(images.shape)
    total = 0
    for named in _of_cells(weights):
        prev, size = size, _out_size(size, archs, named)
        total += new_saved(units, images, named.prev_prev_weight, size, prev).numel()
    return images.new_empty(size), images.new_empty((total if save else 0,))


def _cells_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    images, index, operations, weights, ctx.save = inputs
    ctx.save_for_backward(images, *output, index, operations, *weights)


def _cells_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors, weights = ctx.saved_tensors[:5], list(ctx.saved_tensors[5:])
    grad_images, grads = call_backward("cells", grad, *tensors, weights, ctx.needs_input_grad[0])
    return grad_images, None, None, grads


if available():
    _gradients = {"prev_prev": "prev_prev_needs_grad", "prev": "prev_needs_grad", "weights": None}
    _casts = {0: cast_feature_maps, 1: cast_feature_maps, 4: cast_weights}
    register_operator("cell", _cell_fake, _cell_setup, _cell_backward, _gradients, _casts)
    register_fake("_cell_backward_onto", _cell_backward_onto_fake)
    register_fake("_planned_cell", _planned_cell_fake)
    register_autocast("_planned_cell", {1 + i: cast for i, cast in _casts.items()})
    # How large plans are is known to the kernels alone, so that there are none without values.
    register_autocast("_cell_plans", {0: cast_feature_maps, 3: cast_weights})
    _gradients = {"images": "images_need_grad", "weights": None}
    _casts = {0: cast_feature_maps, 3: cast_weights}
    register_operator("cells", _cells_fake, _cells_setup, _cells_backward, _gradients, _casts)
