"""Weights of which a step uses a corner: a bank as wide as any architecture can ask for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["WeightBank"]


class WeightBank(nn.Module):
    """A weight (rows, columns, k, k) whose users read its first rows and columns.

    Read the plain way, autograd writes a gradient as large as the bank for every corner read. An
    optimizer that `attach`es itself gets the corners as leaf tensors instead, each with a gradient
    of its own size, and is told before every reading, so that it may put off updates until then.
    """

    def __init__(self, rows: int, columns: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, kernel, kernel))
        self._before_reading: Callable[[], None] | None = None
        self._leaves: list[Tensor] = []

    def attach(self, before_reading: Callable[[], None]) -> None:
        """Hands out leaf tensors from now on, and calls `before_reading` before each."""
        if self._before_reading is not None:
            self._before_reading()  # nothing that was put off gets lost
        self._before_reading = before_reading
        self._leaves = []

    def corner(self, rows: int, columns: int) -> Tensor:
        """The first `rows` rows and `columns` columns, (rows, columns, k, k), without a copy.

        Raises:
            ValueError: If the bank is smaller.
        """
        most = self.weight.shape[:2]
        if not (0 < rows <= most[0] and 0 < columns <= most[1]):
            raise ValueError(
                f"rows and columns must be from 1 to {tuple(most)}, got {(rows, columns)}"
            )
        if self._before_reading is None:
            return self.weight[:rows, :columns]
        self._before_reading()
        corner = self.weight.detach()[:rows, :columns]
        if torch.is_grad_enabled() and self.weight.requires_grad:
            corner.requires_grad_()
            self._leaves.append(corner)
        return corner

    def settled(self) -> Tensor:
        """The whole weight, detached, with all updates made."""
        if self._before_reading is not None:
            self._before_reading()
        return self.weight.detach()

    def take_gradients(self) -> list[Tensor]:
        """Gradients of the corners read since the last call, and forgets the corners."""
        gradients = [leaf.grad for leaf in self._leaves if leaf.grad is not None]
        self._leaves = []
        return gradients
