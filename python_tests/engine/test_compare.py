"""Comparisons of strategies under the same budget."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import shlex
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import small_runs
from odd_jobs import endless_test, odd

from asng_ext import cli, strategies
from asng_ext.engine import compare as compare_module
from asng_ext.engine import comparison, contestants
from asng_ext.engine.compare import compare
from asng_ext.engine.comparison import RunName
from asng_ext.engine.contestants import Budget, contestant
from asng_ext.engine.experiment import Experiment
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.strategies import StrategyKind, registry
from asng_ext.strategies.sampling import RandomSearch

CONFIG: dict[str, Any] = {
    "task": "classification",
    "search": {"batch_size": 256, "learning_rate": 0.05, "threads": 1},
    "retrain": {"epochs": 1, "batch_size": 512, "threads": 1},
    "classification": asdict(small.TASK),
}
TWO_EPOCHS = Budget(steps=3)  # there are two steps in an epoch
OPTIONS = [
    *(option for option in small.OPTIONS if not option.startswith("--epochs")),
    "--retrain-epochs=1",
    "--threads=1",
    "--retrain-threads=1",
]


def asng(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{n: v for n, v in row.items() if not n.endswith("_seconds")} for row in rows]


def rows_in(folder: Path) -> list[dict[str, str]]:
    with open(folder / "compare.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.pictures("compare")
def test_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "comparison"
    command = ["compare", "classification", *OPTIONS, "--out", folder]
    assert asng(*command, "--strategies", "asng", "--seeds=1", "--budget=steps=3") == 0
    said = capsys.readouterr()
    (line,) = re.findall(r"^1/1 asng seed 0: error [\d.]+ %, search 0\.\d min, .*$", said.err, re.M)
    results = json.loads((folder / "asng-seed0" / "results.json").read_text())
    found = json.loads((folder / "asng-seed0" / "architecture.json").read_text())
    assert f"error {100 * (1 - results['accuracy']):.2f} %" in line
    assert line.endswith(f" {found['network']['parameters']:,} parameters")
    assert "epoch" not in said.err.replace("2 epochs for steps=3", "")  # of the run itself
    (row,) = rows_in(folder)
    with open(folder / "asng-seed0" / "search.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    times = json.loads((folder / "asng-seed0" / "times.json").read_text())
    assert times["steps_per_epoch"] == 2
    assert len(times["search"]) == 2
    assert (row["steps"], row["epochs"], row["seed"]) == ("4", "2", "0")
    assert float(row["search_seconds"]) == pytest.approx(sum(times["search"]))
    assert float(row["retrain_seconds"]) == times["retrain"] > 0
    assert int(row["parameters"]) == found["network"]["parameters"]
    assert float(row["supernet_error"]) == pytest.approx(100 * (1 - float(last["test_accuracy"])))
    assert float(row["test_error"]) == pytest.approx(100 * (1 - results["accuracy"]))
    assert float(row["test_loss"]) == results["loss"]
    assert (folder / "figure2.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "compare.txt").read_text()
    assert text in said.out
    _, _, reported = text.partition("\nreported in the paper, of CIFAR-10:\n")
    assert re.search(r"^ASNG-NAS +2\.83 ± 0\.14 ", reported, re.M)
    words = "reported numbers are of CIFAR-10, and not to be compared with those of digits"
    assert words in " ".join(text.split())

    # What is done is kept, and what is missing is added.
    before = (folder / "asng-seed0" / "search.pt").stat().st_mtime_ns
    assert asng(*command, "--strategies", "sng", "asng", "--seeds=2", "--budget=steps=3") == 0
    said = capsys.readouterr()
    assert said.err.count("error") == 3
    assert "1 of 4 runs are done" in said.err
    assert (folder / "asng-seed0" / "search.pt").stat().st_mtime_ns == before
    rows = rows_in(folder)
    assert sorted((row["strategy"], row["seed"]) for row in rows) == [
        (strategy, seed) for strategy in ("asng", "sng") for seed in "01"
    ]
    for strategy in ("asng", "sng"):
        errors = [float(row["test_error"]) for row in rows if row["strategy"] == strategy]
        shown = f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f}"
        assert re.search(rf"^{strategy} +2 +{shown} ", (folder / "compare.txt").read_text(), re.M)
    config = RunFolder(folder / "sng-seed1").read_config()
    assert (config["seed"], config["search"]["strategy"]) == (1, "sng")

    # Another budget or other settings are refused, and nothing changes.
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = {
        "--budget=steps=5": "budget was steps=3 and is steps=5",
        "--momentum=0.8": "search.momentum was 0.9 and is 0.8",
    }
    for option, words in refused.items():
        assert asng(*command, "--budget=steps=3", "--strategies", "asng", option) == 2
        error = capsys.readouterr().err
        assert f"{folder} must be a comparison with the settings given, but {words}; " in error
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interruption_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["asng", "sng"]
    expected = compare(tmp_path / "a", CONFIG, names, TWO_EPOCHS, seeds=1, stream=None)
    search, retrain = Experiment.search, Experiment.retrain

    def search_until_signal(self: Experiment, *, callback: Any) -> dict[str, Any]:
        def interrupting(row: dict[str, float], seconds: float) -> None:
            callback(row, seconds)
            if self.search_config.strategy == "sng" and row["epoch"] == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

        return search(self, callback=interrupting)

    def interrupted(self: Experiment) -> dict[str, float]:
        raise KeyboardInterrupt

    for method, replaced in ((("retrain"), interrupted), ("search", search_until_signal)):
        with monkeypatch.context() as patch:
            patch.setattr(Experiment, method, replaced)
            with pytest.raises(KeyboardInterrupt):
                compare(tmp_path / "b", CONFIG, names, TWO_EPOCHS, seeds=1, stream=None)
    monkeypatch.setattr(Experiment, "retrain", retrain)
    run = RunFolder(tmp_path / "b" / "sng-seed0")
    assert len(run.read_json("times.json")["search"]) == 1
    times = run.read_json("times.json")
    # An epoch that the checkpoint does not have.
    run.write_json("times.json", {**times, "search": [*times["search"], 1e9]})
    continued = compare(tmp_path / "b", CONFIG, names, TWO_EPOCHS, seeds=1, stream=None)
    assert without_times(continued.rows) == without_times(expected.rows)
    assert len(run.read_json("times.json")["search"]) == 2
    assert continued.rows[1]["search_seconds"] < 1e6
    strip = re.compile(r"[\d.]+ min")
    assert strip.sub("", continued.table) == strip.sub("", expected.table)


def test_a_strategy_that_fails_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = Experiment.search

    def failing(self: Experiment, **named: Any) -> dict[str, Any]:
        if self.search_config.strategy == "asng":
            raise FloatingPointError("no loss is finite")
        return search(self, **named)

    command = ["compare", "classification", *OPTIONS, "--out", tmp_path / "c", "--seeds=1"]
    command += ["--strategies", "asng", "sng", "--budget=steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "search", failing)
        assert asng(*command) == 2
    said = capsys.readouterr()
    assert "1/2 asng seed 0 failed: FloatingPointError: no loss is finite\n" in said.err
    assert "2/2 sng seed 0: error" in said.err
    again = re.findall(
        r"^asng: error: 1 runs have failed; to try them again: asng (.*)", said.err, re.M
    )
    assert shlex.split(again[0]) == list(map(str, command))
    assert "missing: asng seed 0: FloatingPointError: no loss is finite\n" in said.out
    assert [row["strategy"] for row in rows_in(tmp_path / "c")] == ["sng"]
    assert asng(*command) == 0
    assert "missing" not in capsys.readouterr().out
    assert [row["strategy"] for row in rows_in(tmp_path / "c")] == ["asng", "sng"]


@pytest.mark.slow
def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give the numbers of one. One that dies takes no other with it, and one that is ended
    outside of a loop notes how long it took. Starting them takes most of the time."""
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)  # of the processes, too: they draw nothing
    budget = Budget(steps=1)
    one = compare(tmp_path / "1", CONFIG, ["asng"], budget, seeds=2, stream=None)
    jobs = [compare_module._Job(tmp_path, RunName("x", seed), {}, 1) for seed in (3, 1, 2, 4)]
    with compare_module._Workers(2) as workers:
        monkeypatch.setattr(compare_module, "_Workers", lambda _: contextlib.nullcontext(workers))
        two = compare(
            tmp_path / "2", CONFIG, ["asng"], budget, seeds=2, processes=2, stream=None
        )  # fmt: skip
        found = {job.name.seed: outcome for job, outcome in workers.outcomes(odd, jobs)}
        processes = [worker.process for worker in workers._workers]
        begun = time.monotonic()
        workers._workers[0].connection.send((endless_test, jobs[0]))
        while not (tmp_path / "begun").exists():
            assert processes[0].is_alive()
            time.sleep(0.01)
    assert len(two.rows) == 2
    assert without_times(two.rows) == without_times(one.rows)

    results = {seed: outcome.result for seed, outcome in found.items()}
    assert results == {3: None, 1: 10, 2: None, 4: 40}
    assert found[3].cause == "its process has ended with status -9"
    assert found[2].cause == "ZeroDivisionError"
    assert not any(process.is_alive() for process in processes)

    times = RunFolder(jobs[0].folder).read_json("times.json")
    assert 0.2 <= times["retrain"] < time.monotonic() - begun


@pytest.mark.slow
def test_a_signal_ends_all_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a comparison"
    command = ["compare", "classification", *OPTIONS, "--strategies", "asng", "--seeds=2"]
    command += ["--budget=steps=40000", "--test-every=0", "--processes=2", "--out", str(folder)]
    runs = [folder / f"asng-seed{seed}" for seed in range(2)]
    over = threading.Event()

    def interrupt() -> None:
        while not all((run / "search.pt").exists() for run in runs):
            if over.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status = asng(*command)
    over.set()
    thread.join()
    said = capsys.readouterr().err
    assert status == 130, said
    (continuing,) = re.findall(r"^asng: interrupted; to continue: asng (.*)$", said, re.M)
    assert shlex.split(continuing) == command
    for run in runs:
        assert RunFolder(run).user() is None  # nobody goes on
        saved = RunFolder(run).load("search.pt")
        assert saved is not None
        assert "within" in saved or saved["epochs_done"] >= 1


class Clock:
    """A clock that goes on by what is said."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("batch_size", "step", "phase", "seconds"),
    [
        (256, 0.5, 0.0, 1.0),  # whole epochs of two steps
        (256, 0.5, 3.0, 4.0),  # and what is done at their ends
        (8, 1.0, 3.0, 89.0),  # an epoch of 89 steps is not waited for
    ],
)
def test_the_speed_of_a_search(
    batch_size: int,
    step: float,
    phase: float,
    seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first steps and the first epoch, which are slower, do not count."""
    clock = Clock()
    search = {**CONFIG["search"], "batch_size": batch_size, "epochs": 20}
    run = Experiment.create(tmp_path / "run", {**CONFIG, "seed": 0, "search": search}, None)
    task: Any = run.task
    batches, started = task.theta_batches, Experiment.search
    steps, count = task.search_steps, 0

    def slow(epoch: int) -> Iterator[Any]:  # asked for within a step
        nonlocal count
        for batch in batches(epoch):
            clock.now += 20.0 if count < min(3, steps) else step
            count += 1
            yield batch

    def searching(self: Experiment, *, callback: Any) -> dict[str, Any]:
        def after(row: dict[str, float], took: float) -> None:
            clock.now += phase
            callback(row, took + phase)

        return started(self, callback=after)

    task.theta_batches = slow
    monkeypatch.setattr(Experiment, "search", searching)
    monkeypatch.setattr(time, "monotonic", clock)
    assert compare_module._measured(run) == pytest.approx(seconds, rel=1e-9)
    assert count < 20 * steps


_CLOCK = Clock()


class Slow(RandomSearch):
    """Its steps and what follows them take as long as it says, and do nothing."""

    name = "slow"
    seconds = 1.0

    def step(self, batches: Any) -> None:
        _CLOCK.now += self.seconds

    def end_epoch(self, epoch: int) -> None:
        _CLOCK.now += 40.0


class SlowAtTheEnd(Slow):
    name = "slow-at-the-end"

    def end_epoch(self, epoch: int) -> None:
        _CLOCK.now += 150.0 * (epoch + 1 == self.epochs)


class SlowStepsToo(SlowAtTheEnd):
    name = "slow-steps-too"
    seconds = 45.0


@pytest.mark.parametrize(
    ("kind", "batch_size", "epochs"),
    # There would be 3 epochs if nothing followed them.
    [(Slow, 8, 2), (SlowAtTheEnd, 8, 1), (SlowStepsToo, 256, 1)],  # of 89 steps, and of 2
)
def test_what_follows_long_epochs_is_part_of_the_budget(
    kind: type[Slow],
    batch_size: int,
    epochs: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = f"{__name__}:{kind.__name__}"
    known = StrategyKind(kind.name, "", place, in_phases=kind is not Slow)
    monkeypatch.setitem(registry._KINDS, kind.name, known)
    monkeypatch.setattr(time, "monotonic", _CLOCK)
    search = {**CONFIG["search"], "batch_size": batch_size, "strategy": kind.name, "test_every": 0}
    config: dict[str, Any] = {**CONFIG, "seed": 0, "search": search}
    steps = Experiment(RunFolder(tmp_path), {**config, "search": {**search, "epochs": 1}}, None)
    job = compare_module._Job(tmp_path, RunName(kind.name, 0), config, steps.task.search_steps)
    speed = compare_module._speed(job)
    search["epochs"] = contestants.epochs_within(Budget(minutes=5), job.steps, *speed)
    assert search["epochs"] == epochs
    begun = _CLOCK.now
    Experiment.create(tmp_path / "run", config, None).search()
    assert 300 - 129 < _CLOCK.now - begun <= 300


def test_minutes_are_epochs_of_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit in on average, where the seeds that there are first differ in speed."""
    seen = []

    def measured(run: Experiment) -> float:
        seen.append((run.search_config.strategy, run.seed))
        return 1.0 + run.seed

    def begun(job: Any) -> None:
        Experiment.create_or_open(job.folder, job.config, None)

    monkeypatch.setattr(compare_module, "_measured", measured)
    monkeypatch.setattr(compare_module, "_run", begun)
    for first, then, measured_seeds, epochs in ((2, 3, 2, 4), (4, 4, 3, 3)):
        folder, seen[:] = tmp_path / str(first), []
        for seeds in (first, then):
            budget = Budget(minutes=0.11)  # 6.6 seconds
            compare(folder, CONFIG, ["sng"], budget, seeds=seeds, stream=None)
        assert seen == [("sng", seed) for seed in range(measured_seeds)]
        for seed in range(then):
            config = RunFolder(folder / f"sng-seed{seed}").read_config()
            assert config["search"]["epochs"] == epochs
            assert config["search"]["autotune"] is False  # the kernels that were measured


@pytest.mark.parametrize(
    ("budget", "steps", "seconds", "epochs"),
    [
        (Budget(steps=39000), 390, 0.0, 100),
        (Budget(steps=39001), 390, 0.0, 101),
        (Budget(minutes=1), 10, 0.7, 85),
        (Budget(minutes=1), 10, 1000.0, 1),
    ],
)
def test_epochs_of_a_budget(budget: Budget, steps: int, seconds: float, epochs: int) -> None:
    assert contestants.epochs_within(budget, steps, seconds) == epochs


def test_inpainting(tmp_path: Path) -> None:
    config = {
        "task": "inpainting",
        "search": asdict(SearchConfig(batch_size=4, weight_decay=0.0)),
        "retrain": asdict(RetrainConfig(epochs=1, batch_size=4, weight_decay=0.0)),
        "inpainting": asdict(replace(small_runs.INPAINTING, base_channels=2)),
    }
    found = compare(
        tmp_path / "i", config, ["asng-int", "base"], Budget(steps=2), seeds=1,
        masks=["half", "center"], stream=None,
    )  # fmt: skip
    alone = compare(tmp_path / "j", config, ["base"], Budget(steps=2), seeds=1, stream=None)
    assert [row["mask"] for row in alone.rows] == ["center"]  # that of the settings
    assert [(row["strategy"], row["mask"]) for row in found.rows] == [
        ("asng-int", "half"), ("base", "half"), ("asng-int", "center"), ("base", "center"),
    ]  # fmt: skip
    searched, base = found.rows[:2]
    assert {"supernet_psnr", "supernet_mse", "test_psnr", "test_ssim", "test_mse"} <= set(searched)
    run = RunFolder(tmp_path / "i" / "asng-int-half-seed0")
    assert run.read_config()["inpainting"]["space"] == "int"
    assert run.read_config()["inpainting"]["mask"] == "half"
    assert run.read_json("results.json")["psnr"] == searched["test_psnr"]
    assert (base["epochs"], base["steps"], base["search_seconds"]) == (0, 0, 0)
    # Three layers of 3×3 kernels and two channels, and back to three of the image, with biases.
    layers = RunFolder(tmp_path / "i" / "base-half-seed0").read_json("architecture.json")["network"]
    assert layers["layers"] == ["3×3, 2, skip"] * 3
    head, *lines = found.table.splitlines()
    assert head.split("  ")[0] == "strategy"
    of_masks = [line.split()[:2] for line in lines[:4]]
    assert of_masks == [[s, m] for m in ("center", "half") for s in ("asng-int", "base")]
    _, _, runs, psnr, ssim, cost, _ = lines[3].split()
    assert (psnr, ssim) == (f"{base['test_psnr']:.2f}", f"{base['test_ssim']:.3f}")
    assert (runs, cost) == ("1", "-")  # no search
    assert lines[4] == "reported in the paper, of CelebA:"
    reported = [line.split()[2:] for line in lines[5:] if line.startswith("ASNG-NAS (Int)")]
    assert reported == [
        ["center", "29.3", "0.911", "0.75", "days", "-"],
        ["half", "20.6", "0.779", "0.75", "days", "-"],
    ]
    assert "not to be compared with those of photos" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("task", ["classification", "inpainting"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_table_fits_a_terminal(task: str, device: str) -> None:
    names = [*contestants.names(task), "a-strategy-of-a-user-whose-name-is-long"]
    masks = ["center", "pixel", "half"] if task == "inpainting" else [""]
    numbers = {"seed": 0, "epochs": 2, "search_seconds": 123456.7, "parameters": 12345678}
    rows = []
    for name, mask, (error, psnr, ssim) in product(names, masks, ((7.2, 31.25, 0.95), (99, 8, 0))):
        quality = {"test_error": error, "supernet_error": error}
        if mask:
            quality = {"test_psnr": psnr, "test_ssim": ssim}
        rows.append({"strategy": name, "mask": mask, **numbers, **quality})
    config = {"task": task, "device": device, task: {"data": "/srv/" + 20 * "photographs/"}}
    why = "FileNotFoundError: there is nothing in /srv/" + 20 * "photographs/"
    table = comparison.format_comparison(
        config, "photos", rows, {RunName("asng", 2): why}, "minutes=0.75"
    )
    head, *lines = table.splitlines()
    assert max(map(len, [head, *lines])) <= 80
    assert head.split()[-2:] == ["weights,", "M"]
    of_strategies = lines[: len(names) * len(masks)]
    for line, (mask, name) in zip(of_strategies, product(masks, names)):
        first, *others = line.split()
        assert first == name if name in contestants.names(task) else first.endswith("…")
        shown = "53.10 ± 64.91" if not mask else "19.62 ± 16.44"
        assert f" {shown} " in line
        assert others[0] == mask or not mask
        assert others[-1] == "12.346"
    of_paper = {"classification": "CIFAR-10", "inpainting": "CelebA"}[task]
    assert lines[len(of_strategies)] == f"reported in the paper, of {of_paper}:"


def test_a_strategy_has_settings_of_its_own_alone() -> None:
    search = {"learning_rate": 0.1, "population_size": 4}
    given = {"search": search, "inpainting": {"space": "cat", "layers": 3}}
    config = contestant("classification", "darts").config(given)
    own = {"strategy": "darts", "strategy_options": ""}
    assert config["search"] == {"learning_rate": 0.1, **own}  # weights are trained alike
    config = contestant("classification", "sng").config(given)
    assert config["search"] == {**search, **own, "strategy": "sng"}
    config = contestant("inpainting", "asng-int").config(given)
    assert config["inpainting"] == {"space": "int", "layers": 3}
    assert given["inpainting"] == {"space": "cat", "layers": 3}
    assert contestant("inpainting", "ecae").config(given)["search"]["strategy"] == "ecae"


def test_options_for_few_steps_are_options() -> None:
    for name in contestants.names("classification"):
        assert not contestant("classification", name).settings["search"]["strategy_options"]
        options = contestant("classification", name, 12).settings["search"]
        config = SearchConfig(epochs=1, **options)
        as_they_are = ("asng", "sng", "naturaladam", "random", "evolution")
        assert bool(config.strategy_options) == (name not in as_they_are)
        if strategies.get(name).place:
            strategies.make(small.task(), config, seed=0)


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [("search", "optimizer", "SNG"), ("search", "fixed", "a=b"), ("search", "strategy", "darts")],
)
def test_what_would_make_strategies_differ_otherwise(
    section: str, setting: str, value: str, tmp_path: Path
) -> None:
    config = {**CONFIG, section: {**CONFIG[section], setting: value}}
    with pytest.raises(ValueError, match=f"{setting} must be left out of what is compared, got"):
        compare(tmp_path / "no", config, ["asng"], Budget(steps=2), stream=None)
    assert not (tmp_path / "no").exists()


def test_masks_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="masks must be none for the task classification"):
        compare(tmp_path / "no", CONFIG, ["asng"], Budget(steps=2), masks=["half"], stream=None)
    config = {"task": "inpainting", "inpainting": asdict(small_runs.INPAINTING)}
    config["search"] = {"weight_decay": 0.0, "batch_size": 4}
    config["retrain"] = {"batch_size": 4}
    with pytest.raises(ValueError, match="mask must be one of center, pixel, half, got 'hlaf'"):
        compare(tmp_path / "no", config, ["asng-cat"], Budget(steps=2), masks=["hlaf"], stream=None)
    assert not (tmp_path / "no").exists()


def test_what_strategies_do_beside_epochs_is_part_of_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def whole(run: Experiment) -> float:
        seen.append((run.search_config.strategy, run.search_config.epochs))
        return 5 * 0.5 + 3.0

    monkeypatch.setattr(compare_module, "_measured", lambda run: 0.5)
    monkeypatch.setattr(compare_module, "_seconds_of", whole)
    for name, speed in (("random", (0.5, 3.0)), ("asng", (0.5, 0.0))):
        search = {**CONFIG["search"], "strategy": name}
        job = compare_module._Job(
            tmp_path, RunName(name, 0), {**CONFIG, "seed": 0, "search": search}, 1
        )
        assert compare_module._speed(job) == speed
    assert seen == [("random", 5)]


def test_curves_of_a_supernet_that_mixes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "x-seed0")
    config = {"task": "classification", "search": {"epochs": 3}}
    run = RunFolder.create(run.path, config)
    run.write_json("times.json", {"search": [2.0, None, 4.0], "steps_per_epoch": 1})
    (run.path / "search.csv").write_text(
        "epoch,test_accuracy,test_mix_accuracy\n1,0.25,0.5\n2,,\n3,0.5,0.75\n"
    )
    assert comparison.curves_of(tmp_path, [RunName("x", 0)], "error") == {
        "": {"x (fix)": [([2.0, 9.0], [75.0, 50.0])], "x (mix)": [([2.0, 9.0], [50.0, 25.0])]}
    }


def test_times_that_were_not_seen() -> None:
    assert comparison._filled([1.0, None, 3.0, 9.0], 3) == [1.0, 2.0, 3.0]
    assert comparison._filled([1.0], 2) == [1.0, 1.0]
    assert all(map(math.isnan, comparison._filled([], 2)))


def test_budgets() -> None:
    assert Budget.parse("steps=39000") == Budget(steps=39000)
    assert Budget.parse(" minutes = 1.5") == Budget(minutes=1.5)
    assert [str(Budget.parse(text)) for text in ("minutes=2.0", "steps=7")] == [
        "minutes=2", "steps=7",
    ]  # fmt: skip
    for text in contestants.BUDGETS.values():
        assert str(Budget.parse(text)) == text
    for both in ({}, {"steps": 1, "minutes": 1.0}):
        with pytest.raises(ValueError, match="budget must be of steps or of minutes"):
            Budget(**both)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategies": []}, "strategies must be different names, at least one"),
        ({"strategies": ["asng", "asng"]}, "strategies must be different names"),
        ({"strategies": ["no"]}, "strategies must be of .*asng.*, got 'no'"),
        ({"masks": ["half", "half"]}, "masks must be different names"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"processes": 0}, "processes must be at least 1"),
        ({"config": {**CONFIG, "retrain": {"epochs": 0}}}, "epochs must be at least 1"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    arguments = {"config": CONFIG, "strategies": ["asng"], "budget": TWO_EPOCHS, **changes}
    with pytest.raises(ValueError, match=words):
        compare(tmp_path / "x", stream=None, **arguments)
    assert not (tmp_path / "x").exists()


def test_something_else_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        compare(tmp_path, CONFIG, ["asng"], TWO_EPOCHS, stream=None)
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(ValueError, match=r"compare\.json is not that of a comparison"):
        compare(tmp_path, CONFIG, ["asng"], TWO_EPOCHS, stream=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.json", "notes.txt"]
