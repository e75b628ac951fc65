"""How PyTorch's threads wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from asng_ext._threads import SPINS, spin_briefly
from asng_ext.cli import main


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that what is set here goes with the test
        monkeypatch.delenv(name)


def test_the_command_line_lets_threads_sleep_soon() -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == str(SPINS)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_says_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "passive" if name == "OMP_WAIT_POLICY" else "7")
    before = dict(os.environ)
    spin_briefly()
    assert dict(os.environ) == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs GNU's OpenMP")
def test_openmp_is_loaded_after_it_is_said() -> None:
    command = [sys.executable, "-m", "asng_ext.cli", "resume", "no such folder"]
    env = {**os.environ, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert "no such folder" in done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this PyTorch has another OpenMP")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr
