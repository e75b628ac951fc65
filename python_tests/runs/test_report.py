"""What is said of a run, in every state it can be in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs

from asng_ext import cli
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.report import report


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of a run when it was new, searched and retrained."""
    folder = tmp_path_factory.mktemp("runs")
    experiment = small_runs.classification(folder / "run")
    copies: dict[str, Path] = {}

    def keep(state: str) -> None:
        copies[state] = folder / state
        shutil.copytree(folder / "run", copies[state])

    keep("new")
    experiment.search()
    keep("searched")
    experiment.retrain()
    keep("retrained")
    return copies


def lines_of(path: Path) -> dict[str, str]:
    """Lines by the word they begin with, with those that they go on in."""
    whole = report(RunFolder.open(path)).replace("\n" + " " * 12, " ")
    lines = [line.partition(":") for line in whole.splitlines()]
    return {name.strip(): text.strip() for name, _, text in lines}


def test_a_new_run(states: dict[str, Path]) -> None:
    path = states["new"]
    assert lines_of(path) == {
        "run": f"{path} (classification, data digits, seed 0)",
        "search": "not begun",
        "next": f"asng resume {path}",
    }


def test_a_search_that_was_interrupted(states: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "a run"
    shutil.copytree(states["searched"], path)
    (path / "architecture.json").unlink()
    run = RunFolder.open(path)
    config = run.read_config()
    config["search"]["epochs"] = 7
    run.write_config(config)
    shown = lines_of(path)
    assert shown["search"].startswith("1 of 7 epochs; train_loss ")
    assert ", convergence 0." in shown["search"]
    assert "epoch 1" not in shown["search"]
    assert shown["next"] == f"asng resume '{path}'"
    assert "retraining" not in shown


def test_a_run_that_was_searched(states: dict[str, Path]) -> None:
    path = states["searched"]
    shown = lines_of(path)
    found = json.loads((path / "architecture.json").read_text())
    values = found["architecture"]
    assert shown["normal/node0"] == " ".join(
        f"{name}={values[f'normal/node0/{name}']}"
        for name in ("input0", "input1", "operation0", "operation1")
    )
    likely = found["probabilities"].values()
    assert shown["found"] == (
        f"choices of probability {sum(likely) / len(likely):.3f} on average, "
        f"{min(likely):.3f} at least"
    )
    assert f"parameters {found['network']['parameters']}," in shown["size"]
    ties = found["near_ties"]
    nearest = min(ties, key=lambda name: -float.__sub__(*reversed(ties[name].values())))
    (value, p), (other, q) = ties[nearest].items()
    assert shown["near ties"].startswith(f"{nearest} ({value} {p:.2f}, {other} {q:.2f}), ")
    assert shown["near ties"].endswith(f", and {len(ties) - 3} more")
    assert shown["retraining"] == "not begun"
    assert shown["next"] == f"asng retrain {path}"


def test_a_run_that_was_retrained(states: dict[str, Path], tmp_path: Path) -> None:
    path = states["retrained"]
    shown = lines_of(path)
    tested = json.loads((path / "results.json").read_text())
    expected = f"test loss {tested['loss']:.4f}, test accuracy {tested['accuracy']:.4f}"
    assert shown["retraining"].startswith("2 of 2 epochs; train_loss ")
    assert shown["network"] == expected
    accuracies = {name: each["accuracy"] for name, each in tested["classes"].items()}
    least = sorted(accuracies, key=lambda name: accuracies[name])[:3]
    assert shown["hardest"] == "of 10 classes: " + ", ".join(
        f"{name} {accuracies[name]:.3f}" for name in least
    )
    assert shown["next"] == f"asng export {path}"
    assert shown["or"] == f"asng predict {path} IMAGE..."
    # Begun anew with more epochs, of which these are some.
    copy = tmp_path / "run"
    shutil.copytree(path, copy)
    run = RunFolder.open(copy)
    config = run.read_config()
    config["retrain"]["epochs"] = 9
    run.write_config(config)
    shown = lines_of(copy)
    assert shown["retraining"].startswith("2 of 9 epochs")
    assert shown["network"] == expected + " (of the network of a retraining before)"
    assert shown["next"] == f"asng retrain {copy}"


@pytest.mark.filterwarnings("always")  # of what is tested here
def test_a_search_that_went_on_after_the_retraining(
    states: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network is still that of the architecture of before, which all say that use it."""
    path = tmp_path / "a run"
    shutil.copytree(states["retrained"], path)
    run = RunFolder.open(path)
    found = run.read_json("architecture.json")
    values = found["architecture"]
    for name in ("normal/node0/input0", "reduction/node0/input1"):
        values[name] = {"older": "newer", "newer": "older"}[values[name]]
    run.write_json("architecture.json", found)

    words = f"of an architecture found before: 2 of {len(values)} choices are others in"
    shown = lines_of(path)
    assert shown["network"].endswith(f" ({words} architecture.json)")
    folder = f"'{path}'"
    assert shown["next"] == f"asng retrain {folder} --restart"
    assert shown["or"] == f"asng export {folder}, for the network of before"
    for command in ("evaluate", "export"):
        assert cli.main([command, str(path)]) == 0
        warned = capsys.readouterr().err
        assert f"asng: warning: the network in {path} is {words}" in warned
        assert f"`{shown['next']}`" in warned
    assert cli.main(["retrain", str(path)]) == 2
    assert f"begin anew with `{shown['next']}`" in capsys.readouterr().err
    assert cli.main(["retrain", str(path), "--restart"]) == 0
    assert lines_of(path)["next"] == f"asng export {folder}"
    assert run.read_json("results.json")["architecture"] == values
    assert cli.main(["export", str(path)]) == 0
    assert "warning" not in capsys.readouterr().err

    # What the network does not need may be damaged.
    (path / "architecture.json").write_text("{")
    assert cli.main(["export", str(path)]) == 0


def test_what_a_search_that_goes_on_says(
    states: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(states["retrained"], path)
    results = RunFolder.open(path).read_json("results.json")
    RunFolder.open(path).write_json("results.json", {**results, "architecture": {"a": "b"}})
    assert cli.main(["resume", str(path)]) == 0
    assert f"retrain it:   asng retrain {path} --restart\n" in capsys.readouterr().out
    RunFolder.open(path).file("retrain.pt").unlink()  # then there is nothing to continue
    assert lines_of(path)["next"] == f"asng retrain {path}"


def test_lines_fit_into_80_columns(
    states: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = states["retrained"]
    monkeypatch.chdir(path.parent)
    lines = report(RunFolder.open(path.name)).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith(" " * 12) for line in lines) >= 6
    # What is to be copied is not broken.
    deep = path.parent.joinpath(*["a folder of a long name"] * 5)
    shutil.copytree(path, deep)
    lines = report(RunFolder.open(deep)).splitlines()
    assert f"next:       asng export '{deep}'" in lines


def test_an_autoencoder_is_shown_by_its_layers(tmp_path: Path) -> None:
    experiment = small_runs.inpainting(tmp_path / "run")
    experiment.search()
    layers = experiment.run.read_json("architecture.json")["network"]["layers"]
    assert f"layers [{'; '.join(layers)}]" in lines_of(tmp_path / "run")["size"]


def test_a_run_in_use_is_left_to_its_user(states: dict[str, Path]) -> None:
    path = states["searched"]
    with RunFolder.open(path).lock():
        shown = lines_of(path)
        assert shown["in use"].startswith("by process ")
        assert shown["next"] == f"asng show {path}, once that has ended"
    assert "in use" not in lines_of(path)
    (path / ".lock").write_text("process 1 on a machine that was switched off")
    assert "in use" not in lines_of(path)
    (path / ".lock").unlink()


def test_the_command_only_reads_and_does_not_wait_for_torch(states: dict[str, Path]) -> None:
    path = states["retrained"]
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    code = f"""
import sys
from asng_ext.cli import main
assert main(["show", {str(path)!r}]) == 0
assert "torch" not in sys.modules
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert printed.stdout.decode() == report(RunFolder.open(path)) + "\n"
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before


def test_broken_runs_are_named(
    states: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(tmp_path)]) == 2
    assert "no config.toml" in capsys.readouterr().err
    path = tmp_path / "run"
    shutil.copytree(states["retrained"], path)
    (path / "results.json").write_text("{")
    assert cli.main(["show", str(path)]) == 2
    assert "results.json is not valid JSON" in capsys.readouterr().err
    (path / "config.toml").write_text('task = "classification"\n')
    assert cli.main(["show", str(path)]) == 2
    assert "must say how many epochs [search] has" in capsys.readouterr().err


def test_every_state_says_a_command_that_works(states: dict[str, Path], tmp_path: Path) -> None:
    """From a new run on, the commands that are shown lead to a network in a file."""
    path = tmp_path / "run"
    shutil.copytree(states["new"], path)
    typed = []
    while not typed or typed[-1] != "export":
        command = lines_of(path)["next"].split()
        assert cli.main(command[1:]) == 0
        typed.append(command[1])
    assert typed == ["resume", "retrain", "export"]
    assert (path / "network.pt2").is_file()
