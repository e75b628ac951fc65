"""What the tests of the data share."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch


def _global_states() -> tuple[bytes, bytes, bytes]:
    """The states of the global generators of torch, Python and NumPy."""
    numpy_state = np.random.get_state()  # noqa: NPY002 - the legacy generator is what is watched
    return (
        torch.get_rng_state().numpy().tobytes(),
        pickle.dumps(random.getstate()),
        pickle.dumps(numpy_state),
    )


@contextmanager
def _unchanged() -> Iterator[None]:
    before = _global_states()
    yield
    assert _global_states() == before


@pytest.fixture
def global_generators_unchanged() -> Callable[[], AbstractContextManager[None]]:
    """A context that checks that no global generator is drawn from or set in it."""
    return _unchanged
