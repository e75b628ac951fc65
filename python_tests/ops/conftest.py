"""What the tests of operators share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

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


class _Overrides(Library):
    """Kernels that take the place of others. Versions of torch differ in the default."""

    def impl(self, *args: Any, **kwargs: Any) -> None:
        super().impl(*args, **{**kwargs, "allow_override": True})


@pytest.fixture
def overrides() -> Iterator[_Overrides]:
    """A library that ends with the test."""
    library = _Overrides("asng", "IMPL")
    yield library
    library._destroy()


@pytest.fixture
def finish(overrides: _Overrides) -> None:
    """Where there is no grid, PyTorch stands in for the kernel that finishes autoencoder layers."""
    if not GRID:
        overrides.impl("_cae_finish", _finish, "CPU")


def _cast_as_cuda(cast: Cast, _: str, dtype: torch.dtype) -> torch.dtype | None:
    return cast("cuda", dtype)


@pytest.fixture
def twins(finish: None, overrides: _Overrides) -> None:
    """The CPU computes the layers of autoencoders as a CUDA device does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        autoencoder._register_cuda(overrides, "cpu")
        for name, casts in autoencoder._CASTS.items():
            as_cuda = {i: partial(_cast_as_cuda, cast) for i, cast in casts.items()}
            register_autocast(name, as_cuda, ["cpu"], overrides)
