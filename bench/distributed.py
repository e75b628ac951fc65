"""Times one iteration of the digits' cell search on 2 ranks and on 1, with one thread each.

Both search the same architectures, λ = 2, as `asng search classification --data digits` does: a
weight step and a θ step, alternately in this process and on ranks that gloo connects. A run is a
whole search of few iterations; that of starting, testing and writing does not count. ``exchange``
is how long the ranks' exchanges take of an iteration, measured on a model that computes nothing.

Run with ``python bench/distributed.py [--quick] [--json PATH]``; it needs two idle processors.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from typing import Any

import torch
from table import Row, finish, made_row, options

import asng_ext as asng
from asng_ext.distributed import ALONE, Ranks, joined
from asng_ext.runs.config import SearchConfig
from asng_ext.strategies.ask_tell import AskTell
from asng_ext.strategies.protocol import Parts
from asng_ext.tasks import get
from asng_ext.training.metrics import Means
from asng_ext.training.weight_optimizers import make_weight_optimizer


def make_iteration(ranks: Ranks, batch: int) -> tuple[Any, Any]:
    """A function that makes one, and the batches."""
    kind = get("classification")
    settings = {**kind.presets["digits"]["classification"], "data": "digits"}
    config = SearchConfig(**{**kind.presets["digits"]["search"], "batch_size": batch})
    task = kind.make(
        kind.config(**settings),
        search_batch_size=batch,
        retrain_batch_size=batch,
        seed=0,
        device=torch.device("cpu"),
    )
    torch.manual_seed(0)
    supernet = task.supernet()
    optimizer = asng.ASNG(task.space, population_size=2, seed=0)
    sgd = make_weight_optimizer(supernet, config)
    strategy = AskTell(optimizer, ranks=ranks)
    strategy.begin(Parts(task, supernet, sgd, Means()))
    pairs = list(zip(task.weight_batches(0), task.theta_batches(0)))

    def run(step: int) -> None:
        strategy.step(pairs[step % len(pairs)])
        ranks.agree(0, False, 1)  # as the loop does after each

    return run, sum(weight.numel() for weight in supernet.parameters())


def seconds_of(run: Any, count: int) -> float:
    start = time.perf_counter()
    for step in range(count):
        run(step)
    return (time.perf_counter() - start) / count


def work(rank: int, port: int, batch: int, rounds: int, count: int, results: Any) -> None:
    """Alternates between iterations of rank 0 alone, while the other waits, and of both."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    with joined() as ranks:
        alone, weights = make_iteration(ALONE, batch)
        together, _ = make_iteration(ranks, batch)
        flat = torch.zeros(weights)
        found = []
        for run in (alone, together):
            seconds_of(run, 3)
        for _ in range(rounds):
            ranks.largest([0])
            one = seconds_of(alone, count) if ranks.first else 0.0
            ranks.largest([0])
            two = seconds_of(together, count)

            def exchange(_: int) -> None:
                ranks.sum([flat])
                ranks.sum([flat[:3]])
                ranks.agree(0, False, 1)

            found.append((one, two, seconds_of(exchange, count)))
        if ranks.first:
            results.put((found, weights))


def main() -> None:
    args = options(__doc__, quick="fewer rounds").parse_args()
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    for batch in (64, 256):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = context.Queue()
        counts = (3, 5) if args.quick else (9, 20)
        ranks = [
            context.Process(target=work, args=(rank, port, batch, *counts, results))
            for rank in range(2)
        ]
        for rank in ranks:
            rank.start()
        found, weights = results.get(timeout=600)
        for rank in ranks:
            rank.join()
        one, two, exchange = (statistics.median(times) * 1e3 for times in zip(*found))
        ratio = statistics.median(a / b for a, b, _ in found)
        rows.append(made_row("iteration on 2 ranks vs 1", f"batch {batch}", two, one, "ms", ratio))
        case = f"batch {batch}, {weights} weights"
        rows.append(made_row("of it, exchanges", case, exchange, two, "ms"))
    finish(rows, args.json)


if __name__ == "__main__":
    main()
