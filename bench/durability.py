"""Kills a search and a retraining at every file event and at random moments, and continues them.

A small search of the digits and its retraining, with a checkpoint after every step, run as `asng
search --resume-if-exists` and `asng retrain` in processes that are forked from this one. Each is
killed (SIGKILL) before one of the events by which it changes files, such as opening one to write,
syncing, renaming or removing it, and begun again with the same command; or at a random moment, up
to four times, before it may end. Then everything must be as it is without interruption: weights,
optimizer, table and architecture, bit for bit; and no step may have been computed again but the one
whose checkpoint was not complete. If anything differs, the exit status is 1.

Then it measures, in a search with the settings of the demo, the share of the time that its
checkpoints take, after each epoch, and with one after each step how long one takes; and how long it
takes to continue, from the command to the first step. The last two columns of a row are what is
allowed, and how much better it is.

Run with ``python bench/durability.py [--quick] [--json PATH]``. It needs a system with fork.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from table import Row, finish, made_row, options

from asng_ext import cli, tasks
from asng_ext.engine.experiment import Experiment
from asng_ext.runs.checkpoints import Epochs
from asng_ext.runs.folder import RunFolder

SMALL = [
    "--data=digits", "--nodes=2", "--cells=3", "--channels=4", "--final-cells=3",
    "--parameter-limit=4000", "--epochs=2", "--batch-size=300", "--retrain-epochs=2",
    "--retrain-batch-size=500", "--threads=1", "--retrain-threads=1", "--test-every=2",
    "--retrain-test-every=2",
]  # fmt: skip
EACH_STEP = "1e-9"
LOOPS = ("search", "retrain")


class Counters:
    """Numbers that a forked process counts up and this one reads: file events and steps done."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 16)

    def add(self, which: int) -> int:
        values = list(self.read())
        values[which] += 1
        self._shared[:] = struct.pack("2q", *values)
        return values[which]

    def read(self) -> tuple[int, int]:
        events, steps = struct.unpack("2q", self._shared[:])
        return events, steps

    def reset(self) -> None:
        self._shared[:] = struct.pack("2q", 0, 0)


COUNTERS = Counters()


def run(loop: str, folder: Path, kill_at: int = 0, after: float | None = None) -> bool:
    """Runs a loop in a process of its own; whether it came to its end.

    Args:
        loop: "search" or "retrain".
        folder: The run.
        kill_at: The file event before which to kill it, from 1; 0 for none.
        after: Seconds after which to kill it; None for never.
    """
    minutes = f"--checkpoint-minutes={EACH_STEP}"
    if loop == "search":
        command = ["search", "classification", *SMALL, "--seed=3", "--resume-if-exists"]
        command += [f"--out={folder}", minutes]
    else:
        command = ["retrain", str(folder), minutes]
    child = os.fork()
    if child == 0:
        status = 70
        try:
            watch(folder, kill_at)
            with (
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                status = cli.main(command)
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {os.WEXITSTATUS(status)}")
    return True


def watch(folder: Path, kill_at: int) -> None:
    """Counts steps and file events in this process, which ends before one of these."""
    prefix = str(folder)
    # Pictures are drawn at the end, and take longer than all else.
    sys.modules["matplotlib"] = None  # type: ignore[assignment]

    def event() -> None:
        if COUNTERS.add(0) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        writes = {"os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate"}
        opened = name == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if (name in writes or opened) and any(str(a).startswith(prefix) for a in arguments[:2]):
            event()

    sys.addaudithook(hook)
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        event()
        fsync(descriptor)

    os.fsync = counted
    stepped = Epochs.stepped

    def step(self: Epochs, *arguments: Any) -> None:
        COUNTERS.add(1)
        stepped(self, *arguments)

    Epochs.stepped = step  # type: ignore[method-assign]


def outcome(loop: str, folder: Path) -> dict[str, Any]:
    """All that a loop leaves that decides anything."""
    run_folder = RunFolder(folder)
    left: dict[str, Any] = {
        "checkpoint": run_folder.load(f"{loop}.pt"),
        "table": run_folder.file(f"{loop}.csv").read_bytes(),
        "architecture": run_folder.read_json("architecture.json"),
    }
    if loop == "retrain":
        left["network"] = run_folder.load("network.pt")
        left["results"] = run_folder.read_json("results.json")
    return left


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Where two outcomes are not the same, bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from differences(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a, b):
            yield where
    elif a != b:
        yield where


def prepared(folder: Path, searched: Path | None) -> Path:
    """Where a loop begins: nowhere, or in a copy of the run that has been searched."""
    shutil.rmtree(folder, ignore_errors=True)
    if searched is not None:
        shutil.copytree(searched, folder)
    return folder


def killed_everywhere(
    loop: str, base: Path, searched: Path | None, every: int, times: int
) -> tuple[int, int, list[str]]:
    """File events killed at, random moments killed at, and what went wrong."""
    COUNTERS.reset()
    whole = prepared(base / "whole", searched)
    start = time.perf_counter()
    run(loop, whole)
    seconds = time.perf_counter() - start
    events, steps = COUNTERS.read()
    expected, wrong = outcome(loop, whole), []

    def check(what: str, killed: int) -> None:
        again = COUNTERS.read()[1] - steps
        wrong.extend(f"{what}: {where}" for where in differences(expected, outcome(loop, folder)))
        if again > killed:
            wrong.append(f"{what}: {again} steps computed again after {killed} ends")

    points = range(1, events + 1, every)
    for point in points:
        folder = prepared(base / "run", searched)
        COUNTERS.reset()
        if run(loop, folder, kill_at=point):
            wrong.append(f"event {point}: the process was not killed")
        run(loop, folder)
        check(f"event {point}", 1)
    chance, kills = random.Random(0), 0
    while kills < times:
        folder, ends = prepared(base / "run", searched), 0
        COUNTERS.reset()
        while ends < 4 and not run(loop, folder, after=chance.uniform(0, 1.2 * seconds)):
            ends += 1
        run(loop, folder)
        kills += ends
        check(f"killed {ends} times at random", ends)
    return len(points), kills, wrong


def demo_search(folder: Path, epochs: int, minutes: float) -> tuple[float, list[float]]:
    """Seconds of a search with the demo's settings, and of each of its checkpoints."""
    kind = tasks.get("classification")
    preset = kind.presets[kind.demo]
    looped = {"epochs": epochs, "threads": 1, "checkpoint_minutes": minutes}
    config = {"task": kind.name, "seed": 0, **preset, "search": {**preset["search"], **looped}}
    experiment = Experiment.create(folder, config, stream=None)
    writes: list[float] = []
    save = RunFolder.save

    def timed(self: RunFolder, *arguments: Any, **named: Any) -> None:
        start = time.perf_counter()
        save(self, *arguments, **named)
        writes.append(time.perf_counter() - start)

    RunFolder.save = timed  # type: ignore[method-assign]
    try:
        start = time.perf_counter()
        experiment.search()
        return time.perf_counter() - start, writes
    finally:
        RunFolder.save = save  # type: ignore[method-assign]


def in_a_process(work: Callable[[], Any]) -> Any:
    """What a function returns in a forked process, as JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


def seconds_to_continue(folder: Path) -> float:
    """From the command to the first step, without the import of PyTorch."""
    start = time.perf_counter()
    first: list[float] = []
    stepped = Epochs.stepped

    def step(self: Epochs, *arguments: Any) -> None:
        first.append(time.perf_counter() - start)
        stepped(self, *arguments)

    Epochs.stepped = step  # type: ignore[method-assign]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        cli.main(["resume", str(folder), "--epochs=3"])
    return first[0]


def main() -> int:
    parser = options(__doc__, "one of 12 file events, 6 random moments, one epoch of the demo")
    args = parser.parse_args()
    # A forked process has none of the threads that OpenMP waits for.
    torch.set_num_threads(1)
    rows: list[Row] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        searched = None
        for loop in LOOPS:
            every, times = (12, 3) if args.quick else (1, 50)
            points, kills, errors = killed_everywhere(loop, base, searched, every, times)
            print(f"{loop}: {points} file events, {kills} random moments, {len(errors)} faults")
            wrong += errors
            if searched is None:
                searched = (base / "whole").rename(base / "searched")
        epochs = 1 if args.quick else 3
        total, writes = in_a_process(lambda: demo_search(base / "demo", epochs, 5.0))
        share = 100 * sum(writes) / total
        rows.append(made_row("share of checkpoints", "demo, after each epoch", share, 2.0, "%"))
        _, writes = in_a_process(lambda: demo_search(base / "steps", 1, 1e-9))
        print(f"a checkpoint takes {1e3 * statistics.median(writes):.3g} ms")
        again = in_a_process(lambda: seconds_to_continue(base / "searched"))
        print(f"to continue takes {again:.3g} s and the import of PyTorch")
    for each in wrong:
        print(each)
    finish(rows, args.json)
    return int(bool(wrong) or any(row["ratio"] < 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
