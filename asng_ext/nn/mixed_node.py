"""One node with all operations on all inputs, the building block of cells of any topology."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from asng_ext import _host, ops
from asng_ext._checks import brief, is_integer
from asng_ext.ops import _libraries, reference

__all__ = ["MixedNode"]


class MixedNode(nn.Module):
    """A node with the weights of every operation of the cell space on every candidate input.

    λ architectures run at once, each with operations and inputs of its own: on the compiled
    operator `asng_ext.ops.mixed_node` where it is available, otherwise in plain PyTorch by
    `asng_ext.ops.reference`, with the same results up to rounding. A cell of another topology than
    `CellSpace` has is a module that stacks the outputs of such nodes to the banks of later ones.

    Args:
        channels: C, of the inputs and the output.
        inputs: S, the number of candidate inputs.
        stride: 1, or 2 to halve height and width; an identity is a factorized reduction then.

    Raises:
        ValueError: `channels` or `inputs` is less than 1, `stride` is neither 1 nor 2, or there is
            one channel with stride 2.
    """

    def __init__(self, channels: int, inputs: int, stride: int = 1) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("inputs", inputs), ("stride", stride)):
            if not is_integer(value):
                raise TypeError(f"{name} must be an integer, got {brief(value)}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, got {stride!r}")
        if channels < stride:
            raise ValueError(f"channels must be at least {stride}, got {channels}")
        if inputs < 1:
            raise ValueError(f"inputs must be at least 1, got {inputs}")
        self.channels, self.inputs, self.stride = channels, inputs, stride
        for name, shape in _host.operation_weights(inputs, inputs, channels).items():
            wanted = stride == 2 or name != "reduction"
            self.register_parameter(name, nn.Parameter(torch.empty(shape)) if wanted else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights as PyTorch's convolutions do."""
        for name, weight in self.named_parameters():
            # Depthwise weights are (S, 2, C, 1, k, k), the others end with the input channels.
            fan_in = weight.shape[-1] ** 2 if name.startswith("depthwise") else self.channels
            nn.init.uniform_(weight, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def weights(self) -> Any:
        """The weights as `asng_ext.ops.NodeWeights`."""
        return ops.NodeWeights(*self._parameters.values())

    def forward(self, bank: Tensor, inputs: Tensor, operations: Tensor) -> Tensor:
        """The sum of E edges for each architecture.

        Args:
            bank: The candidate inputs, (S, λ, B, H, W, C).
            inputs: Which input each edge reads, (λ, E) integers.
            operations: Which operation it applies, (λ, E) indices of `OPERATIONS`.

        Returns:
            (λ, B, ⌈H/stride⌉, ⌈W/stride⌉, C)

        Raises:
            TypeError, ValueError: See `asng_ext.ops.mixed_node`.
        """
        run = ops.mixed_node if _libraries.available_on(bank.device) else reference.mixed_node
        return run(bank, inputs, operations, self.weights(), self.stride)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, inputs={self.inputs}, stride={self.stride}"
