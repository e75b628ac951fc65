"""The command line and the run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import small_runs
from forked import exit_status, forked

from asng_ext import cli, tasks
from asng_ext.cli import commands, parser
from asng_ext.cli.parser import make_parser
from asng_ext.cli.settings import make_config
from asng_ext.data import MASKS
from asng_ext.distributed import ALONE
from asng_ext.engine.experiment import Experiment
from asng_ext.runs.config import RetrainConfig, SearchConfig, load_toml, section_from
from asng_ext.runs.folder import RunFolder
from asng_ext.toy.study import read_rows
from asng_ext.training.metrics import SSIM_WINDOW


def asng(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, pictures: Any) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "searched"
    with pictures():
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


@pytest.mark.pictures
def test_retrain_and_evaluate(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asng("retrain", searched, "--epochs", 3) == 0
    printed = capsys.readouterr().out
    results = json.loads((searched / "results.json").read_text())
    assert f"test accuracy: {results['accuracy']:.4f}" in printed
    assert list(results["classes"]) == list("0123456789")
    for name in ("retrain.png", "confusion.png", "mistakes.png"):
        assert (searched / name).is_file()
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
    for refused in (["--batch-size", 9], ["--epochs", 1, "--final-channels", 7, "--cutout", 2]):
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

    options = [
        "--epochs=1",
        "--final-channels=5",
        "--final-cells=4",
        "--retrain-precision=bfloat16",
    ]
    assert asng("retrain", folder, "--restart", *options) == 0
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

    (folder / "retrain.pt").unlink()
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RunFolder, "save", lambda *args, **options: (_ for _ in ()).throw(MemoryError)
        )
        assert asng("retrain", folder, "--final-channels=7", "--retrain-precision=float32") == 2
    assert "out of memory" in capsys.readouterr().err
    assert RunFolder(folder).read_config()["classification"]["final_channels"] == 7
    assert asng("evaluate", folder) == 0  # the network that is there
    printed = capsys.readouterr().out
    assert printed == "".join(f"test {n}: {results[n]:.4f}\n" for n in ("loss", "accuracy"))
    (folder / "network.pt").write_bytes(b"")
    assert asng("evaluate", folder) == 2
    error = capsys.readouterr().err
    assert "network.pt is not a complete checkpoint" in error
    assert f"`asng retrain {folder}` writes it anew" in error


@pytest.mark.parametrize("task", tasks.names())
def test_help_says_what_every_setting_is_without_its_option(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        asng("search", task, "--help")
    options = capsys.readouterr().out.partition(f"{task} settings:")[2]
    lines = re.sub(r"\n {10,}", " ", options).splitlines()
    lines = [line for line in lines if line.startswith("  --")]
    assert len(lines) > 30
    presets = tasks.get(task).presets
    for line in lines:
        named = all(f"{preset}: " in line for preset in presets)
        assert "--data" in line or "(default: " in line or named, line
    assert any("--no-graphs" in line and "(default: on)" in line for line in lines)
    assert any("{cosine,steps}" in line for line in lines)


def test_resume_of_a_finished_search_changes_nothing(searched: Path) -> None:
    before = (searched / "search.csv").read_bytes(), (searched / "architecture.json").read_bytes()
    assert asng("resume", searched) == 0
    after = (searched / "search.csv").read_bytes(), (searched / "architecture.json").read_bytes()
    assert before == after


@pytest.mark.filterwarnings("always")  # of more epochs
def test_what_may_change_on_resume(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    config = RunFolder(folder).read_config()
    options = ["--no-graphs", "--threads=1", "--keep=3", "--checkpoint-minutes=2"]
    older = f"--resume-from={folder / 'search.prev.pt'}"
    assert asng("resume", folder, "--data=digits", "--device=cpu", older, *options) == 0
    changed = RunFolder(folder).read_config()
    kept = {"graphs": False, "threads": 1, "keep": 3, "checkpoint_minutes": 2.0}
    assert changed == {**config, "search": {**config["search"], **kept}}
    assert (folder / "search.csv").read_bytes() == (searched / "search.csv").read_bytes()
    before = (folder / "config.toml").read_bytes()
    missing = folder / "missing.pt"
    assert asng("resume", folder, "--keep=9", "--resume-from", missing) == 2
    assert f"there is no {missing}" in capsys.readouterr().err
    assert (folder / "config.toml").read_bytes() == before
    with pytest.raises(SystemExit):
        asng("resume", folder, "--batch-size=3")
    assert asng("resume", folder, "--epochs=1") == 2
    assert "epochs was 2 and is 1" in capsys.readouterr().err
    assert (folder / "config.toml").read_bytes() == before
    assert asng("resume", folder, "--epochs=3", "--check-every=7", "--on-divergence=retry") == 0
    assert "continues to 3" in capsys.readouterr().err
    assert RunFolder(folder).read_config()["search"]["epochs"] == 3
    assert len((folder / "search.csv").read_text().splitlines()) == 4


def test_a_command_line_continues_as_without_its_checkpoint() -> None:
    for option in (["--resume-from", "a.pt"], ["--resume-from=a.pt"]):
        arguments = ["resume", *option, "run", "--keep=3"]
        assert commands._without("--resume-from", arguments) == ["resume", "run", "--keep=3"]


def test_resume_if_exists(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command = ["search", "classification", *small.OPTIONS, "--seed=3", "--resume-if-exists"]
    assert asng(*command) == 2
    assert "--resume-if-exists needs --out" in capsys.readouterr().err
    assert asng(*command, "--out", folder) == 0
    assert (folder / "search.csv").read_bytes() == (searched / "search.csv").read_bytes()
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert asng(*command, "--out", folder, "--learning-rate=0.5") == 2
    assert "begun with other settings: learning_rate was" in capsys.readouterr().err
    assert files == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert asng(*command, "--out", folder, "--threads=1") == 0
    assert RunFolder(folder).read_config()["search"]["threads"] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert asng(*command, "--out", tmp_path / "other") == 2
    assert "is not empty" in capsys.readouterr().err


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
    args = make_parser().parse_args(
        ["search", "classification", "--config", str(settings), "--epochs", "5"]
    )
    config = make_config(
        tasks.get("classification"), args, None, load_toml(settings.read_text(), "settings")
    )
    assert config["seed"] == 9
    assert config["search"]["epochs"] == 5
    assert config["search"]["alpha"] == 2.0
    assert config["search"]["learning_rate"] == 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "classification"], 'data must be "digits" or "mnist5k"'),
        (["search", "classification", "--data=/nowhere"], "the data /nowhere must be"),
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


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("show run --epohs=3", "asng show: --epohs=3"),
        ("toy --epohs=3", "asng toy: --epohs=3"),
        (
            "search classification --epohs=3",
            "asng search classification: --epohs=3 (did you mean --epochs?)",
        ),
        # No option is abbreviated, nor what follows it taken for something else.
        (
            "compare classification --seed 3",
            "asng compare classification: --seed (did you mean --seeds?)",
        ),
        (
            "retrain run --retrain-ep 3",
            "asng retrain: --retrain-ep (did you mean --retrain-epochs?)",
        ),
        ("resume run --no-graph", "asng resume: --no-graph (did you mean --no-graphs?)"),
        ("evaluate run --dev=cpu", "asng evaluate: --dev=cpu (did you mean --device?)"),
        (
            "toy --run 3 --o x",
            "asng toy: --run (did you mean --runs?) --o (did you mean --out or --optimizers?)",
        ),
        ("export -f onnx run", "asng export: -f (did you mean --format?)"),
        (
            "demo --epochs 1",
            "asng demo: --epochs; a demo has the settings of its preset, and `asng search TASK` "
            "takes others",
        ),
        ("search --epochs 1 classification", "asng search: --epochs; options come after TASK"),
        ("--seed 1 demo", "asng: --seed; options come after COMMAND"),
        ("--vers", "asng: --vers (did you mean --version?); options come after COMMAND"),
        ("show run -1", "asng show: -1"),
    ],
)
def test_options_that_are_unknown_are_those_of_the_command(
    arguments: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        asng(*arguments.split())
    assert caught.value.code == 2
    command, _, words = answer.partition(": ")
    assert capsys.readouterr().err == (
        f"{command}: error: unrecognized arguments: {words}; `{command} --help` says more\n"
    )


def test_what_only_looks_like_an_option() -> None:
    parse = make_parser().parse_args
    assert parse(["show", "--", "--run"]).folder == "--run"
    assert parse(["toy", "--alphas", "-1", "-.5"]).alphas == [-1, -0.5]
    assert parse(["predict", "run", "-- a.png"]).images == ["-- a.png"]


def test_a_full_folder_is_not_overwritten(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (searched / "config.toml").read_bytes()
    assert asng("search", "classification", *small.OPTIONS, "--out", searched) == 2
    assert "not empty" in capsys.readouterr().err
    # Data, which may take long to read, are not looked at.
    assert asng("search", "classification", "--data", searched / "none", "--out", searched) == 2
    assert capsys.readouterr().err == (
        f"asng: error: run folder {searched} exists and is not empty; choose another, or continue "
        f"the run that is in it with `asng resume {searched}`\n"
    )
    with pytest.raises(FileExistsError, match="not empty"):
        small_runs.classification(searched, data=str(searched / "none"))
    file = searched / "config.toml"
    assert asng("search", "classification", *small.OPTIONS, "--out", file) == 2
    assert f"run folder {file} is a file" in capsys.readouterr().err
    assert (searched / "config.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[search]\nepoch = 3", "unknown settings ['epoch']"),
        ("[search]\nepochs = 3.5", "epochs must be of type int"),
        ("[search\n", "not valid TOML"),
        ("x = '\udcff'", "not valid TOML"),
        ("[other]\nx = 1", "unknown settings ['other']"),
        ("search = 3", "[search] must be a table"),
        ("classification = 3", "[classification] must be a table"),
        ("x = " + "[" * 5000, "not valid TOML"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ('task = "chess"', "task must be"),
        ("a = " + "[" * 100_000, "settings.toml is not valid TOML"),
    ],
)
def test_bad_settings_files(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(text, errors="surrogateescape")
    code = asng(
        "search", "classification", "--data=digits", "--config", settings, "--out", tmp_path / "o"
    )
    assert code == 2
    assert words in capsys.readouterr().err


def test_a_broken_run_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    options = [*small.OPTIONS, "--out", str(folder)]
    args = make_parser().parse_args(["search", "classification", *options])
    Experiment.create(folder, make_config(tasks.get("classification"), args, None, {}), stream=None)
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
        "file; continuing from search.prev.pt"
    ]
    assert (folder / "search.csv").read_bytes() == (searched / "search.csv").read_bytes()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_a_lack_of_memory_is_no_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(commands, "run_resume", fail)
    assert asng("resume", "somewhere") == 2
    assert "memory" in (words := capsys.readouterr().err)
    assert words.endswith("a smaller batch_size needs less\n")


def test_other_runtime_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(commands, "run_resume", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        asng("resume", "somewhere")


def test_several_processes_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = tmp_path / "run"
    assert asng("search", "classification", *small.OPTIONS, "--out", folder) == 2
    assert "RANK, MASTER_ADDR, MASTER_PORT must be set" in capsys.readouterr().err
    assert asng("show", folder) == 2
    assert "for one process, and WORLD_SIZE is 2" in capsys.readouterr().err
    with pytest.raises(ValueError, match="WORLD_SIZE is 2"):
        Experiment.create(folder, {"task": "classification"})
    assert not folder.exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    args = make_parser().parse_args(["search", "classification", *small.OPTIONS])
    config = make_config(tasks.get("classification"), args, None, {})
    Experiment.create(folder, config, stream=None)


def test_runs_without_a_folder_get_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = make_parser().parse_args(["search", "classification", *small.OPTIONS])
    args.ranks = ALONE
    config = make_config(tasks.get("classification"), args, None, {})
    folders = {commands._create(args, "digits", config).run.path for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent == Path("runs") for folder in folders)


def asng_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    code = "import sys; from asng_ext.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        **{"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, **options},
        text=True,
        timeout=60,
    )


def test_the_command_is_installed(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("asng")
    result = subprocess.run(
        [command, "--version"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"asng-ext {version('asng-ext')}\n"


def test_help_on_a_terminal_without_greek_letters() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = asng_process("search", "classification", "--help", env=environment)
    assert result.returncode == 0, result.stderr
    assert "architectures per step, \\u03bb" in result.stdout


def test_help_does_not_wait_for_torch() -> None:
    code = """
import sys
from asng_ext.cli import main
commands = ["", "demo", "search", "search classification", "search inpainting", "resume"]
commands += ["retrain", "evaluate", "show", "predict", "export", "toy"]
commands += ["compare", "compare classification", "compare inpainting"]
for command in ["--version", *(f"{command} --help" for command in commands)]:
    try:
        main(command.split())
    except SystemExit as exit:
        assert exit.code == 0
    assert "torch" not in sys.modules, command
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_options_of_other_commands_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are hundreds, which take longer than the command ``show``."""
    made: list[str] = []
    add = parser._add_section

    def noted(of_command: Any, *given: Any, **named: Any) -> None:
        made.append(of_command.prog)
        add(of_command, *given, **named)

    monkeypatch.setattr(parser, "_add_section", noted)
    make_parser().parse_args(["show", "runs/digits"])
    assert not made
    make_parser().parse_args(["search", "classification"])
    assert made == 3 * ["asng search classification"]


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        asng(*command, "--help")
    return " ".join(capsys.readouterr().out.split())


def test_help_says_what_a_preset_runs(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of("search", "inpainting", capsys=capsys)
    for words in (
        "trains weights (celeba: 100; photos: 25)",
        "images per step (default: 16)",
        "--retrain-optimizer {sgd,adam} what trains the weights (default: adam)",
        "to choose from, in pixels (default: 1,3,5)",
    ):
        assert words in shown
    shown = help_of("retrain", capsys=capsys)
    assert "--schedule {cosine,steps}" in shown
    assert "--batch-size SIZE images per step --" in shown


@pytest.mark.parametrize(
    "command", [[], ["demo"], ["resume"], ["evaluate"], ["show"], ["export"], ["toy"]]
)
@pytest.mark.parametrize("width", ["40", "80"])
def test_every_command_has_help(
    command: list[str], width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert "usage: asng" in help_of(*command, capsys=capsys)


SECTIONS = [SearchConfig, RetrainConfig, *(kind.config for kind in map(tasks.get, tasks.names()))]


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_has_limits(section: type[Any]) -> None:
    section()  # the defaults are within
    for item in dataclasses.fields(section):
        if isinstance(item.default, (bool, str)):
            continue
        limits = item.metadata
        high = limits["high"] if limits["below"] is None else limits["below"]
        low = limits["low"] if limits["above"] is None else limits["above"]
        # The cosine ends below where it starts.
        more = {"learning_rate": high} if item.name == "learning_rate_min" else {}
        section(**more, **{item.name: type(item.default)((low + high) / 2)})
        wrong = [low - 1, high + 1, 2**63, -(2**63), 10**110, 10**400]
        for value in (*wrong, math.nan, math.inf, -math.inf, "1", None, True, [1]):
            with pytest.raises((ValueError, TypeError), match=f"^{item.name} must be "):
                section(**{item.name: value})
    with pytest.raises(TypeError, match="must be a table"):
        section_from(section, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["cifar10", "digits", "celeba", "photos"])
def test_presets_are_within_the_limits(preset: str) -> None:
    kind = next(kind for kind in map(tasks.get, tasks.names()) if preset in kind.presets)
    sections = {"search": SearchConfig, "retrain": RetrainConfig, kind.name: kind.config}
    for name, values in kind.presets[preset].items():
        section_from(sections[name], values)


def test_settings_that_are_checked_without_torch() -> None:
    fields = {item.name: item for item in dataclasses.fields(tasks.get("inpainting").config)}
    assert fields["mask"].metadata["choices"] == MASKS
    assert fields["image_size"].metadata["low"] == SSIM_WINDOW


TOY = ["toy", "--no-figure", "--runs=4", "--threads=1", "--powers", "0", "1", "--out"]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_nobody_reads_what_is_printed(stream: str, buffered: bool, tmp_path: Path) -> None:
    """A pipe whose reader has gone, and a full disk."""
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for broken, status in ((writer, 0), (full, 2)):
        out = tmp_path / str(broken)
        for arguments in (["--help"], [*TOY, out, "--iteration-limit=100"]):
            environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
            result = asng_process(*arguments, **{stream: broken}, env=environment)
            said = result.stderr or ""
            assert result.returncode == (status if stream == "stdout" else 0), said
            assert "Traceback" not in said
            assert "Exception ignored" not in said
            assert ("error: [Errno 28]" in said) == (stream == "stdout" and broken == full)
        assert (out / "toy.csv").is_file()
        os.close(broken)


def test_losing_the_terminal_loses_nothing(tmp_path: Path) -> None:
    """The process gets SIGHUP, and all that it writes fails."""
    leader = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from asng_ext.cli import main
sys.exit(main())
"""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", leader, *TOY, tmp_path, "--iteration-limit=20000"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    received = b""
    while b"succeed" not in received:
        received += os.read(screen, 4096)
    os.close(screen)
    assert process.wait(timeout=60) == 0
    assert len(read_rows(tmp_path / "toy.csv")) == 2 * 3 * 2 * 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_search_with_the_command_that_goes_on(
    number: signal.Signals, searched: Path, tmp_path: Path
) -> None:
    """In a process that is forked, and the run continues to what it would have been."""
    folder = tmp_path / "a run"
    command = ["search", "classification", *small.OPTIONS, "--seed=3", "--checkpoint-minutes=1e-9"]

    def work() -> int:
        with open(tmp_path / "err", "w") as err, contextlib.redirect_stderr(err):
            return asng(*command, "--out", folder)

    child = forked(work)
    # Until it is over, it is there to be sent a signal to.
    while not (folder / "search.pt").exists() and not os.waitid(
        os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.01)
    os.kill(child, number)
    assert exit_status(child) == 128 + number
    said = (tmp_path / "err").read_text()
    (continuing,) = re.findall(r"^asng: interrupted; to continue: asng (.*)$", said, re.M)
    assert asng(*shlex.split(continuing)) == 0
    assert (folder / "search.csv").read_bytes() == (searched / "search.csv").read_bytes()


@pytest.mark.parametrize(
    ("stage", "expected"), [("search", "asng resume {}"), ("retrain", "asng retrain {}")]
)
def test_an_interruption_says_how_to_go_on(
    stage: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Experiment, "search", lambda self: {})
    monkeypatch.setattr(Experiment, "retrain", lambda self: {})
    monkeypatch.setattr(Experiment, stage, interrupted)
    folder = tmp_path / "a run"
    for arguments in (["demo", "--out", folder], [*expected.split()[1:2], folder]):
        assert asng(*arguments) == 130
        said = capsys.readouterr().err
        assert f"interrupted; to continue: {expected.format(shlex.quote(str(folder)))}\n" in said


def test_an_interruption_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Experiment, "create", interrupted)
    out = tmp_path / "out"
    assert asng("search", "classification", "--data=digits", "--out", out) == 130
    assert f"asng search classification --data=digits --out {out}\n" in capsys.readouterr().err


def test_settings_are_checked_before_data_are_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["search", "inpainting", "--data", tmp_path / "missing"]
    for wrong, words in {
        "--kernels=1,2": "[inpainting]: kernels must be",
        "--channels=99999": "[inpainting]: channels must be",
        "--alpha=inf": "[search]: alpha must be",
        "--retrain-epochs=0": "[retrain]: epochs must be",
        "--seed=-1": "seed must be",
        "--weight-decay=0.1": "weight_decay of the search must be 0",
    }.items():
        assert asng(*missing, wrong, "--out", tmp_path / "out") == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_word_about_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Experiment, "search", lambda self: {})
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    assert asng("search", "classification", *small.OPTIONS, "--out", tmp_path / "run") == 0
    assert capsys.readouterr().err.count("tensorboard is not installed") == 1


@pytest.mark.parametrize("threads", [None, 3])
def test_threads_of_the_demo(threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def refuse(path: object, config: dict[str, Any], **others: Any) -> None:
        seen.update(config)
        raise ValueError("that is all")

    monkeypatch.setattr(Experiment, "create", refuse)
    given = [] if threads is None else ["--threads", threads]
    assert asng("demo", *given) == 2
    expected = [1 if threads is None else threads] * 2  # that of the preset
    assert [seen[name]["threads"] for name in ("search", "retrain")] == expected


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("search classification", "--precision=bfloat16", "--search-precision"),
        ("search inpainting", "--precision=bfloat16", "--search-precision"),
        ("retrain run", "--precision=bfloat16", "--retrain-precision"),
        ("toy", "--output=folder", "--out"),
    ],
)
def test_options_of_earlier_versions(
    command: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, value = old.partition("=")
    for words in ([old], old.split("=")):
        renamed = cli._with_new_names([*command.split(), *words])
        args = vars(make_parser().parse_args(renamed))
        assert args == vars(make_parser().parse_args([*command.split(), new, value]))
        name = command.split()[0]
        note = f"asng: note: {old.partition('=')[0]} of `asng {name}` is now {new}\n"
        assert capsys.readouterr().err == note
    assert cli._with_new_names(["evaluate", old]) == ["evaluate", old]
    assert cli._with_new_names([]) == []


def test_options_of_retraining_are_those_of_the_search_as_well() -> None:
    parse = make_parser().parse_args
    for item in dataclasses.fields(RetrainConfig):
        name = item.metadata["option"] or f"retrain-{item.name.replace('_', '-')}"
        choices = item.metadata["choices"]
        if isinstance(item.default, bool):
            options = {True: [f"--{name}"], False: [f"--no-{name}"]}
        else:
            value = choices[-1] if choices else item.default
            options = {value: [f"--{name}", str(value)]}
        for value, words in options.items():
            for command in (["search", "classification"], ["retrain", "run"]):
                assert vars(parse([*command, *words]))[f"retrain.{item.name}"] == value


def test_a_precision_for_each_phase() -> None:
    both = ["--search-precision=bfloat16", "--retrain-precision=float32"]
    args = make_parser().parse_args(["search", "classification", *both])
    config = make_config(tasks.get("classification"), args, None, {})
    assert config["classification"]["precision"] == "bfloat16"
    assert config["retrain"]["precision"] == "float32"


def test_a_search_optimizer_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = help_of("search", "classification", capsys=capsys)
    assert "--search-optimizer {ASNG,SNG,NaturalAdam}" in shown
    monkeypatch.setattr(Experiment, "search", lambda self: {})
    options = [*small.OPTIONS, "--search-optimizer=SNG", "--step-size=0.5", "--out", tmp_path]
    assert asng("search", "classification", *options) == 0
    assert RunFolder(tmp_path).read_config()["search"]["optimizer"] == "SNG"
    assert type(Experiment.open(tmp_path).optimizer()).__name__ == "SNG"
