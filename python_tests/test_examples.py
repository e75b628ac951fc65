"""The scripts in examples/ run, and find what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[1] / "examples"
LEAST = {
    "moved_from_2019": (r"(\d+)% of the variables", 90.0),
    "own_optimizer": (r"PBIL: .*test accuracy ([\d.]+)", 0.6),
    "own_search_space": (r"test accuracy ([\d.]+)", 0.8),
    "own_task": (r"test accuracy ([\d.]+)", 0.9),
    "sklearn_hyperparameters": (r"test accuracy ([\d.]+)", 0.9),
}
"""What each prints in the end, and how large that number must be."""


def test_every_example_is_run() -> None:
    assert sorted(LEAST) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", LEAST)
def test_examples(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    pattern, least = LEAST[name]
    found = re.findall(pattern, capsys.readouterr().out)
    assert len(found) == 1
    assert float(found[0]) >= least
