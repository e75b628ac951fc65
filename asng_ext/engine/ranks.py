"""What the loops do where several ranks run them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from asng_ext._random import Draws, GlobalGenerators, OwnGenerators
from asng_ext._signals import Stop, asked_to_stop
from asng_ext._threads import cpu_threads
from asng_ext.distributed import Ranks
from asng_ext.runs.checkpoints import Origin
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.training.divergence import Halvings, version_of, with_retries

__all__ = ["draws_of_rank", "run_loop"]

Result = TypeVar("Result")


def run_loop(
    loop: Callable[[RunFolder | None, Stop, Halvings, Origin], Result],
    name: str,
    config: SearchConfig | RetrainConfig,
    run: RunFolder | None,
    ranks: Ranks,
    resume_from: Origin,
    begin_anew: Callable[[str], object],
) -> Result:
    """What a loop returns, which is run again if it diverges and the settings say so.

    Meanwhile rank 0 holds the folder, and signals to any rank are noted; without a folder these are
    left alone.

    Args:
        loop: Is given the folder on rank 0 and None on the others, what notes signals, and what
            :func:`asng_ext.training.divergence.with_retries` gives it.
        name: Of its checkpoint, without the suffix.
        config: Its settings.
        run: The folder; None for none. Other ranks than the first need not have it.
        ranks: Who runs the loop.
        resume_from: What to continue from.
        begin_anew: See there.
    """
    saves = ranks.from_first(lambda: run is not None)
    own = run if ranks.first else None
    with contextlib.ExitStack() as stack:
        if saves:
            lock = contextlib.nullcontext if run is None else run.lock
            stack.enter_context(ranks.held_by_first(lock))
        stop = stack.enter_context(asked_to_stop()) if saves else Stop()
        stack.enter_context(cpu_threads(config.threads))
        once = partial(loop, own, stop)
        if saves and config.on_divergence == "retry":
            version = partial(ranks.from_first, partial(version_of, own, f"{name}.pt"))
            result = with_retries(once, version, resume_from, begin_anew)
        else:
            result = once(Halvings(), resume_from)
        # A signal that came after the last step must not end one rank alone.
        stop.number = ranks.agree(stop.number or 0, False)[0] or None
        return result


def draws_of_rank(
    draws: Draws, ranks: Ranks, seed: int, purpose: str, device: torch.device
) -> contextlib.AbstractContextManager[None]:
    """What a step runs in. Ranks draw different numbers, and not those of the epoch, which must
    stay the same on all: its batches may come from there."""
    if ranks.size == 1 or isinstance(draws, OwnGenerators):
        return draws
    return GlobalGenerators(seed, f"{purpose} rank {ranks.rank}", device)
