"""Which kernels search the fastest, where trials go wrong in every way, and a real trial."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest
import small_runs
import torch

from asng_ext.engine import autotune, kernel_trial
from asng_ext.engine.autotune import Tuned, chosen_environment, tune
from asng_ext.engine.experiment import Experiment
from asng_ext.ops import _libraries, autoencoder
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.classification import ClassificationTask

NAMES = ("usual", "quick", "slow", "slow too", "crash", "error", "wrong", "nan", "a bit quicker")
CHILD = (
    sys.executable,
    "-c",
    """
import json, os, sys, time
config, candidates, first = json.loads(sys.stdin.readline())
assert ("RANK" in os.environ) == ("WORLD_SIZE" in os.environ) == False
assert first == {} if "usual" in candidates else first["loss"] == 2
print("something else, as libraries print", 1, [], {"a": 1}, {"name": "b", "c": 1}, sep="\\n")
for name in candidates:
    print(json.dumps({"name": name}), flush=True)
    if name in config["broken"]:
        sys.exit("no GPU at all")
    if name == "crash":
        os.abort()
    if "slow" in name:
        time.sleep(0.7)
    if name == "hang":
        time.sleep(600)
    result = {"seconds": {"quick": 1e-3, "a bit quicker": 0.98e-3}.get(name, 2e-3)}
    result["loss"] = {"wrong": 2.2, "nan": float("nan")}.get(name, 2.0)
    print(json.dumps({"name": name, **({"error": "no"} if name == "error" else result)}))
""",
)
"""Stands for a trial: what a candidate does is as its name says."""


def tuned(
    kept: Path | None = None,
    broken: str = "",
    names: tuple[str, ...] = NAMES,
    stream: TextIO | None = None,
) -> Tuned | None:
    candidates = {name: {"ASNG_TRIED": name} for name in names}
    return tune(candidates, {"broken": [broken]}, kept, stream, command=CHILD, timeout=1)


def test_the_fastest_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = tuned()
    assert found is not None
    assert (found.name, found.variables) == ("quick", {"ASNG_TRIED": "quick"})
    # The slow ones take longer together than a trial may be silent.
    expected = {"usual": 2, "quick": 1, "slow": 2, "slow too": 2, "a bit quicker": 0.98}
    assert found.milliseconds == expected
    assert found.failed == {
        "crash": "it ended by SIGABRT",
        "error": "no",
        "wrong": "its mean loss was 2.2, not 2",
        "nan": "its mean loss was nan, not 2",
    }
    words = str(found)
    assert words.startswith("kernels: quick (usual 2.00 ms, quick 1.00 ms, ")
    assert "crash failed: it ended by SIGABRT" in words


def test_nothing_is_tried_after_one_that_hangs() -> None:
    found = tuned(names=("usual", "hang", "quick"))
    assert found is not None
    assert (found.name, found.milliseconds) == ("usual", {"usual": 2})
    assert found.failed == {"hang": "it took more than 1 seconds", "quick": "not tried"}


def test_a_trial_ends_with_who_started_it(tmp_path: Path) -> None:
    """However that ends."""
    code = "import time; from asng_ext.engine import kernel_trial as trial"
    code += "; trial.measure = lambda *_, **__: time.sleep(9); trial.main()"
    run = small_runs.classification(tmp_path / "run")
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        print(json.dumps([run.config, {}, {}]), file=process.stdin, flush=True)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.stdin.close()
        assert process.wait(30) == 1


def test_nothing_is_found_without_the_first() -> None:
    said = io.StringIO()
    assert tuned(broken="usual", stream=said) is None
    assert said.getvalue().endswith("search: none could be tried: no GPU at all\n")
    assert tune({"a": {}}, {}, None, command=("/no/such/program",)) is None


def test_a_trial_runs_no_file_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text('raise SystemExit("of the user")')
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    assert tune({"usual": {}}, {"task": "none"}, None, said) is None
    assert "task must be" in said.getvalue()


def test_what_was_found_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "kernels.json"
    some = partial(tuned, names=("usual", "quick"))
    found = some(kept)
    assert found is not None
    assert some(kept, broken="usual") == found
    kept.write_text(kept.read_text().replace('"ASNG_TRIED": "quick"', '"ASNG_TRIED": "other"'))
    assert some(kept, broken="usual") is None
    kept.write_text("{")
    assert some(kept) == found
    assert some(kept, broken="usual") == found
    assert some(kept / "where none can be") == found
    other = tmp_path / "other.json"
    found = some(other, names=("usual", "quick", "error"))
    assert found is not None
    assert found.name == "quick"
    assert not other.exists()  # it may be another time that it works


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASNG_OLD", "1")
    monkeypatch.delenv("ASNG_NEW", raising=False)
    with contextlib.suppress(KeyError), chosen_environment({"ASNG_OLD": "2", "ASNG_NEW": "3"}):
        assert (os.environ["ASNG_OLD"], os.environ["ASNG_NEW"]) == ("2", "3")
        raise KeyError
    assert os.environ["ASNG_OLD"] == "1"
    assert "ASNG_NEW" not in os.environ


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Mapping[str, Any]]:
    """Runs whose classification has two ways to be computed, and trials that are written down."""
    seen: list[Mapping[str, Any]] = []

    def noted(candidates: Any, settings: Mapping[str, Any], kept: Path | None, _: Any) -> Tuned:
        seen.append(settings)
        assert (kept is None) == (os.environ.get("HOME") == "none")
        return Tuned("b", candidates["b"], {"a": 2.0, "b": 1.0}, {})

    monkeypatch.setattr(
        ClassificationTask, "kernel_candidates", {"a": {"ASNG_X": "1"}, "b": {"ASNG_X": "2"}}
    )
    monkeypatch.setattr(autotune, "LEAST_STEPS", 1)
    monkeypatch.setattr(autotune, "tune", noted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ASNG_X", raising=False)
    return seen


@pytest.mark.filterwarnings("ignore:.* continues to ")
def test_a_search_takes_what_was_found_and_resumes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: list[Any]
) -> None:
    seen: list[str | None] = []
    losses = ClassificationTask.losses

    def noted(self: Any, *args: Any) -> Any:
        seen.append(os.environ.get("ASNG_X"))
        return losses(self, *args)

    monkeypatch.setattr(ClassificationTask, "losses", noted)
    run = small_runs.classification(tmp_path / "run")
    run.search()
    assert set(seen) == {"2"}
    assert "ASNG_X" not in os.environ
    assert len(tries) == 1
    assert json.loads((tmp_path / "run" / "kernels.json").read_text()) == {
        "device": "cpu",
        "name": "b",
        "variables": {"ASNG_X": "2"},
        "milliseconds": {"a": 2.0, "b": 1.0},
        "failed": {},
    }
    seen.clear()
    Experiment.open(tmp_path / "run", loops={"search": {"epochs": 2}}, stream=None).search()
    assert set(seen) == {"2"}
    assert len(tries) == 1

    # Of another GPU.
    kernels = tmp_path / "run" / "kernels.json"
    kernels.write_text(kernels.read_text().replace('"cpu"', '"another"'))
    Experiment.open(tmp_path / "run", loops={"search": {"epochs": 3}}, stream=None).search()
    assert len(tries) == 2
    assert json.loads(kernels.read_text())["device"] == "cpu"

    # Of kernels that there are no longer.
    kernels.write_text(kernels.read_text().replace('"ASNG_X": "2"', '"ASNG_Y": 3'))
    Experiment.open(tmp_path / "run", loops={"search": {"epochs": 4}}, stream=None).search()
    assert len(tries) == 3
    assert json.loads(kernels.read_text())["variables"] == {"ASNG_X": "2"}

    kernels.write_text("{}")
    with pytest.raises(ValueError, match=r"kernels\.json.*remove it"):
        Experiment.open(tmp_path / "run", loops={"search": {"epochs": 5}}, stream=None).search()

    # Begun without a trial, as by an earlier version.
    kernels.unlink()
    seen.clear()
    Experiment.open(tmp_path / "run", loops={"search": {"epochs": 5}}, stream=None).search()
    assert set(seen) == {None}
    assert len(tries) == 3


def test_a_search_of_a_user_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: list[Any]
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    run = small_runs.classification(tmp_path / "run")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("HOME", "none")  # for what stands for the trial
    assert run._kernel_variables() == {"ASNG_X": "2"}


@pytest.mark.parametrize("why", ["off", "short", "chosen", "another strategy", "nothing found"])
def test_a_search_without_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: list[Any], why: str
) -> None:
    run = small_runs.classification(tmp_path / "run")
    config = {**run.config, "search": dict(run.config["search"])}
    if why == "off":
        config["search"]["autotune"] = False
    elif why == "short":
        monkeypatch.setattr(autotune, "LEAST_STEPS", 1000)
    elif why == "chosen":
        monkeypatch.setenv("ASNG_X", "1")
    elif why == "another strategy":
        config["search"]["strategy"] = "random"
    else:
        monkeypatch.setattr(autotune, "tune", lambda *_: None)
    run = Experiment(RunFolder(tmp_path / "run"), config, stream=None)
    assert run._kernel_variables() == {}
    assert not (tmp_path / "run" / "kernels.json").exists()
    assert not tries


def test_a_trial_of_the_first_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of a trial as it is, on a CPU: the same numbers whatever the variables are."""
    monkeypatch.delenv("ASNG_CUDA_PATH", raising=False)
    run = small_runs.classification(tmp_path / "run")
    candidates = {"a": {"ASNG_CUDA_PATH": "auto"}, "b": {"ASNG_CUDA_PATH": "generic"}}
    found = tune(candidates, run.config, None)
    assert found is not None
    assert found.failed == {}
    assert found.milliseconds.keys() == {"a", "b"}
    assert all(0 < time < 10_000 for time in found.milliseconds.values())
    assert found.name in candidates
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.toml"]


@pytest.mark.cuda
@pytest.mark.parametrize("task", ["classification", "inpainting"])
def test_all_candidates_work_on_a_gpu(tmp_path: Path, task: str) -> None:
    config = {**getattr(small_runs, task)(tmp_path / "run").config, "device": "cuda"}
    candidates = Experiment(RunFolder(tmp_path / "run"), config, None).task.kernel_candidates
    found = tune(candidates, config, None)
    assert found is not None
    assert found.failed == {}
    assert found.milliseconds.keys() == candidates.keys()


def test_what_a_trial_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As many steps are timed as there are, also over the end of the data, and all candidates
    compute the same but for what their variables change."""
    run = small_runs.classification(tmp_path / "run")
    monkeypatch.setattr(kernel_trial, "SECONDS", 0.0)
    monkeypatch.setattr(kernel_trial, "WARM_UPS", 2)
    losses = ClassificationTask.losses

    def changed(self: Any, *args: Any) -> Any:
        loss, metrics = losses(self, *args)
        if os.environ.get("ASNG_X") == "raise":
            raise RuntimeError("cannot be computed so\nmore words")
        return loss * (2 if os.environ.get("ASNG_X") == "double" else 1), metrics

    monkeypatch.setattr(ClassificationTask, "losses", changed)
    lines: list[dict[str, Any]] = []
    kernel_trial.measure(
        run.task,
        run.method,
        run.search_config,
        {name: {"ASNG_X": name} for name in ("usual", "same", "double", "raise")},
        {},
        seed=0,
        device=torch.device("cpu"),
        write=lambda line: lines.append(json.loads(line)),
    )
    assert lines[::2] == [{"name": name} for name in ("usual", "same", "double", "raise")]
    usual, same, double, failed = lines[1::2]
    assert usual["steps"] == same["steps"] == kernel_trial.FEWEST > run.task.search_steps - 2
    assert same["loss"] == usual["loss"]
    assert double["loss"] > 1.5 * usual["loss"]
    assert failed == {"name": "raise", "error": "cannot be computed so"}


def test_a_trial_waits_for_the_gpu_that_it_is_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_runs.classification(tmp_path / "run")
    monkeypatch.setattr(kernel_trial, "SECONDS", 0.0)
    monkeypatch.setattr(kernel_trial, "WARM_UPS", 1)
    waits: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waits.append(device))
    device = torch.device("cuda", 1)
    lines: list[str] = []
    measure = partial(kernel_trial.measure, seed=0, device=device, write=lines.append)
    measure(run.task, run.method, run.search_config, {"usual": {}}, {})
    assert "seconds" in lines[-1]
    assert waits == [device] * 4  # before and after the steps, of the few and of those that count


@pytest.mark.parametrize("hopper", [True, False])
def test_candidates_of_autoencoders(monkeypatch: pytest.MonkeyPatch, hopper: bool) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda _: (9, 0) if hopper else (12, 0)
    )
    device = torch.device("cuda")
    found = autoencoder.candidates(torch.bfloat16, device)
    products = ["mma", "wgmma"] if hopper else ["mma"]
    ours = [f"{layers}, {product}" for layers in ("each", "persistent") for product in products]
    assert list(found) == [*ours, "cuDNN"]
    # The first is what is taken without any variables, and each says what it is.
    words = []
    for variables in ({}, *found.values()):
        with chosen_environment(variables):
            words.append(autoencoder.convolutions(torch.bfloat16))
    assert words[0] == words[1]
    assert len(set(words)) == len(found)
    assert autoencoder.candidates(torch.float64, device) == {}
    monkeypatch.setattr(autoencoder, "allows_tf32", lambda: False)
    assert autoencoder.candidates(torch.float32, device) == {}
    monkeypatch.setattr(autoencoder, "allows_tf32", lambda: True)
    assert autoencoder.candidates(torch.float32, device) == found


@pytest.mark.parametrize("usable", [True, False])
def test_candidates_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: bool) -> None:
    """There are some where there are kernels, and none on a CPU."""
    monkeypatch.setattr(_libraries, "_cuda_problem", None if usable else "no library")
    monkeypatch.setattr(_libraries, "cuda_available", lambda: usable)
    monkeypatch.setattr(autoencoder, "cuda_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(autoencoder, "allows_tf32", lambda: True)
    for name in ("classification", "inpainting"):
        run = getattr(small_runs, name)(tmp_path / name)
        assert run.task.kernel_candidates == {}
        run.task.device = torch.device("cuda")
        assert bool(run.task.kernel_candidates) == usable
