"""The epochs of a loop that are done, and the checkpoints from which it continues."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import torch

from asng_ext import ops
from asng_ext._checks import check_integer
from asng_ext._signals import Stop
from asng_ext.distributed import ALONE, Ranks, RanksDifferError, fingerprint
from asng_ext.ops import _libraries
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import Distributions, Events, MetricsTable

__all__ = ["ANEW", "Anew", "CheckpointMismatchError", "Epochs", "Origin", "Part", "fitting"]


class Anew(Enum):
    """Says that a loop continues from no checkpoint; its one value is :data:`ANEW`."""

    ANEW = "anew"


ANEW: Final = Anew.ANEW

Origin: TypeAlias = "Path | Anew | None"
"""What a loop continues from: that checkpoint, none, or the newest one in its folder."""

_STEPS_UNCHECKED = 100
"""After so many steps of an epoch ranks compare all parts."""


class CheckpointMismatchError(ValueError):
    """The checkpoint in the run is of something else, or damaged. Nothing has been trained or
    written."""


class Part(NamedTuple):
    """Something that a loop changes: how its state is read and set.

    Attributes:
        assumed: The state that a checkpoint of an earlier version, which lacks it, stands for; None
            if it must have one.
    """

    state_dict: Callable[[], Mapping[str, Any]]
    load_state_dict: Callable[[Any], object]
    assumed: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, value: Any, assumed: Mapping[str, Any] | None = None) -> Part:
        """That of something that has both methods."""
        return cls(value.state_dict, value.load_state_dict, assumed)


class Epochs:
    """The epochs of a loop that are done: their metrics, and in a run folder the checkpoint, the
    table and the events. If there is a checkpoint in it, the parts are set to what it holds.

    A checkpoint is written after each epoch, and within one after a step, which changes nothing of
    what the steps compute. Table and events are of whole epochs.

    Args:
        run: The folder; None to keep the metrics only.
        loop: "search" or "retrain": names the files.
        identity: Plain values by name, all of which decide the results. One is "epochs", how many
            the loop has: those of a checkpoint may be fewer.
        parts: What the loop changes, by the names in the checkpoint.
        device: Where the loop computes.
        same: Further entries of the checkpoint, which must be the same.
        assumed: What a checkpoint that lacks a value of ``identity`` is taken to say.
        minutes: Between checkpoints within an epoch; 0 for none but where ``stop`` asks for it.
        keep: How many checkpoints to keep.
        check_every: Steps after which it is looked whether the loop has diverged, as after the last
            one of an epoch and before each checkpoint.
        stop: Says when to write the last one.
        resume_from: The checkpoint to continue from instead of the newest one in the folder. With
            :data:`ANEW`, and where there is none, the first checkpoint that is written takes the
            place of all that are there and of the table.
        ranks: Who runs the loop. Rank 0 alone has a ``run``, and reads the checkpoint for all.
        replicated: Gives what must be the same on all ranks after each step; the parts must be
            after some.
        begun: Is called where there is a ``run`` when a loop that continues from no checkpoint has
            written its first one.

    Attributes:
        rows: The metrics of each epoch.
        done: How many epochs are done.
        steps_done: How many steps of the next epoch are done.
        identity: Those plain values as they are after saving.

    Raises:
        CheckpointMismatchError: If the checkpoint is of another identity or does not fit the parts,
            or is damaged, and those before, too.
        RanksDifferError: If the identity is not the same on all ranks, or the parts.

    Warns:
        UserWarning: If the loop has more epochs now, or if the checkpoint was computed with another
            number of threads, instruction set, device or PyTorch, does not hold what earlier
            versions did not save, or is damaged, and the one before is used.
    """

    def __init__(
        self,
        run: RunFolder | None,
        loop: str,
        identity: Mapping[str, Any],
        parts: Mapping[str, Part],
        device: torch.device,
        *,
        same: Mapping[str, Any] | None = None,
        assumed: Mapping[str, Any] | None = None,
        minutes: float = 0.0,
        keep: int = 2,
        check_every: int = 100,
        stop: Stop | None = None,
        resume_from: Origin = None,
        ranks: Ranks = ALONE,
        replicated: Callable[[], Any] | None = None,
        begun: Callable[[], object] | None = None,
    ) -> None:
        # A checkpoint of other than plain values could not be read again.
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        total = self.identity["epochs"]
        self.rows: list[dict[str, float]] = []
        self.done = 0
        self.steps_done = 0
        self._minutes = minutes
        self._keep = keep
        self._check_every = check_every
        self._checked = 0  # steps of the epoch
        self._stop = stop or Stop()
        self._written = time.monotonic()
        self._within: Mapping[str, Any] = {}
        self._within_parts: Mapping[str, Part] = {}
        self._reading: Callable[[], contextlib.AbstractContextManager[None]]
        self._path = Path()
        self._run = run
        self._loop = loop
        self._parts = parts
        self._device = device
        self._same = dict(same or {})
        self._ranks = ranks
        self._replicated = replicated
        self._saves = ranks.from_first(lambda: run is not None)
        ranks.check_same({**self.identity, **self._same})
        self._begins = False
        self._begun = begun
        self._events: Events | None = None
        try:
            rows = self._resume(total, assumed or {}, resume_from)
            self.rows = ranks.from_first(partial(self._open_files, total, rows))
        except (CheckpointMismatchError, RanksDifferError):
            raise
        except ValueError as error:
            raise CheckpointMismatchError(str(error)) from error
        self._check_ranks()

    def _open_files(
        self, total: int, rows: list[dict[str, float]] | None
    ) -> list[dict[str, float]]:
        """The metrics so far."""
        if self._run is None:
            return []
        self._table = MetricsTable(self._run.file(f"{self._loop}.csv"), self.done, rows)
        return self._table.rows

    def _read(self, chosen: Origin) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to continue from, if there is one."""
        if self._run is None or chosen is ANEW:
            return None
        if chosen is None:
            return self._run.load_checkpoint(f"{self._loop}.pt", self._remedy(self._run.path))
        content = RunFolder(chosen.parent).load(chosen.name)
        if content is None:
            raise ValueError(f"resume_from must be a checkpoint, and there is no {chosen}")
        return chosen, content

    def _remedy(self, folder: Path) -> str:
        """How to begin anew, in words."""
        if self._loop == "retrain":
            return f"begin anew with `{RunFolder(folder).command('retrain', '--restart')}`"
        return f"remove {folder / f'{self._loop}.pt'} to begin anew"

    def _resume(
        self, total: int, assumed: Mapping[str, Any], chosen: Origin
    ) -> list[dict[str, float]] | None:
        """Loads the checkpoint, if there is one; returns its metrics, None for those in the
        table."""
        checkpoint = self._ranks.from_first(partial(self._read, chosen))
        if checkpoint is None:
            self._begins = True
            return None
        path, state = checkpoint
        remedy = self._remedy(path.parent)
        with fitting(path, remedy):
            changed = _differences(path, state, self.identity, assumed)
            others = [name for name, value in self._same.items() if state[name] != value]
        if changed or others:
            what = f"other settings: {changed}" if changed else f"another {others[0]}"
            raise ValueError(
                f"the {self._loop} in {path.parent} was begun with {what}; continue it with the "
                f"same, or {remedy}"
            )
        with fitting(path, remedy):
            self._path, self._within = path, state.get("within", {})
            self.done, rows = _epochs_of(state, total)
            self.steps_done = self._within.get("steps_done", 0)
            for name, part in self._parts.items():
                given = state if part.assumed is None else {name: part.assumed, **state}
                part.load_state_dict(given[name])
            _warn_if_longer(path, state, total)
            if self.done < total:
                _warn_if_computed_otherwise(path, state, self._computed_by())
        return rows

    def begin(
        self,
        parts: Mapping[str, Part],
        reading: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Begins an epoch, or continues it.

        Args:
            parts: What the loop changes within it, and begins it with anew. Those in the checkpoint
                are set to what it holds.
            reading: What the states of all parts are read in within the epoch.

        Raises:
            CheckpointMismatchError: If the checkpoint does not fit.
        """
        within, self._within, self._within_parts = self._within, {}, parts
        self._reading = reading
        self._checked = self.steps_done
        if not within:
            return
        try:
            with fitting(self._path, self._remedy(self._path.parent)):
                check_integer("steps_done", self.steps_done, 1, 2**63)
                for name, part in parts.items():
                    given = within if part.assumed is None else {name: part.assumed, **within}
                    part.load_state_dict(given[name])
        except ValueError as error:
            raise CheckpointMismatchError(str(error)) from error

    def stepped(self, steps: int, check: Callable[[int, int], object]) -> None:
        """Says that a step is done, and writes a checkpoint if it is time for one.

        Args:
            steps: Of the epoch.
            check: Raises an error if the loop has diverged, in steps from the first to the last,
                which are its arguments.

        Raises:
            Interrupted: If a signal has come, to this process or another rank.
            RanksDifferError: If what must be the same on all ranks is not.
        """
        self.steps_done += 1
        due = self._agreed(self._run is not None and self.steps_done < steps and self._is_due())
        writes = due or (self._stop.number is not None and self._saves)
        if writes or self.steps_done % self._check_every == 0:
            self.check(check)
        if writes and self._run is not None:
            within = {name: part.state_dict() for name, part in self._within_parts.items()}
            with self._reading():
                done = {"epochs_done": self.done, "steps_done": self.steps_done}
                self._save({"within": {**done, **within}})
        if self.steps_done % _STEPS_UNCHECKED == 0:
            with self._reading():
                self._check_ranks()
        self._stop.raise_if_asked()

    def check(self, check: Callable[[int, int], object]) -> None:
        """Calls what :meth:`stepped` takes, for the steps since it was called last."""
        if self._checked < self.steps_done:
            check(self._checked + 1, self.steps_done)
            self._checked = self.steps_done

    def _is_due(self) -> bool:
        return 0 < 60 * self._minutes <= time.monotonic() - self._written

    def _agreed(self, due: bool) -> bool:
        """Whether rank 0 says that a checkpoint is due; all know of a signal to one of them."""
        if self._ranks.size == 1:
            return due
        state = fingerprint(self._replicated()) if self._replicated else 0
        signal, due = self._ranks.agree(self._stop.number or 0, due, state)
        self._stop.number = signal or None
        return due

    def _check_ranks(self) -> None:
        """Raises RanksDifferError if a part is not the same on all ranks."""
        if self._ranks.size > 1:
            self._ranks.check_same(
                {name: fingerprint(part.state_dict()) for name, part in self._parts.items()}
            )

    def add(
        self,
        row: dict[str, float],
        distributions: Callable[[], Distributions] | None = None,
    ) -> None:
        """Adds the metrics of an epoch that is done, and writes the files. ``distributions`` are
        asked for only where there are events to write them to.

        Raises:
            Interrupted: If a signal has come.
        """
        self.rows.append(row)
        self.done += 1
        self.steps_done = 0
        self._agreed(False)
        self._check_ranks()  # reading states makes deferred steps, so on all ranks
        if self._run is not None:
            # If it ends before the checkpoint is there, they are written again, and count once.
            if self._events is None:  # not before: they may take the place of earlier ones
                events = self._run.file("events") / self._loop
                self._events = Events(events, after=self.done - 1)
            self._events.add(row, distributions)
            self._save({"epochs_done": self.done})
            self._table.write()
        self._stop.raise_if_asked()

    def _save(self, more: Mapping[str, Any]) -> None:
        assert self._run is not None
        state = {
            "rows": self.rows,
            "identity": self.identity,
            "computed_by": self._computed_by(),
            **self._same,
            **{name: part.state_dict() for name, part in self._parts.items()},
            **more,
        }
        name = f"{self._loop}.pt"
        self._run.save(name, state, keep=1 if self._begins else self._keep)
        if self._begins:
            self._run.remove_previous(name)
            if not self.rows:
                self._table.write()
            if self._begun is not None:
                self._begun()
            self._begins = False
        self._written = time.monotonic()

    def _computed_by(self) -> dict[str, Any]:
        several = {"ranks": self._ranks.size} if self._ranks.size > 1 else {}
        return {**_computed_by(self._device), **several}

    def close(self) -> None:
        """Ends the events."""
        if self._run and self._events:
            self._events.close()


def _differences(
    path: Path, state: Mapping[str, Any], now: Mapping[str, Any], assumed: Mapping[str, Any]
) -> str:
    """How the run that a checkpoint is of differs, by name; "" if it does not.

    What the checkpoint does not say, since an earlier version wrote it, is warned of.
    """
    # Earlier versions knew the settings of the loop only.
    saved = {**assumed, **(state["identity"] if "identity" in state else state["config"])}
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
        if name in saved
        and saved[name] != value
        # A loop may go on for longer.
        and not (name == "epochs" and 0 < saved[name] < value)
    )


def _epochs_of(state: Mapping[str, Any], epochs: int) -> tuple[int, list[dict[str, float]] | None]:
    """How many epochs are done, and their metrics; None if the checkpoint does not hold these."""
    within = "within" in state
    # Elsewhere, so that earlier versions do not take the epoch for one that has not begun.
    done = (state["within"] if within else state)["epochs_done"]
    check_integer("epochs_done", done, 0 if within else 1, epochs + (not within))
    if "rows" not in state:
        return done, None
    rows = [{str(name): float(value) for name, value in row.items()} for row in state["rows"]]
    if len(rows) != done:
        raise ValueError(f"rows must be {done}, one per epoch, got {len(rows)}")
    return done, rows


@contextlib.contextmanager
def fitting(path: Path, remedy: str) -> Iterator[None]:
    """Whatever goes wrong when a file is taken apart becomes a ValueError that names it."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        words = str(error).strip().replace("\n\t", " ").partition("\n")[0]
        if isinstance(error, KeyError):
            words = f"it lacks {words}"
        raise ValueError(f"{path} does not fit this run: {words[:300]}; {remedy}") from error


def _computed_by(device: torch.device) -> dict[str, Any]:
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


def _warn_if_longer(path: Path, state: Mapping[str, Any], total: int) -> None:
    """A warning if the loop that continues a checkpoint has more epochs than the one before."""
    before = state.get("identity", {}).get("epochs", total)
    if before < total:
        warnings.warn(
            f"{path} is of {before} epochs and continues to {total}, from here on with the "
            "learning rates of so many",
            stacklevel=2,
        )


def _warn_if_computed_otherwise(path: Path, state: Mapping[str, Any], now: dict[str, Any]) -> None:
    """A warning if a checkpoint was computed by something else than what continues it."""
    if "computed_by" not in state:
        return  # an earlier version did not say
    saved = dict(state["computed_by"])
    if "ranks" in {**saved, **now}:
        saved, now = {"ranks": 1, **saved}, {"ranks": 1, **now}
    changed = [
        f"{name} was {saved.get(name)} and is {now.get(name)}"
        for name in {**saved, **now}
        if saved.get(name) != now.get(name)
    ]
    if changed:
        warnings.warn(
            f"{path}: {', '.join(changed)}; the run continues, but not bit for bit as it would "
            "have",
            stacklevel=2,
        )
