"""ASNG with its state in tensors on a CUDA device.

Drawing samples and updating are one launch each, without host–device synchronization, so that both
can be captured in a CUDA graph; state changes in place.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from asng_ext import _host
from asng_ext.ops import _libraries
from asng_ext.space import FloatArray

if TYPE_CHECKING:
    from asng_ext._host import BestEvaluated, Common

__all__ = ["ASNGEngine", "ASNGTensors", "cuda_device"]

COLUMNS = {name: column for column, name in enumerate(_host.COUNTERS)}
"""Of `counters`."""


def cuda_device(device: torch.device | str) -> torch.device:
    """The device with its number, which without one is the current device's.

    Raises:
        ValueError: It is no CUDA device.
        RuntimeError: Operators or devices are missing; the message says which, and what to do.
    """
    wanted = None
    if isinstance(device, (str, torch.device)):  # for torch a number is one, too
        with contextlib.suppress(RuntimeError):
            wanted = torch.device(device)
    if wanted is None or wanted.type != "cuda":
        raise ValueError(f'device must be "cpu" or "cuda", got {str(device)!r}')
    _libraries.require_cuda()
    index = torch.cuda.current_device() if wanted.index is None else wanted.index
    if index >= torch.cuda.device_count():
        raise RuntimeError(
            f"there is no device cuda:{index}: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return torch.device("cuda", index)


def as_int64(unsigned: int) -> int:
    """The signed integer with the bits of an unsigned one."""
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned


class ASNGTensors:
    """P independent optimizers of one space, which advance in the same launches.

    :meth:`row` gives one of them, whose tensors, samples and losses have no dimension P.

    Args:
        common: What optimizers have in common; its seed is not used.
        alpha, delta_init, delta_max: See :class:`asng_ext.ASNG`.
        seeds: One for each of the P optimizers.
        device: Where the tensors are.

    Attributes:
        counters: (P, len(COLUMNS)) int64, see csrc/core/counters.h.
        theta: (P, Σ K) float64 probabilities, variable after variable.
        mean, variance: (P, n_num) float64.
        s: (P, n_θ) float64.
        step: (P, 2) float64, γ and Δ.
        best_loss: (P,) float64, the smallest loss so far (negated with ``maximize``), or inf.
        best_categorical, best_numerical: (P, n_cat) int64 and (P, n_num) float64, its sample.

    All of these are views of one tensor.
    """

    def __init__(
        self,
        common: Common,
        *,
        alpha: float,
        delta_init: float,
        delta_max: float,
        seeds: Sequence[int],
        device: torch.device,
    ) -> None:
        _libraries.require()
        ask, tell = torch.ops.asng._asng_ask.default, torch.ops.asng._asng_tell.default
        # Without the call in Python around them, if there is one, which takes as long as a check of
        # a tensor.
        self._ask, self._tell = getattr(ask, "_op", ask), getattr(tell, "_op", tell)
        self.population_size = common["population_size"]
        self.settings = (alpha, delta_init, delta_max, common["variance_ratio_min"])
        # They start as the optimizer on the CPU does.
        start = _host.ASNG(common, alpha=alpha, delta_init=delta_init, delta_max=delta_max)
        sizes, low, high = (np.array(common[k]) for k in ("sizes", "low", "high"))
        self._gaussian, self._largest = len(low), int(sizes.max(initial=0))
        # What every call needs is in two tensors, because each that is handed over takes time; in
        # the order of csrc/ops/library.cpp. The bits of an integer 0 are those of 0.0.
        parts: list[Any] = [
            *(np.zeros(len(COLUMNS)), [start.gamma, start.Delta], [math.inf], start.theta),
            *(start.mean, start.variance, start.s, np.zeros(len(sizes)), np.zeros(len(low))),
        ]
        row = torch.from_numpy(np.concatenate(parts, dtype=np.float64))
        state = row.repeat(len(seeds), 1)
        state.view(torch.int64)[:, COLUMNS["seed"]] = torch.tensor([as_int64(s) for s in seeds])
        self._state = state.to(device)
        # What samples have for numbers where there are none.
        self.no_numbers = self._state.new_empty(len(seeds), self.population_size, 0)
        columns = torch.split(self._state, [len(part) for part in parts], dim=1)
        self.counters, self.best_categorical = (columns[i].view(torch.int64) for i in (0, 7))
        self.step, best_loss, self.theta, self.mean, self.variance, self.s = columns[1:7]
        self.best_loss, self.best_numerical = best_loss[:, 0], columns[8]
        offsets = np.array([0, *np.cumsum(sizes)], dtype=np.int64).view(np.float64)
        space = [offsets, common["margin"], low, high, common["std_min"], (high - low) / 2]
        self._space = torch.from_numpy(np.concatenate(space, dtype=np.float64)).to(device)

    def row(self, p: int) -> ASNGTensors:
        """One of the optimizers, whose tensors are rows of these."""
        one = copy.copy(self)
        for name in _ROWS:
            setattr(one, name, getattr(self, name)[p])
        return one

    def ask(self) -> tuple[Tensor, Tensor]:
        """Draws (P, λ, n_cat) int64 categories and (P, λ, n_num) float64 numbers."""
        categorical, numerical = self._ask(
            self._state, self._space, self._gaussian, self._largest, self.population_size
        )
        return categorical, self.no_numbers if numerical is None else numerical

    def tell(
        self, categorical: Tensor, numerical: Tensor, losses: Tensor, maximize: bool = False
    ) -> Tensor:
        """Updates from (P, λ) float64 or float32 losses of samples as :meth:`ask` gives them.

        Losses that are not finite rank last and tie. Returns (P,) bool: whether anything moved.
        """
        moved: Tensor = self._tell(
            self._state,
            self._space,
            self._gaussian,
            self._largest,
            categorical,
            numerical if self._gaussian else None,
            losses,
            *self.settings,
            maximize,
        )
        return moved


_ROWS = (
    *("_state", "no_numbers", "counters", "theta", "mean", "variance", "s", "step"),
    *("best_loss", "best_categorical", "best_numerical"),
)


def _row(name: str, doc: str) -> property:
    """A row of a tensor as an array; setting writes into the tensor."""

    def read(self: ASNGEngine) -> FloatArray:
        return np.array(getattr(self.tensors, name)[0].cpu().numpy(), dtype=np.float64)

    def write(self: ASNGEngine, values: FloatArray) -> None:
        getattr(self.tensors, name)[0].copy_(torch.from_numpy(np.array(values, dtype=np.float64)))

    return property(read, write, doc=doc)


def _element(name: str, column: int, doc: str) -> property:
    """A number of a tensor; reading synchronizes with the device."""

    def read(self: ASNGEngine) -> Any:
        return getattr(self.tensors, name)[0, column].item()

    def write(self: ASNGEngine, value: float) -> None:
        getattr(self.tensors, name)[0, column] = value

    return property(read, write, doc=doc)


class ASNGEngine:
    """One optimizer over :class:`ASNGTensors`, with the face of `asng_ext._host.ASNG`.

    Samples and losses are tensors; all else is read as arrays and numbers, which synchronizes.
    """

    theta = _row("theta", "(Σ K,) probabilities.")
    mean = _row("mean", "(n_num,)")
    variance = _row("variance", "(n_num,)")
    s = _row("s", "(n_θ,)")
    asked = _element("counters", COLUMNS["asked"], "Populations drawn.")
    generation = _element("counters", COLUMNS["generation"], "Populations evaluated.")
    evaluations = _element("counters", COLUMNS["evaluations"], "Samples evaluated.")
    moved = _element("counters", COLUMNS["moved"], "The last generation that moved anything.")
    gamma = _element("step", 0, "γ")
    Delta = _element("step", 1, "Δ")

    def __init__(
        self,
        common: Common,
        *,
        alpha: float,
        delta_init: float,
        delta_max: float,
        device: torch.device,
    ) -> None:
        if common["population_size"] > _host.LARGEST_POPULATION:
            raise ValueError(
                f"population_size must be at most {_host.LARGEST_POPULATION} on a CUDA device, "
                f"got {common['population_size']}"
            )
        self.tensors = ASNGTensors(
            common,
            alpha=alpha,
            delta_init=delta_init,
            delta_max=delta_max,
            seeds=[common["seed"]],
            device=device,
        )
        self._optimizer = self.tensors.row(0)
        self._device = self.tensors.theta.device
        self._index = self.tensors.theta.get_device()  # quicker to compare
        self._columns = len(common["sizes"]), len(common["low"])
        self.margin: FloatArray = np.array(common["margin"], dtype=np.float64)
        self.n_theta = self.tensors.s.shape[1]
        self._delta_init = delta_init

    @property
    def seed(self) -> int:
        """In [0, 2⁶⁴)."""
        return int(self.tensors.counters[0, COLUMNS["seed"]].item()) % 2**64

    @seed.setter
    def seed(self, value: int) -> None:
        self.tensors.counters[0, COLUMNS["seed"]] = as_int64(value)

    @property
    def best(self) -> BestEvaluated | None:
        """Loss, generation, categories and numbers of the best sample."""
        tensors = self.tensors
        loss = tensors.best_loss[0].item()
        if loss == math.inf:
            return None
        return (
            loss,
            int(tensors.counters[0, COLUMNS["best"]].item()),
            tensors.best_categorical[0].tolist(),
            tensors.best_numerical[0].tolist(),
        )

    @best.setter
    def best(self, value: BestEvaluated | None) -> None:
        tensors = self.tensors
        loss, generation, categorical, numerical = value or (math.inf, 0, 0, 0.0)
        tensors.best_loss[0] = loss
        tensors.counters[0, COLUMNS["best"]] = generation
        tensors.best_categorical[0] = torch.tensor(categorical)
        tensors.best_numerical[0] = torch.tensor(numerical, dtype=torch.float64)

    @property
    def delta(self) -> float:
        """δ = δ⁰/Δ"""
        return float(self._delta_init / self.Delta)

    def losses(self, losses: Any) -> Tensor:
        """Losses as (λ,) float64, or float32 if they are, on the device."""
        if (
            type(losses) is Tensor
            and losses.dtype in (torch.float32, torch.float64)
            and losses.dim() == 1
            and not losses.requires_grad
        ):
            return self._here(losses, losses.dtype)
        if isinstance(losses, (list, tuple)) and any(isinstance(x, Tensor) for x in losses):
            losses = self._stacked(losses)
        if not isinstance(losses, Tensor):
            try:
                losses = torch.as_tensor(np.asarray(losses, dtype=np.float64))
            except (TypeError, ValueError):
                raise TypeError(
                    f"losses must be a sequence of numbers, got {type(losses).__name__}"
                ) from None
        if losses.dim() != 1:
            raise ValueError(f"losses must have shape (λ,), got {tuple(losses.shape)}")
        if losses.is_complex():
            raise TypeError(f"losses must be real numbers, got dtype {losses.dtype}")
        dtype = torch.float32 if losses.dtype is torch.float32 else torch.float64
        return self._here(losses.detach() if losses.requires_grad else losses, dtype)

    def _stacked(self, losses: Sequence[Any]) -> Tensor:
        """Tensors of one element and numbers as a tensor."""
        try:
            tensors = [
                x.detach() if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64)
                for x in losses
            ]
            return torch.stack([x.reshape(()).to(self._device) for x in tensors])
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"losses must be a sequence of numbers: {error}") from None

    def ask(self) -> tuple[Any, Any]:
        """(λ, n_cat) int64 and (λ, n_num) float64 tensors."""
        return self._optimizer.ask()

    def tell(self, categorical: Any, numerical: Any, losses: Tensor, negate: bool) -> Tensor:
        """Returns whether anything moved, as a tensor; reading it synchronizes with the device."""
        count = losses.shape[0]
        if count > _host.LARGEST_POPULATION:
            raise ValueError(
                f"losses must hold at most {_host.LARGEST_POPULATION} numbers on a CUDA device, "
                f"got {count}"
            )
        return self._optimizer.tell(
            self._samples("categorical", categorical, (count, self._columns[0]), torch.int64),
            self._samples("numerical", numerical, (count, self._columns[1]), torch.float64),
            losses,
            negate,
        )

    def _samples(
        self, name: str, values: Any, shape: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        """The optimizer's own are as they should be, and soon looked over."""
        if values is self._optimizer.no_numbers:
            return values  # type: ignore[no-any-return]
        if type(values) is not Tensor:
            values = torch.as_tensor(values)
        if (
            values.dtype is not dtype
            and dtype is torch.int64
            and (values.is_floating_point() or values.is_complex())
        ):
            raise TypeError(f"samples.{name} must hold integers, got {values.dtype}")
        if values.shape != shape:
            raise ValueError(f"samples.{name} must have shape {shape}, got {tuple(values.shape)}")
        return self._here(values, dtype)

    def _here(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if tensor.dtype is not dtype or tensor.get_device() != self._index:
            device = self._device
            # Towards the host a copy without synchronization would be read too early.
            tensor = tensor.to(device, dtype, non_blocking=device.type == "cuda")
        return tensor.contiguous()
