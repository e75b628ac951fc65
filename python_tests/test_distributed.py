"""What ranks are to a program: the environment, errors, loops of one's own, the command line."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from several_ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import asng_ext as asng
from asng_ext import cli
from asng_ext.distributed import ALONE, Ranks, RanksDifferError, fingerprint, joined, same_samples
from asng_ext.engine.experiment import Experiment
from asng_ext.nn import Choice, search_space, subnet
from asng_ext.runs.config import load_toml
from asng_ext.runs.folder import RunFolder

WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RANK": ""}, "RANK must be set where WORLD_SIZE is 2"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR, MASTER_PORT must be set"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be an integer of 0 or more, got 'two'"),
        ({"RANK": "-1"}, "RANK must be an integer of 0 or more, got '-1'"),
        ({"RANK": "2"}, "RANK must be below WORLD_SIZE, 2, got 2"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT must be an integer"),
        ({"ASNG_RANK_TIMEOUT": "0"}, "ASNG_RANK_TIMEOUT must be from 1 to 1e6 seconds, got '0'"),
        ({"ASNG_RANK_TIMEOUT": "soon"}, "ASNG_RANK_TIMEOUT"),
    ],
)
def test_wrong_environments(
    changes: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**WHOLE, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(words)), joined():
        pass


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in ({}, {**WHOLE, "WORLD_SIZE": "1"}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with joined() as ranks:
            assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
    tensor = torch.ones(3)
    ALONE.sum([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert ALONE.from_first(lambda: 3) == 3
    assert ALONE.agree(15, True) == (15, True)
    assert ALONE.largest([2]).tolist() == [2]


def test_fingerprints_are_of_values() -> None:
    values = [
        torch.ones(2), torch.ones(2, 1).double(), torch.zeros(2), torch.zeros(0), [1, 2], [1, [2]],
        {"a": 1}, {"b": 1}, (0.1,), (0.1 + 1e-17 + 1e-16,), "", None, torch.tensor(1).bfloat16(),
    ]  # fmt: skip
    assert len({fingerprint(value) for value in values}) == len(values)
    large = torch.arange(12.0).view(3, 4)
    assert fingerprint({"w": large}) == fingerprint({"w": large.t().contiguous().t()})


def test_exchanges(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        tensors = [torch.full((2, 2), 1.0 + ranks.rank).t(), torch.tensor(ranks.rank)]
        ranks.sum(tensors)

        def fail() -> None:
            raise FileNotFoundError(f"not on rank {ranks.rank}")

        with pytest.raises(FileNotFoundError, match="not on rank 0") as caught:
            ranks.from_first(fail)
        assert hasattr(caught.value, "of_first") == (ranks.rank > 0)
        first = ranks.from_first(lambda: {"of": ranks.rank})
        agreed = ranks.agree(10 * ranks.rank, ranks.first), ranks.agree(0, not ranks.first)
        with pytest.raises(RanksDifferError, match=r"theta must .* got 7 on ranks 0, 1 and 8 on"):
            ranks.agree(0, False, 7 + (ranks.rank == 2))
        with pytest.raises(RanksDifferError, match="long must be the same"):  # cut when shown
            ranks.check_same({"same": 1, "long": 300 * "x" + str(ranks.rank)})
        return [t.tolist() for t in tensors], first, agreed

    for result in on_ranks(3, work, tmp_path):
        assert result == ([[[6, 6], [6, 6]], 3], {"of": 0}, ((20, True), (0, False)))


def own_loop(ranks: Ranks, shared: bool) -> Any:
    """With DistributedDataParallel; the seed is left to the operating system."""

    class Losses(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, samples: Any) -> torch.Tensor:
            nets = [subnet(self.model, sample) for sample in samples]
            return torch.stack([(net(x) - y).square().mean() for net in nets])

    generator = torch.Generator().manual_seed(ranks.rank)
    x = torch.randn(32, 4, generator=generator)
    y = x.prod(dim=1, keepdim=True)
    ways = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "deep": nn.Sequential(nn.Linear(8, 8), nn.ReLU())}
    model = nn.Sequential(
        nn.Linear(4, 8), Choice("a", ways), Choice("b", dict(ways)), nn.Linear(8, 1)
    )
    optimizer: Any = asng.ASNG(search_space(model))
    if shared:
        optimizer = same_samples(optimizer)
    losses = DistributedDataParallel(Losses(model), find_unused_parameters=True)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    asked = []
    for _ in range(12):
        samples = optimizer.ask()
        asked.append(list(samples))
        sgd.zero_grad(set_to_none=False)
        losses(asked[-1]).mean().backward()
        sgd.step()
        with torch.no_grad():
            optimizer.tell(samples, losses(asked[-1]))
    return asked, optimizer.state_dict(), [p.detach().clone() for p in model.parameters()]


def test_loops_of_ones_own_train_the_same_architectures(tmp_path: Path) -> None:
    one, other = on_ranks(2, lambda ranks: own_loop(ranks, True), tmp_path)
    assert small.equal(one, other)
    assert len({str(asked) for asked in one[0]}) > 1
    one, other = on_ranks(2, lambda ranks: own_loop(ranks, False), tmp_path)
    assert one[0] != other[0]  # and nothing says so


def test_same_samples_takes_means_and_notices_others(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> Any:
        space = asng.SearchSpace({"n": asng.Real(0, 1)})
        optimizer = same_samples(asng.ASNG(space, population_size=3, seed=ranks.rank), ranks)
        samples = optimizer.ask()
        optimizer.tell(samples, [1.0, 2.0, torch.tensor(float(ranks.rank))])
        with pytest.raises(RanksDifferError, match="samples of tell must be the same"):
            optimizer.tell(samples[[ranks.rank, 2]], [1.0, 2.0])
        other = asng.SearchSpace({f"n{ranks.rank}": asng.Real(0, 1)})
        with pytest.raises(ValueError, match="space") if ranks.rank else contextlib.nullcontext():
            same_samples(asng.ASNG(other, seed=0), ranks)
        return optimizer.best.loss, optimizer.seed, optimizer.state_dict()

    one, other = on_ranks(2, work, tmp_path)
    assert small.equal(one, other)
    assert one[:2] == (0.5, 0)


def test_same_samples_refuses_what_is_no_optimizer() -> None:
    with pytest.raises(TypeError, match="optimizer must have a method ask, got 3"):
        same_samples(3)


def asng_on(ranks: int, folder: Path, *arguments: object) -> list[Any]:
    """Status, output and errors of a command on each rank."""

    def work(_: Ranks) -> Any:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main([str(argument) for argument in arguments])
        return status, out.getvalue(), err.getvalue()

    return on_ranks(ranks, work, folder)


def test_commands_on_two_ranks(tmp_path: Path) -> None:
    """The first writes and speaks; the folder is one of a single process as well."""
    small.data()  # what takes long to import, forked processes have
    pytest.importorskip("matplotlib.pyplot")
    run = tmp_path / "run"
    options = [*small.OPTIONS, "--retrain-epochs=1", "--out", run]
    (status, out, err), quiet = asng_on(2, tmp_path, "search", "classification", *options)
    assert status == 0, err
    assert "retrain it:" in out
    assert quiet == (0, "", "")
    assert load_toml((run / "config.toml").read_text(), "")["device"] == "cpu"
    (status, out, err), quiet = asng_on(2, tmp_path, "search", "classification", *options)
    assert (status, quiet) == (2, (2, "", ""))
    assert "exists and is not empty" in err
    (status, out, err), quiet = asng_on(2, tmp_path, "retrain", run, "--sync-batch-norm")
    assert status == 0, err
    assert "test accuracy:" in out
    assert quiet == (0, "", "")
    assert Experiment.open(run, stream=None).evaluate()["accuracy"] > 0
    for status, _, err in asng_on(3, tmp_path, "retrain", run, "--batch-size=2"):
        assert status == 2
        assert "batch_size of retraining must be at least 3, one for each rank, got 2" in err
    sweep = ("search", "classification", *small.OPTIONS, "--penalty-sweep", 1)
    for status, _, err in asng_on(2, tmp_path, *sweep):
        assert status == 2
        assert "--penalty-sweep is for one process, got 2 ranks" in err


def test_an_example_on_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("sklearn.datasets")
    path = Path(__file__).parents[1] / "examples" / "ddp_search.py"

    def work(ranks: Ranks) -> str:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            runpy.run_path(str(path), run_name="__main__")
        return out.getvalue()

    printed, nothing = on_ranks(2, work, tmp_path)
    assert nothing == ""
    assert float(printed.split()[-1]) > 0.8


@pytest.mark.slow
def test_torchrun_and_a_signal(tmp_path: Path) -> None:
    """As a user starts it: SIGTERM to torchrun ends all ranks after one step, and the run goes on
    in one process."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
    ]
    command += ["-m", "asng_ext", "search", "classification", *small.OPTIONS, "--epochs=1000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [*command, "--batch-size=64", f"--out={run}"],
            cwd=Path(__file__).parents[1],
            env=environment,
            stderr=err,
        )
    deadline = time.monotonic() + 100
    while not (run / "search.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    said = (tmp_path / "err").read_text()
    assert (
        said.count("asng: interrupted; to continue: torchrun --nproc-per-node 2 -m asng_ext") == 1
    )
    state = RunFolder(run).load("search.pt")
    assert state is not None
    assert state["computed_by"]["ranks"] == 2
    assert not (run / ".lock").exists()
