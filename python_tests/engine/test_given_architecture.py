"""An architecture that is given is retrained without a search, as one that was found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import small_runs

import asng_ext as asng
from asng_ext import cli, tasks
from asng_ext.engine.experiment import Experiment
from asng_ext.nn import CellSpace
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.report import report

OPTIONS = [
    "--data=digits", "--final-cells=3", "--parameter-limit=4000", "--epochs=1", "--batch-size=256",
]  # fmt: skip


def asng_command(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def cells(nodes: int, operation: str) -> dict[str, str]:
    """An architecture of one operation throughout."""
    values = CellSpace(nodes, (operation,)).variables
    return {name: choices[-1] for name, choices in values.items()}


def write(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_it_is_retrained_as_the_one_that_was_found(tmp_path: Path) -> None:
    """Bit for bit, from the run that found it and its settings."""
    experiment = small_runs.classification(tmp_path / "found")
    values = experiment.search()
    tested = experiment.retrain()
    config = experiment.run.file("config.toml")
    given = tmp_path / "given"
    arguments = ["--architecture", tmp_path / "found", "--config", config]
    assert asng_command("retrain", given, *arguments) == 0
    results = RunFolder.open(given).read_json("results.json")
    assert results == experiment.run.read_json("results.json")
    assert {name: results[name] for name in tested} == tested
    assert asng.load_architecture(given) == values
    weights = [RunFolder(folder).load("network.pt") for folder in (tmp_path / "found", given)]
    assert small.equal(weights[0], weights[1])
    another = tmp_path / "another"
    assert asng_command("retrain", another, *arguments, "--seed=1") == 0
    assert RunFolder.open(another).read_config()["seed"] == 1
    other = RunFolder(another).load("network.pt")
    assert other is not None
    assert not small.equal(weights[0]["network"], other["network"])  # type: ignore[index]


@pytest.mark.pictures
def test_it_is_drawn_before_it_is_retrained(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    experiment = small_runs.classification(tmp_path / "run")
    values = experiment.task.space.decode([0] * len(experiment.task.space))
    given = Experiment.create(tmp_path / "given", experiment.config, None, architecture=values)
    assert given.run.file("architecture.png").is_file()


def test_the_space_is_one_that_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four nodes, and an operation that is not the paper's, where the preset has three nodes."""
    values = cells(4, "dil_sep_conv_3x3")
    file = write(tmp_path / "mine.json", task="classification", architecture=values)
    run = tmp_path / "run"
    assert asng_command("retrain", run, "--architecture", file, *OPTIONS) == 0
    assert "test accuracy: " in capsys.readouterr().out
    section = RunFolder.open(run).read_config()["classification"]
    assert section["nodes"] == 4
    assert section["operations"].split(",")[-1] == "dil_sep_conv_3x3"
    assert "search:     none: the architecture was given" in report(RunFolder.open(run))
    assert asng.load_network(run).blueprint()["architecture"] == values
    # It goes on like any other retraining, and searches nothing.
    assert asng_command("retrain", run) == 0
    before = (run / "architecture.json").read_bytes()
    assert asng_command("resume", run) == 2
    assert "was begun with an architecture and searches none" in capsys.readouterr().err
    assert (run / "architecture.json").read_bytes() == before
    assert not (run / "search.pt").exists()


def test_an_autoencoder_has_the_settings_of_a_file(tmp_path: Path) -> None:
    experiment = small_runs.inpainting(tmp_path / "found")
    values = experiment.search()
    config = experiment.run.file("config.toml")
    arguments = ["--architecture", tmp_path / "found", "--config", config]
    assert asng_command("retrain", tmp_path / "given", *arguments) == 0
    assert asng.load_architecture(tmp_path / "given") == values


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"task": "classification", "architecture": {}}, "normal/node0/input0"),
        (
            {"task": "classification", "architecture": cells(2, "identity") | {"x": "y"}},
            "x",
        ),
        (
            {
                "task": "classification",
                "architecture": cells(2, "identity") | {"normal/node0/operation0": "tanh"},
            },
            "operations must be different ones of .*'tanh'",
        ),
        ({"architecture": cells(2, "identity")}, 'as "task", got None'),
        ({"task": "chess", "architecture": {}}, "must have one of classification, inpainting"),
        ({"task": "classification", "cells": {}}, "must hold an architecture by names"),
    ],
)
def test_what_is_none_is_refused_and_nothing_is_written(
    tmp_path: Path, content: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "mine.json", **content)
    run = tmp_path / "run"
    assert asng_command("retrain", run, "--architecture", file, *OPTIONS) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not run.exists()


def test_a_run_that_exists_is_not_begun_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "mine.json", task="classification", architecture=cells(2, "identity"))
    run = small_runs.classification(tmp_path / "run").run
    assert asng_command("retrain", run.path, "--architecture", file, *OPTIONS) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert not run.file("architecture.json").exists()
    assert asng_command("retrain", run.path, "--seed=3") == 2
    assert "--config and --seed are for a new run" in capsys.readouterr().err
    config = tmp_path / "other.toml"
    config.write_text('task = "inpainting"\n')
    arguments = ["--architecture", file, "--config", config]
    assert asng_command("retrain", tmp_path / "new", *arguments) == 2
    assert "must be of a classification task, got 'inpainting'" in capsys.readouterr().err


def test_every_task_has_settings_for_its_architectures() -> None:
    found = tasks.get("classification").settings_for(cells(3, "max_pool_3x3"))
    assert found == {"nodes": 3, "operations": ",".join(CellSpace().operations)}
    assert tasks.get("inpainting").settings_for({}) == {}
