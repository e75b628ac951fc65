"""In which precision networks run."""

from __future__ import annotations

import torch

__all__ = ["autocast"]


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """What a network with the setting ``precision``, "float32" or "bfloat16", runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
