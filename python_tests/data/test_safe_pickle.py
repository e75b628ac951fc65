"""The unpickler of CIFAR-10 takes what the official files hold, and refuses everything else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asng_ext.data._safe_pickle import PickledArray, load_pickle

# From protocol 2 on: `module name` of a global, then what is done with it.
NDARRAY = b"cnumpy\nndarray\n"
EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n" + NDARRAY + b"K\x00\x85U\x01b\x87R"
UINT8 = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"


def load(path: Path, contents: bytes) -> Any:
    path.write_bytes(contents)
    return load_pickle(path)


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call

    def __repr__(self) -> str:
        function, arguments = self.call  # whose own repr would hold an address
        return f"{function.__name__}{arguments}"


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_plain_values_and_arrays(tmp_path: Path, protocol: int) -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    fortran = np.asfortranarray(array)
    plain: dict[object, object] = {
        b"a": [1, 2.5, None, True, "text", b"\x00\xff", 2**70],
        "b": (1, []),
    }
    loaded = load(tmp_path / "p", pickle.dumps([plain, array, fortran], protocol))
    assert loaded[0] == plain
    for result in loaded[1:]:
        assert isinstance(result, PickledArray)
        assert result.value is not None
        assert result.value.dtype == np.uint8
        assert np.array_equal(result.value, array)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "value",
    [
        Call(os.system, "touch EVIDENCE"),
        Call(eval, "open('EVIDENCE', 'w')"),
        Call(exec, "open('EVIDENCE', 'w')"),
        Call(open, "EVIDENCE", "w"),
        Call(getattr, "", "join"),
        Call(__import__, "os"),
        Call(pickle.loads, b"N."),
        Call(np.load, "EVIDENCE"),
        Call(np.ndarray, (2,)),
        np.array([Call(os.system, "touch EVIDENCE")], dtype=object),
        np.array([1, 2], dtype=object),
        np.zeros(3, dtype=np.float32),
        np.zeros(3, dtype=np.int8),
        np.zeros(3, dtype=[("a", "u1")]),
        np.array(["text"]),
        np.zeros((2, 2), dtype=np.uint8).view(np.recarray),
        np.uint8(3),
        Path("EVIDENCE"),
        complex(1, 2),
    ],
    ids=repr,
)
def test_everything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read .*batch: ") as refusal:
        load(tmp_path / "batch", pickle.dumps({b"data": value}, protocol))
    assert isinstance(refusal.value.__cause__, pickle.UnpicklingError)
    assert not (tmp_path / "EVIDENCE").exists()


def test_the_attacks_of_these_tests_are_attacks(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Call(open, str(tmp_path / "EVIDENCE"), "w"), 2)).close()
    assert (tmp_path / "EVIDENCE").exists()


def test_refusal_says_what_was_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it names posix.system; only plain uint8 arrays"):
        load(tmp_path / "p", b"\x80\x02cposix\nsystem\nU\x01x\x85R.")


@pytest.mark.parametrize(
    "contents",
    [
        b"cbuiltins\neval\n.",
        b"c__builtin__\neval\n.",
        b"(S'1'\ni__builtin__\neval\n.",  # INST
        b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__new__\x93.",  # a dotted name
        b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.__class__.x\x93.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy._core.numeric\n_frombuffer\n.",
        b"\x82\x01.",  # a code of the extension registry
        b"Pname\n.",  # a persistent id
    ],
)
def test_other_names_are_not_looked_up(tmp_path: Path, contents: bytes) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        load(tmp_path / "p", contents)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (NDARRAY + b"K\x02\x85R.", "calls numpy.ndarray"),
        (NDARRAY + b"K\x02\x85\x81.", None),  # NEWOBJ
        (NDARRAY + b"}U\x01aK\x01sb.", "changes a function"),
        (NDARRAY + b"N}U\x01aK\x01s\x86b.", "changes a function"),
        (b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.", "dtype b'O8'"),
        (b"cnumpy\ndtype\nU\x02u2K\x00K\x01\x87R.", "dtype b'u2'"),
        (b"cnumpy\ndtype\n]\x85R.", "dtype"),
        (b"cnumpy.core.multiarray\n_reconstruct\nU\x01xK\x00\x85U\x01b\x87R.", "class other than"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)R.", None),  # no arguments
        (EMPTY_ARRAY + b"K\x01b.", "pickle format"),
        (EMPTY_ARRAY + b"(K\x02K\x00\x85" + UINT8 + b"\x89U\x00tb.", "pickle format"),
        (EMPTY_ARRAY + b"(K\x01K\x03\x85" + UINT8 + b"\x89U\x02abtb.", "contents"),
        (EMPTY_ARRAY + b"(K\x01K\x03\x85" + UINT8 + b"\x89]tb.", "contents"),
        (EMPTY_ARRAY + b"(K\x01K\x03\x85N\x89U\x03abctb.", "dtype other than"),
        (EMPTY_ARRAY + b"(K\x01K\x03" + UINT8 + b"\x89U\x03abctb.", "shape"),
        (EMPTY_ARRAY + b"(K\x01U\x013\x85" + UINT8 + b"\x89U\x03abctb.", "shape"),
        (EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + UINT8 + b"\x89U\x00tb.", "shape"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aU\x06base64\x86R.", "_codecs.encode"),
        (b"c_codecs\nencode\nU\x01aU\x06latin1\x86R.", "_codecs.encode"),
        (b"", None),
        (b"K\x01", None),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", None),  # more bytes than there is memory
        (b"not a pickle", None),
    ],
)
def test_tricks_with_permitted_names(tmp_path: Path, contents: bytes, message: str | None) -> None:
    with pytest.raises(ValueError, match=message or "cannot read"):
        load(tmp_path / "p", b"\x80\x02" + contents)


def test_truncated_file(tmp_path: Path) -> None:
    whole = pickle.dumps({b"data": np.zeros(1000, dtype=np.uint8)}, 2)
    for length in (10, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ValueError, match="cannot read"):
            load(tmp_path / "p", whole[:length])
