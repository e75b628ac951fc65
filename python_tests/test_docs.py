"""The examples in the documentation run, its commands are commands, and its paths are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import small_runs

from asng_ext import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, in one namespace, beside the run they read."""
    monkeypatch.chdir(tmp_path)
    if any("runs/digits" in block for block in blocks(page)):
        experiment = small_runs.classification(tmp_path / "runs" / "digits")
        experiment.search()
        experiment.retrain()
    namespace: dict[str, object] = {"__name__": page.stem}
    for number, source in enumerate(blocks(page)):
        exec(compile(source, f"{page.name}, block {number}", "exec"), namespace)


def test_there_are_examples() -> None:
    assert sum(len(blocks(page)) for page in PAGES) >= 4


def test_commands_of_the_docs_are_commands() -> None:
    """Every ``asng ...`` line of a shell block is one that the parser takes."""
    lines = []
    for page in PAGES:
        for block in re.findall(
            r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S
        ):
            lines += re.findall(r"^(?:\S*/)?asng (.+)$", block.replace("\\\n", " "), re.M)
    assert lines
    for line in lines:
        cli._parser().parse_args(line.split("#")[0].split())


PATH = re.compile(r"(?:\.ci|asng_ext|bench|csrc|docs|examples|python_tests)(?:/[\w.]+)+")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_paths_are_there(page: str) -> None:
    """Every path in a code span, that of a folder too."""
    spans = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text(encoding="utf-8"))
    paths = {path for span in spans for path in PATH.findall(span)}
    assert len(paths) >= 5
    assert not sorted(path for path in paths if not (ROOT / path).exists())
