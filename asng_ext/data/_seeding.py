"""Random generators that belong to one purpose and are found again by its name."""

from __future__ import annotations

import hashlib
import operator

import torch

from asng_ext._checks import brief


def private_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator whose draws depend on `seed` and `purpose` alone.

    The seed is a hash of both, so neighboring seeds or epochs have unrelated draws, and nothing
    is read from or written to the global generators of torch, NumPy or Python.

    Raises TypeError if `seed` is not an integer.
    """
    words = (check_seed(seed), *purpose)
    digest = hashlib.sha256(repr(words).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def check_seed(seed: object) -> int:
    """`seed` as a plain int; TypeError for anything that is not an integer."""
    try:
        if isinstance(seed, bool):
            raise TypeError
        return operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"seed must be an integer, got {brief(seed)}") from None


def check_generator(generator: object) -> None:
    """TypeError unless it is PyTorch's."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {brief(generator)}")
