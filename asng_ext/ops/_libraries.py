"""Loads the compiled operators: `_C`, which works with every torch, and `_C_cuda`, its twins for
CUDA devices, which needs a torch with CUDA.

Importing this module never fails for want of a library: `available` and `cuda_available` say
whether they can be used, `require` and `require_cuda` raise an error that says why not.
"""

from __future__ import annotations

from pathlib import Path

import torch

_FOLDER = Path(__file__).parent.parent
_ADVICE = (
    "Install torch 2.11 or newer first and then build asng_ext in that environment with "
    "`pip install --no-build-isolation .`; the plain PyTorch implementation works without."
)
_CUDA_ADVICE = (
    "Install the CUDA toolkit (nvcc) and a torch with CUDA, and then build asng_ext in that "
    "environment with `FORCE_CUDA=1 pip install --no-build-isolation .`"
)


def _load(name: str, advice: str) -> str | None:
    """Loads a library; returns what is wrong, if something is."""
    path = _FOLDER / f"{name}.so"
    if not path.exists():
        return f"the operators of asng_ext ({name}) were not built: {path} is missing. {advice}"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, RuntimeError) as error:
        reason = error.__cause__ or error
        return (
            f"the operators of asng_ext ({name}) cannot be loaded from {path}: {reason}. {advice}"
        )
    return None


def _load_cuda(problem: str | None) -> str | None:
    """The same for `_C_cuda`, given the problem of `_C`, without which it is of no use."""
    if problem is not None:
        return problem
    if torch.version.cuda is None:
        return (
            f"the operators of asng_ext for CUDA (_C_cuda) need a torch with CUDA, but torch "
            f"{torch.__version__} is built without. {_CUDA_ADVICE}"
        )
    return _load("_C_cuda", _CUDA_ADVICE)


_problem = _load("_C", _ADVICE)
# Whether there is a device is asked only when one is needed: asking starts CUDA.
_cuda_problem = _load_cuda(_problem)


def available() -> bool:
    """Whether the operators can be used on the CPU."""
    return _problem is None


def require() -> None:
    """Returns if the operators can be used on the CPU.

    Raises:
        RuntimeError: They cannot; the message says which library, why, and what to do.
    """
    if _problem is not None:
        raise RuntimeError(_problem)


def cuda_available() -> bool:
    """Whether the operators can be used on CUDA devices and there is one."""
    return _cuda_problem is None and torch.cuda.is_available()


def available_on(device: torch.device) -> bool:
    """Whether the operators can be used on a device."""
    return cuda_available() if device.type == "cuda" else available()


def has_cuda_kernels(device: torch.device) -> bool:
    """Whether tensors on a device can be given to the operators that are for CUDA devices alone;
    elsewhere PyTorch's own do their work."""
    return device.type == "cuda" and _cuda_problem is None


def require_cuda() -> None:
    """Returns if the operators can be used on CUDA devices and there is one.

    Raises:
        RuntimeError: They cannot; the message says which library, why, and what to do.
    """
    if _cuda_problem is not None:
        raise RuntimeError(_cuda_problem)
    if not torch.cuda.is_available():
        raise RuntimeError(
            "there is no CUDA device: torch.cuda.is_available() is False. Check the driver with "
            "`nvidia-smi` and that CUDA_VISIBLE_DEVICES does not hide the device"
        )


def capability() -> str:
    """Instruction set that the operators use on the CPU: "default", "avx2" or "avx512".

    It is the best that the processor has, or a lesser one that the environment variable
    ASNG_CPU_CAPABILITY names when the operators are first used.

    Raises:
        RuntimeError: The operators are not available.
    """
    require()
    return ("default", "avx2", "avx512")[torch.ops.asng._cpu_capability()]


def release_memory() -> int:
    """Gives the memory that the CPU's operators keep for the next call back to the system.

    Returns:
        The number of bytes.

    Raises:
        RuntimeError: The operators are not available.
    """
    require()
    return int(torch.ops.asng._release_cached())
