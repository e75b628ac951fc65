"""The retraining loop: an architecture that was found, trained from scratch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from torch import nn

from asng_ext import __version__
from asng_ext._random import DrawsFrom, ModuleGenerators, drawn, draws_of
from asng_ext._signals import Stop
from asng_ext._terminal import STDERR, Progress, say
from asng_ext.distributed import ALONE, Ranks
from asng_ext.engine.ranks import draws_of_rank, run_loop
from asng_ext.runs.checkpoints import ANEW, Epochs, Origin, Part
from asng_ext.runs.config import RetrainConfig, affecting_results
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.protocol import RetrainTask, check_members, shown_metrics
from asng_ext.training.cuda_graphs import GraphBackend, graphs_on, replayed
from asng_ext.training.divergence import Halvings, raise_if_diverged
from asng_ext.training.metrics import Means
from asng_ext.training.precision import autocast
from asng_ext.training.schedules import cosine, multi_step_decay
from asng_ext.training.spread import Spread
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
    graphs: GraphBackend | None = None,
    resume_from: Path | None = None,
    restart: bool = False,
    begun: Callable[[], object] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[nn.Module, dict[str, float]]:
    """Trains the network of an architecture and tests it.

    On a GPU a step whose ``task`` is ``retrain_capturable`` is captured and replayed, unless
    ``config.graphs`` or ``config.compile`` says otherwise, or several ranks train together.

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
        graphs: What captures steps; by default CUDA graphs, on a GPU.
        resume_from: A checkpoint of this training to continue from, instead of the newest one.
        restart: Begin anew. What ``run`` holds of a training before stays until there is something
            in its place: checkpoints and metrics until the first checkpoint, the network and its
            test metrics until the end.
        begun: Is called when a training that is begun has written its first checkpoint.
        ranks: The processes that train together, all of which call this with the same arguments.
            They divide the batches. Rank 0 alone reads and writes ``run`` and shows progress.

    Returns:
        The network and its test metrics.

    Raises:
        DivergedError: If the training loss, a weight or a gradient becomes NaN or infinite. The
            checkpoint before stays. With ``config.on_divergence`` "retry" and a ``run`` training
            first continues from there at half the learning rate, at most three times.
        TypeError: If the task lacks a member of its protocol.
        ValueError: If there is a checkpoint to continue from, and it is to begin anew.
        CheckpointMismatchError: If the checkpoint in ``run`` is of other settings or another
            architecture, or damaged, and the one before, too.
        BlockingIOError: If another process uses ``run``.
        Interrupted: If a signal has ended it; it is a KeyboardInterrupt.
        RanksDifferError: If what must be the same on all ranks is not.
        ConnectionError: If another rank is gone.

    Warns:
        UserWarning: As :class:`asng_ext.runs.checkpoints.Epochs` does.
    """
    check_members("task", task, RetrainTask)
    if restart and resume_from is not None:
        raise ValueError(f"resume_from must not be given to begin anew, got {resume_from}")
    stream = stream if ranks.first else None
    loop = partial(_retrain, task, values, config, seed, stream, graphs, ranks, begun)
    origin = ANEW if restart else resume_from
    return run_loop(loop, "retrain", config, run, ranks, origin, partial(say, stream))


def _retrain(
    task: RetrainTask,
    values: Mapping[str, Any],
    config: RetrainConfig,
    seed: int,
    stream: TextIO | None,
    graphs: GraphBackend | None,
    ranks: Ranks,
    begun: Callable[[], object] | None,
    run: RunFolder | None,
    stop: Stop,
    halvings: Halvings,
    resume_from: Origin,
) -> tuple[nn.Module, dict[str, float]]:
    with DrawsFrom(seed, "network"):
        network = task.network(values)
    if config.sync_batch_norm and ranks.size > 1:
        # Here, as it imports PyTorch's compiler.
        from asng_ext.training.synced_batch_norm import synced_batch_norm

        synced_batch_norm(network, ranks)
    device = next(network.parameters()).device
    graphs = graphs or graphs_on(device)
    blocker = _capture_blocker(task, config, ranks)
    # Also where graphs are off: the numbers are to be the same.
    capturable = graphs is not None and blocker is None
    weight_optimizer = make_weight_optimizer(network, config, capturable=capturable)
    spread = Spread(ranks, network, weight_optimizer, 1, task.part_of_batch)
    means = Means()
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
        assumed={"sync_batch_norm": False},  # what earlier versions had
        minutes=config.checkpoint_minutes,
        keep=config.keep,
        check_every=config.check_every,
        stop=stop,
        resume_from=resume_from,
        ranks=ranks,
        begun=begun,
    )
    # Compiled after the weights are in place; state dicts are those of the plain network.
    runner = cast(nn.Module, torch.compile(network)) if config.compile else network
    schedule = cosine if config.schedule == "cosine" else multi_step_decay
    steps = task.retrain_steps
    total, done = config.epochs * steps, epochs.done * steps + epochs.steps_done
    progress = Progress.of_loop("retrain", total, done, stream, device.type)

    def train(batch: Any) -> None:
        weight_optimizer.zero_grad()
        spread.begin()
        part, _ = spread.own(batch)
        with autocast(config.precision, device):
            loss, further = task.training_loss(runner, part)
        loss.backward(spread.share_of_each(loss))  # type: ignore[no-untyped-call]
        loss, further = spread.together(loss, further, trained=True)
        weight_optimizer.step()
        means.add({"loss": loss, **further}, "train_")

    iteration = replayed(train, graphs if config.graphs else None, blocker, progress.note)
    shown = {"train": "train", "test": "test"}
    tested: dict[str, float] = {}
    for epoch in range(epochs.done, config.epochs):
        task.begin_epoch(network, epoch, config.epochs)
        means.reset()
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
            with draws_of_rank(draws, ranks, seed, f"retrain epoch {epoch} step {step}", device):
                iteration(task.prepare_batch(network, batch))
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
        with autocast(config.precision, device):
            details = {**task.details(network), "architecture": dict(values)}
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
        run.write_json("results.json", {**tested, **details})
    return network, tested


def _capture_blocker(task: RetrainTask, config: RetrainConfig, ranks: Ranks) -> str | None:
    """Why steps cannot be captured, or None."""
    if not task.retrain_capturable:
        return f"the task, {type(task).__name__}, is not retrain_capturable"
    if config.compile:
        return "the network is compiled"
    return "several ranks train together" if ranks.size > 1 else None


def _check(means: Means, network: nn.Module, epoch: int, first: int, last: int) -> None:
    raise_if_diverged(epoch, first, last, means.read(), network)
