"""The retraining loop: an architecture that was found, trained from scratch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from torch import nn

from asng_ext import __version__
from asng_ext._random import DrawsFrom, ModuleGenerators, drawn, draws_of
from asng_ext._signals import Stop, asked_to_stop
from asng_ext._terminal import STDERR, Progress, say
from asng_ext._threads import cpu_threads
from asng_ext.runs.checkpoints import Epochs, Part
from asng_ext.runs.config import RetrainConfig, affecting_results
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.protocol import RetrainTask, check_members, shown_metrics
from asng_ext.training.divergence import Halvings, raise_if_diverged, with_retries
from asng_ext.training.metrics import Means
from asng_ext.training.precision import autocast
from asng_ext.training.schedules import cosine, multi_step_decay
from asng_ext.training.weight_optimizers import (
    make_weight_optimizer,
    restore_weight_optimizer,
    set_learning_rate,
)

__all__ = ["retrain"]


def retrain(
    task: RetrainTask,
    values: Mapping[str, Any],
    config: RetrainConfig,
    *,
    seed: int,
    run: RunFolder | None = None,
    stream: TextIO | None = STDERR,
    resume_from: Path | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """Trains the network of an architecture and tests it.

    Signals do to it what they do to :func:`asng_ext.engine.search.search`.

    Args:
        task: Data, network and loss.
        values: The architecture by names.
        config: Settings.
        seed: Decides the initial weights and whatever else is random in the network.
        run: Where to write metrics, events, checkpoints, and in the end the weights (network.pt)
            and test metrics (results.json). If it holds a checkpoint, training continues from it,
            bit for bit and from a step within an epoch, too.
        stream: Where progress is shown; None for nowhere.
        resume_from: A checkpoint of this training to continue from, instead of the newest one.

    Returns:
        The network and its test metrics.

    Raises:
        DivergedError: If the training loss, a weight or a gradient becomes NaN or infinite. The
            checkpoint before stays. With ``config.on_divergence`` "retry" and a ``run`` training
            first continues from there at half the learning rate, at most three times.
        TypeError: If the task lacks a member of its protocol.
        CheckpointMismatchError: If the checkpoint in ``run`` is of other settings or another
            architecture, or damaged, and the one before, too.
        BlockingIOError: If another process uses ``run``.
        Interrupted: If a signal has ended it; it is a KeyboardInterrupt.

    Warns:
        UserWarning: As :class:`asng_ext.runs.checkpoints.Epochs` does.
    """
    check_members("task", task, RetrainTask)
    locked = run.lock() if run else contextlib.nullcontext()
    stopping = asked_to_stop() if run else contextlib.nullcontext(Stop())

    def loop(halvings: Halvings, source: Path | None) -> tuple[nn.Module, dict[str, float]]:
        return _retrain(task, values, config, seed, run, stream, stop, source, halvings)

    with locked, stopping as stop, cpu_threads(config.threads):
        if run is None or config.on_divergence == "stop":
            return loop(Halvings(), resume_from)
        return with_retries(loop, run.file("retrain.pt"), resume_from, partial(say, stream))


def _retrain(
    task: RetrainTask,
    values: Mapping[str, Any],
    config: RetrainConfig,
    seed: int,
    run: RunFolder | None,
    stream: TextIO | None,
    stop: Stop,
    resume_from: Path | None,
    halvings: Halvings,
) -> tuple[nn.Module, dict[str, float]]:
    with DrawsFrom(seed, "network"):
        network = task.network(values)
    device = next(network.parameters()).device
    weight_optimizer = make_weight_optimizer(network, config)
    epochs = Epochs(
        run,
        "retrain",
        {"seed": seed, **affecting_results(config), **task.identity("retrain")},
        {
            "network": Part(network.state_dict, network.load_state_dict),
            "optimizer": Part(
                weight_optimizer.state_dict, partial(restore_weight_optimizer, weight_optimizer)
            ),
            "halvings": Part.of(halvings, assumed={"count": 0}),
        },
        device,
        same={"architecture": dict(values)},
        minutes=config.checkpoint_minutes,
        keep=config.keep,
        check_every=config.check_every,
        stop=stop,
        resume_from=resume_from,
    )
    # Compiled after the weights are in place; state dicts are those of the plain network.
    runner = cast(nn.Module, torch.compile(network)) if config.compile else network
    schedule = cosine if config.schedule == "cosine" else multi_step_decay
    steps = task.retrain_steps
    total, done = config.epochs * steps, epochs.done * steps + epochs.steps_done
    progress = Progress("retrain", total, done, stream)
    shown = {"train": "train", "test": "test"}
    tested: dict[str, float] = {}
    for epoch in range(epochs.done, config.epochs):
        task.begin_epoch(network, epoch, config.epochs)
        means = Means()
        check = partial(_check, means, network, epoch)
        network.train()
        draws = draws_of(seed, f"retrain epoch {epoch}", device, own_generators=task.own_generators)
        epochs.begin(
            {
                "means": Part(means.state_dict, partial(means.load_state_dict, device=device)),
                "generators": Part.of(ModuleGenerators(network)),
                "draws": Part.of(draws),
            },
        )
        batches = drawn(draws, partial(task.train_batches, epoch), epochs.steps_done)
        highest = config.learning_rate * halvings.factor
        # There may be no step left to do.
        rate = schedule(highest, epoch * steps + max(0, epochs.steps_done - 1), total)
        set_learning_rate(weight_optimizer, rate)
        for step, batch in enumerate(batches, epochs.steps_done):
            rate = schedule(highest, epoch * steps + step, total)
            set_learning_rate(weight_optimizer, rate)
            weight_optimizer.zero_grad()
            with draws:
                with autocast(config.precision, device):
                    loss, further = task.training_loss(runner, batch)
                loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
            weight_optimizer.step()
            means.add({"loss": loss, **further}, "train_")
            epochs.stepped(steps, check)
            if progress.due():
                progress.draw(epoch * steps + step + 1, shown_metrics(means.read(), task, shown))
        epochs.check(check)
        row = {"epoch": float(epoch + 1), **means.read(), "learning_rate": rate}
        if (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs:
            with autocast(config.precision, device):
                tested = task.test(network)
            row |= {f"test_{name}": float(value) for name, value in tested.items()}
        epochs.add(row)
        progress.line((epoch + 1) * steps, shown_metrics(row, task, shown))
    epochs.close()
    if not tested:
        with autocast(config.precision, device):
            tested = task.test(network)
    if run:
        run.save(
            "network.pt",
            {
                "architecture": dict(values),
                "network": network.state_dict(),
                "identity": epochs.identity,
                "blueprint": task.blueprint(network),
                "version": __version__,
            },
        )
        with autocast(config.precision, device):
            run.write_json("results.json", {**tested, **task.details(network)})
    return network, tested


def _check(means: Means, network: nn.Module, epoch: int, first: int, last: int) -> None:
    raise_if_diverged(epoch, first, last, means.read(), network)
