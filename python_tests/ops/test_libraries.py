"""What is said when a compiled library cannot be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asng_ext import ops
from asng_ext.ops import _libraries


@pytest.fixture
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(_libraries, "_FOLDER", tmp_path)
    return tmp_path


def test_a_missing_library_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    problem = _libraries._load("_C", "Do this.")
    assert problem is not None
    assert "_C.so is missing. Do this." in problem
    (empty_folder / "_C.so").write_text("no library")
    problem = _libraries._load("_C", _libraries._ADVICE)
    assert problem is not None
    assert "cannot be loaded" in problem
    monkeypatch.setattr(_libraries, "_problem", problem)
    assert not ops.available()
    with pytest.raises(RuntimeError, match=r"pip install --no-build-isolation"):
        ops.release_memory()


def test_cuda_needs_a_torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    problem = _libraries._load_cuda(None)
    assert problem is not None
    assert "_C_cuda" in problem
    assert torch.__version__ in problem
    monkeypatch.setattr(_libraries, "_cuda_problem", problem)
    assert not _libraries.cuda_available()
    with pytest.raises(RuntimeError, match="FORCE_CUDA=1 pip install"):
        _libraries.require_cuda()


def test_cuda_needs_its_library(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    problem = _libraries._load_cuda(None)
    assert problem is not None
    assert "_C_cuda.so is missing" in problem
    (empty_folder / "_C_cuda.so").write_text("no library")
    problem = _libraries._load_cuda(None)
    assert problem is not None
    assert f"cannot be loaded from {empty_folder / '_C_cuda.so'}" in problem
    assert _libraries._load_cuda("no _C either") == "no _C either"


def test_cuda_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_libraries, "_cuda_problem", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not _libraries.cuda_available()
    with pytest.raises(RuntimeError, match="there is no CUDA device"):
        _libraries.require_cuda()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _libraries.cuda_available()
    _libraries.require_cuda()


STREAM = "int aoti_torch_get_current_cuda_stream(int i, void** s) { *s = 0; return 0; }"
LOAD = """
import torch
torch.version.cuda = "13.0"
from asng_ext.ops import _libraries
assert _libraries._cuda_problem is None, _libraries._cuda_problem
assert "\\nCUDA: registered" in torch._C._dispatch_dump("asng::_asng_tell")
"""


@pytest.mark.skipif(
    torch.version.cuda is not None
    or not (Path(_libraries.__file__).parents[1] / "_C_cuda.so").exists()
    or shutil.which("cc") is None,
    reason="needs _C_cuda, a torch without CUDA and a C compiler",
)
def test_all_that_cuda_needs_of_a_torch_with_cuda_is_a_stream(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOAD]
    alone = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert alone.returncode != 0
    assert "undefined symbol: aoti_torch_get_current_cuda_stream" in alone.stderr
    # In its place, a function of that name: everything else is there, and the schemas fit.
    stub = tmp_path / "stub.so"
    (tmp_path / "stub.c").write_text(STREAM)
    subprocess.run(["cc", "-shared", "-fPIC", tmp_path / "stub.c", "-o", stub], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(stub)}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(
    torch.version.cuda is None
    or not (Path(_libraries.__file__).parents[1] / "_C_cuda.so").exists(),
    reason="needs _C_cuda and a torch with CUDA",
)
def test_a_torch_with_cuda_loads_the_operators_for_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOAD]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


MARKED = {
    "FAIL_WITHOUT_CUDA": """
import pytest, torch
torch.cuda.is_available = lambda: False
@pytest.mark.cuda
def test_marked():
    pass
""",
    "ASNG_REQUIRE_OPERATORS": """
import pytest
from asng_ext.ops import _libraries
_libraries._problem = "they are not there"
@pytest.mark.operators
def test_marked():
    pass
""",
}


@pytest.mark.parametrize(("setting", "word"), [("", "1 skipped"), ("1", "1 error")])
@pytest.mark.parametrize("variable", MARKED)
def test_markers_of_what_is_not_there(
    variable: str, setting: str, word: str, tmp_path: Path
) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED[variable])
    conftest = Path(__file__).parents[1] / "conftest.py"
    (tmp_path / "conftest.py").write_text(conftest.read_text(encoding="utf-8"))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "ignore", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, variable: setting, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert word in result.stdout
