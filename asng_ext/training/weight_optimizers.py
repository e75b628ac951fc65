"""What the two training loops share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from asng_ext._random import GlobalGenerators
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.training.active_sgd import ActiveSGD, is_sliceable

__all__ = [
    "Means",
    "check_convergent",
    "cosine",
    "cpu_threads",
    "drawn",
    "draws_of",
    "frozen_batch_norm",
    "in_steps",
    "make_optimizer",
    "restore_optimizer",
    "set_learning_rate",
]


Batch = TypeVar("Batch")


def cosine(start: float, done: int, total: int) -> float:
    """The step size after ``done`` of ``total`` steps on a half cosine from ``start`` to 0."""
    return start * (1 + math.cos(math.pi * done / total)) / 2


def in_steps(start: float, done: int, total: int) -> float:
    """The step size after ``done`` of ``total`` steps: a tenth after 2/5, a hundredth after 4/5."""
    return start * 0.1 ** ((5 * done >= 2 * total) + (5 * done >= 4 * total))


def check_convergent(row: Mapping[str, float], model: nn.Module) -> None:
    """FloatingPointError if a training has diverged: before its last checkpoint is replaced.

    Args:
        row: Metrics of an epoch, none of which but "train_loss" and "convergence" must be finite.
        model: Its weights must be, too: the last step may have spoilt them.
    """
    spoilt = [name for name in ("train_loss", "convergence") if not math.isfinite(row.get(name, 0))]
    weights = [weight for weight in model.parameters() if weight.numel()]
    largest = nn.utils.get_total_norm(weights, math.inf)
    if not spoilt and not math.isfinite(largest):
        spoilt = ["a weight"]
    if spoilt:
        raise FloatingPointError(
            f"training diverged in epoch {row['epoch']:.0f}: {' and '.join(spoilt)} is NaN or "
            "infinite; lower learning_rate"
        )


def draws_of(
    task: object, seed: int, purpose: str, device: torch.device
) -> contextlib.AbstractContextManager[None]:
    """What each step of an epoch runs in, so that its draws are a function of (seed, purpose).

    That makes an epoch the same whatever ran before it: a resumed run is the run. A task that says
    that it has ``own_generators`` needs nothing; for any other, PyTorch's global generators are
    borrowed: dropout and most of what users write draw from them.
    """
    if getattr(task, "own_generators", False):
        return contextlib.nullcontext()
    return GlobalGenerators(seed, purpose, device)


def drawn(
    draws: contextlib.AbstractContextManager[None],
    batches_of: Callable[[int], Iterable[Batch]],
    epoch: int,
) -> Iterator[Batch]:
    """The batches of an epoch, made within ``draws``; what is done with them is not."""
    with draws:
        batches = iter(batches_of(epoch))
    while True:
        with draws:
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """PyTorch uses ``count`` threads on the CPU, and afterwards as many as before; 0 changes none.

    For small images one thread is fastest, all the more where other processes want the cores:
    PyTorch's threads wait for each other after every operation.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Batch normalization normalizes by the batch, as in training, without touching its running
    statistics: evaluating an architecture leaves no trace in the model."""
    tracking = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


class _CapturableSGD(torch.optim.SGD):
    """SGD whose step size is a tensor on the device, so that its step can be captured in a graph.

    Gradients that are dropped between steps count as zero where there was one before: as for SGD
    with gradients that are zeroed, a weight that was used once goes on moving.
    """

    capturable = True

    def __init__(self, model: nn.Module, config: SearchConfig) -> None:
        weights = list(model.parameters())
        rate = torch.full((), config.learning_rate, dtype=torch.float32, device=weights[0].device)
        super().__init__(
            weights,
            lr=rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,  # one kernel that reads the step size on the device
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
                # The fused kernel wants everything in the memory layout of the weight.
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


def make_optimizer(
    model: nn.Module, config: SearchConfig | RetrainConfig, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """SGD or Adam over all weights with the settings of the config; the search takes SGD.

    With ``capturable`` the steps of the search's SGD can be captured in a graph. A model of
    sliceable weights alone, such as the supernet of autoencoders, gets an SGD whose work is that of
    the weights in use; it has no weight decay, which would move all of them.
    """
    if not isinstance(config, RetrainConfig) and is_sliceable(model):
        if config.weight_decay:
            raise ValueError(
                "weight_decay must be 0 for a supernet of sliceable weights, which rest when idle, "
                f"got {config.weight_decay}"
            )
        return ActiveSGD(model, config.learning_rate, config.momentum, config.gradient_clip)
    if capturable and not isinstance(config, RetrainConfig):
        return _CapturableSGD(model, config)
    if isinstance(config, RetrainConfig) and config.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads the state, and gives weights that have one the gradient of 0 that they had.

    Gradients are zeroed, not dropped, between steps: a weight that was used once goes on moving by
    its momentum and weight decay while it is not.
    """
    own: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "foreach", "fused") if name in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(dict(state))
    for group, kept in zip(optimizer.param_groups, own):
        group.update(kept)  # how to compute is not the checkpoint's to say: it may be of a CPU
        for weight in group["params"]:
            if optimizer.state.get(weight):
                weight.grad = torch.zeros_like(weight)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same step size for all weights."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Means:
    """Means of metrics over the steps of an epoch, summed up on the device.

    What :meth:`add` does can be captured in a graph: sums and counts are on the device, and stay
    where they are.
    """

    def __init__(self) -> None:
        # By names: their sums, and in the last place how many steps were added.
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._one: dict[torch.device, Tensor] = {}

    def add(self, metrics: Mapping[str, Tensor], prefix: str = "") -> None:
        """Adds one step; metrics are single numbers on one device."""
        names = tuple(prefix + name for name in metrics)
        values = [value.detach().float().reshape(()) for value in metrics.values()]
        one = self._one.get(values[0].device)
        if one is None:
            one = self._one[values[0].device] = torch.ones_like(values[0])
        stacked = torch.stack([*values, one])
        total = self._sums.get(names)
        if total is None:
            self._sums[names] = stacked
        else:
            total.add_(stacked)

    def reset(self) -> None:
        """Begins again."""
        for total in self._sums.values():
            total.zero_()

    def read(self) -> dict[str, float]:
        """The means; waits for the device."""
        sums: dict[str, float] = {}
        steps: dict[str, float] = {}
        for names, total in self._sums.items():
            *values, count = total.tolist()
            for name, value in zip(names, values):
                sums[name] = sums.get(name, 0.0) + value
                steps[name] = steps.get(name, 0.0) + count
        return {name: total / steps[name] for name, total in sums.items() if steps[name]}
