"""Shared weights of which an architecture uses a leading slice, as wide as any can ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["SliceableWeight", "WeightBank", "prepare_to_read"]


class SliceableWeight(nn.Module):
    """A weight (rows, columns, k, k) whose users read its first rows and columns.

    Read the plain way, autograd writes a gradient as large as the weight for every slice read. An
    optimizer that `attach`es itself gets the slices as leaf tensors instead, each with a gradient
    of its own size, and is told before every reading, so that it may defer updates until then.
    """

    def __init__(self, rows: int, columns: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, kernel, kernel))
        self._before_reading: Callable[[Sequence[SliceableWeight]], None] | None = None
        self._leaves: list[Tensor] = []

    def attach(self, before_reading: Callable[[Sequence[SliceableWeight]], None]) -> None:
        """Hands out leaf tensors from now on, and calls `before_reading` with those weights that
        will be read, before each."""
        self.materialized()  # no deferred update gets lost
        self._before_reading = before_reading
        self._leaves = []

    def leading_slice(self, rows: int, columns: int) -> Tensor:
        """The first `rows` rows and `columns` columns, (rows, columns, k, k), without a copy.

        Raises:
            ValueError: If the weight is smaller.
        """
        weight = self.weight  # modules take their time to find it
        most = tuple(weight.shape[:2])
        if not (0 < rows <= most[0] and 0 < columns <= most[1]):
            raise ValueError(f"rows and columns must be from 1 to {most}, got {(rows, columns)}")
        if self._before_reading is None:
            return weight[:rows, :columns]
        self._before_reading([self])
        leaf = weight.detach()[:rows, :columns]
        if torch.is_grad_enabled() and weight.requires_grad:
            leaf.requires_grad_()
            self._leaves.append(leaf)
        return leaf

    def materialized(self) -> Tensor:
        """The whole weight, detached, with all deferred updates made."""
        if self._before_reading is not None:
            self._before_reading([self])
        return self.weight.detach()

    def take_gradients(self) -> list[Tensor]:
        """Gradients of the slices read since the last call, and forgets the slices."""
        gradients = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        self._leaves.clear()
        return gradients


def prepare_to_read(weights: Sequence[SliceableWeight]) -> None:
    """Says that these weights, of one model, will be read: what was deferred is made at once."""
    if weights and weights[0]._before_reading is not None:
        weights[0]._before_reading(weights)


WeightBank = SliceableWeight
"""Its former name."""
