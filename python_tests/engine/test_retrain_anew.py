"""A retraining that begins anew in the folder of one before."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import small_runs
import torch
from choice_task import ChoiceTask
from torch import Tensor, nn

from asng_ext import cli
from asng_ext.engine.experiment import Experiment
from asng_ext.engine.retrain import retrain
from asng_ext.nn import Choice
from asng_ext.runs.checkpoints import CheckpointMismatchError
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import MetricsTable
from asng_ext.runs.report import report
from asng_ext.training.divergence import DivergedError

EVERY_STEP = 1e-9
"""Minutes between checkpoints."""
CONFIG = replace(small.RETRAIN, epochs=2, checkpoint_minutes=EVERY_STEP, keep=3)


ARCHITECTURES = [{"way": "wide"}, {"way": "direct"}]


class EndError(BaseException):
    """The process ends here."""


class TwoSteps(ChoiceTask):
    """A task with two steps an epoch and two architectures."""

    retrain_steps = 2

    def supernet(self) -> nn.Module:
        wide = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
        return nn.Sequential(Choice("way", {"wide": wide, "direct": nn.Linear(3, 3)}))

    def train_batches(self, epoch: int) -> Iterator[Tensor]:
        return iter(torch.randn(self.retrain_steps, 5, 3))

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        return (network(batch) - batch.cumsum(1)).square().mean()

    def test(self, network: nn.Module) -> dict[str, float]:
        return {"loss": float(self.loss(network, torch.eye(3)).detach())}


def train(run: RunFolder, number: int, task: Any = None, **named: Any) -> None:
    config = named.pop("config", CONFIG)
    values = ARCHITECTURES[number]
    retrain(task or TwoSteps(), values, config, seed=0, run=run, stream=None, **named)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of a retraining of each architecture."""
    folders = [tmp_path_factory.mktemp("runs") / str(number) for number in range(2)]
    for number, folder in enumerate(folders):
        train(RunFolder.create(folder), number)
    return folders


def copied(folder: Path, to: Path) -> RunFolder:
    shutil.copytree(folder, to)
    return RunFolder(to)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.iterdir()) if path.is_file())
    return {path.name: path.read_bytes() for path in found if path.name != ".lock"}


def same(run: RunFolder, folder: Path) -> bool:
    """Whether all that a retraining leaves is that of another folder, bit for bit."""
    other = RunFolder(folder)
    tensors = ("retrain.pt", "network.pt")
    texts = ("retrain.csv", "results.json")
    return all(small.equal(run.load(name), other.load(name)) for name in tensors) and all(
        run.file(name).read_bytes() == other.file(name).read_bytes() for name in texts
    )


def ends(task: Any, after: int, error: BaseException | None = None) -> Any:
    """The task, in whose step of that number the process ends."""
    original, calls = task.training_loss, 0

    def training_loss(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            raise error or EndError
        return original(*arguments)

    task.training_loss = training_loss
    return task


def test_what_was_there_stays_until_the_new_is_there(outcomes: list[Path], tmp_path: Path) -> None:
    run = copied(outcomes[0], tmp_path / "run")
    before = files(run.path)
    with pytest.raises(CheckpointMismatchError, match=r"another architecture; .*, or begin anew w"):
        train(run, 1)
    assert files(run.path) == before
    with pytest.raises(EndError):
        train(run, 1, ends(TwoSteps(), 1), restart=True)
    assert files(run.path) == before

    with pytest.raises(EndError):
        train(run, 1, ends(TwoSteps(), 2), restart=True)
    after = files(run.path)
    # None of these is of the retraining that has begun.
    assert set(before) - set(after) == {"retrain.csv", "retrain.prev.pt", "retrain.prev2.pt"}
    assert all(after[name] == before[name] for name in ("network.pt", "results.json"))
    state = run.load("retrain.pt")
    assert state is not None
    assert state["architecture"] == ARCHITECTURES[1]
    assert state["within"]["steps_done"] == 1

    train(run, 1)
    assert same(run, outcomes[1])
    assert set(files(run.path)) == set(before)


def test_a_process_that_ends_at_any_file(
    outcomes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is the checkpoint of either retraining, its own table with it or none, and network and
    test metrics of one; from all of them it comes to the same end."""
    config = replace(CONFIG, epochs=1)
    wholes = []
    for number in range(2):
        wholes.append(tmp_path / f"whole {number}")
        train(RunFolder.create(wholes[-1]), number, config=config)
    olds = [files(whole) for whole in wholes]
    old, new = ([one[n] for n in ("retrain.csv", "results.json")] for one in olds)
    changing = {"replace": os.replace, "unlink": os.unlink}
    networks = []
    for point in itertools.count(1):
        run = copied(wholes[0], tmp_path / "run")
        events = 0

        def ending(original: Callable[..., Any], last: int = point) -> Callable[..., Any]:
            def changed(path: Any, *more: Any, **named: Any) -> Any:
                nonlocal events
                if Path(more[0] if more else path).suffix in (".pt", ".csv", ".json"):
                    events += 1
                    if events == last:
                        raise EndError
                return original(path, *more, **named)

            return changed

        with monkeypatch.context() as patch:
            for name, original in changing.items():
                patch.setattr(os, name, ending(original))
            try:
                train(run, 1, config=config, restart=True)
                break
            except EndError:
                pass
        state = run.load("retrain.pt")
        assert state is not None
        begun = state["architecture"] == ARCHITECTURES[1]
        present = files(run.path)
        assert present.get("retrain.csv", old[0]) == old[0] or begun
        assert present["results.json"] in (old[1], new[1])
        networks.append(run.load("network.pt"))
        train(run, 1, config=config, restart=not begun)
        assert same(run, wholes[1])
        shutil.rmtree(run.path)
    assert point > 5
    assert same(run, wholes[1])
    kept = [RunFolder(whole).load("network.pt") for whole in wholes]
    assert all(any(small.equal(one, each) for each in kept) for one in networks)


def test_a_damaged_checkpoint_of_before_does_no_harm(outcomes: list[Path], tmp_path: Path) -> None:
    run = copied(outcomes[0], tmp_path / "run")
    for path in run.path.glob("retrain*.pt"):
        path.write_bytes(b"damaged")
    words = r"no checkpoint before it .*: begin anew with `asng retrain .* --restart`"
    with pytest.raises(CheckpointMismatchError, match=words):
        train(run, 1)
    train(run, 1, restart=True)
    assert same(run, outcomes[1])
    # Nor does that of before stand in for a damaged one of the new.
    run = copied(outcomes[0], tmp_path / "another")
    with pytest.raises(EndError):
        train(run, 1, ends(TwoSteps(), 2), restart=True)
    run.file("retrain.pt").write_bytes(b"damaged")
    with pytest.raises(CheckpointMismatchError, match=words):
        train(run, 1)


def test_a_retry_after_divergence_does_not_go_on_with_the_one_before(
    outcomes: list[Path], tmp_path: Path
) -> None:
    run = copied(outcomes[0], tmp_path / "run")
    config = replace(CONFIG, on_divergence="retry", checkpoint_minutes=0.0)
    train(run, 1, ends(TwoSteps(), 2, DivergedError("a test")), config=config, restart=True)
    state = run.load("retrain.pt")
    assert state is not None
    assert state["architecture"] == ARCHITECTURES[1]
    assert state["halvings"] == {"count": 1}


def test_it_begins_where_nothing_was(outcomes: list[Path], tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    train(run, 1, restart=True)
    assert same(run, outcomes[1])
    with pytest.raises(ValueError, match="resume_from must not be given to begin anew"):
        train(run, 1, restart=True, resume_from=run.file("retrain.pt"))


def test_tensorboard_shows_the_new_from_its_first_epoch(
    outcomes: list[Path], tmp_path: Path
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = copied(outcomes[0], tmp_path / "run")

    def shown() -> list[tuple[int, float]]:
        events = accumulators.EventAccumulator(str(run.path / "events" / "retrain"))
        events.Reload()
        return [(each.step, each.value) for each in events.Scalars("train_loss")]

    before = shown()
    with pytest.raises(EndError):
        train(run, 1, ends(TwoSteps(), 2), restart=True)
    assert shown() == before
    train(run, 1)
    rows = MetricsTable(run.file("retrain.csv"), keep=2).rows
    assert shown() == [(row["epoch"], pytest.approx(row["train_loss"])) for row in rows]


@pytest.mark.filterwarnings("always")  # of what is tested here
def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that goes on finds another architecture, and the command that all say retrains it
    with other settings; those of before are kept as long as its network is continued."""
    path = small_runs.finished(small_runs.classification(tmp_path / "run"))
    run = RunFolder(path)
    found = run.read_json("architecture.json")
    values = found["architecture"]
    name = "normal/node0/input0"
    values[name] = {"older": "newer", "newer": "older"}[values[name]]
    run.write_json("architecture.json", found)
    command = f"asng retrain {path} --restart"
    assert f"next:       {command}\n" in report(run)
    assert cli.main(["retrain", str(path)]) == 2
    assert f"another architecture; continue it with the same, or begin anew with `{command}`" in (
        capsys.readouterr().err
    )
    before = files(path)

    def not_yet(*_: object) -> None:
        """A process may end at any time before the first checkpoint."""
        raise AssertionError("settings were written before there was a checkpoint")

    def ending(after: int) -> Experiment:
        loops = {"retrain": {"checkpoint_minutes": EVERY_STEP}}
        experiment = Experiment.open(path, loops=loops, task={"cutout": 2}, stream=None)
        ends(experiment.task, after)
        return experiment

    monkeypatch.setattr(RunFolder, "write_config", not_yet)
    with pytest.raises(EndError):
        ending(1).retrain(restart=True)
    monkeypatch.undo()
    assert files(path) == before
    with pytest.raises(EndError):
        ending(3).retrain(restart=True)
    assert run.read_config()["classification"]["cutout"] == 2
    words = report(run)
    assert "retraining: in the first of 2 epochs" in words
    assert words.endswith(f"next:       asng retrain {path}")
    assert cli.main(["evaluate", str(path)]) == 0  # the network of before
    said = capsys.readouterr()
    assert f"`asng retrain {path}`" in said.err
    assert cli.main(["retrain", str(path)]) == 0
    assert run.read_json("results.json")["architecture"] == values
    assert report(run).splitlines()[-2] == f"next:       asng export {path}"

    for options in (["--resume-from=a.pt"], ["--architecture=a.json"]):
        assert cli.main(["retrain", str(path), "--restart", *options]) == 2
        option = options[0].partition("=")[0]
        expected = f"--restart is for a run that was retrained before, and not for {option}"
        assert expected in capsys.readouterr().err
