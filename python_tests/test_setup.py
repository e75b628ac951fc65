"""What the build decides, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SETUP = Path(__file__).parents[1] / "setup.py"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py on a machine without any nvcc."""
    for name in ("FORCE_CUDA", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("asng_ext_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    which = module.shutil.which
    monkeypatch.setattr(
        module.shutil, "which", lambda name: which(name) if str(tmp_path) in name else None
    )
    return module


def make_nvcc(folder: Path, says: str) -> None:
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '{says}'\n")
    nvcc.chmod(0o755)


def test_cuda_is_built_if_there_is_an_nvcc(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch_dir = tmp_path / "torch"
    nvcc, reason = build.decide_cuda(torch_dir)
    assert nvcc is None
    assert "no nvcc" in reason
    make_nvcc(tmp_path, "Cuda compilation tools, release 12.4, V12.4.131")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.decide_cuda(torch_dir)[0] == str(tmp_path / "bin" / "nvcc")
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert build.decide_cuda(torch_dir) == (None, "FORCE_CUDA=0")


@pytest.mark.parametrize(
    ("says", "torch", "missing"),
    [
        (None, True, "no nvcc"),
        ("Cuda compilation tools, release 11.8, V11.8.89", True, r"CUDA 11\.8.*12\.0 or newer"),
        ("what?", True, "does not work"),
        ("Cuda compilation tools, release 13.0, V13.0.88", False, "no torch"),
    ],
)
def test_forcing_cuda_says_what_is_missing(
    says: str | None,
    torch: bool,
    missing: str,
    build: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if says is not None:
        make_nvcc(tmp_path, says)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    torch_dir = tmp_path / "torch" if torch else None
    assert build.decide_cuda(torch_dir)[0] is None
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=f"FORCE_CUDA=1, but .*{missing}"):
        build.decide_cuda(torch_dir)
    monkeypatch.setenv("FORCE_CUDA", "yes")
    with pytest.raises(SystemExit, match="FORCE_CUDA must be 0, 1 or unset"):
        build.decide_cuda(torch_dir)


def test_architectures_in_the_form_of_cmake(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.cuda_architectures() is None
    for listed, expected in (
        ("8.0;9.0+PTX", "80-real;90"),
        ("8.6 9.0a 12.0+PTX", "86-real;90a-real;120"),
    ):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
        assert build.cuda_architectures() == expected
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hopper")
    with pytest.raises(SystemExit, match="got 'Hopper'"):
        build.cuda_architectures()
