"""A search for each of several limits: what networks cost, and how good they are for it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from asng_ext._checks import check_number
from asng_ext._files import as_path, write_atomically
from asng_ext._table import aligned
from asng_ext._terminal import STDERR, say
from asng_ext.engine.experiment import Experiment
from asng_ext.engine.pictures import drawing
from asng_ext.nn import Latencies
from asng_ext.runs.config import SearchConfig, section_from
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import MetricsTable

__all__ = ["SWEEP", "format_sweep", "sweep"]

SWEEP = "sweep.json"


def sweep(
    path: Path | str,
    config: Mapping[str, Any],
    factors: Sequence[float],
    *,
    retrain: bool = False,
    stream: TextIO | None = STDERR,
) -> list[dict[str, Any]]:
    """Searches once for each multiple of the limits in the settings, and compares what is found.

    Each search is a run in a folder of its own. If the folder holds a sweep already, what is done
    is kept, what was interrupted continues, and what is missing is added. After each run sweep.json
    and sweep.txt are written, and sweep.png where matplotlib is installed.

    Args:
        path: The folder, which must be empty, new, or of a sweep.
        config: Settings, as :class:`Experiment` takes them.
        factors: What the limits are multiplied by; infinity for no limits.
        retrain: Whether networks are retrained, which shows how good they are; without it the
            metrics are the supernet's.
        stream: Where progress is shown; None for nowhere.

    Returns:
        A row for each factor, as in sweep.json: "factor" (None for no limits), "folder", "costs"
        with the cost and the limit (None if there is none) of each, "metrics" and of what they
        "of" are, and whether it is "best": no other row costs no more and has no higher loss.

    Raises:
        ValueError, TypeError: If there are no limits, a factor is not above 0 or given twice, or
            a run in the folder has other settings.
        FileExistsError: If there is something else in the folder.
    """
    limits = section_from(SearchConfig, config.get("search", {})).limits()
    if not limits:
        raise ValueError("penalty must have limits, of which a sweep takes multiples")
    if not factors or len(set(factors)) < len(factors):
        raise ValueError(f"factors must be different numbers, at least one, got {list(factors)}")
    for factor in factors:
        if factor != math.inf:
            check_number("factors", factor, 0.0)
    path = as_path("path", path)
    if not (path / SWEEP).exists():
        RunFolder.create(path)
    rows: list[dict[str, Any]] = []
    latencies: Latencies | None = None
    for factor in sorted(factors):
        folder = "no-limit" if factor == math.inf else f"limit-{factor:g}"
        say(stream, f"{folder}:\n")
        experiment = _experiment(path / folder, config, limits, factor, latencies, stream)
        latencies = experiment.latencies()
        values = experiment.search()
        tested = experiment.retrain() if retrain else {}
        samples = experiment.task.space.samples([values])
        costs = {
            name: {
                "cost": float(experiment.task.cost(name, latencies)(samples)[0]),
                "limit": None if factor == math.inf else factor * limit,
            }
            for name, limit in limits.items()
        }
        epochs = experiment.search_config.epochs
        last = MetricsTable(experiment.run.file("search.csv"), keep=epochs).rows[-1]
        of_supernet = {n.removeprefix("test_"): v for n, v in last.items() if n.startswith("test_")}
        rows.append(
            {
                "factor": None if factor == math.inf else factor,
                "folder": folder,
                "costs": costs,
                "of": "retrained network" if tested else "supernet",
                "metrics": dict(tested) or of_supernet or {"loss": last["theta_loss"]},
            }
        )
        _mark_best(rows)
        _write(RunFolder(path), rows)
    plots = drawing(stream)
    if plots is not None:
        plots.plot_sweep(rows, path / "sweep.png")
    return rows


def _write(run: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    text = format_sweep(rows) + "\n"
    run.write_json(SWEEP, {"rows": list(rows)})
    write_atomically(run.file("sweep.txt"), lambda file: file.write(text.encode()))


def _experiment(
    folder: Path,
    config: Mapping[str, Any],
    limits: Mapping[str, float],
    factor: float,
    latencies: Latencies | None,
    stream: TextIO | None,
) -> Experiment:
    """The run of a factor, new or as it is."""
    own = copy.deepcopy(dict(config))
    scaled = [f"{name}={factor * limit!r}" for name, limit in limits.items()]
    penalty = "" if factor == math.inf else ",".join(scaled)
    own["search"] = {**own.get("search", {}), "penalty": penalty}
    return Experiment.create_or_open(folder, own, stream, latencies=latencies)


def _mark_best(rows: list[dict[str, Any]]) -> None:
    """Marks the rows that no other one beats."""

    def numbers(row: Mapping[str, Any]) -> list[float]:
        return [row["metrics"]["loss"], *(one["cost"] for one in row["costs"].values())]

    for row in rows:
        own = numbers(row)
        row["best"] = math.isfinite(row["metrics"]["loss"]) and not any(
            all(a <= b for a, b in zip(numbers(other), own)) and numbers(other) != own
            for other in rows
        )


def format_sweep(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a sweep as a table."""
    costs, metrics = list(rows[0]["costs"]), list(rows[0]["metrics"])
    head = ["limits", *(word for name in costs for word in (name, "at most")), *metrics, "best"]
    lines = [head]
    for row in rows:
        line = ["none" if row["factor"] is None else f"× {row['factor']:g}"]
        for one in row["costs"].values():
            line += [_short(one["cost"]), "-" if one["limit"] is None else _short(one["limit"])]
        line += [f"{row['metrics'].get(name, math.nan):.4f}" for name in metrics]
        lines.append([*line, "*" if row["best"] else ""])
    of = " and ".join(dict.fromkeys(row["of"] for row in rows))
    return f"{aligned(lines)}\nMetrics are of the {of}; * none costs less and has a lower loss."


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
