"""The command line and the run folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small

from asng_ext import cli
from asng_ext.config import load_toml
from asng_ext.experiment import Experiment
from asng_ext.run import RunFolder
from asng_ext.tasks import KINDS


def asng(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "searched"
    assert asng("search", "classification", *small.OPTIONS, "--seed=3", "--out", folder) == 0
    return folder


def test_search_writes_a_run_folder(searched: Path) -> None:
    names = {path.name for path in searched.iterdir()}
    expected = {"config.toml", "search.csv", "architecture.json", "events"}
    expected |= {"search.pt", "search.prev.pt"}
    pictures = {"architecture.png", "search.png", "theta.png"}
    assert names == expected | pictures
    found = json.loads((searched / "architecture.json").read_text())
    assert found["task"] == "classification"
    assert found["architecture"]["normal/node0/input0"] in ("older", "newer")
    assert found["network"]["parameters"] <= 4000
    assert set(found["probabilities"]) == set(found["architecture"])
    config = RunFolder.open(searched).read_config()
    assert config["seed"] == 3
    assert config["search"]["epochs"] == 2
    assert config["search"]["momentum"] == 0.9
    assert config["classification"]["parameter_limit"] == 4000
    assert config["retrain"]["epochs"] == 2


def test_retrain_and_evaluate(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asng("retrain", searched, "--epochs", 3) == 0
    printed = capsys.readouterr().out
    results = json.loads((searched / "results.json").read_text())
    assert f"test accuracy: {results['accuracy']:.4f}" in printed
    assert (searched / "retrain.png").is_file()
    assert RunFolder.open(searched).read_config()["retrain"]["epochs"] == 3
    assert asng("evaluate", searched) == 0
    assert f"test accuracy: {results['accuracy']:.4f}" in capsys.readouterr().out


def test_a_refused_retraining_changes_nothing(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    (folder / "retrain.pt").unlink(missing_ok=True)
    assert asng("retrain", folder, "--epochs", 1) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for refused in (["--epochs", 2], ["--epochs", 1, "--final-channels", 7, "--cutout", 2]):
        assert asng("retrain", folder, *refused) == 2
        assert "was begun with" in capsys.readouterr().err
        after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert after == before
    assert asng("retrain", folder) == 0


def test_what_is_said_of_the_network_is_true_of_network_pt(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)

    def begin_anew() -> None:
        for name in ("retrain.pt", "retrain.prev.pt"):
            (folder / name).unlink(missing_ok=True)

    begin_anew()
    options = ["--epochs=1", "--final-channels=5", "--final-cells=4", "--precision=bfloat16"]
    assert asng("retrain", folder, *options) == 0
    found = json.loads((folder / "architecture.json").read_text())
    state = RunFolder(folder).load("network.pt")
    assert state is not None
    weights = sum(
        state["network"][name].numel()
        for name, _ in Experiment.open(folder)
        .task.network(found["architecture"])
        .named_parameters()
    )
    network = found["network"]
    assert (network["channels"], network["cells"]) == (5, 4)
    assert network["parameters"] + network["parameters_auxiliary"] == weights
    results = json.loads((folder / "results.json").read_text())

    begin_anew()
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RunFolder, "save", lambda *args, **options: (_ for _ in ()).throw(MemoryError)
        )
        assert asng("retrain", folder, "--final-channels=7", "--precision=float32") == 2
    assert "out of memory" in capsys.readouterr().err
    assert RunFolder(folder).read_config()["classification"]["final_channels"] == 7
    assert asng("evaluate", folder) == 0  # the network that is there
    printed = capsys.readouterr().out
    assert printed == "".join(f"test {name}: {value:.4f}\n" for name, value in results.items())
    (folder / "network.pt").write_bytes(b"")
    assert asng("evaluate", folder) == 2
    error = capsys.readouterr().err
    assert "network.pt is not a complete checkpoint" in error
    assert f"`asng retrain {folder}` writes it anew" in error


def test_resume_of_a_finished_search_changes_nothing(searched: Path) -> None:
    before = (searched / "search.csv").read_bytes(), (searched / "architecture.json").read_bytes()
    assert asng("resume", searched) == 0
    after = (searched / "search.csv").read_bytes(), (searched / "architecture.json").read_bytes()
    assert before == after


def test_same_seed_same_files(searched: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    config = RunFolder.open(searched).read_config()
    settings = tmp_path / "settings.toml"
    settings.write_text((searched / "config.toml").read_text())
    assert asng("search", "classification", "--config", settings, "--out", again) == 0
    for name in ("search.csv", "architecture.json"):
        assert (again / name).read_bytes() == (searched / name).read_bytes()
    assert RunFolder.open(again).read_config() == config


def test_options_come_before_the_file_and_the_file_before_the_preset(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(
        'seed = 9\n[search]\nepochs = 7\nalpha = 2\n[classification]\ndata = "digits"\n'
    )
    args = cli._parser().parse_args(
        ["search", "classification", "--config", str(settings), "--epochs", "5"]
    )
    config = cli._config(
        KINDS["classification"], args, None, load_toml(settings.read_text(), "settings")
    )
    assert config["seed"] == 9
    assert config["search"]["epochs"] == 5
    assert config["search"]["alpha"] == 2.0
    assert config["search"]["learning_rate"] == 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "classification"], 'data must be "digits" or the folder'),
        (["search", "classification", "--data=/nowhere"], "/nowhere"),
        (["search", "classification", "--data=digits", "--epochs=0"], "epochs must be at least 1"),
        (["search", "classification", "--data=digits", "--cells=2"], "cells must be at least 3"),
        (["search", "classification", "--data=digits", "--drop-path=1"], "drop_path"),
        (["search", "classification", "--data=digits", "--seed=-1"], "seed must be"),
        (["search", "classification", "--data=digits", "--device=tpu"], "device"),
        (["search", "classification", "--config=/nowhere.toml"], "nowhere.toml"),
        (["search", "classification", "--data=digits", "--parameter-limit=5"], "limit"),
        (["resume", "/nowhere"], "no config.toml"),
        (["retrain", "/nowhere"], "no config.toml"),
        (["evaluate", "/nowhere"], "no config.toml"),
    ],
)
def test_errors_say_what_is_wrong(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    extra = ["--out", str(out)] if arguments[0] == "search" else []
    assert (
        asng(
            *arguments,
            *extra,
        )
        == 2
    )
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_full_folder_is_not_overwritten(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (searched / "config.toml").read_bytes()
    assert asng("search", "classification", *small.OPTIONS, "--out", searched) == 2
    assert "not empty" in capsys.readouterr().err
    assert (searched / "config.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[search]\nepoch = 3", "unknown settings ['epoch']"),
        ("[search]\nepochs = 3.5", "epochs must be of type int"),
        ("[search\n", "not valid TOML"),
        ("[other]\nx = 1", "unknown settings ['other']"),
        ('task = "chess"', "task must be"),
        ("a = " + "[" * 100_000, "settings.toml is not valid TOML"),
    ],
)
def test_bad_settings_files(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(text)
    code = asng(
        "search", "classification", "--data=digits", "--config", settings, "--out", tmp_path / "o"
    )
    assert code == 2
    assert words in capsys.readouterr().err


def test_a_broken_run_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    options = [*small.OPTIONS, "--out", str(folder)]
    args = cli._parser().parse_args(["search", "classification", *options])
    Experiment.create(folder, cli._config(KINDS["classification"], args, None, {}), stream=None)
    assert asng("retrain", folder) == 2
    error = capsys.readouterr().err
    assert "architecture.json is missing" in error
    assert f"continue it with `asng resume {folder}`" in error
    (folder / "architecture.json").write_text("{")
    assert asng("retrain", folder) == 2
    assert "not valid JSON" in capsys.readouterr().err
    (folder / "architecture.json").write_text('{"task": "classification", "architecture": {}}')
    assert asng("retrain", folder) == 2
    assert "missing" in capsys.readouterr().err
    (folder / "architecture.json").write_text("[" * 100_000)
    assert asng("retrain", folder) == 2
    assert "not valid JSON" in capsys.readouterr().err
    assert asng("evaluate", folder) == 2
    assert "network.pt is missing" in capsys.readouterr().err
    (folder / "search.pt").mkdir()
    assert asng("resume", folder) == 2
    assert "search.pt" in capsys.readouterr().err
    config = RunFolder(folder).read_config()
    RunFolder(folder).write_config(config | {"search": 3})
    assert asng("resume", folder) == 2
    assert "[search] must be a table of settings, got 3" in capsys.readouterr().err


@pytest.mark.filterwarnings("always")
def test_warnings_are_one_line(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    (folder / "search.pt").write_bytes(b"")
    assert asng("resume", folder) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "warning" in line.lower()] == [
        f"asng: warning: {folder / 'search.pt'} is not a complete checkpoint: File is not a zip "
        "file; going on from search.prev.pt"
    ]
    assert (folder / "search.csv").read_bytes() == (searched / "search.csv").read_bytes()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_a_lack_of_memory_is_no_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_resume", fail)
    assert asng("resume", "somewhere") == 2
    assert "memory" in (words := capsys.readouterr().err)
    assert words.endswith("a smaller batch_size needs less\n")


def test_other_runtime_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(cli, "_resume", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        asng("resume", "somewhere")


def test_several_processes_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / "run"
    assert asng("search", "classification", *small.OPTIONS, "--out", folder) == 2
    assert "several processes is not supported" in capsys.readouterr().err
    with pytest.raises(ValueError, match="WORLD_SIZE is 2"):
        Experiment.create(folder, {"task": "classification"})
    assert not folder.exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    args = cli._parser().parse_args(["search", "classification", *small.OPTIONS])
    config = cli._config(KINDS["classification"], args, None, {})
    Experiment.create(folder, config, stream=None)


def test_runs_without_a_folder_get_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = cli._parser().parse_args(["search", "classification", *small.OPTIONS])
    config = cli._config(KINDS["classification"], args, None, {})
    folders = {cli._create(args, "digits", config).run.path for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent == Path("runs") for folder in folders)


def test_the_command_is_installed(tmp_path: Path) -> None:
    code = "import sys; from asng_ext.cli import main; sys.exit(main(['--version']))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert result.stdout.startswith("asng-ext ")
