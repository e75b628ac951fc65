"""A supernet of choices whose best architecture is known, and searches that are interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from torch import Tensor, nn

import asng_ext as asng
from asng_ext._signals import Interrupted
from asng_ext.engine.search import SearchResult, search
from asng_ext.runs.config import SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.strategies.categorical import CategoricalStrategy
from asng_ext.tasks.protocol import TaskDefaults

BEST = (2, 0, 1, 2, 1)


class Lines(nn.Module):
    """A slope for each choice of each variable."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(0.1 * torch.randn(len(BEST), 3))

    def forward(self, architecture: Tensor) -> Tensor:
        return self.slopes[torch.arange(len(BEST)), architecture]


class Planted(TaskDefaults):
    """All slopes are to be 1. For those of the best choice x is -1 or 1, for others it is smaller,
    so that they explain less; the accuracy is the share of best choices whose slope is found."""

    search_steps = 10
    own_generators = True

    def __init__(self) -> None:
        self.space = asng.SearchSpace(
            {f"choice{i}": asng.Categorical(["a", "b", "c"]) for i in range(len(BEST))}
        )

    def supernet(self) -> nn.Module:
        return Lines()

    def _batches(self, epoch: int, half: int) -> Iterable[Tensor]:
        generator = torch.Generator().manual_seed(2 * epoch + half)
        yield from 2.0 * torch.randint(2, (self.search_steps, 16), generator=generator) - 1

    def weight_batches(self, epoch: int) -> Iterable[Tensor]:
        return self._batches(epoch, 0)

    def theta_batches(self, epoch: int) -> Iterable[Tensor]:
        return self._batches(epoch, 1)

    def losses(
        self, supernet: nn.Module, batch: Tensor, samples: asng.Samples
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses, accuracies = [], []
        for row in torch.as_tensor(samples.categorical):
            right = row == torch.tensor(BEST)
            seen = torch.where(right, 1.0, 0.5)
            # What is not seen of x cannot be explained.
            residuals = batch[:, None] * (1 - seen * supernet(row))
            losses.append(residuals.square().mean())
            accuracies.append((right & (residuals.abs().mean(dim=0) < 0.9)).float().mean())
        return torch.stack(losses), {"accuracy": torch.stack(accuracies).mean()}

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        return {"right": float((self.space.encode(values)[0] == torch.tensor(BEST).numpy()).mean())}


CONFIG = SearchConfig(learning_rate=0.2, weight_decay=0.0, check_every=1)


Make = Callable[[Any, int], CategoricalStrategy]
"""Makes a strategy of a task, for so many epochs."""


def found(make: Make, epochs: int) -> SearchResult:
    """What a search finds."""
    task = Planted()
    return search(task, make(task, epochs), replace(CONFIG, epochs=epochs), seed=3, stream=None)


def best() -> dict[str, str]:
    return {f"choice{i}": "abc"[k] for i, k in enumerate(BEST)}


def check_resumes(
    make: Make,
    folder: Path,
    epochs: int,
    task_of: Callable[[], Any] = Planted,
    settings: SearchConfig = CONFIG,
) -> None:
    """A signal ends the process's search after each of its steps; all in all nothing differs from
    one that runs through."""

    def run_once(run: RunFolder, interrupted: bool) -> Any:
        task = task_of()
        original = task.losses

        def losses(*arguments: Any) -> Any:
            task.losses = original
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        if interrupted:
            task.losses = losses
        strategy = make(task, epochs)
        result = search(
            task, strategy, replace(settings, epochs=epochs), seed=3, run=run, stream=None
        )
        return dict(result.supernet.state_dict()), result.rows, strategy.state_dict()

    whole, run = (RunFolder.create(folder / name) for name in ("whole", "in steps"))
    expected = run_once(whole, False)
    for _ in range(epochs * task_of().search_steps):
        torch.randn(3)  # whatever else happens in between
        with pytest.raises(Interrupted):
            run_once(run, True)
    assert small.equal(run_once(run, False), expected)
    assert small.equal(run.load("search.pt"), whole.load("search.pt"))


def check_classification(make: Make, **changes: Any) -> None:
    """A search on cells, on the compiled operators where there are any, finds an architecture of
    the space; another one with the same seed is the same."""
    results = []
    for _ in range(2):
        task = small.task(**changes)
        strategy = make(task, small.SEARCH.epochs)
        results.append(search(task, strategy, small.SEARCH, seed=1, stream=None))
    first, second = results
    task.cell_space.to_indices(first.architecture)
    assert first.architecture == second.architecture
    assert first.rows == second.rows
    assert small.equal(dict(first.supernet.state_dict()), dict(second.supernet.state_dict()))


def check_wants_categories(make: Make) -> None:
    task = Planted()
    task.space = asng.SearchSpace(
        {"choice": asng.Categorical(["a", "b"]), "width": asng.Integer(1, 4)}
    )
    with pytest.raises(ValueError, match="spaces of categorical variables alone"):
        make(task, 1)
