"""The search loop (Algorithm 1): weights and distribution in turn. It knows no task by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

import torch
from torch import nn

from asng_ext._random import DrawsFrom
from asng_ext.runs.checkpoints import (
    computed_by,
    differences,
    fitting,
    identity,
    progress_of,
    warn_if_elsewhere,
)
from asng_ext.runs.config import SearchConfig, lasting
from asng_ext.runs.folder import Metrics, RunFolder
from asng_ext.runs.progress import STDERR, Progress
from asng_ext.tasks.protocol import Optimizer, SearchTask
from asng_ext.training.cuda_graphs import CudaGraphs, GraphBackend, Replayed
from asng_ext.training.weight_optimizers import (
    Means,
    check_convergent,
    cosine,
    cpu_threads,
    drawn,
    draws_of,
    frozen_batch_norm,
    make_optimizer,
    restore_optimizer,
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
    stream: TextIO | None = STDERR,
    graphs: GraphBackend | None = None,
) -> SearchResult:
    """Searches an architecture while training the weights of the supernet.

    Each step draws λ architectures and trains the weights on their mean loss over one batch
    (eq. (9)), then draws λ more and moves the distribution by their losses on another batch
    (eq. (12)), without gradients and without a trace in batch normalization. All λ see the same
    batch.

    On a GPU both steps together are replayed as one CUDA graph if the task and the optimizer say
    that they are ``capturable``: that all they do for a step, they do on the device, without a look
    at a number on the host. Then nothing within an epoch waits for the device but the live line.
    Otherwise, and with ``config.graphs`` off, steps run as usual; the numbers are the same.

    Args:
        task: Data, supernet and losses.
        optimizer: An optimizer of the task's space; it is changed.
        config: Settings.
        seed: Decides the initial weights and whatever else is random in the supernet.
        run: Where to write metrics, events and checkpoints. If it holds a checkpoint, the search
            goes on from there, bit for bit as if it had not been interrupted.
        stream: Where progress is shown; None for nowhere.
        graphs: What captures steps; by default CUDA graphs where the supernet is on a GPU, and
            nothing elsewhere.

    Raises:
        FloatingPointError: If the training loss or a weight becomes NaN or infinite, or no loss of
            an epoch that was to move the distribution is finite. The checkpoint before stays.
        ValueError: If the checkpoint in ``run`` is of a search with other settings, or damaged.
        BlockingIOError: If another process uses ``run``.

    Warns:
        UserWarning: If the checkpoint was computed with another number of threads, instruction set,
            device or PyTorch, or is damaged, and the one before is used.
    """
    with run.lock() if run else contextlib.nullcontext(), cpu_threads(config.threads):
        return _search(task, optimizer, config, seed, run, stream, graphs)


def _search(
    task: SearchTask,
    optimizer: Optimizer,
    config: SearchConfig,
    seed: int,
    run: RunFolder | None,
    stream: TextIO | None,
    graphs: GraphBackend | None,
) -> SearchResult:
    with DrawsFrom(seed, "supernet"):
        supernet = task.supernet()
    device = next(supernet.parameters()).device
    if graphs is None and device.type == "cuda":
        graphs = CudaGraphs(device)
    obstacle = _obstacle(task=task, optimizer=optimizer)
    # Also where graphs are off: the numbers are to be the same.
    sgd = make_optimizer(supernet, config, capturable=graphs is not None and obstacle is None)
    obstacle = obstacle or _obstacle(SGD=sgd)
    made_with = identity("search", task, seed, lasting(config))
    first_epoch, known = _resume(run, supernet, sgd, optimizer, config, made_with)
    metrics = Metrics(run.file("search.csv"), first_epoch, known) if run else None
    events = run.events("search") if run and first_epoch < config.epochs else None
    rows: list[dict[str, float]] = metrics.rows if metrics else []

    steps = task.search_steps
    # To show what was measured, the host has to wait for the device.
    interval = 0.25 if device.type == "cpu" else 10.0
    progress = Progress("search", config.epochs * steps, first_epoch * steps, stream, interval)
    means = Means()
    iteration: Callable[[Any], None] = _Iteration(task, supernet, sgd, optimizer, config, means)
    if graphs is not None and config.graphs:
        if obstacle is None:
            iteration = Replayed(iteration, graphs, lambda why: progress.note(_NO_GRAPHS + why))
        else:
            progress.note(_NO_GRAPHS + obstacle)
    for epoch in range(first_epoch, config.epochs):
        means.reset()
        rate = config.learning_rate
        draws = draws_of(task, seed, f"search epoch {epoch}", device)
        for step, pair in enumerate(drawn(draws, partial(_pairs, task), epoch)):
            rate = cosine(config.learning_rate, epoch * steps + step, config.epochs * steps)
            set_learning_rate(sgd, rate)
            with draws:
                iteration(pair)
            if progress.due():
                shown = _shown(means.read(), optimizer)
                progress.draw(epoch * steps + step + 1, shown)
        row = {"epoch": float(epoch + 1), **means.read()}
        if row.pop("theta_without_loss") == 1:
            raise FloatingPointError(
                f"no loss of the search's epoch {epoch + 1} that was to move the distribution is "
                "finite; lower learning_rate, and see what losses the task gives without gradients"
            )
        row |= {
            "convergence": optimizer.convergence,
            "delta": optimizer.delta,
            "learning_rate": rate,
        }
        check_convergent(row, supernet)
        if config.test_every and (
            (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs
        ):
            tested = task.test_supernet(supernet, optimizer.recommend())
            row |= {f"test_{name}": float(value) for name, value in tested.items()}
        rows.append(row)
        if run and metrics and events:
            run.save(
                "search.pt",
                {
                    "epochs_done": epoch + 1,
                    "rows": rows,
                    "identity": made_with,
                    "computed_by": computed_by(device),
                    "supernet": supernet.state_dict(),
                    "sgd": sgd.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                keep_previous=True,
            )
            metrics.write()
            events.add(row)
        progress.line((epoch + 1) * steps, _shown(row, optimizer))
    if events:
        events.close()
    return SearchResult(optimizer.recommend(), supernet, rows)


def _pairs(task: SearchTask, epoch: int) -> Iterator[tuple[Any, Any]]:
    """For each step of an epoch a batch for the weights and one for the distribution."""
    streams = {
        "weight_batches": iter(task.weight_batches(epoch)),
        "theta_batches": iter(task.theta_batches(epoch)),
    }
    for step in range(task.search_steps):
        pair = []
        for name, stream in streams.items():
            try:
                pair.append(next(stream))
            except StopIteration:
                raise ValueError(
                    f"{name} of {type(task).__name__} must give {task.search_steps} batches an "
                    f"epoch, as many as its search_steps says, got {step}"
                ) from None
        yield pair[0], pair[1]


_NO_GRAPHS = "steps run without CUDA graphs: "


def _obstacle(**parts: object) -> str | None:
    """Which part of a step keeps it from being captured; None if none is known to."""
    for what, thing in parts.items():
        if not getattr(thing, "capturable", False):
            why = getattr(thing, "obstacle", "works on the host (it is not capturable)")
            return f"the {what}, {type(thing).__name__}, {why}"
    return None


class _Iteration:
    """A weight step and a θ step on a pair of batches.

    What it changes is in the objects it is made of, and with capturable ones in tensors that stay
    where they are: replaying its work is as good as calling it again.
    """

    def __init__(
        self,
        task: SearchTask,
        supernet: nn.Module,
        sgd: torch.optim.Optimizer,
        optimizer: Optimizer,
        config: SearchConfig,
        means: Means,
    ) -> None:
        self.task = task
        self.supernet = supernet
        self.sgd = sgd
        self.optimizer = optimizer
        self.config = config
        self.means = means

    def __call__(self, batches: tuple[Any, Any]) -> None:
        for_weights, for_theta = batches
        self._train_weights(for_weights)
        self._move_distribution(for_theta)

    def _train_weights(self, batch: Any) -> None:
        self.supernet.train()
        samples = self.optimizer.ask()
        self.sgd.zero_grad(set_to_none=False)
        losses, metrics = self.task.losses(self.supernet, batch, samples)
        loss = losses.mean()  # eq. (9) is its gradient
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.supernet.parameters(), self.config.gradient_clip)
        self.sgd.step()
        self.means.add({"loss": loss, **metrics}, "train_")

    def _move_distribution(self, batch: Any) -> None:
        samples = self.optimizer.ask()
        with torch.no_grad(), frozen_batch_norm(self.supernet):
            losses, metrics = self.task.losses(self.supernet, batch, samples)
        self.optimizer.tell(samples, losses)  # eq. (12) and what follows
        failed = (~losses.isfinite()).all()  # such a step moves nothing
        self.means.add({"loss": losses.mean(), **metrics, "without_loss": failed}, "theta_")


def _shown(row: dict[str, float], optimizer: Optimizer) -> dict[str, float]:
    names = {
        "train loss": "train_loss",
        "valid. accuracy": "theta_accuracy",  # of the half that moves the distribution
        "valid. PSNR": "theta_psnr",
        "test accuracy": "test_accuracy",
        "test PSNR": "test_psnr",
    }
    shown = {label: row[name] for label, name in names.items() if name in row}
    return shown | {"convergence": optimizer.convergence, "δ": optimizer.delta}


def _resume(
    run: RunFolder | None,
    supernet: nn.Module,
    sgd: torch.optim.Optimizer,
    optimizer: Optimizer,
    config: SearchConfig,
    made_with: dict[str, Any],
) -> tuple[int, list[dict[str, float]] | None]:
    """Loads the checkpoint, if there is one; returns how many epochs are done, and their metrics,
    None for those in the table."""
    checkpoint = run.load_checkpoint("search.pt") if run else None
    if run is None or checkpoint is None:
        return 0, None
    path, state = checkpoint
    with fitting(path):
        changed = differences(path, state, made_with)
    if changed:
        raise ValueError(
            f"the search in {run.path} was begun with other settings: {changed}; "
            "continue it with the same, or search in another folder"
        )
    with fitting(path):
        done, rows = progress_of(state, config.epochs)
        supernet.load_state_dict(state["supernet"])
        restore_optimizer(sgd, state["sgd"])
        optimizer.load_state_dict(state["optimizer"])
        if done < config.epochs:
            warn_if_elsewhere(path, state, next(supernet.parameters()).device)
    return done, rows
