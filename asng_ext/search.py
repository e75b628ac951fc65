"""The search loop (Algorithm 1): weights and distribution in turn. It knows no task by name."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import nn

from asng_ext.config import SearchConfig, section_to_dict
from asng_ext.progress import Progress
from asng_ext.run import Metrics, RunFolder
from asng_ext.tasks.protocol import Optimizer, SearchTask
from asng_ext.training import (
    Means,
    check_convergent,
    cosine,
    cpu_threads,
    frozen_batch_norm,
    make_optimizer,
    restore_optimizer,
    seeded,
    set_learning_rate,
)

__all__ = ["SearchResult", "search"]


@dataclass(frozen=True)
class SearchResult:
    """What a search leaves.

    Attributes:
        architecture: The most likely architecture by names.
        supernet: The supernet with its weights.
        rows: Metrics of each epoch.
    """

    architecture: dict[str, Any]
    supernet: nn.Module
    rows: list[dict[str, float]]


def search(
    task: SearchTask,
    optimizer: Optimizer,
    config: SearchConfig,
    *,
    seed: int,
    run: RunFolder | None = None,
    stream: TextIO | None = sys.stderr,
) -> SearchResult:
    """Searches an architecture while training the weights of the supernet.

    Each step draws λ architectures and trains the weights on their mean loss over one batch (eq.
    9), then draws λ more and moves the distribution by their losses on another batch, without
    gradients and without a trace in batch normalisation (eq. 12). All λ see the same batch.

    Args:
        task: Data, supernet and losses.
        optimizer: An optimizer of the task's space; it is changed.
        config: Settings.
        seed: Decides the initial weights and whatever else is random in the supernet.
        run: Where to write metrics, events and checkpoints. If it holds a checkpoint, the search
            goes on from there, bit for bit as if it had not been interrupted.
        stream: Where progress is shown; None for nowhere.

    Raises:
        FloatingPointError: If the training loss becomes NaN or infinite.
        ValueError: If the checkpoint in ``run`` is of a search with other settings.
    """
    with cpu_threads(config.threads):
        return _search(task, optimizer, config, seed, run, stream)


def _search(
    task: SearchTask,
    optimizer: Optimizer,
    config: SearchConfig,
    seed: int,
    run: RunFolder | None,
    stream: TextIO | None,
) -> SearchResult:
    with seeded(seed, "supernet", torch.device("cpu")):
        supernet = task.supernet()
    device = next(supernet.parameters()).device
    sgd = make_optimizer(supernet, config)
    first_epoch = _resume(run, supernet, sgd, optimizer, config)
    metrics = Metrics(run.file("search.csv"), keep=first_epoch) if run else None
    events = run.events("search") if run and first_epoch < config.epochs else None
    rows: list[dict[str, float]] = metrics.rows if metrics else []

    steps = task.search_steps
    progress = Progress("search", config.epochs * steps, first_epoch * steps, stream)
    for epoch in range(first_epoch, config.epochs):
        means = Means()
        rate = config.learning_rate
        with seeded(seed, f"search epoch {epoch}", device):
            batches = zip(task.weight_batches(epoch), task.theta_batches(epoch), strict=True)
            for step, (weight_batch, theta_batch) in enumerate(batches):
                rate = cosine(config.learning_rate, epoch * steps + step, config.epochs * steps)
                set_learning_rate(sgd, rate)
                _train_weights(task, supernet, sgd, optimizer, weight_batch, config, means)
                _move_distribution(task, supernet, optimizer, theta_batch, means)
                if progress.due():
                    shown = _shown(means.read(), optimizer)
                    progress.draw(epoch * steps + step + 1, shown)
        row = {"epoch": float(epoch + 1), **means.read()}
        row |= {
            "convergence": optimizer.convergence,
            "delta": optimizer.delta,
            "learning_rate": rate,
        }
        check_convergent(row)
        if config.test_every and (
            (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs
        ):
            tested = task.test_supernet(supernet, optimizer.recommend())
            row |= {f"test_{name}": value for name, value in tested.items()}
        progress.line((epoch + 1) * steps, _shown(row, optimizer))
        if run and metrics and events:
            metrics.add(row)
            events.add(row)
            _checkpoint(run, supernet, sgd, optimizer, config, epoch + 1)
        else:
            rows.append(row)
    if events:
        events.close()
    return SearchResult(optimizer.recommend(), supernet, rows)


def _train_weights(
    task: SearchTask,
    supernet: nn.Module,
    sgd: torch.optim.Optimizer,
    optimizer: Optimizer,
    batch: Any,
    config: SearchConfig,
    means: Means,
) -> None:
    supernet.train()
    samples = optimizer.ask()
    sgd.zero_grad(set_to_none=False)
    losses, metrics = task.losses(supernet, batch, samples)
    loss = losses.mean()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(supernet.parameters(), config.gradient_clip)
    sgd.step()
    means.add({"loss": loss, **metrics}, "train_")


def _move_distribution(
    task: SearchTask, supernet: nn.Module, optimizer: Optimizer, batch: Any, means: Means
) -> None:
    samples = optimizer.ask()
    with torch.no_grad(), frozen_batch_norm(supernet):
        losses, metrics = task.losses(supernet, batch, samples)
    optimizer.tell(samples, losses)
    means.add({"loss": losses.mean(), **metrics}, "theta_")


def _shown(row: dict[str, float], optimizer: Optimizer) -> dict[str, float]:
    names = {
        "loss": "train_loss",
        "accuracy": "theta_accuracy",
        "PSNR": "theta_psnr",
        "test accuracy": "test_accuracy",
        "test PSNR": "test_psnr",
    }
    shown = {label: row[name] for label, name in names.items() if name in row}
    return shown | {"convergence": optimizer.convergence, "δ": optimizer.delta}


def _checkpoint(
    run: RunFolder,
    supernet: nn.Module,
    sgd: torch.optim.Optimizer,
    optimizer: Optimizer,
    config: SearchConfig,
    epochs_done: int,
) -> None:
    run.save(
        "search.pt",
        {
            "epochs_done": epochs_done,
            "config": section_to_dict(config),
            "supernet": supernet.state_dict(),
            "sgd": sgd.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
    )


def _resume(
    run: RunFolder | None,
    supernet: nn.Module,
    sgd: torch.optim.Optimizer,
    optimizer: Optimizer,
    config: SearchConfig,
) -> int:
    """Loads the checkpoint, if there is one; returns how many epochs are done."""
    state = run.load("search.pt") if run else None
    if run is None or state is None:
        return 0
    if state["config"] != section_to_dict(config):
        changed = sorted(
            name
            for name, value in section_to_dict(config).items()
            if state["config"].get(name) != value
        )
        raise ValueError(
            f"the search in {run.path} was begun with other settings ({', '.join(changed)}); "
            "continue it with the same, or search in another folder"
        )
    supernet.load_state_dict(state["supernet"])
    restore_optimizer(sgd, state["sgd"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epochs_done"])
