"""How similar images are: PSNR and SSIM (Wang et al., 2004), computed where the images are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SSIM_WINDOW", "psnr", "ssim"]

SIGMA = 1.5
"""Standard deviation of SSIM's Gaussian window, in pixels."""
RADIUS = 5
"""The window ends at 3.5 standard deviations."""
SSIM_WINDOW = 2 * RADIUS + 1
"""The smallest height and width of images that have an SSIM."""
C1, C2 = 0.01**2, 0.03**2


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (N,); infinite for equal images.

    Args:
        images, targets: (N, C, H, W), floating point in [0, 1].

    Raises:
        ValueError: If the shapes differ or are not (N, C, H, W).
    """
    _check(images, targets)
    error = (images.float() - targets.float()).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image, (N,), the mean over pixels and channels.

    The window is Gaussian with σ = 1.5, variances are those of the window (no sample covariance),
    and the range of the data is 1. Pixels whose window reaches beyond the image do not count.

    Args:
        images, targets: (N, C, H, W), floating point in [0, 1], with H and W of at least 11.

    Raises:
        ValueError: If the shapes differ, are not (N, C, H, W) or are too small.
    """
    _check(images, targets)
    if min(images.shape[2:]) < SSIM_WINDOW:
        raise ValueError(
            f"images must have at least {SSIM_WINDOW}×{SSIM_WINDOW} pixels for SSIM, "
            f"got {tuple(images.shape[2:])}"
        )
    # Differences of squares of nearly equal numbers: double precision keeps what is left.
    x, y = images.double(), targets.double()
    moments = _windowed(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, square_x, square_y, product = moments.chunk(5)
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return (luminance * structure).mean(dim=(1, 2, 3)).float()


def _windowed(x: Tensor) -> Tensor:
    """Gaussian means (N, C, H - 10, W - 10) of (N, C, H, W)."""
    weights = [math.exp(-0.5 * (i / SIGMA) ** 2) for i in range(-RADIUS, RADIUS + 1)]
    window = torch.tensor(weights, dtype=x.dtype, device=x.device)
    window = window / window.sum()
    planes = x.reshape(-1, 1, *x.shape[2:])
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return planes.view(*x.shape[:2], *planes.shape[2:])


def _check(images: Tensor, targets: Tensor) -> None:
    if images.ndim != 4 or images.shape != targets.shape or images.numel() == 0:
        raise ValueError(
            "images and targets must be (N, C, H, W) of the same shape, "
            f"got {tuple(images.shape)} and {tuple(targets.shape)}"
        )
