"""Times steps of the inpainting demo beside busy processes: does a run keep its share?

Two processes that do nothing but compute share the processors with the run. The share of
``threads`` threads beside them is threads / (threads + 2) of the processors, or all they ask for if
there are enough; a step should then take as much longer. Ours is a step as ``asng`` runs it, the
baseline one with OpenMP's own way to wait. Both are measured alternately, each time in a process of
its own, on the machine as it is and beside the busy processes. The last rows are by how much a step
takes longer than its share, against the 3 that is allowed; above it the exit status is 1. On a
machine that is busy already, the numbers without busy processes are not those of an idle one.

Run with ``python bench/busy.py [--quick] [--threads 2] [--json PATH]``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from table import Row, finish, made_row, options

ALLOWED = 3.0
BUSY = 2
LOOPS = ("search", "retrain")
WARM_UPS = 3


def steps_of_demo(threads: int, steps: int) -> list[float]:
    """Seconds per step of the search and of the retraining."""
    from asng_ext import ASNG, tasks
    from asng_ext.engine.retrain import retrain
    from asng_ext.engine.search import search
    from asng_ext.runs.config import RetrainConfig, SearchConfig
    from asng_ext.tasks.inpainting import InpaintingTask, load_data

    marks: list[float] = []

    class Timed(InpaintingTask):
        def _batches(self, *args: Any) -> Iterator[Any]:
            for batch in super()._batches(*args):
                marks.append(time.perf_counter())
                yield batch

    kind = tasks.get("inpainting")
    preset = kind.presets[kind.demo]
    once = {"epochs": 1, "threads": threads}
    searching = SearchConfig(**{**preset["search"], **once})
    training = RetrainConfig(**{**preset["retrain"], **once})
    config = kind.config(**{**preset[kind.name], "steps_per_epoch": steps, "test_images": 1})
    sizes = {"search_batch_size": searching.batch_size, "retrain_batch_size": training.batch_size}
    task = Timed(load_data(config), config, **sizes, seed=0)
    search(task, ASNG(task.space, population_size=2, seed=0), searching, seed=0, stream=None)
    starts = marks[::2]  # one batch for the weights, one for the distribution
    seconds = [(starts[-1] - starts[WARM_UPS]) / (steps - 1 - WARM_UPS)]
    marks.clear()
    values = dict(ASNG(task.space, population_size=2, seed=1).ask()[0])
    retrain(task, values, training, seed=0, stream=None)
    return [*seconds, (marks[-1] - marks[WARM_UPS]) / (steps - 1 - WARM_UPS)]


def in_a_process(ours: bool, args: argparse.Namespace) -> list[float]:
    """The same from a process of its own."""
    command = [sys.executable, __file__, "--child", "ours" if ours else "baseline"]
    command += ["--threads", str(args.threads)] + ["--quick"] * args.quick
    said = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    env = {name: value for name, value in os.environ.items() if name not in said}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=600)
    times: list[float] = json.loads(out.stdout)
    return times


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Each ends by itself after ten minutes, whatever happens here."""
    code = "import time\nwhile time.process_time() < 600: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def medians(rounds: Iterable[list[float]]) -> list[float]:
    return [statistics.median(times) for times in zip(*rounds)]


def main() -> int:
    parser = options(__doc__, quick="one round of a few steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=("ours", "baseline"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if args.child == "ours":
            from asng_ext._threads import spin_briefly

            spin_briefly()
        print(json.dumps(steps_of_demo(args.threads, 10 if args.quick else 16)))
        return 0
    rows: list[Row] = []
    ours: dict[int, list[float]] = {}
    for busy in (0, BUSY):
        rounds: dict[bool, list[list[float]]] = {True: [], False: []}
        with busy_processes(busy):
            for _ in range(1 if args.quick else 3):
                for kind, times in rounds.items():
                    times.append(in_a_process(kind, args))
        ours[busy] = medians(rounds[True])
        baseline = medians(rounds[False])
        for name, mine, other in zip(LOOPS, ours[busy], baseline, strict=True):
            case = f"{args.threads} threads, {busy} busy"
            rows.append(made_row(f"inpainting {name} step", case, 1e3 * mine, 1e3 * other, "ms"))
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )
    longer = max(1.0, (args.threads + BUSY) / (processors or 1))
    worst = 0.0
    for name, alone, beside in zip(LOOPS, ours[0], ours[BUSY], strict=True):
        times = beside / (alone * longer)
        worst = max(worst, times)
        rows.append(made_row(f"{name}: times its share", "allowed: 3", times, ALLOWED, "x"))
    finish(rows, args.json)
    return int(worst > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
