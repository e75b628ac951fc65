"""Runs over their epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from asng_ext._checks import brief, check_mapping, is_number, listed
from asng_ext.plots._picture import BLUE, DPI, GRAY, GREEN, INK, ORANGE, PURPLE, FilePath, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["plot_retrain", "plot_search"]

Rows: TypeAlias = Sequence[Mapping[str, float]]


def plot_search(rows: Rows, path: FilePath) -> Path:
    """Plots a search over its epochs: losses, accuracies, other metrics, convergence with δ.

    A line above the panels says which curves are means over samples.

    What no row has is left out. Values that are missing or not finite are passed over, so lines
    join the epochs that were measured.

    Args:
        rows: One per epoch, with "epoch" and any of "convergence", "delta" and the metrics
            "train_…", "theta_…" and "test_…", such as "theta_loss" and "test_accuracy".
        path: Where to write the picture.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: There is no row, nothing to plot, a row without epoch, or another ending.
        FileNotFoundError: The folder does not exist.
    """
    rows = _checked(rows)
    sets = {"train": "data for the weights", "theta": "data for θ", "test": "test data"}
    convergence = _Panel(
        "convergence",
        [_Line("convergence", "convergence, mean of max θ", PURPLE)],
        limits=(-0.02, 1.02),
        other=_Line("delta", "δ, right axis", INK),
    )
    return _plot_rows(rows, [*_metric_panels(rows, sets), convergence], path, note=_OF_SAMPLES)


def plot_retrain(rows: Rows, path: FilePath) -> Path:
    """Plots a retraining over its epochs: losses, accuracies, other metrics, learning rate.

    The axis of losses is logarithmic. What no row has is left out. Values that are missing, not
    finite or, of a loss, not positive are passed over, so lines join the epochs that were measured.

    Args:
        rows: One per epoch, with "epoch" and any of "learning_rate" and the metrics "train_…" and
            "test_…", such as "train_loss" and "test_accuracy".
        path: Where to write the picture.

    Returns:
        The path.

    Raises:
        TypeError: An argument is of another kind.
        ValueError: There is no row, nothing to plot, a row without epoch, or another ending.
        FileNotFoundError: The folder does not exist.
    """
    rows = _checked(rows)
    sets = {"train": "training data", "test": "test data"}
    rate = _Panel("learning rate", [_Line("learning_rate", "learning rate", PURPLE)])
    panels = [
        panel._replace(logarithmic=panel.name == "loss") for panel in _metric_panels(rows, sets)
    ]
    return _plot_rows(rows, [*panels, rate], path)


_OF_INPUT = "_corrupted"
_OF_SAMPLES = (
    "On data for the weights and for θ: means over the architectures that were sampled.\n"
    "On test data: the architecture that was most likely after the epoch."
)


class _Line(NamedTuple):
    key: str
    name: str
    color: str


class _Panel(NamedTuple):
    name: str
    lines: list[_Line]
    limits: tuple[float, float] | None = None
    other: _Line | None = None
    """Drawn on a logarithmic axis on the right."""
    reference: _Line | None = None
    """Drawn as a level: its last value."""
    logarithmic: bool = False
    """Whether the axis on the left is, as far as there are positive values."""


def _metric_panels(rows: Rows, sets: Mapping[str, str]) -> list[_Panel]:
    """A panel for every metric, with a line for each set of data; loss and accuracy first.

    The test metric "…_corrupted" is that of the network's input. It is a level in the panel of the
    metric without that ending.
    """
    metrics = dict.fromkeys(("loss", "accuracy"))
    for row in rows:
        for key in row:
            prefix, _, metric = key.partition("_")
            if prefix in sets and metric:
                metrics[metric] = None
    colors = {"train": BLUE, "theta": ORANGE, "test": GREEN}
    return [
        _Panel(
            metric.replace("_", " "),
            [_Line(f"{prefix}_{metric}", name, colors[prefix]) for prefix, name in sets.items()],
            reference=_Line(f"test_{metric}{_OF_INPUT}", "corrupted images", GRAY),
        )
        for metric in metrics
        if metric.removesuffix(_OF_INPUT) == metric or metric.removesuffix(_OF_INPUT) not in metrics
    ]


def _checked(rows: Rows) -> Rows:
    """The rows; TypeError or ValueError unless each has an epoch."""
    rows = listed("rows", rows, "mappings")
    if not rows:
        raise ValueError("rows must hold at least one epoch, got none")
    for i, row in enumerate(rows):
        check_mapping(f"rows[{i}]", row)
        epoch = row.get("epoch")
        if not is_number(epoch) or not math.isfinite(epoch):
            raise ValueError(f'rows[{i}] must have a finite "epoch", got {brief(dict(row))}')
    return rows


def _plot_rows(rows: Rows, panels: Sequence[_Panel], path: FilePath, note: str = "") -> Path:
    def lines(panel: _Panel) -> list[_Line]:
        return [*panel.lines, *(line for line in (panel.other, panel.reference) if line)]

    known = [p for p in panels if any(line.key in row for line in lines(p) for row in rows)]
    if not known:
        wanted = [line for p in panels for line in lines(p) if line is not p.reference]
        keys = ", ".join(line.key for line in wanted)
        raise ValueError(f"rows hold nothing to plot; wanted any of {keys}")
    # Metrics that a task does not have may come as NaN; a run without any number still shows.
    shown = [p for p in known if any(len(_points(rows, line.key)[0]) for line in lines(p))] or known
    with picture(path) as save:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(9, 0.5 + 2.5 * len(shown)), dpi=DPI, layout="constrained")
        if note:
            figure.suptitle(note, size=9, color=GRAY)
        column = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(column, shown):
            _draw_panel(axes, panel, rows)
        epochs = [row["epoch"] for row in rows]
        margin = 0.02 * (max(epochs) - min(epochs)) or 0.5
        column[-1].set_xlim(min(epochs) - margin, max(epochs) + margin)
        column[-1].xaxis.set_major_locator(
            MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
        )
        column[-1].set_xlabel("epoch")
        return save(figure)


def _points(rows: Rows, key: str, positive: bool = False) -> tuple[list[float], list[float]]:
    """Epochs and values of a column, where it has finite (and positive) ones."""
    values = [(row["epoch"], row.get(key, math.nan)) for row in rows]
    points = [(e, v) for e, v in values if math.isfinite(v) and (v > 0 or not positive)]
    return [e for e, _ in points], [v for _, v in points]


def _draw_panel(axes: Axes, panel: _Panel, rows: Rows) -> None:
    axes.set_ylabel(panel.name)
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.limits is not None:
        axes.set_ylim(*panel.limits)
    drawn: list[Line2D] = []
    points = [_points(rows, line.key, panel.logarithmic) for line in panel.lines]
    if panel.logarithmic and any(epochs for epochs, _ in points):
        _make_logarithmic(axes)
    else:
        points = [_points(rows, line.key) for line in panel.lines]
    for line, of_line in zip(panel.lines, points):
        drawn += _draw_line(axes, line, of_line)
    if panel.reference is not None:
        drawn += _draw_level(axes, panel.reference, _points(rows, panel.reference.key)[1])
    if panel.other is not None:
        positive = _points(rows, panel.other.key, positive=True)
        if positive[0]:
            right = axes.twinx()
            _make_logarithmic(right)
            right.spines["top"].set_visible(False)
            right.set_ylabel("δ", color=panel.other.color)
            drawn += _draw_line(right, panel.other, positive, style="--")
    if drawn:
        # Above the panel there is always room; inside, 600 epochs may leave none.
        axes.legend(
            handles=drawn,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=len(drawn),
            frameon=False,
            borderaxespad=0.2,
            handlelength=1.6,
        )
    else:
        axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", color=GRAY)


def _make_logarithmic(axes: Axes) -> None:
    """Gives the vertical axis a logarithmic scale."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        """0.7 in the place of 7 × 10⁻¹."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(labelOnlyBase=False))


def _draw_line(
    axes: Axes, line: _Line, points: tuple[list[float], list[float]], style: str = "-"
) -> list[Line2D]:
    """The line, with its last value in its name; nothing if there are no points."""
    epochs, values = points
    if not epochs:
        return []
    return axes.plot(
        epochs,
        values,
        style,
        color=line.color,
        linewidth=1.3,
        # Few points are better seen with dots, and a single one only so.
        marker="o" if len(epochs) <= 25 else None,
        markersize=3.5,
        label=f"{line.name} (last {values[-1]:.4g})",
    )


def _draw_level(axes: Axes, line: _Line, values: Sequence[float]) -> list[Line2D]:
    if not values:
        return []
    label = f"{line.name} ({values[-1]:.4g})"
    return [axes.axhline(values[-1], color=line.color, linestyle="--", linewidth=1.3, label=label)]
