"""What the loops do where several ranks run them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from asng_ext._random import Draws, GlobalGenerators, OwnGenerators
from asng_ext._signals import Stop, asked_to_stop
from asng_ext.distributed import Ranks
from asng_ext.runs.folder import RunFolder

__all__ = ["draws_of_rank", "run_of_first"]


@contextlib.contextmanager
def run_of_first(run: RunFolder | None, ranks: Ranks) -> Iterator[tuple[RunFolder | None, Stop]]:
    """In this context rank 0 holds the folder, and signals to any rank are noted.

    Gives the folder to rank 0 and None to the others, and what notes signals. Without a folder
    these are left alone.
    """
    has_run = ranks.from_first(lambda: run is not None)
    with contextlib.ExitStack() as stack:
        if has_run:  # which the others need not be given
            lock = contextlib.nullcontext if run is None else run.lock
            stack.enter_context(ranks.held_by_first(lock))
        stop = stack.enter_context(asked_to_stop()) if has_run else Stop()
        yield run if ranks.first else None, stop
        # A signal that came after the last step must not end one rank alone.
        stop.number = ranks.agree(stop.number or 0, False)[0] or None


def draws_of_rank(
    draws: Draws, ranks: Ranks, seed: int, purpose: str, device: torch.device
) -> contextlib.AbstractContextManager[None]:
    """What a step runs in. Ranks draw different numbers, and not those of the epoch, which must
    stay the same on all: its batches may come from there."""
    if ranks.size == 1 or isinstance(draws, OwnGenerators):
        return draws
    return GlobalGenerators(seed, f"{purpose} rank {ranks.rank}", device)
