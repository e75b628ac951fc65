"""Graphs without a GPU: every operation of a step is recorded, and executed again on replay.

The rules are those of a CUDA graph. A replay runs no Python of the step: it repeats the recorded
operations on the recorded tensors, so whatever the step did on the host stays as it was when it was
captured, and memory that was replaced is not seen. Capturing executes nothing: whatever it changed
is put back. Reading a tensor on the host is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from asng_ext.training.cuda_graphs import CudaGraphs

READS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "repeat_interleave",
    "equal",
)
"""Operations whose result, or its size, the host has to wait for."""
MADE_ON_HOST = ("lift_fresh",)
"""Tensors of numbers of the host: on a GPU, a copy that waits."""


class Recorder(TorchDispatchMode):
    """Records operations while they run; what they change of the world outside is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.reads: list[str] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name in READS + MADE_ON_HOST:
            self.reads.append(name)
        for tensor in _written(func, args, kwargs):
            self._remember(tensor)
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        self._made |= set(map(_storage, _tensors(result))) - set(
            map(_storage, _tensors((args, kwargs)))
        )
        return result

    def _remember(self, tensor: Tensor) -> None:
        place = _storage(tensor)
        if place not in self._made and place not in self._before:
            whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            self._before[place] = (whole, whole.clone())

    def undo(self) -> None:
        """Puts back what was changed."""
        for whole, before in self._before.values():
            whole.copy_(before)

    def launches(self) -> int:
        """How many operations compute something."""
        return sum(_computes(*call) for call in self.calls)

    def replay(self) -> None:
        """Executes the operations again, with results where they were."""
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                fresh = _fresh(args, kwargs, result)
                if func._schema.is_mutable or any(fresh):  # else it is a view of what is there
                    again = _tensors(func(*args, **kwargs))
                    for old, new, copy in zip(_tensors(result), again, fresh, strict=True):
                        if copy:
                            old.detach().copy_(new)


class Launches(TorchDispatchMode):
    """Names of operations that compute something. It holds on to no tensor, as a recorder does:
    gradients that someone else holds are copied."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if _computes(func, args, kwargs or {}, result) and not name.startswith("aten::empty"):
            self.names.append(name)
        return result


class RecordingGraphs:
    """A `GraphBackend` on the CPU.

    Attributes:
        ran, captured, replays: How often `run` or `probe`, `capture`, and a graph were called.
        launches: How many operations of the last graph compute something.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.ran = 0
        self.captured = 0
        self.replays = 0
        self.launches = 0

    def run(self, work: Callable[[], None]) -> None:
        self.ran += 1
        work()

    def probe(self, work: Callable[[], None]) -> str | None:
        recorder = Recorder()
        with recorder:
            self.run(work)
        return f"it reads {recorder.reads[0]}" if recorder.reads else None

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        recorder = Recorder()
        state = torch.get_rng_state()
        try:
            with recorder:
                work()
        finally:
            torch.set_rng_state(state)
            recorder.undo()
        if recorder.reads:
            raise RuntimeError("operation not permitted when stream is capturing\n(details)")
        self.launches = recorder.launches()

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return replay


class CountingCudaGraphs(CudaGraphs):
    """CUDA graphs that count, as `RecordingGraphs` does."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", torch.cuda.current_device()))
        self.ran = self.captured = self.replays = 0

    def run(self, work: Callable[[], None]) -> None:
        self.ran += 1
        super().run(work)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        replay = super().capture(work)

        def counted() -> None:
            self.replays += 1
            replay()

        return counted


def counting(device: str) -> Any:
    """What captures on a device, and counts."""
    return RecordingGraphs() if device == "cpu" else CountingCudaGraphs()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _computes(func: Any, args: Any, kwargs: Any, result: Any) -> bool:
    """Whether it is more than a view."""
    return func._schema.is_mutable or any(_fresh(args, kwargs, result))


def _fresh(args: Any, kwargs: Any, result: Any) -> list[bool]:
    """Which results are in memory of their own."""
    given = set(map(_storage, _tensors((args, kwargs))))
    return [_storage(tensor) not in given for tensor in _tensors(result)]


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for position, argument in enumerate(func._schema.arguments):
        written = argument.alias_info is not None and argument.alias_info.is_write
        # Its schema does not say so.
        if func is torch.ops.aten.native_batch_norm.default:
            written = argument.name in ("running_mean", "running_var")
        if written:
            yield from _tensors(args[position] if position < len(args) else kwargs[argument.name])
