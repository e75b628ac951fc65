"""Several ranks compute what one process does: real processes with gloo."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_classification as small
import small_runs
import torch
from float64_digits import cells
from several_ranks import on_ranks
from torch import Tensor, nn

import asng_ext as asng
from asng_ext._signals import Interrupted
from asng_ext.data import NO_AUGMENTATION, ImageData, ImageSet
from asng_ext.distributed import ALONE, Ranks, RanksDifferError
from asng_ext.engine.search import search
from asng_ext.nn import Choice, search_space, subnet
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.inpainting import InpaintingTask
from asng_ext.tasks.protocol import TaskDefaults

CONFIG = replace(small.SEARCH, epochs=2, weight_decay=1e-3)


class Normalized(TaskDefaults):
    """Choices between layers, in float64, with batch normalizations of their own and shared ones,
    which keep running statistics."""

    search_steps = 6
    own_generators = True

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(96, 6, generator=generator).double()
        self.y = self.x[:, :2].prod(dim=1, keepdim=True)
        self.space = search_space(self.supernet())

    def supernet(self) -> nn.Module:
        def way(activation: nn.Module) -> nn.Module:
            return nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), activation)

        return nn.Sequential(
            nn.Linear(6, 12),
            nn.BatchNorm1d(12, momentum=None),
            Choice("first", {"relu": way(nn.ReLU()), "tanh": way(nn.Tanh()), "id": nn.Identity()}),
            nn.BatchNorm1d(12),
            Choice("second", {"relu": way(nn.ReLU()), "tanh": way(nn.Tanh()), "id": nn.Identity()}),
            nn.Linear(12, 1),
        ).double()

    def _batches(self, epoch: int, half: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(epoch)
        return iter((torch.randperm(48, generator=generator) + 48 * half).split(8))

    def weight_batches(self, epoch: int) -> Iterator[Tensor]:
        return self._batches(epoch, 0)

    def theta_batches(self, epoch: int) -> Iterator[Tensor]:
        return self._batches(epoch, 1)

    def losses(
        self, supernet: nn.Module, batch: Tensor, samples: asng.Samples
    ) -> tuple[Tensor, dict[str, Tensor]]:
        outs = torch.stack([subnet(supernet, sample)(self.x[batch]) for sample in samples])
        losses = (outs - self.y[batch]).square().mean(dim=(1, 2))
        return losses, {"size": outs.abs().mean()}


def searched(
    task: Any, ranks: Ranks = ALONE, run: RunFolder | None = None, population: int = 4, **more: Any
) -> Any:
    """θ after each step, weights in the end, and metrics."""
    optimizer = asng.ASNG(task.space, population_size=population, seed=5)
    thetas = []
    tell = optimizer.tell

    def telling(*arguments: Any) -> Any:
        moved = tell(*arguments)
        thetas.append(optimizer.theta.categorical)
        return moved

    optimizer.tell = telling  # type: ignore[method-assign]
    config = replace(CONFIG, **more)
    result = search(task, optimizer, config, seed=3, stream=None, run=run, ranks=ranks)
    state = {name: value.clone() for name, value in result.supernet.state_dict().items()}
    return np.array(thetas), state, result.rows


def check_close(found: Any, expected: Any, tolerance: float) -> None:
    assert np.array_equal(found[0], expected[0])  # θ, bit for bit
    for name, value in expected[1].items():
        assert torch.allclose(found[1][name], value, rtol=tolerance, atol=tolerance), name
    for row, other in zip(found[2], expected[2], strict=True):
        assert row == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize(("population", "sizes"), [(4, (2, 3, 4)), (12, (3,))])
def test_theta_is_that_of_one_process(
    population: int, sizes: tuple[int, ...], tmp_path: Path
) -> None:
    task = Normalized()
    expected = searched(task, population=population)
    for size in sizes:
        results = on_ranks(
            size, lambda ranks: searched(task, ranks, population=population), tmp_path
        )
        for result in results:
            check_close(result, expected, 1e-9)
            assert small.equal(result[1], results[0][1])


def test_cells_are_spread(tmp_path: Path) -> None:
    task = cells()
    expected = searched(task, epochs=1)
    (one, other, _) = on_ranks(3, lambda ranks: searched(task, ranks, epochs=1), tmp_path)
    check_close(one, expected, 1e-9)
    assert small.equal(one[1], other[1])


class Restoring(InpaintingTask):
    """Patches of noise in float64."""

    def supernet(self) -> Any:
        return super().supernet().double()

    def _batches(self, *arguments: Any) -> Any:
        return ((x.double(), y.double()) for x, y in super()._batches(*arguments))

    def losses(self, supernet: Any, batch: Any, samples: Any) -> Any:
        corrupted, target = batch
        outs = [supernet(corrupted, self.cae_space.decode(values)) for values in samples]
        losses = torch.stack([(out - target).square().mean() for out in outs])
        return losses, {}

    def test_supernet(self, supernet: Any, values: Any) -> dict[str, float]:
        out = supernet(torch.ones(1, 1, 12, 12).double(), self.cae_space.decode(values))
        return {"mean": float(out.detach().mean())}


@pytest.mark.parametrize(("population", "size"), [(4, 3), (2, 4)])
def test_autoencoders_are_spread_and_their_batches_divided(
    population: int, size: int, tmp_path: Path
) -> None:
    """Slices of weights differ from rank to rank, and so would deferred steps. Parts of a batch are
    as good as the whole, since there is no batch normalization."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 12, 12, 1), generator=generator).to(torch.uint8)
    images = ImageSet(pixels, torch.zeros(24, dtype=torch.int64), ("",))
    task = Restoring(
        ImageData.of(images, images, NO_AUGMENTATION),
        replace(small_runs.INPAINTING, steps_per_epoch=8),
        search_batch_size=5,
        retrain_batch_size=5,
        seed=0,
    )
    settings: Any = {"population": population, "weight_decay": 0.0, "learning_rate": 0.1}
    expected = searched(task, **settings)
    results = on_ranks(size, lambda ranks: searched(task, ranks, **settings), tmp_path)
    for result in results:
        check_close(result, expected, 1e-9)
        assert small.equal(result[1], results[0][1])


@pytest.mark.filterwarnings("always:.*ranks was")
def test_resuming_with_another_number_of_ranks(tmp_path: Path) -> None:
    """One process, then three, then two, each of which ends within an epoch."""
    task = Normalized()
    expected = searched(task)
    run = RunFolder.create(tmp_path / "run")
    thetas: list[Any] = []

    def interrupted(ranks: Ranks, at: int) -> Any:
        """A search that ends after a step; a signal comes to the last rank only."""
        own, calls = Normalized(), 0
        original = own.losses

        def losses(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2 * at and ranks.rank == ranks.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        own.losses = losses  # type: ignore[method-assign]
        optimizer = asng.ASNG(own.space, population_size=4, seed=5)
        named: Any = {"seed": 3, "stream": None, "run": run, "ranks": ranks}
        try:
            search(own, optimizer, CONFIG, **named)
        except Interrupted as error:
            return error.number, optimizer.theta.categorical
        return None

    thetas.append(interrupted(ALONE, 2)[1])
    for size, at in ((3, 3), (2, 3)):
        results = on_ranks(size, lambda ranks, at=at: interrupted(ranks, at), tmp_path)  # type: ignore[misc]
        assert [result[0] for result in results] == [signal.SIGTERM] * size
        thetas.append(results[0][1])
        state = run.load("search.pt")
        assert state is not None
        assert state["computed_by"]["ranks"] == size
    for theta, done in zip(thetas, (2, 5, 8)):
        assert np.array_equal(theta, expected[0][done - 1])
    with pytest.warns(UserWarning, match="ranks was 2 and is 1"):
        found = searched(task, run=run)
    check_close((expected[0][8:], *found[1:]), (found[0], *expected[1:]), 1e-9)
    assert not run.file(".lock").exists()


@pytest.mark.parametrize(
    "harm",
    [
        ("fail", 1, "rank 1 failed: OSError: no such batch"),
        ("kill", 2, "rank 2 does not answer"),
        ("stop", 2, "rank 2 does not answer"),
    ],
    ids=lambda harm: harm[0],
)
def test_all_end_where_one_does(harm: tuple[str, int, str], tmp_path: Path) -> None:
    """Within the time limit, with the checkpoint before, and by an error that names the rank."""
    what, bad, words = harm
    run = RunFolder.create(tmp_path / "run")

    def harmed(ranks: Ranks) -> Any:
        task, calls = Normalized(), 0
        original = task.losses
        process = int(ranks.largest([os.getpid() if ranks.rank == bad else 0]))

        def losses(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 14 and ranks.rank == bad:  # in the second epoch
                if what == "fail":
                    raise OSError("no such batch")
                os.kill(process, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
            return original(*arguments)

        task.losses = losses  # type: ignore[method-assign]
        try:
            return searched(task, ranks, run)
        finally:
            if what == "stop" and ranks.first:
                os.kill(process, signal.SIGKILL)

    results = on_ranks(3, harmed, tmp_path, timeout=8 if what == "stop" else 60)
    for rank, error in enumerate(results):
        if rank == bad:
            assert error is None if what != "fail" else isinstance(error, OSError)
        else:
            assert isinstance(error, ConnectionError)
            assert words in str(error)
    state = run.load("search.pt")
    assert state is not None
    assert state["epochs_done"] == 1
    assert not run.file(".lock").exists()


def test_what_differs_is_found(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")

    def other_settings(ranks: Ranks) -> Any:
        return searched(Normalized(), ranks, run, epochs=2 + (ranks.rank == 1))

    def other_seed(ranks: Ranks) -> Any:
        task = Normalized()
        optimizer = asng.ASNG(task.space, seed=ranks.rank)
        return search(task, optimizer, CONFIG, seed=3, run=run, stream=None, ranks=ranks)

    def other_losses(ranks: Ranks) -> Any:
        """What is told is not what was exchanged."""
        task = Normalized()
        optimizer = asng.ASNG(task.space, seed=0)
        tell = optimizer.tell
        sign = -1 if ranks.rank == 1 else 1
        optimizer.tell = lambda samples, losses: tell(samples, sign * losses)  # type: ignore[method-assign]
        return search(task, optimizer, CONFIG, seed=3, run=run, stream=None, ranks=ranks)

    def other_weights(ranks: Ranks) -> Any:
        """A buffer that is not exchanged."""
        task = Normalized()
        make = task.supernet

        def supernet() -> nn.Module:
            model = make()
            model.register_buffer("calls", torch.zeros(()))

            def count(*_: Any) -> None:
                model.calls.add_(ranks.rank)  # type: ignore[operator]

            model.register_forward_pre_hook(count)
            return model

        task.supernet = supernet  # type: ignore[method-assign]
        return searched(task, ranks, run)

    for work, words in (
        (other_settings, "epochs must be the same on all ranks, got 2 on ranks 0, 2 and 3 on rank"),
        (other_seed, "optimizer must be the same on all ranks"),
        (other_losses, "theta must be the same on all ranks"),
        (other_weights, "supernet must be the same on all ranks"),
    ):
        for error in on_ranks(3, work, tmp_path):
            assert isinstance(error, RanksDifferError), work
            assert words in str(error)
        assert not run.file("search.pt").exists()


def test_more_ranks_than_images(tmp_path: Path) -> None:
    task = Normalized()
    task._batches = lambda epoch, half: iter(torch.arange(6).split(1))  # type: ignore[method-assign]
    results = on_ranks(3, lambda ranks: searched(task, ranks, population=2), tmp_path)
    for error in results[:2]:  # which have the first sample
        assert isinstance(error, ValueError)
        assert "as many images as there are ranks for it, 2, got 1" in str(error)


class Dropping(Normalized):
    """It draws from PyTorch's global generators, in steps and for batches."""

    own_generators = False

    def weight_batches(self, epoch: int) -> Iterator[Tensor]:
        return iter(torch.randperm(48).split(8))

    def losses(self, supernet: nn.Module, *arguments: Any) -> Any:
        model = nn.Sequential(supernet, nn.Dropout(0.5))
        return super().losses(model, *arguments)


def test_ranks_draw_numbers_of_their_own(tmp_path: Path) -> None:
    """They agree, repeat, and go on, though not with the numbers of one process."""
    results = on_ranks(2, lambda ranks: searched(Dropping(), ranks, population=3), tmp_path)
    again = on_ranks(2, lambda ranks: searched(Dropping(), ranks, population=3), tmp_path)
    assert len(results[0][0]) == 12
    for result in (*results, *again):
        assert small.equal(result[1], results[0][1])
        assert np.array_equal(result[0], results[0][0])


class SpoiledOnce(Normalized):
    """A weight step of the second epoch, on some ranks, has a loss that is not finite, once."""

    def __init__(self, spoils: bool = True) -> None:
        super().__init__()
        self.left = 9 if spoils else 0

    def losses(self, *arguments: Any) -> Any:
        losses, metrics = super().losses(*arguments)
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0:
                losses = losses * torch.nan
        return losses, metrics


def test_all_retry_where_one_diverges(tmp_path: Path) -> None:
    whole = RunFolder.create(tmp_path / "whole")
    named: dict[str, Any] = {"check_every": 2, "on_divergence": "retry"}
    expected = searched(SpoiledOnce(), run=whole, **named)

    def work(ranks: Ranks) -> Any:
        run = RunFolder(tmp_path / "run") if ranks.first else None
        return searched(SpoiledOnce(ranks.rank == 1), ranks, run, **named)

    RunFolder.create(tmp_path / "run")
    results = on_ranks(2, work, tmp_path)
    state = RunFolder(tmp_path / "run").load("search.pt")
    assert state is not None
    assert state["halvings"] == {"count": 1}
    for found in results:
        assert np.array_equal(found[0][-1], expected[0][-1])
        assert len(found[0]) == len(expected[0]) > 12
    check_close(results[0], expected, 1e-9)
