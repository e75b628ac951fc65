"""What the tests of operators share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from devices import CUDA, GRID
from torch import Tensor
from torch.library import Library

from asng_ext.ops import autoencoder
from asng_ext.ops._registration import Cast, register_autocast


@pytest.fixture(params=["cpu", *([] if GRID else ["cpu with two threads"]), CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where tensors are. To the grid the number of threads is nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if "two" in request.param else before)
    yield request.param.split()[0]
    torch.set_num_threads(before)


@pytest.fixture
def tf32() -> Iterator[None]:
    """PyTorch allows TF32 for convolutions."""
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = False


def _finish(y: Tensor, skipped: Tensor | None, relu: bool) -> None:
    if skipped is not None:
        y.add_(skipped)
    if relu:
        y.relu_()


@pytest.fixture
def finish() -> Iterator[None]:
    """Where there is no grid, PyTorch stands in for the kernel that finishes autoencoder layers."""
    library = Library("asng", "IMPL")
    if not GRID:
        library.impl("_cae_finish", _finish, "CPU")
    yield
    library._destroy()


def _cast_as_cuda(cast: Cast, _: str, dtype: torch.dtype) -> torch.dtype | None:
    return cast("cuda", dtype)


@pytest.fixture
def twins(finish: None) -> Iterator[None]:
    """The CPU computes the layers of autoencoders as a CUDA device does."""
    library = Library("asng", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        autoencoder._register_cuda(library, "cpu")
        for name, casts in autoencoder._CASTS.items():
            as_cuda = {i: partial(_cast_as_cuda, cast) for i, cast in casts.items()}
            register_autocast(name, as_cuda, ["cpu"], library)
    yield
    library._destroy()
