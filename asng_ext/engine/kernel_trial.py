"""The process that tries kernels for :mod:`asng_ext.engine.autotune`.

It calls :func:`main`: takes ``[config, candidates, first]`` as a line of JSON on standard input,
and writes lines of JSON, see :func:`measure`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count, islice
from typing import Any

import torch

from asng_ext.engine.autotune import Candidates, chosen_environment
from asng_ext.engine.experiment import Experiment
from asng_ext.engine.search import search
from asng_ext.runs.config import SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.protocol import Batch, SearchTask

__all__ = ["main", "measure"]

WARM_UPS = 12
"""Steps before the first that is timed: kernels are loaded and graphs captured in them."""
SECONDS = 2.0
"""How long a candidate is timed, in the least and the most steps of the next two."""
FEWEST, MOST = 5, 60


class _FirstSteps:
    """A task of which an epoch is some steps, timed after those that warm up."""

    def __init__(self, task: SearchTask, steps: int, mark: Callable[[], None]) -> None:
        self._task = task
        self._mark = mark
        self.search_steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def weight_batches(self, epoch: int) -> Iterator[Batch]:
        """Those of one epoch after the other."""
        batches = self._endless(self._task.weight_batches)
        yield from islice(batches, WARM_UPS)
        self._mark()
        yield from batches

    def theta_batches(self, epoch: int) -> Iterator[Batch]:
        """Those of one epoch after the other."""
        return self._endless(self._task.theta_batches)

    def _endless(self, batches: Callable[[int], Iterable[Batch]]) -> Iterator[Batch]:
        return chain.from_iterable(map(batches, count()))


def measure(
    task: SearchTask,
    optimizer: Callable[[], Any],
    config: SearchConfig,
    candidates: Candidates,
    first: Mapping[str, Any],
    *,
    seed: int,
    device: torch.device,
    write: Callable[[str], object],
) -> None:
    """Tries candidates one after the other.

    Args:
        task: What is searched.
        optimizer: Makes a new optimizer.
        config: Settings of the search.
        candidates: What to try.
        first: What was written of the first candidate; empty if it is among those to try.
        seed: Decides the initial weights.
        device: Where the task computes.
        write: Takes lines of JSON: {"name"} when one begins, and when it has ended that with
            "seconds" of an iteration, the mean "loss" and how many "steps" were timed, or "error".
    """
    config = dataclasses.replace(
        config, epochs=1, test_every=0, penalty="", on_divergence="stop", check_every=10**9
    )

    def trial(variables: Mapping[str, str], steps: int) -> dict[str, float]:
        marks: list[float] = []

        def mark(*_: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            marks.append(time.perf_counter())

        few: Any = _FirstSteps(task, WARM_UPS + steps, mark)
        with chosen_environment(variables):
            found = search(few, optimizer(), config, seed=seed, stream=None, callback=mark)
        seconds = (marks[1] - marks[0]) / steps
        return {"seconds": seconds, "loss": found.rows[0]["train_loss"], "steps": steps}

    steps = first.get("steps", 0)
    for name, variables in candidates.items():
        write(json.dumps({"name": name}))
        try:
            if not steps:
                once = trial(variables, FEWEST)["seconds"]
                steps = int(min(MOST, max(FEWEST, SECONDS / once)))
            result: dict[str, Any] = dict(trial(variables, steps))
        except Exception as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            result = {"error": words[0]}
        write(json.dumps({"name": name, **result}))
        gc.collect()  # a supernet and its SGD refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if "CUDA error" in result.get("error", ""):
            os._exit(1)  # all that this process would do on the GPU fails from here on


def main() -> None:
    """Tries what a line of standard input says, and writes to standard output. It ends with who
    holds the other end of standard input."""
    config, candidates, first = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    experiment = Experiment(RunFolder("."), config, None)
    measure(
        experiment.task,
        experiment.method,
        experiment.search_config,
        candidates,
        first,
        seed=experiment.seed,
        device=experiment.device,
        write=lambda line: print(line, flush=True),
    )


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(1)
