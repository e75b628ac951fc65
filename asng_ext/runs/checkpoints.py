"""What a checkpoint says about the run it is of, and whether it fits one."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from asng_ext import ops
from asng_ext._checks import check_integer
from asng_ext.ops import _libraries

__all__ = ["computed_by", "differences", "fitting", "identity", "progress_of", "warn_if_elsewhere"]


def identity(loop: str, task: object, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the results of a loop, by name.

    Args:
        loop: "search" or "retrain".
        task: Its method ``identity(loop)``, if it has one, says what the task adds.
        seed: The seed of the loop.
        settings: The loop's own.
    """
    of_task = getattr(task, "identity", None)
    known = {"seed": seed, **settings, **(of_task(loop) if of_task is not None else {})}
    # Plain values, as they are after saving: a checkpoint with others could not be read again.
    return dict(json.loads(json.dumps(known)))


def differences(path: Path, state: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the run that a checkpoint is of differs, by name; "" if it does not.

    What the checkpoint does not say, since an earlier version wrote it, is warned of.
    """
    # Earlier versions knew the settings of the loop only.
    saved = dict(state["identity"] if "identity" in state else state["config"])
    unknown = sorted(set(now) - set(saved))
    if unknown:
        warnings.warn(
            f"{path} does not say with which {', '.join(unknown)} it was made, and is taken to be "
            "of this run",
            stacklevel=2,
        )
    return ", ".join(
        f"{name} was {saved[name]!r} and is {value!r}"
        for name, value in now.items()
        if name in saved and saved[name] != value
    )


def progress_of(state: Mapping[str, Any], epochs: int) -> tuple[int, list[dict[str, float]] | None]:
    """How many epochs are done, and their metrics; None if the checkpoint does not hold these."""
    done = state["epochs_done"]
    check_integer("epochs_done", done, 1, epochs + 1)
    if "rows" not in state:
        return done, None
    rows = [{str(name): float(value) for name, value in row.items()} for row in state["rows"]]
    if len(rows) != done:
        raise ValueError(f"rows must be {done}, one per epoch, got {len(rows)}")
    return done, rows


@contextlib.contextmanager
def fitting(path: Path, remedy: str = "move it away to begin anew") -> Iterator[None]:
    """Whatever goes wrong when a file is taken apart becomes a ValueError that names it."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        words = str(error).strip().replace("\n\t", " ").partition("\n")[0]
        if isinstance(error, KeyError):
            words = f"it lacks {words}"
        raise ValueError(f"{path} does not fit this run: {words[:300]}; {remedy}") from error


def computed_by(device: torch.device) -> dict[str, Any]:
    """What the last bits of results depend on: runs repeat bit for bit where this is the same."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": str(torch.__version__)}
    return {
        "device": device.type,
        "torch": str(torch.__version__),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "instruction set of the operators": ops.capability() if _libraries.available() else "none",
        "threads": torch.get_num_threads(),
    }


def warn_if_elsewhere(path: Path, state: Mapping[str, Any], device: torch.device) -> None:
    """A warning if a checkpoint was computed by something else than what goes on with it."""
    if "computed_by" not in state:
        return  # an earlier version did not say
    saved, now = dict(state["computed_by"]), computed_by(device)
    changed = [
        f"{name} was {saved.get(name)} and is {now.get(name)}"
        for name in {**saved, **now}
        if saved.get(name) != now.get(name)
    ]
    if changed:
        warnings.warn(
            f"{path}: {', '.join(changed)}; the run goes on, but not bit for bit as it would have",
            stacklevel=2,
        )
