"""Searches with several limits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import small_classification as small

from asng_ext import cli
from asng_ext.engine.sweep import format_sweep, sweep
from asng_ext.runs.config import load_toml

OPTIONS = [
    *small.OPTIONS, "--final-channels=4", "--penalty", "parameters=4000", "latency=50",
    "--epochs=1", "--retrain-epochs=1",
]  # fmt: skip


def asng(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.slow
@pytest.mark.pictures("sweep")
def test_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sweep"
    command = ["search", "classification", *OPTIONS, "--out", folder, "--penalty-sweep"]
    assert asng(*command, "inf", 0.4) == 0
    printed = capsys.readouterr().out
    rows = json.loads((folder / "sweep.json").read_text())["rows"]
    assert [row["folder"] for row in rows] == ["limit-0.4", "no-limit"]
    assert [row["factor"] for row in rows] == [0.4, None]
    assert [row["costs"]["parameters"]["limit"] for row in rows] == [1600, None]
    for row in rows:
        found = json.loads((folder / row["folder"] / "architecture.json").read_text())
        assert row["costs"]["parameters"]["cost"] == found["network"]["parameters"]
        assert row["of"] == "supernet"
        assert set(row["metrics"]) == {"loss", "accuracy"}
    config = load_toml((folder / "limit-0.4" / "config.toml").read_text(), "")
    assert config["search"]["penalty"] == "parameters=1600.0,latency=20.0"
    tables = [(folder / row["folder"] / "latency.json").read_text() for row in rows]
    assert tables[0] == tables[1]
    text = (folder / "sweep.txt").read_text()
    assert text in printed
    assert "× 0.4" in text
    assert (folder / "sweep.png").is_file()

    # The same again does nothing but add what is missing, and retrain.
    before = (folder / "no-limit" / "search.pt").stat().st_mtime_ns
    assert asng(*command, "inf", 0.4, 0.7, "--sweep-retrain") == 0
    assert (folder / "no-limit" / "search.pt").stat().st_mtime_ns == before
    rows = json.loads((folder / "sweep.json").read_text())["rows"]
    assert [row["factor"] for row in rows] == [0.4, 0.7, None]
    for row in rows:
        tested = json.loads((folder / row["folder"] / "results.json").read_text())
        assert row["metrics"] == {name: tested[name] for name in ("loss", "accuracy")}
        assert row["of"] == "retrained network"
    capsys.readouterr()
    assert asng(*command, 0.4, "--momentum=0.8") == 2
    words = (
        "limit-0.4 must be a run with the settings given, but search.momentum was 0.9 and is 0.8"
    )
    assert words in capsys.readouterr().err


def rows_of(*numbers: tuple[float, float]) -> list[dict[str, Any]]:
    return [
        {
            "factor": float(i + 1),
            "costs": {"flops": {"cost": cost, "limit": 1e6 * (i + 1)}},
            "of": "supernet",
            "metrics": {"loss": loss},
        }
        for i, (cost, loss) in enumerate(numbers)
    ]


def test_what_is_best() -> None:
    from asng_ext.engine.sweep import _mark_best

    rows = rows_of((10, 3.0), (20, 3.0), (30, 1.0), (40, 2.0), (10, 3.0), (5, math.nan))
    _mark_best(rows)
    assert [row["best"] for row in rows] == [True, False, True, False, True, False]
    assert format_sweep(rows).splitlines()[:3] == [
        "limits  flops    at most    loss  best",
        "   × 1     10  1,000,000  3.0000     *",
        "   × 2     20  2,000,000  3.0000",
    ]


@pytest.mark.parametrize(
    ("penalty", "factors", "words"),
    [
        ("", [0.5], "penalty must have limits, of which a sweep takes multiples"),
        ("flops=1", [], "factors must be different numbers, at least one"),
        ("flops=1", [1, 1.0], "factors must be different numbers"),
        ("flops=1", [0], "factors must be finite and above 0, got 0"),
        ("flops=1", [math.nan], "factors must be finite and above 0, got nan"),
    ],
)
def test_what_is_wrong_is_named(
    penalty: str, factors: list[float], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        sweep(tmp_path / "sweep", {"search": {"penalty": penalty}}, factors, stream=None)
    assert not (tmp_path / "sweep").exists()


def test_something_else_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    command = ["search", "classification", *OPTIONS, "--out", tmp_path]
    assert asng(*command, "--penalty-sweep", 1) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert asng(*command, "--sweep-retrain") == 2
    assert "needs --penalty-sweep" in capsys.readouterr().err
