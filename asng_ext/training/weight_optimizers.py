"""The weights' SGD: the search's, which may be captured in a CUDA graph, and the retraining's, or
Adam instead of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.training.active_sgd import ActiveSGD, is_sliceable

__all__ = [
    "CapturableSGD",
    "make_weight_optimizer",
    "restore_weight_optimizer",
    "set_learning_rate",
]


class CapturableSGD(torch.optim.SGD):
    """SGD whose learning rate is a tensor on the device: its step can be captured in a graph.

    Gradients that are dropped between steps count as zero where there was one before: as for SGD
    with gradients that are zeroed, a weight that was used once continues to move.
    """

    def __init__(self, model: nn.Module, config: SearchConfig) -> None:
        weights = list(model.parameters())
        rate = torch.full((), config.learning_rate, dtype=torch.float32, device=weights[0].device)
        super().__init__(
            weights,
            lr=rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,  # one kernel that reads the learning rate on the device
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients: what backward makes need not be added to zeros."""
        super().zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step. Buffers that a graph will refer to are there from the first on."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if weight.grad is None and not state:
                    continue
                # The fused kernel needs everything in the memory layout of the weight.
                weight.grad = _laid_out_like(weight, weight.grad)
                state["momentum_buffer"] = _laid_out_like(weight, state.get("momentum_buffer"))
        super().step()


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

    With ``capturable`` the steps of the search's SGD can be captured in a graph. A model of
    sliceable weights alone, such as the supernet of autoencoders, gets an SGD whose work is that of
    the weights in use; it has no weight decay, which would move all of them.
    """
    weights, rate, decay = model.parameters(), config.learning_rate, config.weight_decay
    if isinstance(config, RetrainConfig):
        if config.optimizer == "adam":
            return torch.optim.Adam(weights, lr=rate, weight_decay=decay)
    elif is_sliceable(model):
        if decay:
            raise ValueError(
                "weight_decay must be 0 for a supernet of sliceable weights, which rest when idle, "
                f"got {decay}"
            )
        return ActiveSGD(model, rate, config.momentum, config.gradient_clip)
    elif capturable:
        return CapturableSGD(model, config)
    return torch.optim.SGD(weights, lr=rate, momentum=config.momentum, weight_decay=decay)


def restore_weight_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads the state, and gives weights that have one the gradient of 0 that they had.

    Gradients are zeroed, not dropped, between steps: a weight that was used once continues to move
    by its momentum and weight decay while it is not.
    """
    own: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "foreach", "fused") if name in group}
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
