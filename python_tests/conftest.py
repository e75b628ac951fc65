"""What the tests share, and what the markers do."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch

from asng_ext import ops

# Numbers are compared in full single precision.
torch.backends.cudnn.allow_tf32 = False
# Tests send signals, of which the terminal's may be ignored by who started them, such as nohup.
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)
# One thread is fastest for small tensors, and results do not depend on the machine.
torch.set_num_threads(1)

# The operators for CUDA, compiled for a grid that runs on the CPU, in place of the CPU's own.
if library := os.environ.get("ASNG_CUDA_ON_CPU"):
    cell = importlib.import_module("asng_ext.ops.cell")
    feature_maps = importlib.import_module("asng_ext.ops._feature_maps")
    torch.ops.load_library(library)
    cell.runs_stacks = lambda device: False  # type: ignore[attr-defined]
    feature_maps.stores_bfloat16 = lambda device_type: True  # type: ignore[attr-defined]
    libraries = importlib.import_module("asng_ext.ops._libraries")
    libraries.has_cuda_kernels = lambda device: device.type == "cpu"  # type: ignore[attr-defined]
    mixture = importlib.import_module("asng_ext.ops.mixture")
    # Results without values, on no device, have the sizes of those of the grid.
    mixture.has_cuda_kernels = lambda device: True  # type: ignore[attr-defined]
    # New tensors are full of NaN, so that it shows what an operator leaves unwritten.
    torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def _keep_global_generator() -> Iterator[None]:
    """Tests that seed PyTorch's global generator do not decide what others draw."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@contextlib.contextmanager
def _drawing(draw: Callable[..., object], names: Iterable[str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(f"asng_ext.engine.{name}.drawing", draw)
        yield


_WHAT_DRAWS = ("compare", "experiment", "pictures", "sweep")
"""Modules of asng_ext.engine."""


@pytest.fixture(scope="session", autouse=True)
def pictures() -> Iterator[Callable[..., contextlib.AbstractContextManager[None]]]:
    """Gives contexts in which runs draw pictures, or only the modules that are named. Elsewhere
    they draw none, which would take most of their time."""
    from asng_ext.engine.pictures import drawing  # once other operators are in place

    with _drawing(lambda stream: None, _WHAT_DRAWS):
        yield lambda *names: _drawing(drawing, names or _WHAT_DRAWS)


@pytest.fixture(autouse=True)
def _marked_pictures(
    request: pytest.FixtureRequest, pictures: Callable[..., Any]
) -> Iterator[None]:
    """Tests with the marker ``pictures`` are in such a context."""
    marker = request.node.get_closest_marker("pictures")
    with pictures(*marker.args) if marker else contextlib.nullcontext():
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test whose marker asks for what is not there is skipped, or fails where it must be."""
    if item.get_closest_marker("operators") and not ops.available():
        _skip("the operators are not built", "ASNG_REQUIRE_OPERATORS")
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        _skip("there is no CUDA device", "FAIL_WITHOUT_CUDA")
    if not library and any(m.kwargs.get("only") for m in item.iter_markers("grid")):
        pytest.skip("ASNG_CUDA_ON_CPU is not set")


def _skip(problem: str, required: str) -> None:
    """Skips a test, or fails it if the variable that is named says 1."""
    if os.environ.get(required) == "1":
        pytest.fail(f"{required}=1, but {problem}", pytrace=False)
    pytest.skip(problem)
