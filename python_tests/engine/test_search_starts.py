"""Searches of the command line that start somewhere, or leave variables at a value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_classification as small

from asng_ext import cli, optimizers
from asng_ext.engine.experiment import Experiment
from asng_ext.runs.folder import RunFolder

FIXED = ["normal/node0/operation0=max_pool_3x3", "reduction/node1/input0=newer"]
SEARCH = ["search", "classification", *small.OPTIONS]


def asng(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "source"
    assert asng(*SEARCH, "--epochs=1", "--out", folder) == 0
    return folder


def test_variables_are_fixed(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert asng(*SEARCH, "--epochs=1", "--fixed", *FIXED, "--out", folder) == 0
    found = json.loads((folder / "architecture.json").read_text())
    for text in FIXED:
        name, _, value = text.partition("=")
        assert found["architecture"][name] == value
        assert found["probabilities"][name] == 1
    state = RunFolder(folder).load("search.pt")
    assert state is not None
    assert state["optimizer"]["space"][0].startswith("'normal/node0/input0'")
    assert (
        state["optimizer"]["space"][2] == "'normal/node0/operation0': Categorical('max_pool_3x3')"
    )
    assert asng("resume", folder) == 0


def test_a_search_starts_at_an_architecture(source: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "start.json"
    shutil.copy(source / "architecture.json", file)
    options = ["--init", file, "--init-probability=0.6", "--epochs=2"]
    assert asng(*SEARCH, *options, "--out", folder) == 0
    kept = json.loads((folder / "init.json").read_text())
    assert kept["architecture"] == json.loads(file.read_text())["architecture"]
    file.unlink()  # the run has it
    (folder / "search.pt").unlink()
    (folder / "search.prev.pt").unlink()
    before = (folder / "search.csv").read_bytes()
    assert asng("resume", folder) == 0
    assert (folder / "search.csv").read_bytes() == before
    experiment = Experiment.open(folder, stream=None)
    optimizer: Any = experiment.optimizer(kept)
    assert optimizer.recommend() == kept["architecture"]
    chosen = experiment.task.space.encode(kept["architecture"])[0]
    likely = optimizer.theta.categorical[range(len(chosen)), chosen]
    assert ((likely == pytest.approx(0.6)) | (likely >= 0.5)).all()
    assert likely.min() == pytest.approx(0.6)


def test_a_search_starts_at_the_distribution_of_a_run(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert asng(*SEARCH, "--epochs=1", "--init", source, "--out", folder) == 0
    kept = json.loads((folder / "init.json").read_text())
    state = RunFolder(source).load("search.pt")
    assert state is not None
    rows = np.array(kept["theta"]["categorical"])
    assert rows[rows > 0].tolist() == state["optimizer"]["theta"]
    optimizer: Any = Experiment.open(folder, stream=None).optimizer(kept)
    np.testing.assert_allclose(optimizer.theta.categorical, rows, rtol=1e-9)
    assert asng("resume", folder) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fixed", "operation=x"], "fixed must name variables of the space, such as"),
        (["--fixed", "normal/node0/input0=node7"], "fixed: value of 'normal/node0/input0' must be"),
        (["--fixed", "normal/node0/input0"], "fixed must be of NAME=VALUE"),
        (["--init", "nowhere.json"], "nowhere.json is missing"),
        (["--init-probability", "2"], "init_probability must be above 0 and at most 1"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_written(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asng(*SEARCH, *options, "--out", tmp_path / "run") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_runs_that_do_not_fit(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SEARCH, "--nodes=3", "--parameter-limit=9000", "--out", tmp_path / "run", "--init"]
    assert asng(*command, source) == 2
    assert "its search is of another space: variable 8 is" in capsys.readouterr().err
    # Other variables start as they do without; unknown ones are none of the space.
    assert asng(*command, source / "architecture.json", "--nodes=1") == 2
    assert "init must name variables of the space" in capsys.readouterr().err
    empty = RunFolder.create(tmp_path / "empty", {"task": "classification"})
    assert asng(*command, empty.path) == 2
    assert "has no search.pt" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_optimizer_that_takes_no_start(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plain(space: Any, *, seed: int | None, population_size: int) -> Any:
        return optimizers.ASNG(space, seed=seed, population_size=population_size)

    monkeypatch.setitem(optimizers.REGISTRY, "Plain", plain)
    command = [*SEARCH, "--search-optimizer=Plain", "--out", tmp_path / "run"]
    for options, name in ((["--init", source], "init"), (["--fixed", FIXED[0]], "fixed")):
        assert asng(*command, *options) == 2
        assert f"Plain takes no {name}" in capsys.readouterr().err


def test_settings_of_a_search_do_not_matter_where_there_is_none(
    source: Path, tmp_path: Path
) -> None:
    """A run with a given architecture takes the settings of another run, whatever these read."""
    config = tmp_path / "config.toml"
    text = (source / "config.toml").read_text()
    assert text.count('init = ""') == text.count('penalty = ""') == 1
    text = text.replace('init = ""', 'init = "gone.json"')
    config.write_text(text.replace('penalty = ""', 'penalty = "latency=1e-9"'))
    command = ["retrain", tmp_path / "run", "--architecture", source, "--config", config]
    assert asng(*command) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"network.pt", "results.json"} <= names
    assert not names & {"init.json", "latency.json"}
