"""PyTorch's threads on the CPU: how many there are, and how they wait for each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["SPINS", "cpu_threads", "spin_briefly"]

SPINS = 10_000
"""Turns of the loop in which a thread waits before it sleeps: about half a millisecond."""


def spin_briefly() -> None:
    """Lets OpenMP's threads sleep soon, unless the user has said how they should wait.

    To be called before torch is imported: GNU's OpenMP, which PyTorch's packages for Linux bring,
    reads its environment then. By default a thread spins for some 300,000 turns at the end of every
    parallel loop; where other processes want the cores, it spins on one while the thread it waits
    for has none, dozens of times longer than the work takes. Sleeping at once would cost as much as
    the small loops themselves on an idle machine. Results do not depend on it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """PyTorch uses ``count`` threads on the CPU, and afterwards as many as before; 0 changes none.

    For small images one thread is fastest, all the more where other processes want the cores:
    PyTorch's threads wait for each other after every operation.
    """
    import torch  # see spin_briefly

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
