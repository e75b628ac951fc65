"""The retraining loop: an architecture that was found, trained from scratch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TextIO, cast

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
from asng_ext.runs.config import RetrainConfig, lasting
from asng_ext.runs.folder import Metrics, RunFolder
from asng_ext.runs.progress import STDERR, Progress
from asng_ext.tasks.protocol import RetrainTask
from asng_ext.training.weight_optimizers import (
    Means,
    check_convergent,
    cosine,
    cpu_threads,
    drawn,
    draws_of,
    in_steps,
    make_optimizer,
    restore_optimizer,
    set_learning_rate,
)

__all__ = ["CheckpointMismatchError", "autocast", "retrain"]


class CheckpointMismatchError(ValueError):
    """The run holds a checkpoint of another retraining. Nothing has been trained or written."""


def retrain(
    task: RetrainTask,
    values: Mapping[str, Any],
    config: RetrainConfig,
    *,
    seed: int,
    run: RunFolder | None = None,
    stream: TextIO | None = STDERR,
) -> tuple[nn.Module, dict[str, float]]:
    """Trains the network of an architecture and tests it.

    Args:
        task: Data, network and loss.
        values: The architecture by names.
        config: Settings.
        seed: Decides the initial weights and whatever else is random in the network.
        run: Where to write metrics, events, checkpoints, and in the end the weights (network.pt)
            and test metrics (results.json). If it holds a checkpoint, training goes on from there.
        stream: Where progress is shown; None for nowhere.

    Returns:
        The network and its test metrics.

    Raises:
        FloatingPointError: If the training loss or a weight becomes NaN or infinite. The checkpoint
            before stays.
        CheckpointMismatchError: If the checkpoint in ``run`` is of other settings or another
            architecture.
        ValueError: If it is damaged, and the one before, too.
        BlockingIOError: If another process uses ``run``.

    Warns:
        UserWarning: As :func:`asng_ext.search.search` does.
    """
    with run.lock() if run else contextlib.nullcontext(), cpu_threads(config.threads):
        return _retrain(task, values, config, seed, run, stream)


def _retrain(
    task: RetrainTask,
    values: Mapping[str, Any],
    config: RetrainConfig,
    seed: int,
    run: RunFolder | None,
    stream: TextIO | None,
) -> tuple[nn.Module, dict[str, float]]:
    with DrawsFrom(seed, "network"):
        network = task.network(values)
    device = next(network.parameters()).device
    optimizer = make_optimizer(network, config)
    made_with = identity("retrain", task, seed, lasting(config))
    first_epoch, known = _resume(run, network, optimizer, values, config, made_with)
    # Compiled after the weights are in place; state dicts are those of the plain network.
    runner = cast(nn.Module, torch.compile(network)) if config.compile else network
    metrics = Metrics(run.file("retrain.csv"), first_epoch, known) if run else None
    rows: list[dict[str, float]] = metrics.rows if metrics else []
    events = run.events("retrain") if run and first_epoch < config.epochs else None

    schedule = cosine if config.schedule == "cosine" else in_steps
    steps = task.retrain_steps
    progress = Progress("retrain", config.epochs * steps, first_epoch * steps, stream)
    tested: dict[str, float] = {}
    for epoch in range(first_epoch, config.epochs):
        rate = config.learning_rate
        task.begin_epoch(network, epoch, config.epochs)
        means = Means()
        network.train()
        draws = draws_of(task, seed, f"retrain epoch {epoch}", device)
        for step, batch in enumerate(drawn(draws, task.train_batches, epoch)):
            rate = schedule(config.learning_rate, epoch * steps + step, config.epochs * steps)
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad()
            with draws:
                with autocast(config.precision, device):
                    loss, further = task.training_loss(runner, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
            optimizer.step()
            means.add({"loss": loss, **further}, "train_")
            if progress.due():
                progress.draw(epoch * steps + step + 1, _shown(means.read()))
        row = {"epoch": float(epoch + 1), **means.read(), "learning_rate": rate}
        check_convergent(row, network)
        if (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs:
            with autocast(config.precision, device):
                tested = task.test(network)
            row |= {f"test_{name}": float(value) for name, value in tested.items()}
        rows.append(row)
        if run and metrics and events:
            run.save(
                "retrain.pt",
                {
                    "epochs_done": epoch + 1,
                    "rows": rows,
                    "identity": made_with,
                    "architecture": dict(values),
                    "computed_by": computed_by(device),
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                keep_previous=True,
            )
            metrics.write()
            events.add(row)
        progress.line((epoch + 1) * steps, _shown(row))
    if events:
        events.close()
    if not tested:
        with autocast(config.precision, device):
            tested = task.test(network)
    if run:
        run.save(
            "network.pt",
            {
                "architecture": dict(values),
                "network": network.state_dict(),
                "identity": made_with,
            },
        )
        run.write_json("results.json", tested)
    return network, tested


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """What the network of a retraining with that ``precision`` runs in."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _shown(row: dict[str, float]) -> dict[str, float]:
    names = {
        "train loss": "train_loss",
        "train accuracy": "train_accuracy",
        "train PSNR": "train_psnr",
        "test accuracy": "test_accuracy",
        "test PSNR": "test_psnr",
    }
    return {label: row[name] for label, name in names.items() if name in row}


def _resume(
    run: RunFolder | None,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, Any],
    config: RetrainConfig,
    made_with: dict[str, Any],
) -> tuple[int, list[dict[str, float]] | None]:
    """Loads the checkpoint, if there is one; returns how many epochs are done, and their metrics,
    None for those in the table."""
    checkpoint = run.load_checkpoint("retrain.pt") if run else None
    if run is None or checkpoint is None:
        return 0, None
    path, state = checkpoint
    with fitting(path):
        changed = differences(path, state, made_with)
        another = state["architecture"] != dict(values)
    if changed or another:
        other = f"other settings: {changed}" if changed else "another architecture"
        raise CheckpointMismatchError(
            f"the retraining in {run.path} was begun with {other}; to begin anew, remove {path}"
        )
    with fitting(path):
        done, rows = progress_of(state, config.epochs)
        network.load_state_dict(state["network"])
        restore_optimizer(optimizer, state["optimizer"])
        if done < config.epochs:
            warn_if_elsewhere(path, state, next(network.parameters()).device)
    return done, rows
