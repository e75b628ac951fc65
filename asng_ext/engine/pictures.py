"""Pictures of a run, and its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from asng_ext._terminal import say
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import Events
from asng_ext.space import Categorical, SearchSpace

__all__ = ["draw_search", "drawing", "write_events"]

_OF_SEARCH = ("architecture.png", "search.png", "theta.png")


def drawing(stream: TextIO | None) -> Any:
    """The module that draws, or None, and a word about it, without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        say(stream, "no pictures: matplotlib is not installed\n")
        return None
    from asng_ext import plots

    return plots


def draw_search(
    plots: Any, run: RunFolder, space: SearchSpace, rows: list[dict[str, float]], theta: Any
) -> None:
    """Draws the rows of search.csv, and the probabilities if there are some."""
    plots.plot_search(rows, run.file("search.png"))
    labels = {
        name: [str(value) for value in variable.values]
        for name, variable in space.items()
        if isinstance(variable, Categorical)
    }
    if labels and len(theta):
        plots.plot_theta(theta, list(labels), labels, run.file("theta.png"))


def write_events(
    run: RunFolder,
    loop: str,
    epochs: int,
    settings: Mapping[str, Any],
    tested: Mapping[str, float] | None = None,
) -> None:
    """Adds the pictures of a loop to its events, and the settings if there are test metrics."""
    events = Events(run.file("events") / loop)
    if drawing(None) is not None:
        pictures = sorted(run.path.glob("[!.]*.png"))
        events.add_pictures(
            (each for each in pictures if (each.name in _OF_SEARCH) == (loop == "search")), epochs
        )
    if tested:
        events.add_settings(settings, tested)
    events.close()
