"""Steps that are captured and replayed: the logic on the CPU, CUDA graphs on a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from recording_graphs import RecordingGraphs
from torch import Tensor

from asng_ext.training.cuda_graphs import MOST_SHAPES, CudaGraphs, GraphBackend, Replayed, graphs_on


class Counter:
    """A step with state on the device (`total`) and on the host (`calls`)."""

    def __init__(self) -> None:
        self.total = torch.zeros(3)
        self.calls = 0

    def __call__(self, inputs: Any) -> None:
        self.calls += 1
        self.total.mul_(0.5).add_(inputs.sum(0))


def replayed(
    step: Callable[[Any], None], graphs: GraphBackend | None = None, warm_ups: int = 2
) -> tuple[Replayed, list[str]]:
    said: list[str] = []
    return Replayed(step, graphs or RecordingGraphs(), said.append, warm_ups=warm_ups), said


def test_a_step_is_warmed_up_captured_once_and_replayed() -> None:
    usual, captured, graphs = Counter(), Counter(), RecordingGraphs()
    run, said = replayed(captured, graphs)
    for i in range(6):
        x = torch.randn(4, 3)
        usual(x)
        run(x)
        x.fill_(-1)  # a call must be done with its inputs
        assert torch.equal(captured.total, usual.total), i
    assert (graphs.ran, graphs.captured, graphs.replays, run.replays) == (2, 1, 4, 4)
    assert captured.calls == 3  # what is replayed is no Python
    assert said == []


def test_capturing_executes_nothing() -> None:
    counter = Counter()
    graphs = RecordingGraphs()
    replay = graphs.capture(lambda: counter(torch.ones(2, 3)))
    assert counter.total.tolist() == [0, 0, 0]
    replay()
    replay()
    assert counter.total.tolist() == [3, 3, 3]


def test_other_shapes_are_captured_anew_and_the_first_is_kept() -> None:
    usual, captured, graphs = Counter(), Counter(), RecordingGraphs()
    run, _ = replayed(captured, graphs, warm_ups=1)
    for rows in (4, 4, 2, 2, 4, 2):
        x = torch.randn(rows, 3)
        usual(x)
        run(x)
        assert torch.equal(captured.total, usual.total)
    assert (graphs.captured, run.replays) == (2, 4)


def test_further_shapes_run_as_usual() -> None:
    usual, captured, graphs = Counter(), Counter(), RecordingGraphs()
    run, said = replayed(captured, graphs, warm_ups=1)
    for rows in range(1, MOST_SHAPES + 4):
        for _ in range(2):
            x = torch.randn(rows, 3)
            usual(x)
            run(x)
    assert torch.equal(captured.total, usual.total)
    assert graphs.captured == MOST_SHAPES
    assert said == []


def test_inputs_are_nested_and_values_are_part_of_the_shape() -> None:
    class Pair(NamedTuple):
        x: Tensor
        scale: float | None

    total = torch.zeros(3)

    def step(inputs: tuple[Pair, dict[str, list[Tensor]]]) -> None:
        pair, more = inputs
        assert isinstance(pair, Pair)
        total.add_(pair.x * (pair.scale or 1) + more["y"][0])

    graphs = RecordingGraphs()
    run, _ = replayed(step, graphs, warm_ups=1)
    expected = torch.zeros(3)
    for scale in (2.0, 2.0, None, None, 2.0):
        x, y = torch.randn(2, 3)
        expected += x * (scale or 1) + y
        run((Pair(x, scale), {"y": [y]}))
        assert torch.equal(total, expected)
    assert graphs.captured == 2


def test_the_memory_layout_of_inputs_is_kept() -> None:
    seen: list[tuple[int, ...]] = []
    run, _ = replayed(lambda x: seen.append(x.stride()), warm_ups=5)
    x = torch.randn(2, 3, 4, 4)
    run(x.to(memory_format=torch.channels_last))
    run(x)
    assert seen == [x.to(memory_format=torch.channels_last).stride(), x.stride()]


@pytest.mark.parametrize("warm_ups", [1, 3])
def test_a_step_that_reads_a_number_runs_as_usual(warm_ups: int) -> None:
    total = torch.zeros(())

    def step(x: Tensor) -> None:
        if x.sum() > 0:
            total.add_(1)

    graphs = RecordingGraphs()
    run, said = replayed(step, graphs, warm_ups)
    for i in range(6):
        run(torch.full((2,), float(i % 2)))
    assert total == 3
    assert said == ["it reads _local_scalar_dense"]
    assert (graphs.captured, run.replays) == (0, 0)


def test_inputs_elsewhere_are_not_captured() -> None:
    seen: list[str] = []
    graphs = RecordingGraphs()
    run, said = replayed(lambda inputs: seen.append(inputs[1].device.type), graphs, warm_ups=1)
    for _ in range(3):
        run((torch.ones(2), torch.ones(2, device="meta")))
    assert seen == ["meta"] * 3
    assert said == ["an input of the step is on meta, not on cpu"]
    assert graphs.ran == graphs.captured == 0


def test_a_failing_capture_is_reported_and_the_step_still_made() -> None:
    class Blind(RecordingGraphs):
        def probe(self, work: Callable[[], None]) -> str | None:
            super().probe(work)
            return None

    total = torch.zeros(())

    def step(x: Tensor) -> None:
        total.add_(x.sum())
        total.add_(float(x[0]))

    run, said = replayed(step, Blind(), warm_ups=1)
    for _ in range(4):
        run(torch.ones(2))
    assert total == 12
    assert said == ["operation not permitted when stream is capturing"]


def test_errors_of_the_step_are_the_callers() -> None:
    def step(x: Tensor) -> None:
        raise ValueError("x is wrong")

    run, said = replayed(step)
    with pytest.raises(ValueError, match="x is wrong"):
        run(torch.ones(1))
    assert said == []
    with pytest.raises(ValueError, match="warm_ups must be 1 or more, got 0"):
        Replayed(step, RecordingGraphs(), said.append, warm_ups=0)


def test_a_probe_lists_waits_and_passes_on_other_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`CudaGraphs.probe`, with CUDA's part played by a stand-in."""
    modes: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    graphs = object.__new__(CudaGraphs)
    monkeypatch.setattr(CudaGraphs, "run", lambda self, work: work())

    def waits() -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    with pytest.warns(UserWarning, match="something else") as caught:
        assert "synchronizes with the device (" in str(graphs.probe(waits))
    assert len(caught) == 1
    assert graphs.probe(lambda: None) is None

    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        graphs.probe(fails)
    assert modes == ["warn", 0] * 3


class Cuda:
    """Stands in for `torch.cuda`, and writes down what is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.current = self.Stream(self, "default")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.Stream(self, "side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self.Graph(self))
        monkeypatch.setattr(torch.cuda, "graph", self.capturing)

    class Stream:
        def __init__(self, cuda: Cuda, name: str) -> None:
            self.cuda, self.name = cuda, name

        def wait_stream(self, other: Cuda.Stream) -> None:
            self.cuda.calls.append(f"{self.name} waits for {other.name}")

    class Graph:
        def __init__(self, cuda: Cuda) -> None:
            self.cuda = cuda

        def replay(self) -> None:
            self.cuda.calls.append(f"replay on {self.cuda.current.name}")

    @contextmanager
    def stream(self, stream: Cuda.Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def capturing(self, graph: Cuda.Graph, stream: Cuda.Stream) -> Iterator[None]:
        """As torch.cuda.graph, which leaves its stream the current one after an error."""
        self.current = stream
        self.calls.append(f"capture on {stream.name}")
        yield
        self.calls.append("captured")


def test_cuda_graphs_work_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    graphs = CudaGraphs(torch.device("cuda"))
    assert graphs.device == torch.device("cuda:3")
    with pytest.raises(ValueError, match="device must be a CUDA device, got cpu"):
        CudaGraphs(torch.device("cpu"))
    assert isinstance(graphs_on(torch.device("cuda")), CudaGraphs)
    assert graphs_on(torch.device("cpu")) is None

    def work() -> None:
        cuda.calls.append(f"work on {cuda.current.name}")

    graphs.run(work)
    assert cuda.calls == ["side waits for default", "work on side", "default waits for side"]
    cuda.calls.clear()
    replay = graphs.capture(work)
    replay()
    assert cuda.calls == ["capture on side", "work on side", "captured", "replay on default"]

    def fails() -> None:
        raise RuntimeError("it waits")

    with pytest.raises(RuntimeError, match="it waits"):
        graphs.capture(fails)
    assert cuda.current.name == "default"
