"""What trains weights: SGD, or Adam, of a gradient whose norm is limited, and both such that their
steps can be captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asng_ext.ops import _libraries
from asng_ext.ops.sgd import sgd_step
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.training.active_sgd import ActiveSGD, is_sliceable

__all__ = [
    "CapturableAdam",
    "CapturableSGD",
    "ClippedAdam",
    "ClippedSGD",
    "make_weight_optimizer",
    "restore_weight_optimizer",
    "set_learning_rate",
]


class ClippedSGD(torch.optim.SGD):
    """SGD of a gradient whose norm is limited by ``gradient_clip`` of the config.

    Args:
        model: All of its parameters are trained.
        config: Settings of the loop.
        settings: Further arguments of :class:`torch.optim.SGD`.
    """

    def __init__(
        self, model: nn.Module, config: SearchConfig | RetrainConfig, **settings: Any
    ) -> None:
        given = {"lr": config.learning_rate, "momentum": config.momentum, **settings}
        given["nesterov"] = isinstance(config, SearchConfig) and config.nesterov
        super().__init__(model.parameters(), weight_decay=config.weight_decay, **given)
        self.max_norm = config.gradient_clip

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        _clip(self)
        super().step()


class ClippedAdam(torch.optim.Adam):
    """Adam of a gradient whose norm is limited by ``gradient_clip`` of the config.

    Args:
        model: All of its parameters are trained.
        config: Settings of the retraining.
        settings: Further arguments of :class:`torch.optim.Adam`.
    """

    def __init__(self, model: nn.Module, config: RetrainConfig, **settings: Any) -> None:
        given = {"lr": config.learning_rate, "weight_decay": config.weight_decay, **settings}
        super().__init__(model.parameters(), **given)
        self.max_norm = config.gradient_clip

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step."""
        _clip(self)
        super().step()


def _clip(optimizer: ClippedSGD | ClippedAdam) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    nn.utils.clip_grad_norm_(weights, optimizer.max_norm)


def _rate_on_device(model: nn.Module, config: SearchConfig | RetrainConfig) -> Tensor:
    device = next(model.parameters()).device
    return torch.full((), config.learning_rate, dtype=torch.float32, device=device)


class CapturableAdam(ClippedAdam):
    """Adam whose learning rate and count of steps are tensors on the device: its step can be
    captured in a graph."""

    # The first steps run uncaptured, of which PyTorch would warn.
    _warned_capturable_if_run_uncaptured = True

    def __init__(self, model: nn.Module, config: RetrainConfig) -> None:
        # Fused is one kernel that reads both on the device.
        super().__init__(
            model, config, lr=_rate_on_device(model, config), fused=True, capturable=True
        )


class CapturableSGD(ClippedSGD):
    """SGD whose learning rate is a tensor on the device: its step can be captured in a graph.

    Gradients that are dropped between steps count as zero where there was one before: as for SGD
    with gradients that are zeroed, a weight that was used once continues to move. On a CUDA device
    a step is two launches.
    """

    def __init__(self, model: nn.Module, config: SearchConfig | RetrainConfig) -> None:
        # Fused is one kernel that reads the learning rate on the device.
        super().__init__(model, config, lr=_rate_on_device(model, config), fused=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients: what backward makes need not be added to zeros."""
        super().zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. Buffers that a graph will refer to are there from the first on."""
        (group,) = self.param_groups
        moved = []
        for weight in group["params"]:
            state = self.state[weight]
            if weight.grad is None and not state:
                continue
            # The kernels need everything in the memory layout of the weight.
            weight.grad = _laid_out_like(weight, weight.grad)
            state["momentum_buffer"] = _laid_out_like(weight, state.get("momentum_buffer"))
            moved.append(weight)
        if not moved or not _fits_sgd_step(moved):
            super().step()
            return
        sgd_step(
            moved,
            [weight.grad for weight in moved],
            [self.state[weight]["momentum_buffer"] for weight in moved],
            group["lr"],
            group["momentum"],
            group["weight_decay"],
            self.max_norm,
        )


def _fits_sgd_step(weights: Sequence[Tensor]) -> bool:
    """Whether the operator takes weights with their gradients."""
    first = weights[0]
    return (
        _libraries.has_cuda_kernels(first.device)
        and first.dtype in (torch.float32, torch.float64)
        and all((w.dtype, w.device) == (first.dtype, first.device) for w in weights)
        and all(map(_has_no_gaps, weights))
    )


def _has_no_gaps(weight: Tensor) -> bool:
    is_image = weight.dim() == 4
    return weight.is_contiguous() or (
        is_image and weight.is_contiguous(memory_format=torch.channels_last)
    )


def _laid_out_like(weight: Tensor, values: Tensor | None) -> Tensor:
    """The values in the weight's memory layout; zeros for None."""
    if values is None:
        return torch.zeros_like(weight)
    if values.stride() == weight.stride():
        return values
    return torch.empty_like(weight).copy_(values)


def make_weight_optimizer(
    model: nn.Module, config: SearchConfig | RetrainConfig, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """SGD or Adam over all weights with the settings of the config; the search takes SGD.

    It clips the gradient itself, and with ``capturable`` its steps can be captured in a graph. A
    supernet of sliceable weights alone, such as that of autoencoders, gets an SGD whose work is
    that of the weights in use; it has no weight decay, which would move all of them.
    """
    if isinstance(config, RetrainConfig):
        if config.optimizer == "adam":
            return (CapturableAdam if capturable else ClippedAdam)(model, config)
        return (CapturableSGD if capturable else ClippedSGD)(model, config)
    if is_sliceable(model):
        if config.weight_decay:
            raise ValueError(
                "weight_decay must be 0 for a supernet of sliceable weights, which rest when idle, "
                f"got {config.weight_decay}"
            )
        if config.nesterov:
            raise ValueError("nesterov must be off for a supernet of sliceable weights, got True")
        return ActiveSGD(model, config.learning_rate, config.momentum, config.gradient_clip)
    return (CapturableSGD if capturable and not config.nesterov else ClippedSGD)(model, config)


def restore_weight_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads the state, and gives weights that have one the gradient of 0 that they had.

    Gradients are zeroed, not dropped, between steps: a weight that was used once continues to move
    by its momentum and weight decay while it is not.
    """
    own: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "foreach", "fused", "capturable") if name in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(dict(state))
    for group, kept in zip(optimizer.param_groups, own):
        # How to compute is not a matter of the checkpoint, which may be of a CPU.
        group.update(kept)
        for weight in group["params"]:
            if optimizer.state.get(weight):
                weight.grad = torch.zeros_like(weight)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same learning rate for all weights."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
