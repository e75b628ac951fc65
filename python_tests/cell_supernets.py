"""Supernets of cells in both implementations, and architectures for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from asng_ext.nn import CellSpace, CellSupernet, FusedCellSupernet

SPACE = CellSpace()


def pair(
    dtype: torch.dtype = torch.float64, space: CellSpace = SPACE, **settings: Any
) -> tuple[CellSupernet, Any]:
    """Both implementations from the same seed."""
    torch.manual_seed(3)
    plain = CellSupernet(space, **settings).to(dtype)
    torch.manual_seed(3)
    return plain, FusedCellSupernet(space, **settings).to(dtype)


def draw(count: int, seed: int = 0, space: CellSpace = SPACE) -> np.ndarray:
    """(count, d) architectures."""
    rng = np.random.default_rng(seed)
    return rng.integers(space.categories, size=(count, len(space.categories)))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients by the names of the state dict; zeros where there are none."""
    named = {}
    if isinstance(model, FusedCellSupernet):
        for i, cell in enumerate(model.cells):
            weights = {n: p.data for n, p in cell.named_parameters()}
            for p in cell.parameters():
                p.data = torch.zeros_like(p) if p.grad is None else p.grad
            named |= {f"cells.{i}.{n}": v.detach().clone() for n, v in cell.views()}
            for n, p in cell.named_parameters():
                p.data = weights[n]
    for name, p in model.named_parameters():
        if name.startswith("cells.") and isinstance(model, FusedCellSupernet):
            continue
        named[name] = torch.zeros_like(p) if p.grad is None else p.grad
    return named
