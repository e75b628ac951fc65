"""What to draw, and what a picture shows."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from asng_ext.nn import CellSpace

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb
from matplotlib.image import imread


def some_architecture(nodes: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(k) for k in CellSpace(nodes).categories]


def some_rows(epochs: int) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        loss = 1 + math.cos(epoch)
        row = {"epoch": float(epoch), "convergence": epoch / epochs, "delta": math.exp(-epoch / 99)}
        row |= {"train_loss": loss, "theta_loss": loss + 0.1, "learning_rate": 0.1 / epoch}
        row |= {"train_accuracy": 0.5, "theta_accuracy": 0.4}
        if epoch % 10 == 0 or epoch == epochs:
            row |= {"test_loss": loss, "test_accuracy": 0.6}
        rows.append(row)
    return rows


def pixels(path: Path) -> np.ndarray:
    """The picture's colors, (H, W, 3) in 0 … 255."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return (imread(path)[:, :, :3] * 255).round().astype(np.uint8)


def count(image: np.ndarray, color: str) -> int:
    rgb = np.array([round(255 * part) for part in to_rgb(color)])
    return int((image == rgb).all(axis=2).sum())
