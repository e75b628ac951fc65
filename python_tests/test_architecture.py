"""What imports what: no circles, few floors, and tools that know nothing of what uses them.

A unit is a module or package directly under asng_ext. The graph is read from the sources: imports
of modules and those inside of functions, but for those that only type checkers see. What is
compiled has no source, and stands below all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import asng_ext
from asng_ext import tasks

PACKAGE = Path(asng_ext.__file__).parent
ENTRIES = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path not in ENTRIES]
MOST_FLOORS = 8


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


UNITS = {unit_of(path) for path in SOURCES}


def nodes_that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of `if TYPE_CHECKING:`."""
    yield tree
    skipped = isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test)
    for node in tree.orelse if skipped else ast.iter_child_nodes(tree):
        yield from nodes_that_run(node)


def imported(path: Path, text: str) -> set[str]:
    """The units that a source imports, without its own."""
    # The package that dots are relative to, one more than there are dots being the module's own.
    package = ("asng_ext", *path.relative_to(PACKAGE).parts[:-1])
    names: list[str] = []
    for node in nodes_that_run(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}" for alias in node.names]
    found = {name.split(".")[1] for name in names if name.startswith("asng_ext.")}
    return (found & UNITS) - {unit_of(path)}


def graph() -> dict[str, set[str]]:
    """What each unit imports."""
    edges: dict[str, set[str]] = {unit: set() for unit in UNITS}
    for path in SOURCES:
        edges[unit_of(path)] |= imported(path, path.read_text(encoding="utf-8"))
    return edges


def test_there_are_no_circles_and_few_floors() -> None:
    edges = graph()
    floors: dict[str, int] = {}
    for unit in TopologicalSorter(edges).static_order():  # CycleError names the circle
        floors[unit] = 1 + max((floors[below] for below in edges[unit]), default=0)
    assert floors["cli"] == max(floors.values())
    assert floors["cli"] <= MOST_FLOORS, floors


def test_tools_know_nothing_of_what_uses_them() -> None:
    edges = graph()
    for tool in ("training", "runs"):
        assert not edges[tool] & {"engine", "tasks", "toy", "cli"}
    assert not {"data", "nn", "ops", "optimizers", "space"} & set().union(
        *(edges[unit] for unit in ("_checks", "_files", "_random", "_terminal", "_threads"))
    )
    assert not edges["data"] & {"runs", "training", "tasks", "engine"}


def test_the_loops_know_no_task_and_no_metric_by_name() -> None:
    for name in ("search.py", "retrain.py"):
        text = (PACKAGE / "engine" / name).read_text(encoding="utf-8")
        for word in (*tasks.names(), "accuracy", "psnr"):
            assert not re.search(word, text, re.IGNORECASE), (name, word)


def test_imports_are_found_wherever_they_are() -> None:
    text = """
from typing import TYPE_CHECKING
import asng_ext.space
from . import cell
from ..data import digits
from asng_ext import _checks, _host
if TYPE_CHECKING:
    from asng_ext import tasks
else:
    import asng_ext.runs.config

def later() -> None:
    from asng_ext.plots import draw_cells
"""
    found = imported(PACKAGE / "nn" / "module.py", text)
    assert found == {"space", "data", "_checks", "runs", "plots"}
