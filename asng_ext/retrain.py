"""The retraining loop: an architecture that was found, trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO, cast

import torch
from torch import nn

from asng_ext._random import DrawsFrom
from asng_ext.config import RetrainConfig, section_to_dict
from asng_ext.progress import STDERR, Progress
from asng_ext.run import Metrics, RunFolder
from asng_ext.tasks.protocol import RetrainTask
from asng_ext.training import (
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

__all__ = ["CheckpointMismatchError", "retrain"]


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
        FloatingPointError: If the training loss becomes NaN or infinite.
        CheckpointMismatchError: If the checkpoint in ``run`` is of other settings or another
            architecture.
    """
    with cpu_threads(config.threads):
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
    first_epoch = _resume(run, network, optimizer, values, config)
    # Compiled after the weights are in place; state dicts are those of the plain network.
    runner = cast(nn.Module, torch.compile(network)) if config.compile else network
    metrics = Metrics(run.file("retrain.csv"), keep=first_epoch) if run else None
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
                with _autocast(config, device):
                    loss, further = task.training_loss(runner, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
            optimizer.step()
            means.add({"loss": loss, **further}, "train_")
            if progress.due():
                progress.draw(epoch * steps + step + 1, _shown(means.read()))
        row = {"epoch": float(epoch + 1), **means.read(), "learning_rate": rate}
        check_convergent(row)
        if (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs:
            with _autocast(config, device):
                tested = task.test(network)
            row |= {f"test_{name}": value for name, value in tested.items()}
        if run and metrics and events:
            metrics.add(row)
            events.add(row)
            run.save(
                "retrain.pt",
                {
                    "epochs_done": epoch + 1,
                    "config": section_to_dict(config),
                    "architecture": dict(values),
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
            )
        progress.line((epoch + 1) * steps, _shown(row))
    if events:
        events.close()
    if not tested:
        with _autocast(config, device):
            tested = task.test(network)
    if run:
        run.save("network.pt", {"architecture": dict(values), "network": network.state_dict()})
        run.write_json("results.json", tested)
    return network, tested


def _autocast(config: RetrainConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")


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
) -> int:
    """Loads the checkpoint, if there is one; returns how many epochs are done."""
    state = run.load("retrain.pt") if run else None
    if run is None or state is None:
        return 0
    if state["config"] != section_to_dict(config) or state["architecture"] != dict(values):
        raise CheckpointMismatchError(
            f"the retraining in {run.path} was begun with other settings or another architecture; "
            f"to begin anew, remove {run.file('retrain.pt')}"
        )
    try:
        network.load_state_dict(state["network"])
    except RuntimeError:
        raise CheckpointMismatchError(
            f"the retraining in {run.path} was begun with another network of the architecture; "
            f"to begin anew, remove {run.file('retrain.pt')}"
        ) from None
    restore_optimizer(optimizer, state["optimizer"])
    return int(state["epochs_done"])
