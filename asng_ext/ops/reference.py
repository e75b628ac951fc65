"""The operators of `asng_ext.ops` in plain PyTorch: slow, obvious, the oracle of their tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from asng_ext import _host

__all__ = ["average_pool", "mixed_node", "mixture", "normalize", "operation"]


def average_pool(x: Tensor, stride: int) -> Tensor:
    """3×3 average pool of (N, C, H, W); divides by 9 at the border too, as the authors' code."""
    # On a GPU the gradient of PyTorch 2.11's own padding is wrong for channels-last images. On a
    # CPU, where it is right, padding first costs up to twice the time.
    if x.is_cuda:
        return _average_pool_of_padded(x, stride)
    return F.avg_pool2d(x, 3, stride, padding=1)


def _average_pool_of_padded(x: Tensor, stride: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, stride)


def normalize(x: Tensor) -> Tensor:
    """Batch normalization of (N, C, H, W) with the statistics of the batch, non-affine."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + _host.EPSILON)


def _separable(
    x: Tensor, depthwise: Tensor, pointwise: Tensor, dilation: int, stride: int
) -> Tensor:
    for stage in range(2):
        kernel = depthwise[stage]
        x = F.conv2d(
            F.relu(x),
            kernel,
            stride=stride if stage == 0 else 1,
            padding=dilation * (kernel.shape[-1] // 2),
            dilation=dilation,
            groups=x.shape[1],
        )
        x = normalize(F.conv2d(x, pointwise[stage][:, :, None, None]))
    return x


def _factorized_reduction(x: Tensor, weight: Tensor) -> Tensor:
    even_rows = weight.shape[0] - weight.shape[0] // 2
    # An odd number of rows or columns has no odd pixel at the end: a zero stands for it.
    x = F.pad(F.relu(x), (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
    even, odd = x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
    return normalize(
        torch.cat(
            (
                torch.einsum("nchw,oc->nohw", even, weight[:even_rows]),
                torch.einsum("nchw,oc->nohw", odd, weight[even_rows:]),
            ),
            dim=1,
        )
    )


def operation(x: Tensor, number: int, index: int, weights: Sequence[Tensor], stride: int) -> Tensor:
    """Operation `number` on input number `index` of a node, x (N, C, H, W)."""
    named = dict(zip(_host.OPERATION_WEIGHTS, weights, strict=True))
    kind = _host.OPERATIONS[number]
    match kind.form:
        case "identity" if stride == 1:
            return x
        case "identity":
            return _factorized_reduction(x, named["reduction"][index])
        case "average_pool":
            return average_pool(x, stride)
        case "max_pool":
            return F.max_pool2d(x, kind.kernel, stride, padding=kind.kernel // 2)
    depthwise, pointwise = (named[name][index] for name in kind.weights)
    return _separable(x, depthwise, pointwise, kind.dilation, stride)


def mixed_node(
    bank: Tensor, inputs: Tensor, operations: Tensor, weights: Sequence[Tensor], stride: int = 1
) -> Tensor:
    """See `asng_ext.ops.mixed_node`."""
    nodes = []
    for a in range(bank.shape[1]):
        edges = [
            operation(bank[i, a].permute(0, 3, 1, 2), k, i, weights, stride)
            for i, k in zip(inputs[a].tolist(), operations[a].tolist(), strict=True)
        ]
        nodes.append(torch.stack(edges).sum(0).permute(0, 2, 3, 1))
    return torch.stack(nodes)


def mixture(
    inputs: Sequence[Tensor],
    coefficients: Tensor,
    edges: Sequence[tuple[int, int, int]],
    weights: Sequence[Tensor],
    nodes: int,
    stride: int = 1,
) -> Tensor:
    """See `asng_ext.ops.mixture`; with any number of channels."""
    unused = iter(weights)
    states = [x.permute(0, 3, 1, 2) for x in inputs]
    terms = []
    for node, i, number in edges:
        kind = _host.OPERATIONS[number]
        edge_stride = stride if i < len(inputs) else 1
        # As `operation` takes them: in its order, and of a single input.
        named: dict[str, Any] = dict.fromkeys(_host.OPERATION_WEIGHTS)
        if kind.form == "separable":
            depthwise, pointwise, *second = (next(unused) for _ in range(4))
            named[kind.weights[0]] = torch.stack((depthwise, second[0]))[None]
            named[kind.weights[1]] = torch.stack((pointwise, second[1]))[None, ..., 0, 0]
        elif kind.form == "identity" and edge_stride == 2:
            named["reduction"] = torch.cat((next(unused), next(unused)))[None, ..., 0, 0]
        terms.append((node, i, number, list(named.values()), edge_stride))
    for n in range(nodes):
        of_node = (
            c * operation(states[i], number, 0, of_edge, edge_stride)
            for c, (node, i, number, of_edge, edge_stride) in zip(coefficients, terms, strict=True)
            if node == n
        )
        states.append(cast(Tensor, sum(of_node)))
    return torch.stack(states[len(inputs) :]).permute(0, 1, 3, 4, 2)
