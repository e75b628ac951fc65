"""What the benchmarks for a GPU share: time by CUDA events (by the clock on a CPU), graphs, floors.

All of them run on a CPU as well, with ``--device cpu --quick``, which says nothing about a GPU but
that the benchmark works.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from table import Row, options, row_of_pairs

Run = Callable[[], Any]

PRECISIONS = ("float32", "TF32", "bfloat16")
"""What is computed in: TF32 forbidden, TF32 allowed, and images in bfloat16 under autocast."""


@contextlib.contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """PyTorch's settings for one of `PRECISIONS`, for ours and the baseline alike."""
    # Without a cache: graphs must not read what was cached when they were captured.
    enabled = name == "bfloat16"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
    with allow_tf32(name != "float32"), autocast:
        yield


@contextlib.contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Whether PyTorch's convolutions and products, and our operators, may be in TF32."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def image_type(name: str) -> torch.dtype:
    """The dtype of images in one of `PRECISIONS`."""
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def arguments(
    description: str | None,
    argv: Sequence[str] | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> argparse.Namespace:
    """The command line that these benchmarks have in common, and what one has beside it."""
    parser = options(description, quick="few rounds, small cases")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    add_options(parser)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --quick shows that the benchmark works")
    return args


def describe(device: torch.device) -> str:
    """On what, and with what, is measured."""
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} threads, {versions}"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.multi_processor_count} multiprocessors, {versions}"


class Mark:
    """A point in the work of a device."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        self._time = time.perf_counter()
        if self._event is not None:
            self._event.record()

    def since(self, start: Mark) -> float:
        """Milliseconds from `start`; waits until the device has come here."""
        if self._event is None or start._event is None:
            return 1e3 * (self._time - start._time)
        self._event.synchronize()
        return float(start._event.elapsed_time(self._event))


def laps(marks: Sequence[Mark]) -> list[float]:
    """Milliseconds from each mark to the next."""
    return [after.since(before) for before, after in itertools.pairwise(marks)]


def milliseconds(run: Run, device: torch.device, repeats: int) -> float:
    """Of one of `repeats` calls in a row."""
    start = Mark(device)
    for _ in range(repeats):
        run()
    return Mark(device).since(start) / repeats


def repeats_for(run: Run, device: torch.device, at_least: float) -> int:
    """How many calls in a row take about `at_least` milliseconds; warms up."""
    milliseconds(run, device, 3)
    repeats = 1
    while True:
        taken = milliseconds(run, device, repeats) * repeats
        if taken >= at_least / 4:
            return max(1, round(repeats * at_least / taken))
        repeats *= 4


def captured(run: Run, device: torch.device, calls: int) -> Run:
    """A function that repeats `calls` calls, on a GPU as one CUDA graph."""

    def work() -> None:
        for _ in range(calls):
            run()

    if device.type != "cuda":
        return work
    from asng_ext.training.cuda_graphs import CudaGraphs

    graphs = CudaGraphs(device)
    graphs.run(work)
    return graphs.capture(work)


def compare(
    name: str,
    case: str,
    ours: Run,
    baseline: Run,
    device: torch.device,
    *,
    quick: bool,
    unit: str = "us",
    calls: int = 1,
    rounds: int = 11,
) -> Row:
    """Times both alternately; medians, and the median of the rounds' ratios.

    Args:
        calls: How often each function does what is timed.
    """
    rounds, at_least = (3, 2.0) if quick else (rounds, 20.0)
    scale = {"us": 1e3, "ms": 1.0}[unit] / calls
    counts = [repeats_for(run, device, at_least) for run in (ours, baseline)]
    pairs = [
        (milliseconds(ours, device, counts[0]), milliseconds(baseline, device, counts[1]))
        for _ in range(rounds)
    ]
    return row_of_pairs(name, case, pairs, scale, unit)


def in_turn(runs: Sequence[Run]) -> Run:
    """Calls the next of `runs` each time: inputs that rotate are not found in the cache."""
    cycle = itertools.cycle(runs)
    return lambda: next(cycle)()


def ceilings(device: torch.device, quick: bool) -> tuple[float, float]:
    """FLOP/s of a large product of matrices, in whatever PyTorch's settings make of float32, and
    bytes/s of copying a large array."""
    size, values = (512, 1 << 22) if quick else (8192, 1 << 29)
    a, b = torch.randn(2, size, size, device=device)
    source, target = torch.randn(2, values // 2, device=device)
    product = statistics.median(milliseconds(lambda: a @ b, device, 2) for _ in range(5))
    copy = statistics.median(
        milliseconds(lambda: target.copy_(source), device, 4) for _ in range(5)
    )
    return 2e3 * size**3 / product, 2e3 * source.nbytes / copy
