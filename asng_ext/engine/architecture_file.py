"""architecture.json of a run: what was found, or given, with what is known of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from asng_ext import __version__
from asng_ext.runs.checkpoints import fitting
from asng_ext.runs.folder import RunFolder
from asng_ext.space import Categorical
from asng_ext.tasks.protocol import Task

__all__ = ["ArchitectureFile"]

_FILE = "architecture.json"
_GIVEN = "given"  # an entry of it


class ArchitectureFile:
    """The architecture of a run, as its file holds it.

    Args:
        run: Its folder.
        task: Its task.
        task_name: By which the task is known.
    """

    def __init__(self, run: RunFolder, task: Task, task_name: str) -> None:
        self.run = run
        self.task = task
        self.task_name = task_name

    def write(self, values: Mapping[str, Any], *, given: bool = False, **more: Any) -> None:
        """Writes an architecture, by names, and more entries."""
        self.run.write_json(
            _FILE,
            {
                "task": self.task_name,
                "version": __version__,
                "architecture": dict(values),
                **({_GIVEN: True} if given else {}),
                **more,
                "network": dict(self.task.summary(values)),
            },
        )

    def update_network(self) -> None:
        """Writes the size of the network anew."""
        content, values = self.read()
        self.run.write_json(_FILE, {**content, "network": dict(self.task.summary(values))})

    def is_given(self) -> bool:
        """Whether there is one that is not of a search; a broken one is written anew by it."""
        try:
            return self.run.file(_FILE).exists() and bool(self.run.read_json(_FILE).get(_GIVEN))
        except ValueError:
            return False

    def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the file holds, and the architecture in it.

        Raises:
            FileNotFoundError: If the search has not finished.
            ValueError: If it is not one of this task.
        """
        path, resume = self.run.file(_FILE), f"`{self.run.command('resume')}`"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the search has not finished; continue it with {resume}"
            )
        content = self.run.read_json(_FILE)
        values = content.get("architecture")
        if content.get("task") != self.task_name or not isinstance(values, dict):
            raise ValueError(
                f"{path} must hold the architecture of a {self.task_name} task; "
                f"{resume} writes it anew"
            )
        with fitting(path, f"{resume} writes it anew"):
            self.task.space.encode(values)
        return content, values

    def draw(self) -> None:
        """Draws it as architecture.png."""
        content, values = self.read()
        draw: Any = self.task.draw_architecture
        more = {}
        if "near_ties" in inspect.signature(draw).parameters:  # some tasks do not show them
            with fitting(self.run.file(_FILE), "remove its entry near_ties"):
                more["near_ties"] = {
                    name: {str(value): float(p) for value, p in likely.items()}
                    for name, likely in content.get("near_ties", {}).items()
                }
        draw(values, self.run.file("architecture.png"), **more)

    def probabilities(self, values: Mapping[str, Any], theta: Any) -> dict[str, Any]:
        """Entries for what a distribution says of an architecture: the probability of each of its
        choices, and which choices were near ties.

        Args:
            values: The architecture.
            theta: Probabilities (D, K) of the categorical variables; empty if there are none.
        """
        variables = self.task.space.categorical
        chosen = self.task.space.encode(values)[0]
        return {
            "probabilities": {
                name: float(row[i]) for name, row, i in zip(variables, theta, chosen)
            },
            "near_ties": _near_ties(variables, theta),
        }


def _near_ties(variables: Mapping[str, Categorical], theta: Any) -> dict[str, dict[str, float]]:
    """The two most likely values of the variables where the second has half of the first's
    probability at least."""
    ties = {}
    for (name, variable), row in zip(variables.items(), theta):
        probabilities = dict(zip(map(str, variable.values), map(float, row)))
        best = sorted(probabilities, key=lambda value: -probabilities[value])[:2]
        if len(best) == 2 and probabilities[best[1]] >= probabilities[best[0]] / 2:
            ties[name] = {value: probabilities[value] for value in best}
    return ties
