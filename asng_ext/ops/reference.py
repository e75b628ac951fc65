"""The operators of `asng_ext.ops` in plain PyTorch: slow, obvious, the oracle of their tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from asng_ext.nn.operations import average_pool
from asng_ext.ops.mixed_node import NodeWeights

__all__ = ["mixed_node", "normalize", "operation"]

EPSILON = 1e-5


def normalize(x: Tensor) -> Tensor:
    """Batch normalization of (N, C, H, W) with the statistics of the batch, without weights."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPSILON)


def _separable(x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: int) -> Tensor:
    for half in range(2):
        kernel = depthwise[half]
        x = F.conv2d(
            F.relu(x),
            kernel,
            stride=stride if half == 0 else 1,
            padding=kernel.shape[-1] // 2,
            groups=x.shape[1],
        )
        x = normalize(F.conv2d(x, pointwise[half][:, :, None, None]))
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


def operation(x: Tensor, number: int, index: int, weights: NodeWeights, stride: int) -> Tensor:
    """Operation `number` on input number `index` of a node, x (N, C, H, W)."""
    if number == 0:
        if stride == 1:
            return x
        assert weights.reduction is not None
        return _factorized_reduction(x, weights.reduction[index])
    if number == 1:
        return average_pool(x, stride)
    if number == 2:
        return F.max_pool2d(x, 3, stride, padding=1)
    if number == 3:
        return _separable(x, weights.depthwise3[index], weights.pointwise3[index], stride)
    return _separable(x, weights.depthwise5[index], weights.pointwise5[index], stride)


def mixed_node(
    bank: Tensor, inputs: Tensor, operations: Tensor, weights: NodeWeights, stride: int = 1
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
