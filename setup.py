"""Builds the compiled parts by running CMake; CMakeLists.txt is the only list of sources.

Environment:
    FORCE_CUDA: unset builds the CUDA parts if nvcc (12.0 or newer) is found and there is something
        to build for: a GPU in this machine, or TORCH_CUDA_ARCH_LIST. 1 builds them in any case and
        fails, saying what is missing, if that cannot be done; 0 never builds them. Whether torch
        has CUDA makes no difference.
    TORCH_CUDA_ARCH_LIST: CUDA architectures, such as "8.0;9.0+PTX". Unset builds for the GPUs of
        this machine and, where there are none, for "8.0;9.0+PTX", which newer ones can run, too.
    MAX_JOBS: parallel compile jobs.
    ASNG_TORCH_DIR: folder of the torch package (2.11 or newer) whose headers the operators are
        built with. Unset takes the torch of the environment that is installed into, also from an
        isolated build; without one the operators are left out, with a message, and all else works.
        Which torch it is makes no difference: the operators use the stable ABI.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from sysconfig import get_platform

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def say(message: str) -> None:
    """Prints a line that pip shows with -v."""
    print(f"asng_ext: {message}", file=sys.stderr, flush=True)


def find_nvcc() -> str | None:
    """The CUDA compiler: CUDACXX, CUDA_HOME, then PATH, then the usual folder."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [os.environ.get("CUDACXX")]
    candidates += [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    candidates += [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for candidate in candidates:
        if candidate and (found := shutil.which(candidate)):
            return found
    return None


def problem_of(nvcc: str) -> str | None:
    """Why an nvcc is of no use, if it is not."""
    run = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+)\.(\d+)", run.stdout)
    if run.returncode != 0 or release is None:
        return f"{nvcc} --version does not work: {(run.stderr or run.stdout).strip()}"
    if int(release[1]) < 12:
        return f"{nvcc} is of CUDA {release[1]}.{release[2]}, and C++20 needs 12.0 or newer"
    return None


def decide_cuda(torch_dir: Path | None) -> tuple[str | None, str]:
    """nvcc to build with or None, and the reason in words.

    Args:
        torch_dir: Folder of the torch package to build with, without which there is nothing to
            build for CUDA.
    """
    force = os.environ.get("FORCE_CUDA", "")
    if force not in ("", "0", "1"):
        raise SystemExit(f"FORCE_CUDA must be 0, 1 or unset, got {force!r}")
    if force == "0":
        return None, "FORCE_CUDA=0"
    nvcc = find_nvcc()
    if nvcc is None:
        problem: str | None = (
            "there is no nvcc: none in CUDACXX, CUDA_HOME/bin, PATH or /usr/local/cuda/bin. "
            "Install the CUDA toolkit or set CUDA_HOME to its folder"
        )
    elif torch_dir is None:
        problem = "there is no torch of 2.11 or newer to build with"
    else:
        problem = problem_of(nvcc)
    if force == "1" and problem is not None:
        raise SystemExit(f"FORCE_CUDA=1, but {problem}")
    if nvcc is None or problem is not None:
        return None, problem or ""
    # It takes minutes, for nothing on most machines without a GPU.
    if force != "1" and not listed_architectures() and not capabilities_here(nvcc):
        return None, (
            f"found {nvcc}, but no GPU of compute capability 8.0 or more that it compiles for: "
            "FORCE_CUDA=1 or TORCH_CUDA_ARCH_LIST builds for other machines"
        )
    return nvcc, f"found {nvcc}"


def find_torch() -> tuple[Path | None, str]:
    """The folder of the torch package to build with or None, and the reason in words."""
    chosen = os.environ.get("ASNG_TORCH_DIR")
    if chosen:
        if not has_stable_headers(Path(chosen)):
            raise SystemExit(
                f"ASNG_TORCH_DIR={chosen} is not the folder of a torch package of 2.11 or newer: "
                "it has no include/torch/csrc/stable/ops.h"
            )
        return Path(chosen), "ASNG_TORCH_DIR"
    code = (
        "import importlib.util as u; s = u.find_spec('torch'); "
        "print(s.submodule_search_locations[0] if s else '')"
    )
    # An isolated build hides the environment's packages by way of PYTHONPATH, which -I ignores. A
    # torch of 2 GB need not be downloaded for its headers when it is already there.
    for options in ([], ["-I"]):
        command = [sys.executable, *options, "-c", code]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if found and has_stable_headers(Path(found)):
            return Path(found), f"found {found}"
    return None, (
        "no torch of 2.11 or newer in the environment: install torch first and build again, or set "
        "ASNG_TORCH_DIR; until then supernets run in plain PyTorch"
    )


def has_stable_headers(torch_dir: Path) -> bool:
    """Whether a folder is that of a torch package with the headers that the operators need."""
    header = torch_dir / "include" / "torch" / "csrc" / "stable" / "ops.h"
    # torch 2.11 is the first whose tensors may come with a function that frees their memory.
    return header.is_file() and "TORCH_VERSION_2_11_0" in header.read_text(encoding="utf-8")


def output_of(*command: str) -> str:
    """What a command prints; nothing if it is not there or fails."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout


def listed_architectures() -> list[str]:
    """What TORCH_CUDA_ARCH_LIST holds."""
    return os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()


def capabilities_here(nvcc: str) -> list[tuple[int, int]]:
    """Compute capabilities of this machine's GPUs that there are kernels for."""
    capabilities = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    known = re.findall(r"compute_(\d+)", output_of(nvcc, "--list-gpu-arch"))
    usable = {
        (int(major), int(minor))
        for major, minor in re.findall(r"(\d+)\.(\d)", capabilities)
        if int(major) >= 8 and major + minor in known
    }
    return sorted(usable)


def choose_architectures(nvcc: str) -> tuple[str, str]:
    """CUDA architectures in the form of TORCH_CUDA_ARCH_LIST, and the reason in words."""
    if listed := listed_architectures():
        return ";".join(listed), "TORCH_CUDA_ARCH_LIST"
    if here := capabilities_here(nvcc):
        listed = [f"{major}.{minor}" for major, minor in here]
        return ";".join(listed) + "+PTX", "of the GPUs here, TORCH_CUDA_ARCH_LIST is unset"
    return "8.0;9.0+PTX", "there is no GPU to build for here, TORCH_CUDA_ARCH_LIST is unset"


def in_cmake_form(listed: str) -> str:
    """ "8.0;9.0+PTX" becomes "80-real;90"."""
    names = []
    for item in listed.split(";"):
        parts = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", item)
        if parts is None:
            raise SystemExit(
                f'TORCH_CUDA_ARCH_LIST must hold architectures such as "8.0;9.0+PTX", got {item!r}'
            )
        names.append(parts[1] + parts[2] + ("" if parts[3] else "-real"))
    return ";".join(names)


def forget_configuration(folder: Path) -> None:
    """Keeps what an earlier build has compiled, but not what CMake had found: pip deletes the ninja
    and the pybind11 of an isolated build, and settings may be unset again."""
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    for found in folder.glob("CMakeFiles/[0-9]*"):
        shutil.rmtree(found)


class Build(build):
    """Builds what is installed by copying."""

    def run(self) -> None:
        # What an earlier version left there would be installed, too.
        if ROOT / "build" in Path(self.build_lib).resolve().parents:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Configures, builds and installs into the package folder of the build."""

    def run(self) -> None:
        torch_dir, torch_reason = find_torch()
        say(f"operators {'on' if torch_dir else 'off'} ({torch_reason})")
        nvcc, reason = decide_cuda(torch_dir)
        say(f"CUDA {'on' if nvcc else 'off'} ({reason})")
        if shutil.which("cmake") is None:
            raise SystemExit("asng_ext needs CMake to build: `pip install cmake`")
        import pybind11

        def cmake(*arguments: str) -> None:
            if subprocess.run(["cmake", *arguments], check=False).returncode != 0:
                advice = "; FORCE_CUDA=0 leaves out what needs nvcc" if nvcc else ""
                raise SystemExit(f"asng_ext: cmake {arguments[0]} failed{advice}")

        target = Path(self.get_ext_fullpath(self.extensions[0].name)).parent.resolve()
        # Not setuptools' own, which is another one for each `pip install -e .`.
        folder = ROOT / "build" / f"cmake-{get_platform()}-{sys.implementation.cache_tag}"
        forget_configuration(folder)
        configure = [
            f"-DCMAKE_INSTALL_PREFIX={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DASNG_BUILD_CUDA={'ON' if nvcc else 'OFF'}",
            f"-DASNG_TORCH_DIR={torch_dir or ''}",
        ]
        if nvcc:
            listed, reason = choose_architectures(nvcc)
            say(f"CUDA architectures {listed} ({reason})")
            configure.append(f"-DCMAKE_CUDA_COMPILER={Path(nvcc).resolve()}")
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={in_cmake_form(listed)}")
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        cmake("-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", *configure)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        cmake("--build", str(folder), "--parallel", jobs)
        # In place, a library that is not built any more would still be loaded.
        for old in target.glob("_C*.so"):
            old.unlink()
        cmake("--install", str(folder))


# The extension stands for all that CMake installs; its name decides only where that goes.
if __name__ == "__main__":
    setup(
        ext_modules=[Extension("asng_ext._host", sources=[])],
        cmdclass={"build": Build, "build_ext": CMakeBuild},
    )
