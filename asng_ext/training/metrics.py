"""What is measured: PSNR and SSIM (Wang et al., 2004) of batches of images, means over the steps of
an epoch, and whether a training has diverged. All but the last is computed on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext.ops import _libraries
from asng_ext.ops.means import add_means

__all__ = ["SSIM_WINDOW", "Means", "psnr", "raise_if_diverged", "ssim"]

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


class Means:
    """Means of metrics over the steps of an epoch, summed up on the device.

    What :meth:`add` does can be captured in a graph: sums and counts are on the device, and stay
    where they are.
    """

    def __init__(self) -> None:
        # By names: their sums, and in the last place how many steps were added.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._one: dict[torch.device, Tensor] = {}

    def add(
        self, metrics: Mapping[str, Tensor], prefix: str = "", watched: str | None = None
    ) -> None:
        """Adds one step.

        Args:
            metrics: Numbers on one device, of which the means count.
            prefix: Of their names.
            watched: The name of one of them. How often none of its numbers was finite is one more
                metric, "without_" and the name.
        """
        names = tuple(prefix + name for name in metrics)
        values = [value.detach() for value in metrics.values()]
        if watched is not None:
            names += (f"{prefix}without_{watched}",)
        total = self._sums.get(names)
        if total is None:
            total = values[0].new_zeros(len(names) + 1, dtype=torch.float32)
            self._sums[names] = total
        if _libraries.has_cuda_kernels(total.device):
            exact = (torch.float32, torch.float64)
            values = [v if v.dtype in exact else v.float() for v in values]
            position = -1 if watched is None else list(metrics).index(watched)
            add_means(total, [value.contiguous() for value in values], position)
            return
        step = [(v if v.numel() == 1 else v.mean()).float().reshape(()) for v in values]
        if watched is not None:
            step.append((~metrics[watched].detach().isfinite()).all().float())
        total.add_(torch.stack([*step, self._one_on(total.device)]))

    def _one_on(self, device: torch.device) -> Tensor:
        one = self._one.get(device)
        if one is None:
            one = self._one[device] = torch.ones((), device=device)
        return one

    def state_dict(self) -> dict[str, Any]:
        """What has been summed up."""
        return {"sums": [(list(names), total) for names, total in self._sums.items()]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Goes on from what :meth:`state_dict` gave, on a device."""
        self._sums = {tuple(names): total.to(device) for names, total in state["sums"]}

    def reset(self) -> None:
        """Begins again."""
        for total in self._sums.values():
            total.zero_()

    def read(self) -> dict[str, float]:
        """The means; synchronizes with the device."""
        sums: dict[str, float] = {}
        steps: dict[str, float] = {}
        for names, total in self._sums.items():
            *values, count = total.tolist()
            for name, value in zip(names, values):
                sums[name] = sums.get(name, 0.0) + value
                steps[name] = steps.get(name, 0.0) + count
        return {name: total / steps[name] for name, total in sums.items() if steps[name]}


def raise_if_diverged(row: Mapping[str, float], model: nn.Module) -> None:
    """FloatingPointError if a training has diverged: before its last checkpoint is replaced.

    Args:
        row: Metrics of an epoch, none of which but "train_loss" and "convergence" must be finite.
        model: Its weights must be, too: the last step may have made them infinite.
    """
    diverged = [
        name for name in ("train_loss", "convergence") if not math.isfinite(row.get(name, 0))
    ]
    weights = [weight for weight in model.parameters() if weight.numel()]
    largest = nn.utils.get_total_norm(weights, math.inf)
    if not diverged and not math.isfinite(largest):
        diverged = ["a weight"]
    if diverged:
        raise FloatingPointError(
            f"training diverged in epoch {row['epoch']:.0f}: {' and '.join(diverged)} is NaN or "
            "infinite; lower learning_rate"
        )
