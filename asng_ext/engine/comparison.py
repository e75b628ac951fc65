"""What the runs of a comparison have come to, as rows and as tables like the paper's."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asng_ext._table import aligned
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import MetricsTable

__all__ = ["TIMES", "RunName", "curves_of", "format_comparison", "row_of", "summary_of"]

TIMES = "times.json"
"""A file of a run folder: "steps_per_epoch" of the search, the seconds of each epoch as "search",
None where that was not seen, and those of the retraining as "retrain"."""


@dataclass(frozen=True)
class RunName:
    """One run of a comparison.

    Attributes:
        strategy: What is compared, by name.
        seed: Of everything that is random.
        mask: Of inpainting; "" without.
    """

    strategy: str
    seed: int
    mask: str = ""

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return "-".join(filter(None, [self.strategy, self.mask, f"seed{self.seed}"]))

    def __str__(self) -> str:
        return " ".join(filter(None, [self.strategy, self.mask, f"seed {self.seed}"]))


def row_of(path: Path, name: RunName) -> dict[str, Any] | None:
    """What a run has come to, as in compare.csv; None if its retraining has not finished.

    Errors are in percent, times in seconds.

    Raises:
        ValueError: If a file of it is damaged.
    """
    run = RunFolder(path / name.folder)
    if not (run.file("results.json").exists() and run.file(TIMES).exists()):
        return None
    config, times = run.read_config(), run.read_json(TIMES)
    retrained = MetricsTable(run.file("retrain.csv"), keep=config["retrain"]["epochs"]).rows
    if len(retrained) < config["retrain"]["epochs"] or "retrain" not in times:
        return None
    searched = MetricsTable(run.file("search.csv"), keep=config["search"]["epochs"]).rows
    seconds = _filled(times.get("search", []), len(searched))
    row: dict[str, Any] = {"strategy": name.strategy}
    if name.mask:
        row["mask"] = name.mask
    return {
        **row,
        "seed": name.seed,
        "steps": len(searched) * times["steps_per_epoch"],
        "epochs": len(searched),
        "search_seconds": sum(seconds),
        "retrain_seconds": times["retrain"],
        "parameters": run.read_json("architecture.json")["network"]["parameters"],
        **_named("supernet", _tested(searched[-1] if searched else {}), config["task"]),
        **_named("test", run.read_json("results.json"), config["task"]),
    }


def _filled(seconds: Sequence[float | None], epochs: int) -> list[float]:
    """The seconds of so many epochs, where none were seen the mean of the others."""
    seen = [s for s in seconds[:epochs] if s is not None]
    mean = sum(seen) / len(seen) if seen else math.nan
    return [mean if s is None else s for s in [*seconds, *[None] * epochs][:epochs]]


def _tested(row: Mapping[str, float]) -> dict[str, float]:
    """The test metrics in a row of search.csv."""
    return {n.removeprefix("test_"): v for n, v in row.items() if n.startswith("test_")}


def _named(of: str, metrics: Mapping[str, Any], task: str) -> dict[str, float]:
    """Test metrics as tables have them: accuracies as errors in percent, and the loss of inpainting
    as what it is."""
    named = {}
    for name, value in metrics.items():
        if isinstance(value, (int, float)):
            if name.endswith("accuracy"):
                name, value = f"{name.removesuffix('accuracy')}error", 100 * (1 - value)
            elif name == "loss" and task == "inpainting":
                name = "mse"
            named[f"{of}_{name}"] = value
    return named


def summary_of(row: Mapping[str, Any]) -> str:
    """A row in a few words."""
    words = []
    if "test_error" in row:
        words.append(f"error {row['test_error']:.2f} %")
    if "test_psnr" in row:
        words.append(f"PSNR {row['test_psnr']:.2f} dB, SSIM {row['test_ssim']:.3f}")
    if row["epochs"]:
        words.append(f"search {row['search_seconds'] / 60:.1f} min")
    return ", ".join([*words, f"{row['parameters']:,} parameters"])


def curves_of(
    path: Path, names: Iterable[RunName], metric: str
) -> dict[str, dict[str, list[tuple[list[float], list[float]]]]]:
    """The supernets' test metrics over the seconds that the search has taken: of each mask, or "",
    and strategy the curve of each seed. A strategy whose supernet mixes choices has two entries,
    "NAME (mix)" and "NAME (fix)"."""
    panels: dict[str, dict[str, list[tuple[list[float], list[float]]]]] = {}
    for name in names:
        run = RunFolder(path / name.folder)
        config, times = run.read_config(), run.read_json(TIMES)
        rows = MetricsTable(run.file("search.csv"), keep=config["search"]["epochs"]).rows
        elapsed, curves = 0.0, dict[str, tuple[list[float], list[float]]]()
        for row, seconds in zip(rows, _filled(times.get("search", []), len(rows))):
            elapsed += seconds
            tested = _named("test", _tested(row), config["task"])
            mixes = f"test_mix_{metric}" in tested
            for ending, column in {"fix": metric, "mix": f"mix_{metric}"}.items():
                if f"test_{column}" in tested and math.isfinite(elapsed):
                    label = f"{name.strategy} ({ending})" if mixes else name.strategy
                    x, y = curves.setdefault(label, ([], []))
                    x.append(elapsed)
                    y.append(tested[f"test_{column}"])
        for label, curve in curves.items():
            panels.setdefault(name.mask, {}).setdefault(label, []).append(curve)
    return panels


# Tables

_REPORTED_1 = (  # name, test error, its standard deviation, GPU days, millions of parameters
    ("NASNet-A", 2.65, None, 1800, 3.3),
    ("NAONet", 2.11, None, 200, 128),
    ("ProxylessNAS-G", 2.08, None, 4, 5.7),
    ("SMASHv2", 4.03, None, 1.5, 16.0),
    ("DARTS, 2nd order", 2.76, 0.09, 4, 3.3),
    ("DARTS, 1st order", 3.00, 0.14, 1.5, 3.3),
    ("SNAS", 2.85, 0.02, 1.5, 2.8),
    ("ENAS", 2.89, None, 0.45, 4.6),
    ("ASNG-NAS", 2.83, 0.14, 0.11, 3.9),
)
"""Table 1 of the paper."""
_REPORTED_2 = (  # name, PSNR and SSIM of each mask, GPU days
    ("CE", {"center": (28.5, 0.912), "pixel": (22.9, 0.730), "half": (19.9, 0.747)}, None),
    ("SII", {"center": (19.4, 0.907), "pixel": (22.8, 0.710), "half": (13.7, 0.582)}, None),
    ("BASE", {"center": (27.1, 0.883), "pixel": (27.5, 0.836), "half": (11.8, 0.604)}, None),
    ("E-CAE", {"center": (29.9, 0.934), "pixel": (27.8, 0.887), "half": (21.1, 0.771)}, 12),
    (
        "ASNG-NAS (Cat)",
        {"center": (29.2, 0.903), "pixel": (28.4, 0.905), "half": (20.5, 0.779)},
        0.84,
    ),
    (
        "ASNG-NAS (Int)",
        {"center": (29.3, 0.911), "pixel": (28.6, 0.909), "half": (20.6, 0.779)},
        0.75,
    ),
)
"""Table 2 of the paper; its GPU days are those of search and retraining."""
_DATA = {"classification": ("CIFAR-10", "cifar10"), "inpainting": ("CelebA", "celeba")}
"""The paper's data for each task, and the preset that suits them."""
_WIDTH = 80
"""Columns that a terminal has at least."""


def format_comparison(
    config: Mapping[str, Any],
    preset: str,
    rows: Sequence[Mapping[str, Any]],
    missing: Mapping[RunName, str],
    budget: str,
) -> str:
    """Table 1 or Table 2: means and sample standard deviations over seeds, and below the numbers
    of the paper, in lines of 80 columns at most.

    Args:
        config: Settings of the comparison.
        preset: The one that suits its data.
        rows: Those of the runs that are done.
        missing: The others, and why.
        budget: Of each search.
    """
    task = config["task"]
    table = _table_2 if task == "inpainting" else _table_1
    of_paper, preset_of_paper = _DATA.get(task, ("", ""))
    on_gpu = str(config["device"]).startswith("cuda")
    head, own, reported = table(rows, on_gpu)
    if not of_paper:
        reported = []
    lines = aligned(_fitting([head, *own, *reported]), left=head.index("runs")).splitlines()
    if reported:
        lines.insert(1 + len(own), f"reported in the paper, of {of_paper}:")
    notes = [f"Means ± standard deviations over seeds. Budget of each search: {budget}."]
    if on_gpu or reported:
        notes.append("Days are GPU days.")
    if reported and task == "inpainting":
        notes.append("Those reported are of search and retraining.")
    if reported and preset != preset_of_paper:
        notes.append(
            f"The reported numbers are of {of_paper}, and not to be compared with those of "
            f"{_cut(str(config[task]['data']), _WIDTH // 2)}, which are other data."
        )
    why_missing = [f"missing: {name}{': ' if why else ''}{why}" for name, why in missing.items()]
    for paragraph in (" ".join(notes), *why_missing):
        lines += textwrap.wrap(paragraph, _WIDTH, break_on_hyphens=False)
    return "\n".join(lines)


def _fitting(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """The lines of a table with its first column as wide as there is room for."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    room = _WIDTH - sum(2 + width for width in widths[1:])
    return [[_cut(first, room), *others] for first, *others in lines]


def _cut(text: str, room: int) -> str:
    """As much of a text as there is room for."""
    return text if len(text) <= room else f"{text[: room - 1]}…"


_Table = tuple[list[str], list[list[str]], list[list[str]]]
"""The head, the lines of what was compared, and those of what was reported."""


def _table_1(rows: Sequence[Mapping[str, Any]], on_gpu: bool) -> _Table:
    head = ["strategy", "runs", "test error, %", "supernet's, %", "search", "weights, M"]
    lines = []
    for name, own in _grouped(rows, "strategy").items():
        errors = (_mean_of(own, column, 2) for column in ("test_error", "supernet_error"))
        lines.append([name, str(len(own)), *errors, _cost(own, on_gpu), _millions(own)])
    reported = []
    for name, error, spread, days, millions in _REPORTED_1:
        shown = f"{error:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
        reported.append([name, "", shown, "", f"{days:g} days", f"{millions:g}"])
    return head, lines, reported


def _table_2(rows: Sequence[Mapping[str, Any]], on_gpu: bool) -> _Table:
    """Each mask has lines of its own."""
    head = ["strategy", "mask", "runs", "PSNR, dB", "SSIM", "search", "weights, M"]
    of_masks = _grouped(rows, "mask")
    masks = [mask for mask in _REPORTED_2[0][1] if mask in of_masks or not of_masks]
    lines, reported = [], []
    for mask in masks:
        for name, own in _grouped(of_masks.get(mask, ()), "strategy").items():
            quality = _mean_of(own, "test_psnr", 2), _mean_of(own, "test_ssim", 3)
            cost = _cost(own, on_gpu)
            lines.append([name, mask, str(len(own)), *quality, cost, _millions(own)])
        for name, numbers, days in _REPORTED_2:
            psnr, ssim = numbers[mask]
            cost = "-" if days is None else f"{days:g} days"
            reported.append([name, mask, "", f"{psnr:.1f}", f"{ssim:.3f}", cost, "-"])
    return head, lines, reported


def _grouped(rows: Iterable[Mapping[str, Any]], column: str) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def _mean_of(rows: Sequence[Mapping[str, Any]], column: str, digits: int) -> str:
    """The mean and the sample standard deviation, if there are several numbers."""
    numbers = [row[column] for row in rows if column in row]
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.{digits}f}"


def _cost(rows: Sequence[Mapping[str, Any]], on_gpu: bool) -> str:
    seconds = statistics.fmean(row["search_seconds"] for row in rows)
    if not all(row["epochs"] for row in rows):
        return "-"
    return f"{seconds / 86400:.2g} days" if on_gpu else f"{seconds / 60:.2f} min"


def _millions(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{statistics.fmean(row['parameters'] for row in rows) / 1e6:.3f}"
