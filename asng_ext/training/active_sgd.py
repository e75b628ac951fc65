"""SGD with momentum whose work is proportional to what an architecture uses.

The weights are `WeightBank`s of which a step reads corners. The result is that of
`torch.optim.SGD` with gradients that are zeroed, not dropped, between steps: a weight that was
used once goes on moving by its momentum. But where a bank is idle for n steps, only its momentum
moves it, which is a geometric series:

    v ← μⁿ v,    w ← w − v (ε₁ μ + ε₂ μ² + … + εₙ μⁿ)    (v before, εᵢ the step sizes meanwhile)

so all n steps are made at once, when the bank is read the next time. And where no gradient has
ever been, momentum is 0: only the corner that was used so far has any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asng_ext.nn.sliceable_weight import WeightBank

__all__ = ["ActiveSGD", "made_of_banks"]

_NEGLIGIBLE = 1e-30
"""Momentum that has shrunk by this factor moves no weight any more."""


class ActiveSGD(torch.optim.Optimizer):
    """SGD with momentum and a limit on the norm of the gradient, for a model of weight banks.

    It takes over the banks of the model: corners read from now on are leaf tensors, and banks
    are up to date whenever they are read through their methods or by `state_dict`.

    Args:
        model: A model all of whose parameters are those of `WeightBank` modules.
        lr: Step size ε.
        momentum: μ.
        max_norm: Largest Euclidean norm of the whole gradient; a longer one is shortened to it.

    Raises:
        ValueError: If a number is out of its range, or the model has other parameters.
    """

    def __init__(
        self, model: nn.Module, lr: float, momentum: float = 0.0, max_norm: float | None = None
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr must be 0 or more, got {lr}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be from 0 to 1, got {momentum}")
        if max_norm is not None and max_norm <= 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}")
        banks = [module for module in model.modules() if isinstance(module, WeightBank)]
        if not made_of_banks(model):
            names = [name for name, _ in model.named_parameters()][:5]
            raise ValueError(f"model must have parameters of weight banks only, got {names}")
        super().__init__([bank.weight for bank in banks], {"lr": lr, "momentum": momentum})
        self.max_norm = max_norm
        self._banks = banks
        self._velocity: list[Tensor | None] = [None] * len(banks)
        self._current = [0] * len(banks)
        """Up to which step each bank is up to date."""
        self._rates: list[float] = []
        """Step size of each step since all banks were up to date."""
        for i, bank in enumerate(banks):
            bank.attach(lambda i=i: self._catch_up(i))  # type: ignore[misc]
        model.register_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            lambda *_: self.settle()
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients; corners that are read belong to one step."""
        for bank in self._banks:
            bank.take_gradients()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of the banks that have a gradient; the others' is put off."""
        gradients: dict[int, Tensor] = {}
        for i, bank in enumerate(self._banks):
            corners = bank.take_gradients()
            if corners:
                gradients[i] = _sum_of_corners(corners)
        if self.max_norm is not None and gradients:
            _limit_norm(list(gradients.values()), self.max_norm)
        group = self.param_groups[0]
        self._rates.append(float(group["lr"]))
        for i, gradient in gradients.items():
            self._move(i, gradient, group["lr"], group["momentum"])
            self._current[i] = len(self._rates)

    def _move(self, i: int, gradient: Tensor, rate: float, momentum: float) -> None:
        """One step of a bank that is up to date but for it."""
        rows, columns = gradient.shape[:2]
        weight = self._banks[i].weight.detach()
        if momentum == 0:
            weight[:rows, :columns].add_(gradient, alpha=-rate)
            return
        velocity = _grown(self._velocity[i], gradient)
        self._velocity[i] = velocity
        velocity.mul_(momentum)
        velocity[:rows, :columns].add_(gradient)
        weight[: velocity.shape[0], : velocity.shape[1]].add_(velocity, alpha=-rate)

    @torch.no_grad()
    def _catch_up(self, i: int) -> None:
        """Makes the steps that were put off."""
        first, last = self._current[i], len(self._rates)
        self._current[i] = last
        velocity = self._velocity[i]
        if first == last or velocity is None:
            return
        momentum = float(self.param_groups[0]["momentum"])
        distance, power = 0.0, 1.0
        for rate in self._rates[first:last]:
            power *= momentum
            if power < _NEGLIGIBLE:
                break
            distance += rate * power
        corner = self._banks[i].weight.detach()[: velocity.shape[0], : velocity.shape[1]]
        corner.add_(velocity, alpha=-distance)
        velocity.mul_(momentum ** (last - first))

    def settle(self) -> None:
        """Makes all steps that were put off."""
        for i in range(len(self._banks)):
            self._catch_up(i)
        self._rates = []
        self._current = [0] * len(self._banks)

    def state_dict(self) -> dict[str, Any]:
        """Settings and momentum, with all steps made; loads with `weights_only=True`."""
        self.settle()
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"groups": groups, "velocity": list(self._velocity)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state of `state_dict`; the model's weights are to be those of then.

        Raises:
            ValueError: If the state is of other banks.
        """
        velocities = list(state["velocity"])
        if len(velocities) != len(self._banks):
            raise ValueError(
                f"state must be of {len(self._banks)} banks, got one of {len(velocities)}"
            )
        for bank, velocity in zip(self._banks, velocities):
            shape = bank.weight.shape
            if velocity is not None and (
                velocity.shape[2:] != shape[2:] or any(a > b for a, b in zip(velocity.shape, shape))
            ):
                raise ValueError(
                    f"velocity must fit into {tuple(shape)}, got {tuple(velocity.shape)}"
                )
        for group, saved in zip(self.param_groups, state["groups"]):
            group.update(saved)
        self._velocity = [
            None if velocity is None else velocity.detach().clone().to(bank.weight)
            for bank, velocity in zip(self._banks, velocities)
        ]
        self._rates = []
        self._current = [0] * len(self._banks)


def made_of_banks(model: nn.Module) -> bool:
    """Whether the model has weight banks, and no other parameters."""
    banks = [module for module in model.modules() if isinstance(module, WeightBank)]
    weights = {id(bank.weight) for bank in banks}
    return bool(banks) and all(id(parameter) in weights for parameter in model.parameters())


def _sum_of_corners(corners: Sequence[Tensor]) -> Tensor:
    """The sum of gradients of corners, as large as the largest needs be."""
    if len(corners) == 1:
        return corners[0]
    rows, columns = (max(corner.shape[axis] for corner in corners) for axis in (0, 1))
    total = corners[0].new_zeros(rows, columns, *corners[0].shape[2:])
    for corner in corners:
        total[: corner.shape[0], : corner.shape[1]].add_(corner)
    return total


def _limit_norm(gradients: list[Tensor], max_norm: float) -> None:
    """What `torch.nn.utils.clip_grad_norm_` does, for tensors that are gradients."""
    norms = torch.stack(torch._foreach_norm(gradients))
    scale = (max_norm / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, scale)


def _grown(velocity: Tensor | None, gradient: Tensor) -> Tensor:
    """The velocity with zeros added, so that the gradient's corner lies in it."""
    if velocity is None:
        return torch.zeros_like(gradient, memory_format=torch.contiguous_format)
    rows, columns = (max(velocity.shape[axis], gradient.shape[axis]) for axis in (0, 1))
    if velocity.shape[:2] == (rows, columns):
        return velocity
    grown = velocity.new_zeros(rows, columns, *velocity.shape[2:])
    grown[: velocity.shape[0], : velocity.shape[1]] = velocity
    return grown
