"""Batch normalization by the statistics of all ranks.

It imports PyTorch's compiler, which takes a second: import it where there are several ranks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from asng_ext.distributed import Ranks

__all__ = ["SyncedBatchNorm", "synced_batch_norm"]


class SyncedBatchNorm(_BatchNorm):
    """Batch normalization which in training takes mean and variance over the batches of all ranks,
    of any device. Its state is that of the one it takes the place of.

    Args:
        norm: Whose weights and running statistics it shares.
        ranks: All of them; each must run the module equally often.
    """

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, False, False)
        self._ranks = ranks
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.training = norm.training
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input must have at least 2 dimensions, got {input.dim()}")

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def forward(self, input: Tensor) -> Tensor:
        """(N, C, …) to the same."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        shape = (1, -1, *[1] * (input.dim() - 2))
        others = [0, *range(2, input.dim())]
        wide = torch.float32 if input.dtype in (torch.bfloat16, torch.float16) else input.dtype
        x = input.to(wide)
        count = x.new_tensor([x.numel() // x.shape[1]])
        sums = self._sum(torch.cat([x.sum(others), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centered = x - mean.view(shape)
        variance = self._sum(centered.square().sum(others)) / total
        y = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        if self.running_mean is not None:
            self._track(mean.detach(), (variance * total / (total - 1)).detach())
        return y.to(input.dtype)

    def _sum(self, values: Tensor) -> Tensor:
        return cast(Tensor, _Summed.apply(values, self._ranks))  # type: ignore[no-untyped-call]

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight: Any = self.momentum
        if weight is None:
            weight = 1 / self.num_batches_tracked.to(mean.dtype)
        for running, current in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(current.to(running.dtype), weight)


class _Summed(torch.autograd.Function):
    """The sum over ranks. The losses of all ranks depend on it, so its gradient is one, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:  # type: ignore[override]
        ctx.ranks = ranks
        summed = values.clone()
        ranks.sum([summed])
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        summed = gradient.clone(memory_format=torch.contiguous_format)
        ctx.ranks.sum([summed])
        return summed, None


def synced_batch_norm(model: nn.Module, ranks: Ranks) -> None:
    """Puts a :class:`SyncedBatchNorm` in the place of each batch normalization inside a model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SyncedBatchNorm(child, ranks))
