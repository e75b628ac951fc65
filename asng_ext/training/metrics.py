"""What is measured: PSNR and SSIM of batches of images, and means over the steps of an epoch; all
is computed on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from asng_ext._similarity import SSIM_WINDOW, psnr, ssim
from asng_ext.ops import _libraries
from asng_ext.ops.means import add_means

__all__ = ["SSIM_WINDOW", "Means", "psnr", "ssim"]


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
