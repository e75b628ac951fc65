"""What the build decides, and what it says when something is missing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

import asng_ext

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


def make_tool(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def make_nvcc(folder: Path, says: str) -> None:
    (folder / "bin").mkdir()
    make_tool(folder / "bin" / "nvcc", says)


def test_cuda_is_built_if_there_is_an_nvcc_and_a_gpu(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch_dir, nvcc = tmp_path / "torch", tmp_path / "bin" / "nvcc"
    found, reason = build.decide_cuda(torch_dir)
    assert found is None
    assert "no nvcc" in reason
    make_nvcc(tmp_path, "Cuda compilation tools, release 12.4, V12.4.131; compute_86")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    found, reason = build.decide_cuda(torch_dir)
    assert found is None
    assert "no GPU" in reason
    make_tool(tmp_path / "nvidia-smi", "8.6")
    assert build.decide_cuda(torch_dir)[0] == str(nvcc)
    monkeypatch.setenv("FORCE_CUDA", "0")
    assert build.decide_cuda(torch_dir) == (None, "FORCE_CUDA=0")


@pytest.mark.parametrize(("name", "value"), [("FORCE_CUDA", "1"), ("TORCH_CUDA_ARCH_LIST", "9.0")])
def test_cuda_is_built_for_other_machines_on_demand(
    name: str, value: str, build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_nvcc(tmp_path, "Cuda compilation tools, release 12.4, V12.4.131")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert build.decide_cuda(tmp_path / "torch")[0] == str(tmp_path / "bin" / "nvcc")


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


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ("", "8.0;9.0+PTX"),
        ("12.0\n8.6\n12.0", "8.6;12.0+PTX"),
        ("7.5\n8.6", "8.6+PTX"),
        ("7.5", "8.0;9.0+PTX"),  # too old for the kernels
        ("13.5", "8.0;9.0+PTX"),  # too new for this nvcc
        ("No devices were found", "8.0;9.0+PTX"),
    ],
)
def test_architectures_are_those_of_the_gpus(
    gpus: str, expected: str, build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = tmp_path / "nvcc"
    make_tool(nvcc, "compute_75\ncompute_80\ncompute_86\ncompute_90\ncompute_120")
    if gpus:
        make_tool(tmp_path / "nvidia-smi", gpus)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.choose_architectures(str(nvcc))[0] == expected
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 8.9+PTX")
    assert build.choose_architectures(str(nvcc))[0] == "8.0;8.9+PTX"


def test_architectures_in_the_form_of_cmake(build: ModuleType) -> None:
    assert build.in_cmake_form("8.0;9.0+PTX") == "80-real;90"
    assert build.in_cmake_form("8.6;9.0a;12.0+PTX") == "86-real;90a-real;120"
    with pytest.raises(SystemExit, match="got 'Hopper'"):
        build.in_cmake_form("8.0;Hopper")


def test_a_build_keeps_what_is_compiled_and_nothing_of_other_tools(
    build: ModuleType, tmp_path: Path
) -> None:
    compiled = tmp_path / "CMakeFiles" / "_C.dir" / "library.cpp.o"
    found = tmp_path / "CMakeFiles" / "4.1.2" / "CMakeCXXCompiler.cmake"
    cache = tmp_path / "CMakeCache.txt"
    for file in (compiled, found, cache):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    build.forget_configuration(tmp_path)
    assert compiled.exists()
    assert not found.exists()
    assert not cache.exists()
    build.forget_configuration(tmp_path / "new")


def test_a_source_distribution_is_all_that_it_takes_to_build_and_test(tmp_path: Path) -> None:
    source = tmp_path / "source"
    made = ("build", "dist", "runs", ".*", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(SETUP.parent, source, ignore=shutil.ignore_patterns(*made))
    command = [sys.executable, "setup.py", "-q", "sdist", "--formats", "tar"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (archive,) = (source / "dist").iterdir()
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    folders = ("asng_ext", "bench", "cmake", "csrc", "docs", "examples", "python_tests")
    needed = {path for folder in folders for path in (source / folder).rglob("*") if path.is_file()}
    needed |= {source / name for name in ("CMakeLists.txt", "pyproject.toml", "setup.py")}
    assert len(needed) > 300
    assert {path.relative_to(source).as_posix() for path in needed} <= packed


@pytest.mark.parametrize(
    ("compiled", "says"),
    [
        (None, "holds asng_ext without its compiled parts"),
        ("raise ImportError('wrong ELF class')", "cannot be loaded: wrong ELF class"),
    ],
)
def test_a_package_without_compiled_parts_says_so(
    compiled: str | None, says: str, tmp_path: Path
) -> None:
    package = tmp_path / "asng_ext"
    package.mkdir()
    shutil.copy(asng_ext.__file__, package)
    if compiled is not None:
        (package / "_host.py").write_text(compiled)
    # -S: without what is installed.
    command = [sys.executable, "-S", "-c", "import asng_ext"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert says in last
    assert "pip install" in last
