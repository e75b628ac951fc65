"""The command: table, figure, going on after an interruption."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asng_ext import cli
from asng_ext.toy import figure as toy_figure
from asng_ext.toy import study as toy_study
from asng_ext.toy.problem import ToySettings
from asng_ext.toy.study import cases, read_rows, study, summary

SETTINGS = ToySettings(variables=4, categories=3, iteration_limit=300)
ARGUMENTS = [
    *("--variables", "4", "--categories", "3", "--iteration-limit", "300", "--runs", "6"),
    *("--powers", "0", "1", "--learning-rates", "0.05", "0.001"),
]


def main(arguments: list[str]) -> int:
    return cli.main(["toy", *arguments])


def test_the_default_sweep_is_the_papers_figure() -> None:
    default = cases(ToySettings())
    assert len(default) == 2 * 3 * 9
    assert {case.settings.learning_rate for case in default} == {0.05, 0.0005}
    assert {case.optimizer.name for case in default} == {"ASNG", "SNG", "NaturalAdam"}
    sizes = sorted({case.optimizer.step_size for case in default})
    np.testing.assert_allclose(sizes, 120.0 ** -np.linspace(2, 0, 9))


def test_runs_in_the_table_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = cases(SETTINGS, powers=(0.0, 1.0))[:4]
    path = tmp_path / "rows.csv"
    whole = study(todo, path, runs=8, threads=2)
    assert len(whole) == 4 * 8
    assert read_rows(path) == whole
    # Interrupted: the first case whole, of the second every other run.
    header, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(header + "".join(lines[:8] + lines[8:16:2]))
    done: list[tuple[str, int, int]] = []
    simulate = toy_study.simulate

    def watched(settings: Any, optimizer: Any, **arguments: Any) -> Any:
        done.append((optimizer.name, arguments["first"], arguments["runs"]))
        return simulate(settings, optimizer, **arguments)

    monkeypatch.setattr(toy_study, "simulate", watched)
    assert study(todo, path, runs=8, threads=1) == whole
    assert sum(count for _, _, count in done) == 4 + 8 + 8
    assert sorted(read_rows(path)) == sorted(whole)
    done.clear()
    assert study(todo[1:2], path, runs=3) == whole[8:11]
    assert not done
    assert len(study(todo[:1], path, runs=2, seed=1)) == 2
    assert done == [("ASNG", 0, 2)]
    assert len(read_rows(path)) == 34
    assert [item.name for item in tmp_path.iterdir()] == ["rows.csv"]


def test_an_interruption_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate = toy_study.simulate
    calls = iter(range(100))

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return simulate(*arguments, **named)

    monkeypatch.setattr(toy_study, "simulate", interrupted)
    command = [*ARGUMENTS, "--out", str(tmp_path / "cut"), "--no-figure"]
    assert main(command) == 130
    assert f"to continue: asng toy {shlex.join(command)}\n" in capsys.readouterr().err
    assert len(read_rows(tmp_path / "cut" / "toy.csv")) == 3 * 6
    assert main(command) == 0
    monkeypatch.undo()
    assert main([*ARGUMENTS, "--out", str(tmp_path / "whole"), "--no-figure"]) == 0
    tables = [(tmp_path / name / "toy.csv").read_text() for name in ("cut", "whole")]
    assert tables[0] == tables[1]


def test_summary() -> None:
    key = ("case",)
    rows = [(key, 0, run, 100 * (run + 1), run < 3) for run in range(4)]
    point = summary(rows)
    assert point.success_rate == 0.75
    assert (point.lower, point.median, point.upper) == (150 / 0.75, 200 / 0.75, 250 / 0.75)
    nothing = summary([(key, 0, 0, 100, False)])
    assert nothing.success_rate == 0
    assert np.isnan([nothing.lower, nothing.median, nothing.upper]).all()


@pytest.mark.parametrize("sweep", ["step-size", "alpha"])
def test_the_command_draws_a_figure(sweep: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [*ARGUMENTS, "--sweep", sweep, "--out", str(tmp_path)]
    assert main(command) == 0
    name = "toy" if sweep == "step-size" else "toy_alpha"
    image = (tmp_path / f"{name}.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    rows = read_rows(tmp_path / f"{name}.csv")
    assert len(rows) == (2 * 3 * 2 if sweep == "step-size" else 2 * 6 * 2) * 6
    assert sorted(item.name for item in tmp_path.iterdir()) == [f"{name}.csv", f"{name}.png"]


@pytest.mark.parametrize("succeeding", [(), (0.05,), (0.05, 0.001)])
def test_a_figure_of_failures(succeeding: tuple[float, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    nothing = toy_study.Summary(0.0, np.nan, np.nan, np.nan)
    something = toy_study.Summary(0.5, 200.0, 100.0, 300.0)
    points = [
        (case, something if case.settings.learning_rate in succeeding else nothing)
        for case in cases(SETTINGS, powers=(0.5,), learning_rates=(0.05, 0.001))
    ]
    for ending in ("png", "svg"):
        toy_figure.draw(points, tmp_path / f"figure.{ending}")
        assert (tmp_path / f"figure.{ending}").stat().st_size > 1000


def test_without_matplotlib_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ImportError("No module named 'matplotlib'")

    monkeypatch.setattr(toy_figure, "import_module", missing)
    assert main([*ARGUMENTS, "--out", str(tmp_path)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--runs", "0"], "runs must be at least 1"),
        (["--variables", "0"], "variables"),
        (["--runs", "10000000"], "runs"),
        (["--variables", str(10**110)], "variables"),
        (["--threads", "-1"], "threads"),
        (["--threads", "100000"], "threads"),
        (["--seed", str(2**64)], "seed"),
        (["--iteration-limit", str(10**110)], "iteration_limit"),
        (["--learning-rates", "-1"], "learning_rate"),
        (["--learning-rates", "inf"], "learning_rate"),
        (["--noise", "inf"], "noise"),
        (["--powers", "nan"], "powers"),
        (["--powers", "-1000"], "powers"),
        (["--powers", "-20"], "step_size"),
        (["--sweep", "alpha", "--alphas", "1e300"], "alpha"),
    ):
        assert main([*ARGUMENTS, *arguments, "--no-figure", "--out", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "toy.csv").write_text("a,b\n1,2\n")
    assert main([*ARGUMENTS, "--no-figure", "--out", str(tmp_path)]) == 2
    assert "must have the columns" in capsys.readouterr().err
    path = tmp_path / "broken.csv"
    path.write_text(",".join(toy_study.COLUMNS) + "\n1,2\n")
    with pytest.raises(ValueError, match="line 2"):
        read_rows(path)


def test_add_parser_fits_into_a_command_line() -> None:
    parser = argparse.ArgumentParser()
    toy_study.add_parser(parser.add_subparsers())
    args = parser.parse_args(["toy", "--runs", "3"])
    assert args.run is toy_study.run
    assert args.runs == 3
