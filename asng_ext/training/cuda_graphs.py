"""Steps that are captured once and replayed: on a GPU, CUDA graphs.

A step of a search launches thousands of small kernels. Captured, they are replayed with one call,
at the price of three rules: the step reads its inputs and keeps its state in tensors that stay
where they are, it always does the same work, and it never synchronizes with the device. `Replayed`
takes care of the inputs, of the first steps (which run as usual, since libraries set themselves up
in them) and of what cannot be captured, which continues to run as usual. What capturing means is up
to a `GraphBackend`, so that all of this runs without a GPU, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["CudaGraphs", "GraphBackend", "Replayed", "graphs_on", "replayed"]

WARM_UPS = 3
"""Steps of a shape that run as usual before one is captured."""
MOST_SHAPES = 2
"""Each graph holds the memory of a step: inputs of further shapes run as usual."""
_SYNCHRONIZED = "called a synchronizing CUDA operation"
_NOTICE = "Synchronization debug mode is a prototype"
"""PyTorch's warnings: of a synchronization, and once of its way to find these."""


class GraphBackend(Protocol):
    """What captures the work that a function queues on a device."""

    device: torch.device

    def run(self, work: Callable[[], None]) -> None:
        """Runs `work` as usual, in a place from which it may be captured later."""

    def probe(self, work: Callable[[], None]) -> str | None:
        """As `run`; returns what keeps `work` from being captured, None if nothing is known to."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Calls `work` and captures what it queues, which is not executed; returns what does that.

        Raises:
            RuntimeError: If it cannot be captured.
        """


class CudaGraphs:
    """CUDA graphs, captured on a stream of their own.

    Args:
        device: The CUDA device whose work is captured.

    Raises:
        ValueError: If it is none.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"device must be a CUDA device, got {device}")
        if str(device) == "cuda":  # the current one
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, work: Callable[[], None]) -> None:
        """Runs `work` on the stream of the captures; the current stream waits for it."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def probe(self, work: Callable[[], None]) -> str | None:
        """As `run`; says so if `work` synchronizes with the device, which a graph cannot."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.run(work)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        synchronizing = [entry for entry in caught if _SYNCHRONIZED in str(entry.message)]
        for entry in caught:
            if entry not in synchronizing and _NOTICE not in str(entry.message):
                warnings.warn_explicit(
                    entry.message, entry.category, entry.filename, entry.lineno, source=entry.source
                )
        if not synchronizing:
            return None
        first = synchronizing[0]
        return f"the step synchronizes with the device ({first.filename}:{first.lineno})"

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Captures `work` in a CUDA graph; see `GraphBackend.capture`."""
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph alone leaves its stream the current one if the capture fails.
        with torch.cuda.stream(self._stream), torch.cuda.graph(graph, stream=self._stream):
            work()
        return graph.replay


def graphs_on(device: torch.device) -> GraphBackend | None:
    """What captures steps on a device: CUDA graphs on a GPU, nothing elsewhere."""
    return CudaGraphs(device) if device.type == "cuda" else None


@dataclass
class _Shape:
    """Inputs of one shape: where they are put, and what has become of their steps."""

    buffers: list[Any]
    runs: int = 0
    replay: Callable[[], None] | None = None


class Replayed:
    """A step that is captured after a few calls, and from then on replayed.

    Calls give the same numbers either way. Inputs of another shape, type or memory layout are
    captured anew. If a step cannot be captured, it runs as usual from then on, and `report` gets
    the reason, once.

    Args:
        step: Takes one argument, the inputs, and returns nothing. It must work on the tensors it is
            given when it is captured, and on tensors that no one replaces.
        backend: What captures.
        report: Takes the reason for which a step cannot be captured.
        warm_ups: Calls that run as usual before one is captured, at least 1.
    """

    def __init__(
        self,
        step: Callable[[Any], None],
        backend: GraphBackend,
        report: Callable[[str], None],
        *,
        warm_ups: int = WARM_UPS,
    ) -> None:
        if warm_ups < 1:
            raise ValueError(f"warm_ups must be 1 or more, got {warm_ups}")
        self._step = step
        self._backend = backend
        self._report = report
        self._warm_ups = warm_ups
        self._shapes: dict[Hashable, _Shape] = {}
        self._gave_up = False
        self.replays = 0
        """Calls that were replays."""

    def __call__(self, inputs: Any) -> None:
        """One step.

        Args:
            inputs: Tensors on the device and plain values, or tuples, lists and dicts of them.
                Tensors are copied before the step; values are part of the shape.
        """
        if self._gave_up:
            self._step(inputs)
            return
        leaves, structure = pytree.tree_flatten(inputs)
        if other := self._on_another_device(leaves):
            # The host might write into it before a graph that is still waiting has read it.
            self._give_up(f"an input of the step is on {other}, not on {self._backend.device}")
            self._step(inputs)
            return
        key = (str(structure), *map(_described, leaves))
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) == MOST_SHAPES:
                self._step(inputs)
                return
            buffers = [_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            shape = self._shapes[key] = _Shape(buffers)
        _copy(leaves, shape.buffers)
        kept = pytree.tree_unflatten(shape.buffers, structure)
        self._advance(shape, lambda: self._step(kept))

    def _advance(self, shape: _Shape, work: Callable[[], None]) -> None:
        if shape.replay is None and shape.runs >= self._warm_ups:
            try:
                shape.replay = self._backend.capture(work)
            except RuntimeError as error:
                self._give_up(str(error).strip().partition("\n")[0])
                work()
                return
        if shape.replay is not None:
            shape.replay()
            self.replays += 1
            return
        shape.runs += 1
        if shape.runs < self._warm_ups:
            self._backend.run(work)
        elif (blocker := self._backend.probe(work)) is not None:
            self._give_up(blocker)

    def _on_another_device(self, leaves: list[Any]) -> torch.device | None:
        devices = [leaf.device for leaf in leaves if isinstance(leaf, Tensor)]
        return next((device for device in devices if device != self._backend.device), None)

    def _give_up(self, reason: str) -> None:
        self._gave_up = True
        self._shapes.clear()
        self._report(reason)


def replayed(
    step: Callable[[Any], None],
    backend: GraphBackend | None,
    blocker: str | None,
    note: Callable[[str], None],
) -> Callable[[Any], None]:
    """The step of a loop, replayed if it can be.

    Args:
        step: See `Replayed`.
        backend: What captures; None for steps that run as usual, of which nothing is said.
        blocker: What is known to keep the step from being captured.
        note: Takes a line that says why steps run as usual.
    """

    def report(why: str) -> None:
        note(f"steps run without CUDA graphs: {why}")

    if backend is None:
        return step
    if blocker is None:
        return Replayed(step, backend, report)
    report(blocker)
    return step


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device
    return type(leaf), repr(leaf)


def _copy(leaves: list[Any], buffers: list[Any]) -> None:
    """Into the buffers, in one launch for tensors of one type."""
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if tensors:
        torch._foreach_copy_(
            [buffers[i] for i in tensors], [leaves[i] for i in tensors], non_blocking=True
        )


def _like(leaf: Tensor) -> Tensor:
    """Memory for tensors of this shape and layout."""
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)
