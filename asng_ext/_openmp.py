"""How PyTorch's threads wait for each other."""

from __future__ import annotations

import os

__all__ = ["SPINS", "spin_briefly"]

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
