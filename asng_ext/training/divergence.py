"""Whether a training has diverged, and how it may continue."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from asng_ext._checks import check_integer
from asng_ext.runs.checkpoints import Origin
from asng_ext.runs.folder import RunFolder

__all__ = ["DivergedError", "Halvings", "raise_if_diverged", "version_of", "with_retries"]

Result = TypeVar("Result")


class DivergedError(FloatingPointError):
    """A loss, a gradient or a weight has become NaN or infinite.

    Args:
        what: Which, and where.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what}; begin anew with a lower learning_rate, or continue with "
            "--on-divergence retry"
        )


def raise_if_diverged(
    epoch: int, first: int, last: int, row: Mapping[str, float], model: nn.Module
) -> None:
    """DivergedError if a training has diverged; synchronizes with the device, once if it has not.

    Args:
        epoch: Of the training, from 0.
        first, last: Its steps, from 1, in which it must have happened.
        row: Metrics of the epoch so far, none of which but "train_loss" and "convergence" must be
            finite.
        model: Its weights and their gradients must be, too: the last step may have spoiled them.
    """
    wrong = [
        f"{name} is {row[name]}"
        for name in ("train_loss", "convergence")
        if not math.isfinite(row.get(name, 0))
    ]
    kinds: dict[str, dict[str, Tensor]] = {
        "weight": {name: weight.detach() for name, weight in model.named_parameters()},
        "gradient of": {n: w.grad for n, w in model.named_parameters() if w.grad is not None},
    }
    numbers = [each for kind in kinds.values() for each in kind.values() if each.numel()]
    if wrong or not math.isfinite(nn.utils.get_total_norm(numbers, math.inf)):
        for kind, tensors in kinds.items():
            bad = [name for name, values in tensors.items() if not values.isfinite().all()]
            more = f" and {len(bad) - 1} more of {len(tensors)}" if len(bad) > 1 else ""
            wrong += [f"{kind} {bad[0]}{more} is not finite"] if bad else []
    if wrong:
        steps = f"steps {first} to {last}" if first < last else f"step {last}"
        raise DivergedError(f"training diverged in epoch {epoch + 1}, {steps}: {', '.join(wrong)}")


class Halvings:
    """How often a training that diverged has halved its learning rate: part of its checkpoints.

    Attributes:
        count: How often.
    """

    MOST = 3

    def __init__(self) -> None:
        self.count = 0

    @property
    def factor(self) -> float:
        """What learning rates are multiplied by."""
        return 0.5**self.count

    def state_dict(self) -> dict[str, int]:
        """What :meth:`load_state_dict` takes."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the count of a checkpoint, unless it has halved more often since."""
        count = state["count"]
        check_integer("count", count, 0, self.MOST + 1)
        self.count = max(self.count, count)


def with_retries(
    loop: Callable[[Halvings, Origin], Result],
    version: Callable[[], int],
    resume_from: Origin,
    begin_anew: Callable[[str], object],
) -> Result:
    """Runs a loop that continues from its last checkpoint; if it diverges, again, at half the
    learning rate, at most three times.

    Args:
        loop: Trains, from that checkpoint or the newest, with learning rates times those halvings.
        version: Says which checkpoint is the newest.
        resume_from: What to begin with, instead of the newest, until the loop has written one.
        begin_anew: Is called before the loop runs again, with what has happened.
    """
    halvings, before = Halvings(), version()
    while True:
        try:
            written = version() != before
            return loop(halvings, None if written else resume_from)
        except DivergedError as error:
            if halvings.count >= Halvings.MOST:
                raise
            halvings.count += 1
            begin_anew(
                f"{error.what}. Continuing from the last checkpoint, at {halvings.factor:g} of the "
                "learning rate\n"
            )


def version_of(run: RunFolder | None, name: str) -> int:
    """A number that changes whenever the file in the run is replaced; 0 for none."""
    path = run.file(name) if run is not None else None
    return path.stat().st_mtime_ns if path is not None and path.exists() else 0
