"""What the benchmarks share: options, timing two things alternately, a table, JSON rows."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict


class Row(TypedDict):
    """One measured case; ``ratio`` is above 1 where ours is better."""

    name: str
    case: str
    ours: float
    baseline: float
    unit: str
    ratio: float


def options(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; ``quick`` says what is less then."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", metavar="PATH", help="write the rows as JSON")
    return parser


def _repeats(run: Callable[[], Any], seconds: float) -> int:
    """How often to call ``run`` to fill about ``seconds``."""
    run()
    repeats = 1
    while True:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 4:
            return max(1, round(repeats * seconds / elapsed))
        repeats *= 4


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def compare(
    name: str,
    case: str,
    ours: Callable[[], Any],
    baseline: Callable[[], Any],
    *,
    rounds: int = 9,
    slice_seconds: float = 0.05,
    unit: str = "us",
) -> Row:
    """Times both alternately; medians, and the median of the rounds' ratios."""
    scale = {"s": 1.0, "ms": 1e3, "us": 1e6}[unit]
    counts = _repeats(ours, slice_seconds), _repeats(baseline, slice_seconds)
    pairs = [(_seconds(ours, counts[0]), _seconds(baseline, counts[1])) for _ in range(rounds)]
    return row_of_pairs(name, case, pairs, scale, unit)


def row_of_pairs(
    name: str, case: str, pairs: Sequence[tuple[float, float]], scale: float, unit: str
) -> Row:
    """Medians of (ours, baseline), in `scale` units, and of their ratios; prints the row."""
    ours, baseline = (statistics.median(pair[i] for pair in pairs) * scale for i in (0, 1))
    ratio = statistics.median(b / a for a, b in pairs)
    return made_row(name, case, ours, baseline, unit, ratio)


def made_row(
    name: str, case: str, ours: float, baseline: float, unit: str, ratio: float | None = None
) -> Row:
    """A row, printed; without a ratio, that of the two numbers."""
    row: Row = {
        "name": name,
        "case": case,
        "ours": ours,
        "baseline": baseline,
        "unit": unit,
        "ratio": baseline / ours if ratio is None else ratio,
    }
    print(format_row(row), flush=True)
    return row


def format_row(row: Row) -> str:
    """One line of the table."""
    return (
        f"{row['name']:<36}{row['case']:<26}{row['ours']:>12.4g}{row['baseline']:>12.4g} "
        f"{row['unit']:<4}{row['ratio']:>8.4g}x"
    )


def finish(rows: Sequence[Row], path: str | None) -> None:
    """Says on what was measured, and writes the rows if a path is given."""
    print(f"columns: ours, baseline, unit, ratio; {platform.processor() or platform.machine()}")
    save(rows, path)


def save(rows: Sequence[Any], path: str | None) -> None:
    """Writes the rows so far if a path is given: a benchmark that is stopped leaves them."""
    if path is not None:
        Path(path).write_text(json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n")


def peak_row(name: str, case: str, ours: Sequence[str], baseline: Sequence[str]) -> Row:
    """Peak memory of two processes of this script, which print it, with these options."""
    commands = ([sys.executable, sys.argv[0], *given] for given in (ours, baseline))
    peaks = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for command in commands
    ]
    return made_row(name, case, *peaks, "MiB")


def peak_memory() -> float:
    """Of this process, in MiB; what the system reports for one counts its parent's as well."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
