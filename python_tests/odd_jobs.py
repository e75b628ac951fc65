"""What processes of a test do: in a module that they can import."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

from asng_ext.engine.compare import _Times
from asng_ext.runs.folder import RunFolder


def odd(job: Any) -> int:
    """One of them is killed, and one fails."""
    if job.name.seed == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if job.name.seed == 2:
        raise ZeroDivisionError
    return 10 * int(job.name.seed)


def endless_test(job: Any) -> None:
    """The end of a retraining, where no loop looks at signals."""
    run = RunFolder.create(job.folder)
    experiment: Any = SimpleNamespace(run=run, task=SimpleNamespace(search_steps=1))
    with _Times(experiment).of_retraining():
        time.sleep(0.2)
        (job.path / "begun").touch()
        time.sleep(600)
