"""Reading the pickles of CIFAR-10 without running anything that they ask for.

A pickle may name any function of any module and have it called. The files of CIFAR-10 name just
three things of NumPy (and, where Python 3 wrote them, `_codecs.encode`). Here each of these names
stands for a small function of this module, which accepts what CIFAR-10 needs and nothing else;
every other name is refused. No code of NumPy or of anybody else is reached from a pickle.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PickledArray:
    """A uint8 array in a pickle; `value` is None until the pickle has given its contents."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: NDArray[np.uint8] | None = None

    def __setstate__(self, state: object) -> None:
        """Take the state that NumPy pickles: (1, shape, dtype, Fortran order?, contents)."""
        if not (isinstance(state, tuple) and len(state) == 5 and state[0] == 1):
            raise pickle.UnpicklingError("an array is not in NumPy's pickle format")
        _, shape, dtype, fortran_order, contents = state
        if not isinstance(dtype, _Uint8):
            raise pickle.UnpicklingError("an array has a dtype other than uint8")
        if not (isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)):
            raise pickle.UnpicklingError("the shape of an array is not a tuple of sizes")
        if not isinstance(contents, bytes) or len(contents) != math.prod(shape):
            raise pickle.UnpicklingError(
                f"the contents of an array are not the bytes that its shape {shape} needs"
            )
        order: Any = "F" if fortran_order else "C"
        self.value = np.frombuffer(contents, dtype=np.uint8).reshape(shape, order=order)


class _Uint8:
    """Stands for the dtype uint8, the only one there is here."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Byte order, field names and so on: uint8 has nothing of the kind."""


class _Global:
    """What a permitted name stands for. A pickle can call it, and cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function or class")


def _make_ndarray(*_: object) -> object:
    raise pickle.UnpicklingError("it calls numpy.ndarray")


def _make_dtype(code: object, *_: object) -> _Uint8:
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"an array has the dtype {code!r}, not uint8")
    return _Uint8()


def _reconstruct(kind: object, shape: object, typecode: object) -> PickledArray:
    # The arguments describe an empty array; its true shape and dtype come with its state.
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("it asks for an array of a class other than numpy.ndarray")
    return PickledArray()


def _encode(text: object, encoding: object) -> bytes:
    # Python 3 writes bytes like this in the pickle protocol of Python 2.
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it calls _codecs.encode on something other than bytes")
    return text.encode("latin1")


_NDARRAY = _Global(_make_ndarray)
_ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global(_make_dtype),
    ("numpy.core.multiarray", "_reconstruct"): _Global(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Global(_reconstruct),
    ("_codecs", "encode"): _Global(_encode),
}


class _Unpickler(pickle.Unpickler):
    """Builds dicts, lists, tuples, strings, bytes, numbers and uint8 arrays."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}; only plain uint8 arrays, bytes, strings, numbers, "
                "lists and dicts are read, and nothing else is looked up or run"
            )
        return _ALLOWED[module, name]


def load_pickle(path: Path) -> object:
    """The object in a pickle file. Strings of Python 2 are bytes, arrays are `PickledArray`.

    Raises ValueError, naming the file, if it is not a whole pickle or holds anything else than
    uint8 arrays, bytes, strings, numbers, lists, tuples and dicts.
    """
    contents = path.read_bytes()
    try:
        return _Unpickler(io.BytesIO(contents), encoding="bytes").load()
    except Exception as error:  # a broken pickle can end in almost any exception
        raise ValueError(f"cannot read {path}: {str(error) or type(error).__name__}") from error
