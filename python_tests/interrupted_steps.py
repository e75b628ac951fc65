"""Loops that a signal ends after each of their first steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch

from asng_ext._signals import Interrupted
from asng_ext.runs.folder import RunFolder


def check_first_steps(
    run: Callable[[Any, RunFolder], object], task: Any, method: str, folder: RunFolder, loop: str
) -> None:
    """Two calls of ``run`` end by a signal, each a step later, with a checkpoint of that step.

    Args:
        run: Runs a loop of a task in a folder.
        task: Its method sends the signal from now on, where gradients are recorded.
        method: The name of one that a step calls once so.
        folder: A new one.
        loop: Its name.
    """
    original = getattr(task, method)

    def with_signal(*arguments: Any) -> Any:
        if torch.is_grad_enabled():  # once a step: the same signal again would end the process
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    setattr(task, method, with_signal)
    for step in (1, 2):
        with pytest.raises(Interrupted):
            run(task, folder)
        state = folder.load(f"{loop}.pt")
        assert state is not None
        assert state["within"]["steps_done"] == step
