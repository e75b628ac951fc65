"""The search loop (Algorithm 1): steps of the weights and of the distribution alternate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import torch
from torch import nn

from asng_ext._random import DrawsFrom, ModuleGenerators, drawn, draws_of
from asng_ext._signals import Stop
from asng_ext._terminal import STDERR, Progress, say
from asng_ext.distributed import ALONE, Ranks
from asng_ext.engine.ranks import draws_of_rank, run_loop
from asng_ext.optimizers import Penalty
from asng_ext.runs.checkpoints import Epochs, Origin, Part
from asng_ext.runs.config import SearchConfig, affecting_results
from asng_ext.runs.folder import RunFolder
from asng_ext.strategies.ask_tell import AskTell
from asng_ext.strategies.protocol import Parts, Strategy
from asng_ext.tasks.protocol import (
    Batch,
    Optimizer,
    SearchTask,
    TaskDefaults,
    check_members,
    shown_metrics,
)
from asng_ext.training.active_sgd import ActiveSGD
from asng_ext.training.cuda_graphs import GraphBackend, graphs_on, replayed
from asng_ext.training.divergence import Halvings, raise_if_diverged
from asng_ext.training.metrics import Means
from asng_ext.training.schedules import cosine, restarted
from asng_ext.training.weight_optimizers import (
    CapturableSGD,
    make_weight_optimizer,
    restore_weight_optimizer,
    set_learning_rate,
)

__all__ = ["EpochCallback", "SearchResult", "search"]

EpochCallback: TypeAlias = Callable[[dict[str, float], float], object]
"""Takes the metrics of an epoch, and how many seconds it took."""


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
    optimizer: Optimizer | Strategy,
    config: SearchConfig,
    *,
    seed: int,
    run: RunFolder | None = None,
    stream: TextIO | None = STDERR,
    graphs: GraphBackend | None = None,
    penalty: Penalty | None = None,
    resume_from: Path | None = None,
    ranks: Ranks = ALONE,
    callback: EpochCallback | None = None,
) -> SearchResult:
    """Searches an architecture while training the weights of the supernet.

    With a ``run``, a signal that asks the process to end (SIGINT, SIGTERM, SIGHUP, SIGUSR1) ends it
    after a checkpoint of the step it came in; the same signal again, at once.

    Each step draws λ architectures and trains the weights on their mean loss over one batch
    (eq. (9)), then draws λ more and moves the distribution by their losses on another batch
    (eq. (12)), without gradients and without a trace in batch normalization. All λ see the same
    batch.

    On a GPU both steps together are replayed as one CUDA graph if the task and the optimizer are
    ``capturable``, or the strategy is: all they do for a step, they do on the device, and the host
    reads no number. Then nothing within an epoch synchronizes with the device but the live line
    and, each ``check_every`` steps, the look whether the training has diverged. Otherwise, and with
    ``config.graphs`` off, steps run as usual; the numbers are the same.

    Args:
        task: Data, supernet and losses.
        optimizer: An optimizer of the task's space; it is changed. It has λ and whatever else
            decides the distribution. Or another strategy, which decides what a step is.
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
        callback: Is called after each epoch, before its checkpoint, with its metrics and the
            seconds that its steps, and what followed them, took without tests.

    Raises:
        DivergedError: If the training loss, a weight or a gradient becomes NaN or infinite. The
            checkpoint before stays. With ``config.on_divergence`` "retry" and a ``run`` the search
            first continues from there at half the learning rate, at most three times.
        FloatingPointError: If no loss of an epoch that was to move the distribution is finite.
        TypeError: If the task or the optimizer lacks a member of its protocol.
        ValueError: If the settings have limits and there is no ``penalty``, or a strategy that is
            not of an optimizer is given a ``penalty`` or several ranks.
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
    if config.penalty and penalty is None:
        raise ValueError(f"penalty must be given, with the limits {config.penalty}")
    if isinstance(optimizer, Strategy):
        strategy = optimizer
        epochs = getattr(strategy, "epochs", config.epochs)
        if epochs != config.epochs:
            raise ValueError(
                f"strategy {strategy.name} must be made for {config.epochs} epochs, as many as the "
                f"search has, got {epochs}"
            )
        if penalty is not None or ranks.size > 1:
            raise ValueError(
                f"strategy {strategy.name} must run in one process and without a penalty, got "
                f"{penalty} and {ranks.size} ranks"
            )
    else:
        check_members("optimizer", optimizer, Optimizer)
        retries = config.on_divergence == "retry"
        strategy = AskTell(optimizer, penalty, ranks, repeats=retries)
    stream = stream if ranks.first else None
    loop = partial(_search, task, strategy, config, seed, stream, graphs, penalty, ranks, callback)
    return run_loop(loop, "search", config, run, ranks, resume_from, partial(say, stream))


def _search(
    task: SearchTask,
    strategy: Strategy,
    config: SearchConfig,
    seed: int,
    stream: TextIO | None,
    graphs: GraphBackend | None,
    penalty: Penalty | None,
    ranks: Ranks,
    callback: EpochCallback | None,
    run: RunFolder | None,
    stop: Stop,
    halvings: Halvings,
    resume_from: Origin,
) -> SearchResult:
    with DrawsFrom(seed, "supernet"):
        supernet = strategy.supernet(task)
    device = next(supernet.parameters()).device
    graphs = graphs or graphs_on(device)
    blocker = strategy.capture_blocker
    if not task.capturable:
        blocker = f"the task, {type(task).__name__}, {task.capture_blocker}"
    # Also where graphs are off: the numbers are to be the same.
    sgd = make_weight_optimizer(supernet, config, capturable=graphs is not None and blocker is None)
    if blocker is None and not isinstance(sgd, CapturableSGD):
        blocker = f"the SGD, {type(sgd).__name__}, {TaskDefaults.capture_blocker}"
    blocker = blocker or (None if ranks.exchange_is_capturable(device) else _NO_NCCL)
    means = Means()
    strategy.begin(Parts(task, supernet, sgd, means))
    epochs = Epochs(
        run,
        "search",
        {
            "seed": seed,
            **affecting_results(config),
            **strategy.identity,
            **task.identity("search"),
            "penalty_of": penalty.identity() if penalty else None,
        },
        {
            "supernet": Part(supernet.state_dict, supernet.load_state_dict),
            "sgd": Part(sgd.state_dict, partial(restore_weight_optimizer, sgd)),
            "optimizer": Part.of(strategy),
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
        replicated=partial(_replicated, strategy, device),
    )
    steps = task.search_steps
    total, done = config.epochs * steps, epochs.done * steps + epochs.steps_done
    progress = Progress.of_loop("search", total, done, stream, device.type)
    rate_after = partial(_learning_rate, config, halvings, steps)
    clock = _Clock()
    within = {
        "means": Part(means.state_dict, partial(means.load_state_dict, device=device)),
        "clock": Part.of(clock, assumed={"seconds": 0.0}),
        "generators": Part.of(ModuleGenerators(supernet)),
    }
    if task.kernels:
        progress.note(task.kernels)
    iteration = replayed(strategy.step, graphs if config.graphs else None, blocker, progress.note)
    for epoch in range(epochs.done, config.epochs):
        means.reset()
        clock.reset()
        check = partial(_check, means, strategy, supernet, epoch)
        draws = draws_of(seed, f"search epoch {epoch}", device, own_generators=task.own_generators)
        as_it_is = sgd.as_it_is if isinstance(sgd, ActiveSGD) else contextlib.nullcontext
        epochs.begin({**within, "draws": Part.of(draws)}, as_it_is)
        pairs = drawn(draws, partial(_pairs, task, epoch), epochs.steps_done)
        # There may be no step left to do.
        rate = rate_after(epoch * steps + max(0, epochs.steps_done - 1))
        set_learning_rate(sgd, rate)
        for step, pair in enumerate(pairs, epochs.steps_done):
            rate = rate_after(epoch * steps + step)
            set_learning_rate(sgd, rate)
            with draws_of_rank(draws, ranks, seed, f"search epoch {epoch} step {step}", device):
                strategy.prepare()
                iteration(pair)
            strategy.stepped()
            epochs.stepped(steps, check)
            if progress.due():
                progress.draw(epoch * steps + step + 1, _shown(means.read(), task, strategy))
        epochs.check(check)
        with draws:
            strategy.end_epoch(epoch)
        row = {"epoch": float(epoch + 1), **means.read()}
        if row.pop("theta_without_loss", 0) == 1:
            raise FloatingPointError(
                f"no loss of the search's epoch {epoch + 1} that was to move the distribution is "
                "finite; lower learning_rate, and check which losses the task gives without "
                "gradients"
            )
        row |= {**strategy.numbers(), "learning_rate": rate}
        seconds = clock.seconds
        if config.test_every and (
            (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs
        ):
            tested = {**task.test_supernet(supernet, strategy.recommend()), **strategy.test()}
            row |= {f"test_{name}": float(value) for name, value in tested.items()}
        if callback is not None:  # before a signal may end the search
            callback(row, seconds)
        epochs.add(row, partial(_distributions, task, strategy))
        progress.line((epoch + 1) * steps, _shown(row, task, strategy))
    epochs.close()
    return SearchResult(strategy.recommend(), supernet, epochs.rows)


class _Clock:
    """The seconds of an epoch, those before an interruption, too."""

    def __init__(self) -> None:
        self.reset()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._begun

    def reset(self) -> None:
        self._before, self._begun = 0.0, time.monotonic()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._before, self._begun = float(state["seconds"]), time.monotonic()


def _check(
    means: Means, strategy: Strategy, supernet: nn.Module, epoch: int, first: int, last: int
) -> None:
    row = {**means.read(), **strategy.numbers()}
    raise_if_diverged(epoch, first, last, row, supernet)


def _learning_rate(config: SearchConfig, halvings: Halvings, steps: int, done: int) -> float:
    """That after so many steps in all."""
    total = config.epochs * steps
    if config.restart_epochs:
        done, total = restarted(done, config.restart_epochs * steps)
    highest, least = (
        rate * halvings.factor for rate in (config.learning_rate, config.learning_rate_min)
    )
    return cosine(highest, done, total, least=least)


def _replicated(strategy: Strategy, device: torch.device) -> Any:
    """What decides the samples that come next; nothing where reading it would wait for a device."""
    if strategy.capture_blocker is None and device.type != "cpu":
        return None
    theta = strategy.theta
    return strategy.state_dict() if theta is None else (theta, strategy.numbers())


_ADDED = (
    "strategy",
    "strategy_options",
    "learning_rate_min",
    "restart_epochs",
    "nesterov",
    "init",
    "init_probability",
    "fixed",
    "penalty",
)
"""Settings that earlier versions did not have; theirs were the defaults."""


def _distributions(task: SearchTask, strategy: Strategy) -> dict[str, list[float]]:
    """The probabilities θ of the categorical variables, by name; none of a user's optimizer that
    does not show them as this package's do."""
    theta = getattr(strategy.theta, "categorical", ())
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


_NO_NCCL = "ranks exchange gradients by another backend than NCCL"


def _shown(row: dict[str, float], task: SearchTask, strategy: Strategy) -> dict[str, float]:
    # Of data that train no weights, but move the distribution.
    metrics = shown_metrics(row, task, {"valid.": "theta", "test": "test"})
    if "theta_within_limits" in row:
        metrics["within limits"] = row["theta_within_limits"]
    return metrics | {{"delta": "δ"}.get(name, name): n for name, n in strategy.numbers().items()}
