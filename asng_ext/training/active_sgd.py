"""SGD with momentum whose work is proportional to what an architecture uses.

The weights are `SliceableWeight`s of which a step reads leading slices. The result is that of
`torch.optim.SGD` with gradients that are zeroed, not dropped, between steps: a weight that was
used once goes on moving by its momentum. But where a weight is idle for n steps, only its momentum
moves it, which is a geometric series:

    v ← μⁿ v,    w ← w − v (ε₁ μ + ε₂ μ² + … + εₙ μⁿ)    (v before, εᵢ the learning rates meanwhile)

so all n steps are deferred, and made at once when the weight is read the next time. And where no
gradient has ever been, momentum is 0: only the leading slice that was used so far has any.

On a CUDA device all weights of an architecture move in a launch or two.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asng_ext.nn.sliceable_weight import SliceableWeight
from asng_ext.ops import _libraries
from asng_ext.ops.active_sgd import active_sgd_catch_up, active_sgd_step

__all__ = ["ActiveSGD", "is_sliceable"]

_NEGLIGIBLE = 1e-30
"""Momentum that has shrunk by this factor moves no weight any more."""


class ActiveSGD(torch.optim.Optimizer):
    """SGD with momentum and a limit on the norm of the gradient, for a model of sliceable weights.

    It takes over the weights of the model: slices read from now on are leaf tensors, and weights
    are up to date whenever they are read through their methods or by `state_dict`.

    Args:
        model: A model all of whose parameters are those of `SliceableWeight` modules.
        lr: Learning rate ε.
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
        if not is_sliceable(model):
            names = [name for name, _ in model.named_parameters()][:5]
            raise ValueError(f"model must have parameters of sliceable weights only, got {names}")
        self._weights = _sliceable_weights(model)
        super().__init__([w.weight for w in self._weights], {"lr": lr, "momentum": momentum})
        self.max_norm = max_norm
        self._velocity: list[Tensor | None] = [None] * len(self._weights)
        self._current = [0] * len(self._weights)
        """Up to which step each weight is up to date."""
        self._rates: list[float] = []
        """Learning rate of each step since all weights were up to date."""
        self._read: set[int] = set()
        """Which weights were read since the last step."""
        self._given: dict[int, Tensor] | None = None
        """The gradients of the next step, where they are not those of the slices."""
        self._stays = False
        """Whether states are read without making deferred steps."""
        self._index = {weight: i for i, weight in enumerate(self._weights)}
        for weight in self._weights:
            weight.attach(self._catch_up)
        model.register_state_dict_pre_hook(  # type: ignore[no-untyped-call]
            lambda *_: self.materialize()
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients; slices that are read belong to one step."""
        self._take_slices()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of the weights that have a gradient; that of the others is deferred."""
        gradients = self.take_gradients() if self._given is None else self._given
        self._given = None
        group = self.param_groups[0]
        self._rates.append(float(group["lr"]))
        moving = [self._weights[i].weight.detach() for i in gradients]
        if group["momentum"] > 0 and _fits_operators(moving, list(gradients.values())):
            self._move_together(moving, gradients)
        else:
            self._move_one_by_one(gradients)
        for i in gradients:
            self._current[i] = len(self._rates)

    @property
    def read(self) -> frozenset[int]:
        """The numbers of the weights that were read since the last step."""
        return frozenset(self._read)

    def prepare_to_read(self, numbers: Sequence[int]) -> None:
        """Makes the deferred steps of weights, as reading them does."""
        self._catch_up([self._weights[i] for i in numbers])

    @torch.no_grad()
    def take_gradients(self) -> dict[int, Tensor]:
        """Those of the slices that were read, by the numbers of the weights; the next step would
        have none, unless it is given some."""
        slices = self._take_slices()
        return {i: _sum_of_slices(taken) for i, taken in slices.items() if taken}

    def give_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """Those that the next step takes, of leading slices, by the numbers of the weights."""
        self._given = dict(sorted(gradients.items()))

    def _take_slices(self) -> dict[int, list[Tensor]]:
        """Gradients of the slices that were read, in the order of the weights."""
        slices = {i: self._weights[i].take_gradients() for i in sorted(self._read)}
        self._read.clear()
        return slices

    def _move_together(self, weights: Sequence[Tensor], gradients: Mapping[int, Tensor]) -> None:
        """One step of weights that are up to date but for it, on a CUDA device."""
        velocities = [_grown(self._velocity[i], gradient) for i, gradient in gradients.items()]
        for i, velocity in zip(gradients, velocities):
            self._velocity[i] = velocity
        group = self.param_groups[0]
        active_sgd_step(
            weights,
            list(gradients.values()),
            velocities,
            group["lr"],
            group["momentum"],
            math.inf if self.max_norm is None else self.max_norm,
        )

    def _move_one_by_one(self, gradients: Mapping[int, Tensor]) -> None:
        if self.max_norm is not None and gradients:
            # As `torch.nn.utils.clip_grad_norm_` does, which takes no gradients.
            parts = list(gradients.values())
            scale = self.max_norm / (nn.utils.get_total_norm(parts) + 1e-6)
            torch._foreach_mul_(parts, scale.clamp(max=1.0))
        group = self.param_groups[0]
        for i, gradient in gradients.items():
            self._move(i, gradient, group["lr"], group["momentum"])

    def _move(self, i: int, gradient: Tensor, rate: float, momentum: float) -> None:
        """One step of a weight that is up to date but for it."""
        weight = self._weights[i].weight.detach()
        if momentum == 0:
            _leading(weight, gradient).add_(gradient, alpha=-rate)
            return
        velocity = _grown(self._velocity[i], gradient)
        self._velocity[i] = velocity
        velocity.mul_(momentum)
        _leading(velocity, gradient).add_(gradient)
        _leading(weight, velocity).add_(velocity, alpha=-rate)

    def _catch_up(self, weights: Sequence[SliceableWeight]) -> None:
        """Makes the deferred steps of weights."""
        last = len(self._rates)
        moving: dict[int, tuple[float, float]] = {}
        read = [self._index[weight] for weight in weights]
        self._read.update(read)
        for i in read:
            first, self._current[i] = self._current[i], last
            if first != last and self._velocity[i] is not None:
                moving[i] = self._deferred(first)
        if not moving:
            return
        own = [self._weights[i].weight.detach() for i in moving]
        velocities = [velocity for i in moving if (velocity := self._velocity[i]) is not None]
        distances, factors = zip(*moving.values())
        if _fits_operators(own, velocities):
            active_sgd_catch_up(own, velocities, distances, factors)
            return
        for weight, velocity, distance, factor in zip(own, velocities, distances, factors):
            _leading(weight, velocity).add_(velocity, alpha=-distance)
            velocity.mul_(factor)

    def _deferred(self, first: int) -> tuple[float, float]:
        """What the steps since `first` multiply a velocity by, to move a weight and to go on."""
        momentum = float(self.param_groups[0]["momentum"])
        distance, power = 0.0, 1.0
        for rate in self._rates[first:]:
            power *= momentum
            if power < _NEGLIGIBLE:
                break
            distance += rate * power
        return distance, momentum ** (len(self._rates) - first)

    @contextlib.contextmanager
    def as_it_is(self) -> Iterator[None]:
        """In this context the states of the optimizer and its model are read without making
        deferred steps, which in two parts would be rounded otherwise than in one."""
        self._stays = True
        try:
            yield
        finally:
            self._stays = False

    def materialize(self) -> None:
        """Makes all deferred steps."""
        if self._stays:
            return
        self._catch_up(self._weights)
        self._forget_steps()

    def _forget_steps(self) -> None:
        self._rates = []
        self._current = [0] * len(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Settings and momentum, with all steps made but in `as_it_is`; loads with
        `weights_only=True`."""
        self.materialize()
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        state = {"groups": groups, "velocity": list(self._velocity)}
        if self._stays:
            state["deferred"] = {"rates": list(self._rates), "current": list(self._current)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state of `state_dict`; the model's weights are to be those of then.

        Raises:
            ValueError: If the state is of other weights.
        """
        velocities = list(state["velocity"])
        if len(velocities) != len(self._weights):
            raise ValueError(
                f"state must be of {len(self._weights)} sliceable weights, "
                f"got one of {len(velocities)}"
            )
        for weight, velocity in zip(self._weights, velocities):
            shape = weight.weight.shape
            if velocity is not None and (
                velocity.shape[2:] != shape[2:] or any(a > b for a, b in zip(velocity.shape, shape))
            ):
                raise ValueError(
                    f"velocity must fit into {tuple(shape)}, got {tuple(velocity.shape)}"
                )
        for group, saved in zip(self.param_groups, state["groups"]):
            group.update(saved)
        self._velocity = [
            None if velocity is None else velocity.detach().clone().to(weight.weight)
            for weight, velocity in zip(self._weights, velocities)
        ]
        self._forget_steps()
        if "deferred" in state:
            self._rates = [float(rate) for rate in state["deferred"]["rates"]]
            self._current = [int(step) for step in state["deferred"]["current"]]


def is_sliceable(model: nn.Module) -> bool:
    """Whether the model has sliceable weights, and no other parameters."""
    weights = {id(weight.weight) for weight in _sliceable_weights(model)}
    return bool(weights) and all(id(parameter) in weights for parameter in model.parameters())


def _sliceable_weights(model: nn.Module) -> list[SliceableWeight]:
    return [module for module in model.modules() if isinstance(module, SliceableWeight)]


def _fits_operators(weights: Sequence[Tensor], slices: Sequence[Tensor]) -> bool:
    """Whether the operators for CUDA devices take weights with these slices."""
    if not weights or not _libraries.has_cuda_kernels(weights[0].device):
        return False
    dtype = weights[0].dtype
    return dtype in (torch.float32, torch.float64) and all(
        t.is_contiguous() and t.dtype == dtype for t in (*weights, *slices)
    )


def _leading(whole: Tensor, part: Tensor) -> Tensor:
    """The leading slice of `whole` that is as large as `part`."""
    return whole[: part.shape[0], : part.shape[1]]


def _sum_of_slices(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of gradients of leading slices, as large as the largest needs be."""
    if len(gradients) == 1:
        return gradients[0]
    rows, columns = (max(gradient.shape[axis] for gradient in gradients) for axis in (0, 1))
    total = gradients[0].new_zeros(rows, columns, *gradients[0].shape[2:])
    for gradient in gradients:
        _leading(total, gradient).add_(gradient)
    return total


def _grown(velocity: Tensor | None, gradient: Tensor) -> Tensor:
    """The velocity with zeros added, so that the gradient's slice lies in it."""
    if velocity is None:
        return torch.zeros_like(gradient, memory_format=torch.contiguous_format)
    rows, columns = (max(velocity.shape[axis], gradient.shape[axis]) for axis in (0, 1))
    if velocity.shape[:2] == (rows, columns):
        return velocity
    grown = velocity.new_zeros(rows, columns, *velocity.shape[2:])
    _leading(grown, velocity).copy_(velocity)
    return grown
