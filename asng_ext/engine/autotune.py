"""Which kernels search the fastest on this GPU, found by trying them before a long search.

Some operators can be computed in several ways that give the same numbers but for rounding. Which is
the fastest depends on the GPU and on the sizes. Each candidate runs the first iterations of the
search, on the task's data, in another process: one that crashes, hangs or computes something else
costs some time and not the search. What was found stays in a file, so that the same search
takes the same kernels, and thus gives the same bits, when it is repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any, NamedTuple, TextIO

import torch

from asng_ext import __version__
from asng_ext._files import cache_folder, write_atomically
from asng_ext._terminal import say
from asng_ext.runs.checkpoints import fitting
from asng_ext.runs.config import SearchConfig, affecting_results
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.protocol import SearchTask

__all__ = ["Candidates", "Tuned", "chosen_environment", "tune", "tuned_variables"]

Candidates = Mapping[str, Mapping[str, str]]
"""Environment variables by the name of what they choose; first what is taken without a trial."""

LEAST_STEPS = 10_000
"""Steps of a search from which a trial, of a quarter of a minute, pays."""
GAIN = 0.03
"""The share of time that a candidate must save to be preferred to one before it."""
TOLERANCE = 0.05
"""The largest relative difference of the mean loss of a candidate from that of the first."""
TIMEOUT = 200.0
"""Seconds without a word from a trial after which it is taken to hang."""

_FILE = "kernels.json"
COMMAND = (
    sys.executable,
    "-c",
    "import sys; sys.path[:] = sys.argv[1:]; from asng_ext.engine.kernel_trial import main; main()",
)
"""It takes the modules of this process, whose places are its arguments, and not files of the same
names in the working directory, as ``-m`` would."""


class Tuned(NamedTuple):
    """What was found: a candidate, and of those that worked the milliseconds of an iteration."""

    name: str
    variables: Mapping[str, str]
    milliseconds: Mapping[str, float]
    failed: Mapping[str, str]
    """Why the others did not."""

    def __str__(self) -> str:
        times = ", ".join(f"{name} {time:.2f} ms" for name, time in self.milliseconds.items())
        words = f"kernels: {self.name} ({times} an iteration)"
        return "; ".join([words, *(f"{name} failed: {why}" for name, why in self.failed.items())])


@contextlib.contextmanager
def chosen_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """In this context the process has these environment variables, too."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        os.environ.update(variables)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def tuned_variables(
    task: SearchTask,
    settings: Mapping[str, Any],
    config: SearchConfig,
    run: RunFolder,
    device: torch.device,
    stream: TextIO | None,
) -> Mapping[str, str]:
    """The environment variables of the fastest kernels for a search.

    They are what the run's kernels.json says for this GPU; if it is of another, or of kernels that
    there are no longer, they are tried anew. Without it they are tried, and it is written, if the
    search has not begun and is long. Nothing is if the user has chosen some by the environment.

    Args:
        task: What is searched; it has the candidates.
        settings: All settings of the experiment.
        config: Those of the search.
        run: Its folder.
        device: The GPU.
        stream: Where to say what was found; None for nowhere.

    Raises:
        ValueError: If kernels.json is damaged.
    """
    candidates, path = task.kernel_candidates, run.file(_FILE)
    variables = {variable for chosen in candidates.values() for variable in chosen}
    if not candidates or any(os.environ.get(variable) for variable in variables):
        return {}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if path.exists():
        with fitting(path, "remove it"):
            content = run.read_json(_FILE)
            before = content["variables"]
            # Those of another version may mean nothing, or something else, now.
            if content["device"] == name and before in [dict(each) for each in candidates.values()]:
                return dict(before)
    elif run.file("search.pt").exists() or config.epochs * task.search_steps < LEAST_STEPS:
        return {}
    of_search = {**affecting_results(config), "epochs": 0, "penalty": ""}
    key = [of_search, settings[settings["task"]], config.graphs, name]
    kept = None
    with contextlib.suppress(RuntimeError):  # of a user without a home
        kept = cache_folder() / _kept_name(*key, candidates, torch.__version__, __version__)
    tuned = tune(candidates, settings, kept, stream)
    if tuned is None:
        return {}
    say(stream, f"search: {tuned}\n")
    run.write_json(_FILE, {"device": name, **tuned._asdict()})
    return tuned.variables


def tune(
    candidates: Candidates,
    settings: Mapping[str, Any],
    kept: Path | None,
    stream: TextIO | None = None,
    *,
    command: Sequence[str] = COMMAND,
    timeout: float = TIMEOUT,
) -> Tuned | None:
    """The fastest of the candidates, from ``kept`` if it is there, else by a trial.

    Args:
        candidates: What there is to choose from.
        settings: All settings of the experiment.
        kept: A file for what is found if none fails; None for none. One that cannot be read or
            written is as if there were none.
        stream: Where to say that they are tried, and why they cannot be; None for nowhere.
        command: What tries them: a program such as :mod:`asng_ext.engine.kernel_trial`. Is given
            where this process looks for modules.
        timeout: Seconds without a word from it after which it is taken to hang.

    Returns:
        None if the first candidate could not be tried.
    """
    if kept is not None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = Tuned(**json.loads(kept.read_text()))
            if candidates.get(known.name) == known.variables:
                return known
    say(stream, f"search: trying {len(candidates)} ways to compute it on this GPU\n")
    ended = _trials(candidates, settings, command, timeout)
    first = next(iter(candidates))
    if "error" in ended[first]:
        say(stream, f"search: none could be tried: {ended[first]['error']}\n")
        return None
    milliseconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    fastest, expected = first, ended[first]["loss"]
    for name, trial in ended.items():
        if "error" in trial:
            failed[name] = trial["error"]
        elif not math.isclose(trial["loss"], expected, rel_tol=TOLERANCE):
            failed[name] = f"its mean loss was {trial['loss']:.4g}, not {expected:.4g}"
        else:
            milliseconds[name] = 1e3 * trial["seconds"]
            if milliseconds[name] < (1 - GAIN) * milliseconds[fastest]:
                fastest = name
    tuned = Tuned(fastest, dict(candidates[fastest]), milliseconds, failed)
    if kept is not None and not failed:
        content = json.dumps(tuned._asdict(), indent=2).encode()
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, lambda file: file.write(content))
    return tuned


def _kept_name(*what: Any) -> str:
    """The name of a file for what was found for all this, of plain values."""
    words = json.dumps(what, sort_keys=True, default=str)
    return f"kernels-{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"


def _trials(
    candidates: Candidates, settings: Mapping[str, Any], command: Sequence[str], timeout: float
) -> dict[str, dict[str, Any]]:
    """What the command wrote of each candidate. It is started again for those that are left when
    one has ended it; when one hangs, no others are tried."""
    ended: dict[str, dict[str, Any]] = {}
    while left := {name: v for name, v in candidates.items() if name not in ended}:
        begun = next(iter(left))
        # The first is the measure of the others.
        given = json.dumps([settings, left, next(iter(ended.values()), {})])
        why, hangs = "", False
        with contextlib.closing(_lines([*command, *sys.path], given, timeout)) as lines:
            try:
                for line in lines:
                    written = _written(line)
                    if (name := written.get("name")) in left:
                        begun = name
                        if len(written) > 1:
                            ended[begun] = written
            except (OSError, RuntimeError) as error:
                why = str(error)
                hangs = isinstance(error, TimeoutError)
        if begun not in ended:
            ended[begun] = {"error": why or "it ended without a result"}
        if hangs or "error" in next(iter(ended.values())):
            return {**{name: {"error": "not tried"} for name in candidates}, **ended}
    return ended


def _lines(command: Sequence[str], given: str, timeout: float) -> Generator[str, None, None]:
    """What a process writes, line by line; it is given a line, and ends with this generator.

    Raises:
        OSError: If it cannot be started.
        RuntimeError: If it ends with an error.
        TimeoutError: If no line comes for so many seconds.
    """
    # The process of a launcher like torchrun's would take the trial for one of its ranks.
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        read: SimpleQueue[str | None] = SimpleQueue()
        threading.Thread(target=_read, args=(process.stdout, read), daemon=True).start()
        try:
            with contextlib.suppress(BrokenPipeError):
                # Left open: the process ends when it is closed, however this one ends.
                print(given, file=process.stdin, flush=True)
            while (line := read.get(timeout=timeout)) is not None:
                yield line
            process.wait(timeout)
        except (Empty, subprocess.TimeoutExpired):
            raise TimeoutError(f"it took more than {timeout:g} seconds") from None
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if process.returncode < 0:
            raise RuntimeError(f"it ended by {signal.Signals(-process.returncode).name}")
        if process.returncode > 0:
            errors.seek(0)
            last = errors.read().strip().splitlines()[-1:]
            raise RuntimeError(last[0] if last else f"its exit code was {process.returncode}")


def _read(source: IO[str], to: SimpleQueue[str | None]) -> None:
    for line in source:
        to.put(line)
    to.put(None)


def _written(line: str) -> dict[str, Any]:
    """What a line of the command says; nothing if it is something else, as libraries print."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("name"), str) else {}
