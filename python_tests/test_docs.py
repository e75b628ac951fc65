"""The examples in the documentation run, its commands are commands, and its paths are there."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import small_runs

from asng_ext import cli, strategies
from asng_ext.cli.parser import make_parser
from asng_ext.data import load_digits

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def prepare(text: str) -> None:
    """Makes what examples read: a run, files of its network, the image of a digit."""
    if "runs/digits" in text:
        experiment = small_runs.classification(Path("runs", "digits"))
        experiment.search()
        experiment.retrain()
    if "network.pt2" in text:
        assert cli.main(["export", "runs/digits"]) == 0
    if "network.onnx" in text and has_onnx():
        assert cli.main(["export", "runs/digits", "--format=onnx"]) == 0
    if "seven.png" in text:
        digits = load_digits(0).test
        seven = digits.images[digits.labels == 7][0, :, :, 0]
        pytest.importorskip("PIL.Image").fromarray(seven.numpy()).save("seven.png")


def has_onnx() -> bool:
    names = ("onnx", "onnxscript", "onnxruntime")
    return all(importlib.util.find_spec(name) is not None for name in names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, in one namespace, beside what they read; those
    of ONNX where it is installed."""
    monkeypatch.chdir(tmp_path)
    prepare("".join(blocks(page)))
    namespace: dict[str, object] = {"__name__": page.stem}
    for number, source in enumerate(blocks(page)):
        if "onnxruntime" not in source or has_onnx():
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
        make_parser().parse_args(line.split("#")[0].split())


def test_options_of_strategies_have_the_defaults_that_the_docs_say() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    page = page.partition("## The strategies")[2].partition("\n## ")[0]
    kinds = [kind for kind in map(strategies.get, strategies.names()) if kind.place]
    for kind in kinds:
        (row,) = re.findall(rf"^\| `{kind.name}` \|.*\| (.*) \|$", page, re.M)
        said = dict(re.findall(r"`(\w+)=([^`]+)`", row))
        options = asdict(kind.load().Options())
        assert list(said) == list(options)
        for name, value in options.items():
            assert said[name] == (f"{value:g}" if isinstance(value, float) else str(value))


PATH = re.compile(r"(?:\.ci|asng_ext|bench|csrc|docs|examples|python_tests)(?:/[\w.]+)+")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_paths_are_there(page: str) -> None:
    """Every path in a code span, that of a folder too."""
    spans = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text(encoding="utf-8"))
    paths = {path for span in spans for path in PATH.findall(span)}
    assert len(paths) >= 5
    assert not sorted(path for path in paths if not (ROOT / path).exists())


def test_the_contents_name_every_page() -> None:
    contents = (ROOT / "docs" / "contents.md").read_text(encoding="utf-8")
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in nav
        assert f"]({page.name})" in contents or page.name == "contents.md"
    for name in (path.name for path in (ROOT / "examples").iterdir() if path.is_file()):
        assert f"](../examples/{name})" in contents
