"""What the tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# One thread is fastest for small tensors, and results do not depend on the machine.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _keep_global_generator() -> Iterator[None]:
    """Tests that seed PyTorch's global generator do not decide what others draw."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
