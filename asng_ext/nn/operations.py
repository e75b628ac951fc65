"""The operations of the cell space and the blocks they are made of (Section 3.2).

Every block takes and returns feature maps of shape (N, C, H, W). A stride of 2 turns H×W into
⌈H/2⌉×⌈W/2⌉ in all of them, so that any two operations of a node can be added whatever the size.
Convolutions have no bias: a batch normalization always follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext import _host
from asng_ext.ops.reference import average_pool

__all__ = [
    "OPERATIONS",
    "PAPER_OPERATIONS",
    "AveragePool",
    "FactorizedReduction",
    "ReLUConvNorm",
    "SeparableConv",
    "average_pool",
    "batch_statistics_norm",
    "drop_path",
    "drop_path_factors",
    "make_operation",
    "plain_norm",
]

Norm = Callable[[int], nn.Module]
"""Makes the normalization layer for a number of channels."""

OPERATIONS = tuple(operation.name for operation in _host.OPERATIONS)
"""Names of all operations, in the order by which the compiled operators number them."""

PAPER_OPERATIONS = tuple(operation.name for operation in _host.OPERATIONS if operation.in_paper)
"""Those of the paper's space."""


def batch_statistics_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalization with weight and bias that normalizes with the batch in every mode."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


def plain_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalization that holds nothing: no weight, no bias, no running statistics.

    In a supernet the running statistics would mix all sampled architectures and fit none.
    """
    return nn.BatchNorm2d(channels, affine=False, track_running_stats=False)


class ReLUConvNorm(nn.Sequential):
    """ReLU, 1×1 convolution, normalization: brings an input of a cell to the cell's width.

    (N, in_channels, H, W) becomes (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(OrderedDict(relu=nn.ReLU(), conv=conv, norm=norm(out_channels)))


class FactorizedReduction(nn.Module):
    """Halves height and width without skipping rows and columns, as an identity with stride 2.

    One 1×1 convolution reads the pixels at even positions, another those at odd positions (rows
    and columns alike); their outputs are concatenated and normalized. Each makes half of the
    channels; of an odd number the first makes one more.

    Raises:
        ValueError: `out_channels` is less than 2, so that one convolution would be empty.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        if out_channels < 2:
            raise ValueError(f"out_channels must be at least 2 to be halved, got {out_channels}")
        odd = out_channels // 2
        self.conv_even = nn.Conv2d(in_channels, out_channels - odd, 1, bias=False)
        self.conv_odd = nn.Conv2d(in_channels, odd, 1, bias=False)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ⌈H/2⌉, ⌈W/2⌉)."""
        # Slicing, then a convolution of stride 1, equals a 1×1 convolution of stride 2, whose
        # backward crashes in PyTorch 2.13 on the CPU for channels-last images of 3 channels.
        even, odd = F.relu(x[..., ::2, ::2]), F.relu(x[..., 1::2, 1::2])
        # An odd height or width has one odd position less than even ones: zeros stand for it.
        missing = (even.shape[-1] - odd.shape[-1], even.shape[-2] - odd.shape[-2])
        if any(missing):
            odd = F.pad(odd, (0, missing[0], 0, missing[1]))
        y: Tensor = self.norm(torch.cat((self.conv_even(even), self.conv_odd(odd)), dim=1))
        return y


class _DepthwiseConv(nn.Conv2d):
    """k×k convolution of each channel by itself, which keeps height and width but for the stride.

    On the CPU it is never computed in bfloat16 if it is dilated: from PyTorch 2.11 to 2.13 at least
    the gradient of the weight would be arbitrary numbers for channels-last feature maps.
    """

    def __init__(self, channels: int, kernel: int, dilation: int, stride: int) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.dilation == (1, 1) or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            wide = torch.float32 if x.dtype == torch.bfloat16 else self.weight.dtype
            y = self._conv_forward(x.to(wide), self.weight.to(wide), None)
        return cast(Tensor, y.to(x.dtype))


class SeparableConv(nn.Sequential):
    """Two rounds of ReLU, depthwise k×k, 1×1, normalization; the first carries the stride.

    (N, C, H, W) becomes (N, C, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    def __init__(self, channels: int, kernel: int, dilation: int, stride: int, norm: Norm) -> None:
        super().__init__()
        for half, half_stride in enumerate((stride, 1)):
            depthwise = _DepthwiseConv(channels, kernel, dilation, half_stride)
            pointwise = nn.Conv2d(channels, channels, 1, bias=False)
            stage = {"relu": nn.ReLU(), "depthwise": depthwise, "pointwise": pointwise}
            stage["norm"] = norm(channels)
            self.add_module(f"half{half}", nn.Sequential(OrderedDict(stage)))


class AveragePool(nn.Module):
    """`average_pool` as a layer."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ⌈H/stride⌉, ⌈W/stride⌉)."""
        return average_pool(x, self.stride)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


def make_operation(name: str, channels: int, stride: int, norm: Norm) -> nn.Module:
    """The operation `name` on `channels` channels.

    Args:
        name: One of `OPERATIONS`.
        channels: Channels of input and output.
        stride: 1, or 2 for the operations of a reduction cell that read an input of the cell.
        norm: Makes the normalization layers.

    Raises:
        ValueError: `name` is unknown, or `stride` is neither 1 nor 2.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")
    if name not in OPERATIONS:
        raise ValueError(f"name must be one of {', '.join(OPERATIONS)}, got {name!r}")
    operation = _host.OPERATIONS[OPERATIONS.index(name)]
    match operation.form:
        case "identity" if stride == 1:
            return nn.Identity()
        case "identity":
            return FactorizedReduction(channels, channels, norm)
        case "average_pool":
            return AveragePool(stride)
        case "max_pool":
            return nn.MaxPool2d(operation.kernel, stride, padding=operation.kernel // 2)
        case _:
            return SeparableConv(channels, operation.kernel, operation.dilation, stride, norm)


def drop_path_factors(draws: Tensor, rate: float) -> Tensor:
    """What drop-path multiplies images with: 0 with probability `rate`, or else 1 / (1 − rate).

    The expectation of an image stays what it is.

    Args:
        draws: Uniform random numbers in [0, 1), in any shape.
        rate: Probability, in [0, 1).

    Returns:
        A factor for each number, in its shape.
    """
    keep = 1 - rate
    return (draws < keep) / keep


def drop_path(x: Tensor, factors: Tensor) -> Tensor:
    """Zeroes some images of the batch and scales up the others.

    Args:
        x: (N, C, H, W).
        factors: (N,) of `drop_path_factors`, on the device of `x`.
    """
    return x * factors.view(-1, 1, 1, 1).to(x.dtype)
