"""Profiles the captured search of cells on a GPU: which kernels an iteration launches, how often,
and how long they take.

The iterations are those of `gpu_search_step`, TF32 or one of the other precisions; a few of them,
after the first epoch, run under PyTorch's profiler, which sees the kernels of a replayed graph.

Run with ``python bench/gpu_kernels.py [--precision bfloat16] [--trace PATH] [--json PATH]``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_search_step import PAPER, PAPER_TASK, random_images
from gpu_timing import PRECISIONS, allow_tf32, describe

import asng_ext as asng
from asng_ext.engine.search import search
from asng_ext.tasks.classification import ClassificationTask

FIRST, COUNT = 6, 4
"""Iterations of the second epoch that are profiled."""


class Profiled(ClassificationTask):
    """Profiles some iterations of the second epoch."""

    def weight_batches(self, epoch: int) -> Iterator[Any]:
        for step, plan in enumerate(super().weight_batches(epoch)):
            if epoch == 1 and step == FIRST:
                torch.cuda.synchronize()
                self.profiler = torch.profiler.profile(
                    activities=[torch.profiler.ProfilerActivity.CUDA]
                )
                self.profiler.start()
            if epoch == 1 and step == FIRST + COUNT:
                torch.cuda.synchronize()
                self.profiler.stop()
            yield plan


def short(name: str) -> str:
    """The name of a kernel without what it returns and takes."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.sub(r"\((?!anonymous).*$", "", name).replace("asng::cuda::", "")[:90]


def kernel_table(profiler: Any, count: int) -> list[dict[str, Any]]:
    """The kernels of `count` iterations, printed and returned, those that take longest first."""
    totals: dict[str, tuple[int, float]] = {}
    for event in profiler.events():
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        launches, time = totals.get(short(event.name), (0, 0.0))
        totals[short(event.name)] = launches + 1, time + event.device_time_total
    rows = [
        {
            "kernel": name,
            "launches": launches / count,
            "us": round(time / count, 1),
            "mean_us": round(time / launches, 2),
        }
        for name, (launches, time) in sorted(totals.items(), key=lambda item: -item[1][1])
    ]
    print(f"{'µs':>8} {'launches':>8} {'mean µs':>8}  kernel, in an iteration")
    for row in rows:
        print(f"{row['us']:8} {row['launches']:8} {row['mean_us']:8}  {row['kernel']}")
    launches_in_all = sum(launches for launches, _ in totals.values()) / count
    print(f"{sum(time for _, time in totals.values()) / count:8.0f} {launches_in_all:8} in all")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", metavar="PATH", help="write the table as JSON")
    parser.add_argument("--precision", default="TF32", choices=PRECISIONS)
    parser.add_argument("--trace", help="where to write a trace for Perfetto or chrome://tracing")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    device = torch.device("cuda")
    print(describe(device))
    data = random_images((FIRST + COUNT + 2) * 2 * PAPER.batch_size, 32)
    task = Profiled(
        data,
        replace(PAPER_TASK, precision="bfloat16" if args.precision == "bfloat16" else "float32"),
        search_batch_size=PAPER.batch_size,
        retrain_batch_size=PAPER.batch_size,
        seed=0,
        device=device,
    )
    optimizer = asng.ASNG(task.space, population_size=PAPER.population_size, seed=0, device="cuda")
    with allow_tf32(args.precision != "float32"):
        search(task, optimizer, replace(PAPER, epochs=2), seed=0, stream=sys.stdout)
    if args.trace:
        task.profiler.export_chrome_trace(args.trace)
    rows = kernel_table(task.profiler, COUNT)
    if args.json:
        Path(args.json).write_text(json.dumps({"device": describe(device), "kernels": rows}))


if __name__ == "__main__":
    main()
