"""Functions on several ranks: processes that are forked, which takes no time."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asng_ext import distributed
from asng_ext.distributed import Ranks


def on_ranks(
    size: int,
    work: Callable[[Ranks], Any],
    folder: Path,
    seconds: float = 300,
    timeout: float = 120,
) -> list[Any]:
    """What ``work`` returns on each rank, or the exception that it raises there; None of a process
    that was killed. ``folder`` is for files of this function."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(size):
        child = os.fork()
        if child == 0:
            _child(rank, size, port, work, folder / f"rank{rank}", timeout)
        children[child] = rank
    deadline = time.monotonic() + seconds
    while children:
        for child in [c for c in children if os.waitpid(c, os.WNOHANG)[0]]:
            del children[child]
        if time.monotonic() > deadline:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            raise TimeoutError(f"ranks {sorted(children.values())} still run")
        time.sleep(0.01)
    results: list[Any] = []
    for rank in range(size):
        path = folder / f"rank{rank}"
        results.append(pickle.loads(path.read_bytes()) if path.exists() else None)
        path.unlink(missing_ok=True)
    return results


def _child(
    rank: int, size: int, port: int, work: Callable[[Ranks], Any], path: Path, timeout: float
) -> None:
    status = 0
    try:
        torch.set_num_threads(1)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ASNG_RANK_TIMEOUT": str(timeout),
        }
        try:
            with distributed.joined() as ranks:
                result = work(ranks)
        except BaseException as error:
            traceback.print_exc()
            result = error
        path.with_suffix(".part").write_bytes(pickle.dumps(result))
        path.with_suffix(".part").rename(path)
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)
