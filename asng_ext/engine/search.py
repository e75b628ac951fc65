"""The search loop (Algorithm 1): steps of the weights and of the distribution alternate."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from asng_ext._random import DrawsFrom, ModuleGenerators, drawn, draws_of
from asng_ext._signals import Stop
from asng_ext._terminal import STDERR, Progress, say
from asng_ext.distributed import ALONE, Ranks
from asng_ext.engine.ranks import draws_of_rank, run_loop
from asng_ext.optimizers import Penalty
from asng_ext.runs.checkpoints import Epochs, Part
from asng_ext.runs.config import SearchConfig, affecting_results
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.protocol import (
    Batch,
    Optimizer,
    SearchTask,
    TaskDefaults,
    check_members,
    shown_metrics,
)
from asng_ext.training.active_sgd import ActiveSGD
from asng_ext.training.batch_norm import frozen_batch_norm
from asng_ext.training.cuda_graphs import CudaGraphs, GraphBackend, Replayed
from asng_ext.training.divergence import Halvings, raise_if_diverged
from asng_ext.training.metrics import Means
from asng_ext.training.schedules import cosine
from asng_ext.training.spread import Spread
from asng_ext.training.weight_optimizers import (
    CapturableSGD,
    make_weight_optimizer,
    restore_weight_optimizer,
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
    penalty: Penalty | None = None,
    resume_from: Path | None = None,
    ranks: Ranks = ALONE,
) -> SearchResult:
    """Searches an architecture while training the weights of the supernet.

    With a ``run``, a signal that asks the process to end (SIGINT, SIGTERM, SIGHUP, SIGUSR1) ends it
    after a checkpoint of the step it came in; the same signal again, at once.

    Each step draws λ architectures and trains the weights on their mean loss over one batch
    (eq. (9)), then draws λ more and moves the distribution by their losses on another batch
    (eq. (12)), without gradients and without a trace in batch normalization. All λ see the same
    batch.

    On a GPU both steps together are replayed as one CUDA graph if the task and the optimizer are
    ``capturable``: all they do for a step, they do on the device, and the host reads no number.
    Then nothing within an epoch synchronizes with the device but the live line and, each
    ``check_every`` steps, the look whether the training has diverged. Otherwise, and with
    ``config.graphs`` off, steps run as usual; the numbers are the same.

    Args:
        task: Data, supernet and losses.
        optimizer: An optimizer of the task's space; it is changed. It has λ and whatever else
            decides the distribution.
        config: Settings of the loop.
        seed: Decides the initial weights and whatever else is random in the supernet.
        run: Where to write metrics, events and checkpoints. If it holds a checkpoint, the search
            continues from there, bit for bit as if it had not been interrupted: from an iteration
            within an epoch, too.
        stream: Where progress is shown; None for nowhere.
        graphs: What captures steps; by default CUDA graphs where the supernet is on a GPU, and
            nothing elsewhere.
        penalty: Limits of what the architecture may cost. Samples beyond them rank behind those
            within, and the architecture is the most likely one within them. Metrics are, in
            addition, the mean costs of the samples that move the distribution, "theta_" and the
            name, and how many are within all limits, "theta_within_limits".
        resume_from: A checkpoint of this search to continue from, instead of the newest one.
        ranks: The processes that search together, all of which call this with the same arguments.
            They divide the samples, and where these are fewer, the batch. Rank 0 alone reads and
            writes ``run`` and shows progress.

    Raises:
        DivergedError: If the training loss, a weight or a gradient becomes NaN or infinite. The
            checkpoint before stays. With ``config.on_divergence`` "retry" and a ``run`` the search
            first continues from there at half the learning rate, at most three times.
        FloatingPointError: If no loss of an epoch that was to move the distribution is finite.
        TypeError: If the task or the optimizer lacks a member of its protocol.
        ValueError: If the settings have limits and there is no ``penalty``.
        CheckpointMismatchError: If the checkpoint in ``run`` is of a search with other settings or
            another optimizer, or damaged.
        BlockingIOError: If another process uses ``run``.
        Interrupted: If a signal has ended it; it is a KeyboardInterrupt.
        RanksDifferError: If what must be the same on all ranks is not.
        ConnectionError: If another rank is gone.

    Warns:
        UserWarning: If the checkpoint was computed with another number of threads, instruction set,
            device or PyTorch, or is damaged, and the one before is used.
    """
    check_members("task", task, SearchTask)
    check_members("optimizer", optimizer, Optimizer)
    if config.penalty and penalty is None:
        raise ValueError(f"penalty must be given, with the limits {config.penalty}")
    stream = stream if ranks.first else None
    retries = config.on_divergence == "retry"
    begun = copy.deepcopy(optimizer.state_dict()) if retries else {}

    def begin_anew(why: str) -> None:
        say(stream, why)
        optimizer.load_state_dict(begun)

    loop = partial(_search, task, optimizer, config, seed, stream, graphs, penalty, ranks)
    return run_loop(loop, "search", config, run, ranks, resume_from, begin_anew)


def _search(
    task: SearchTask,
    optimizer: Optimizer,
    config: SearchConfig,
    seed: int,
    stream: TextIO | None,
    graphs: GraphBackend | None,
    penalty: Penalty | None,
    ranks: Ranks,
    run: RunFolder | None,
    stop: Stop,
    halvings: Halvings,
    resume_from: Path | None,
) -> SearchResult:
    with DrawsFrom(seed, "supernet"):
        supernet = task.supernet()
    device = next(supernet.parameters()).device
    if graphs is None and device.type == "cuda":
        graphs = CudaGraphs(device)
    blocker = _capture_blocker("task", task, task.capturable, task.capture_blocker)
    blocker = blocker or _capture_blocker("optimizer", optimizer, optimizer.capturable)
    # Also where graphs are off: the numbers are to be the same.
    sgd = make_weight_optimizer(supernet, config, capturable=graphs is not None and blocker is None)
    blocker = blocker or _capture_blocker("SGD", sgd, isinstance(sgd, CapturableSGD))
    blocker = blocker or (None if ranks.exchange_is_capturable(device) else _NO_NCCL)
    epochs = Epochs(
        run,
        "search",
        {
            "seed": seed,
            **affecting_results(config),
            "optimizer": type(optimizer).__name__,
            "population_size": optimizer.population_size,
            **task.identity("search"),
            "penalty_of": penalty.identity() if penalty else None,
        },
        {
            "supernet": Part(supernet.state_dict, supernet.load_state_dict),
            "sgd": Part(sgd.state_dict, partial(restore_weight_optimizer, sgd)),
            "optimizer": Part(optimizer.state_dict, optimizer.load_state_dict),
            "halvings": Part.of(halvings, assumed={"count": 0}),
        },
        device,
        assumed={
            "optimizer": "ASNG",
            "step_size": config.step_size,
            **{name: getattr(SearchConfig, name) for name in _ADDED},
            "penalty_of": None,
        },
        minutes=config.checkpoint_minutes,
        keep=config.keep,
        check_every=config.check_every,
        stop=stop,
        resume_from=resume_from,
        ranks=ranks,
        replicated=partial(_replicated, optimizer, device),
    )
    steps = task.search_steps
    # To show what was measured, the host synchronizes with the device.
    interval = 0.25 if device.type == "cpu" else 10.0
    total, done = config.epochs * steps, epochs.done * steps + epochs.steps_done
    progress = Progress("search", total, done, stream, interval)
    means = Means()
    within = {
        "means": Part(means.state_dict, partial(means.load_state_dict, device=device)),
        "generators": Part.of(ModuleGenerators(supernet)),
    }
    if task.kernels:
        progress.note(task.kernels)
    iteration: Callable[[Any], None] = _Iteration(
        task, supernet, sgd, optimizer, means, penalty, ranks
    )
    if graphs is not None and config.graphs:
        if blocker is None:
            iteration = Replayed(iteration, graphs, lambda why: progress.note(_NO_GRAPHS + why))
        else:
            progress.note(_NO_GRAPHS + blocker)
    for epoch in range(epochs.done, config.epochs):
        means.reset()
        check = partial(_check, means, optimizer, supernet, epoch)
        draws = draws_of(seed, f"search epoch {epoch}", device, own_generators=task.own_generators)
        as_it_is = sgd.as_it_is if isinstance(sgd, ActiveSGD) else contextlib.nullcontext
        epochs.begin({**within, "draws": Part.of(draws)}, as_it_is)
        pairs = drawn(draws, partial(_pairs, task, epoch), epochs.steps_done)
        highest = config.learning_rate * halvings.factor
        # There may be no step left to do.
        rate = cosine(highest, epoch * steps + max(0, epochs.steps_done - 1), total)
        set_learning_rate(sgd, rate)
        for step, pair in enumerate(pairs, epochs.steps_done):
            rate = cosine(highest, epoch * steps + step, total)
            set_learning_rate(sgd, rate)
            with draws_of_rank(draws, ranks, seed, f"search epoch {epoch} step {step}", device):
                iteration(pair)
            epochs.stepped(steps, check)
            if progress.due():
                progress.draw(epoch * steps + step + 1, _shown(means.read(), task, optimizer))
        epochs.check(check)
        row = {"epoch": float(epoch + 1), **means.read()}
        if row.pop("theta_without_loss") == 1:
            raise FloatingPointError(
                f"no loss of the search's epoch {epoch + 1} that was to move the distribution is "
                "finite; lower learning_rate, and check which losses the task gives without "
                "gradients"
            )
        row |= {
            "convergence": optimizer.convergence,
            "delta": optimizer.delta,
            "learning_rate": rate,
        }
        if config.test_every and (
            (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs
        ):
            tested = task.test_supernet(supernet, _recommended(optimizer, penalty))
            row |= {f"test_{name}": float(value) for name, value in tested.items()}
        epochs.add(row, partial(_distributions, task, optimizer))
        progress.line((epoch + 1) * steps, _shown(row, task, optimizer))
    epochs.close()
    return SearchResult(_recommended(optimizer, penalty), supernet, epochs.rows)


def _check(
    means: Means, optimizer: Optimizer, supernet: nn.Module, epoch: int, first: int, last: int
) -> None:
    row = {**means.read(), "convergence": optimizer.convergence}
    raise_if_diverged(epoch, first, last, row, supernet)


def _replicated(optimizer: Optimizer, device: torch.device) -> Any:
    """What decides the samples that come next; nothing where reading it would wait for a device."""
    if optimizer.capturable and device.type != "cpu":
        return None
    theta = getattr(optimizer, "theta", None)  # a user's optimizer may call it otherwise
    return optimizer.state_dict() if theta is None else (theta, optimizer.delta)


_ADDED = ("init", "init_probability", "fixed", "penalty")
"""Settings that earlier versions did not have; theirs were the defaults."""


def _recommended(optimizer: Optimizer, penalty: Penalty | None) -> dict[str, Any]:
    return penalty.recommend(optimizer) if penalty else optimizer.recommend()


def _distributions(task: SearchTask, optimizer: Optimizer) -> dict[str, list[float]]:
    """The probabilities θ of the categorical variables, by name; none of an optimizer of a user's
    that does not show them as this package's do."""
    theta = getattr(getattr(optimizer, "theta", None), "categorical", ())
    variables = task.space.categorical.items()
    return {
        name: [float(p) for p in row[: len(variable.values)]]
        for (name, variable), row in zip(variables, theta)
    }


def _pairs(task: SearchTask, epoch: int) -> Iterator[tuple[Batch, Batch]]:
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
_NO_NCCL = "ranks exchange gradients by another backend than NCCL"


def _capture_blocker(
    what: str, part: Any, capturable: bool, why: str = TaskDefaults.capture_blocker
) -> str | None:
    """What keeps steps with this part from being captured; None if nothing is known to."""
    return None if capturable else f"the {what}, {type(part).__name__}, {why}"


@dataclass
class _Iteration:
    """A weight step and a θ step on a pair of batches.

    What it changes is in the objects it is made of, and with capturable ones in tensors that stay
    where they are: replaying its work is as good as calling it again.
    """

    task: SearchTask
    supernet: nn.Module
    sgd: torch.optim.Optimizer
    optimizer: Optimizer
    means: Means
    penalty: Penalty | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        task, population = self.task, self.optimizer.population_size
        self._spread = Spread(self.ranks, self.supernet, self.sgd, population, task.part_of_batch)

    def __call__(self, batches: tuple[Batch, Batch]) -> None:
        for_weights, for_theta = batches
        self._train_weights(for_weights)
        self._move_distribution(for_theta)

    def _train_weights(self, batch: Batch) -> None:
        self.supernet.train()
        samples = self.optimizer.ask()
        self.sgd.zero_grad(set_to_none=False)
        self._spread.begin()
        losses, metrics = self.task.losses(self.supernet, *self._spread.own(batch, samples))
        shares = self._spread.share_of_each(losses)
        losses.backward(shares)  # type: ignore[no-untyped-call]  # eq. (9)
        losses, metrics = self._spread.together(losses, metrics, trained=True)
        self.sgd.step()
        self.means.add({"loss": losses, **metrics}, "train_")

    def _move_distribution(self, batch: Batch) -> None:
        samples = self.optimizer.ask()
        with torch.no_grad(), frozen_batch_norm(self.supernet):
            losses, metrics = self.task.losses(self.supernet, *self._spread.own(batch, samples))
            losses, metrics = self._spread.together(losses, metrics, trained=False)
        ranked, costs = self.penalty.ranked(samples, losses) if self.penalty else (losses, {})
        self.optimizer.tell(samples, ranked)  # eq. (12) and what follows
        # A step without a finite loss moves nothing.
        self.means.add({"loss": losses, **metrics, **costs}, "theta_", watched="loss")


def _shown(row: dict[str, float], task: SearchTask, optimizer: Optimizer) -> dict[str, float]:
    # Of data that train no weights, but move the distribution.
    metrics = shown_metrics(row, task, {"valid.": "theta", "test": "test"})
    if "theta_within_limits" in row:
        metrics["within limits"] = row["theta_within_limits"]
    return metrics | {"convergence": optimizer.convergence, "δ": optimizer.delta}
