"""Puts together what the parts of `gpu_check.sh` left: a short table, and gpu_check.json.

Run with ``python bench/gpu_report.py PARTS OUT``: PARTS is a file of lines "name, tab, how it
ended, tab, seconds"; OUT holds the benchmarks' rows, gpu_*.json.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from table import format_row

RESULT = "gpu_check.json"


def read_parts(path: Path) -> list[dict[str, Any]]:
    """How each part ended."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"name": n, "status": status, "seconds": float(s)} for n, status, s in lines]


def read_rows(folder: Path) -> dict[str, Any]:
    """Content of each benchmark's file; what a stopped one left half-written is left out."""
    rows: dict[str, Any] = {}
    for path in sorted(folder.glob("gpu_*.json")):
        if path.name != RESULT:
            try:
                rows[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                print(f"{path} cannot be read: {error}", file=sys.stderr)
    return rows


def machine() -> dict[str, Any]:
    """What was measured on."""
    versions: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
    }
    try:
        import torch
    except ImportError:
        return versions
    versions |= {"torch": torch.__version__, "cuda": torch.version.cuda, "card": None}
    if torch.cuda.is_available():
        versions["card"] = torch.cuda.get_device_name()
    return versions


def main(argv: Sequence[str] | None = None) -> None:
    parts_path, out = map(Path, sys.argv[1:] if argv is None else argv)
    parts, rows = read_parts(parts_path), read_rows(out)
    content = {**machine(), "parts": parts, "rows": rows}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (out / RESULT).write_text(text, encoding="utf-8")
    shares = {(s["name"], s["case"]): s["share"] for s in rows.get("gpu_ops.shares", [])}
    print(f"\n{content['date']}, {content.get('card') or 'no GPU'}, torch {content.get('torch')}")
    print("columns: ours, baseline, unit, ratio; share of the floor")
    for name, table in rows.items():
        for row in table if not name.endswith(".shares") else ():
            share = shares.get((row["name"], row["case"]))
            print(format_row(row) + ("" if share is None else f"{share:>7.2f}"))
    for part in parts:
        print(f"{part['name']:<14}{part['seconds']:>5.0f} s  {part['status']}")


if __name__ == "__main__":
    main()
