"""Times the retraining of a network of cells on a GPU, captured against launched from Python.

A step is a batch of CIFAR-shaped random images, with its augmentation, forward, backward, and SGD,
as `asng_ext.engine.retrain` makes it. The network is of an architecture drawn at random, with 20
cells and 36 channels, then with 8 cells and 16 channels; with TF32 allowed, which is PyTorch's own
setting for convolutions, and under autocast to bfloat16. Both ways compute the same with the same
kernels: what differs is who waits for whom.

Marks are put between steps while the network is trained; the median of their distances counts. On
a CPU there are no graphs: both are the same there.

Run with ``python bench/gpu_retrain_step.py [--device cpu] [--quick] [--json PATH]``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from gpu_search_step import random_images
from gpu_timing import Mark, allow_tf32, arguments, describe, laps
from table import Row, finish, made_row, save

import asng_ext as asng
from asng_ext.data import ImageData
from asng_ext.engine.retrain import retrain
from asng_ext.runs.config import RetrainConfig
from asng_ext.tasks.classification import ClassificationConfig, ClassificationTask

NETWORKS = ((20, 36, 80), (8, 16, 64))
"""Cells, channels of the first one, images of a batch: the paper's network, and a small one."""
QUICK = ((3, 4, 8),)


class Marked(ClassificationTask):
    """Puts a mark before every step and one after the last of an epoch."""

    def train_batches(self, epoch: int) -> Iterator[Any]:
        self.marks: list[Mark] = []
        for batch in super().train_batches(epoch):
            self.marks.append(Mark(self.device))
            yield batch
        self.marks.append(Mark(self.device))


def measure(
    data: ImageData, config: RetrainConfig, network: ClassificationConfig, device: torch.device
) -> tuple[float, float]:
    """The median step of the second epoch, in ms, and the memory that it took, in MiB."""
    task = Marked(
        data,
        network,
        search_batch_size=1,
        retrain_batch_size=config.batch_size,
        seed=0,
        device=device,
    )
    values = asng.ASNG(task.space, population_size=2, seed=0).ask()[0]
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    # What is printed shows whether steps were captured, and if not, why.
    with allow_tf32(True):
        retrain(task, values, replace(config, epochs=2), seed=0, stream=sys.stdout)
    memory = torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else 0.0
    return statistics.median(laps(task.marks)), memory


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, argv)
    device = torch.device(args.device)
    print(describe(device))
    rows: list[Row] = []
    for cells, channels, batch_size in QUICK if args.quick else NETWORKS:
        steps = 5 if args.quick else 20
        data = random_images(steps * batch_size, 16 if args.quick else 32)
        network = ClassificationConfig(
            data="random", final_cells=cells, final_channels=channels, drop_path=0.2
        )
        for precision in ("float32", "bfloat16"):
            config = RetrainConfig(batch_size=batch_size, precision=precision, test_every=2)
            captured, launched = (
                measure(data, replace(config, graphs=graphs), network, device)
                for graphs in (True, False)
            )
            kind = "TF32" if precision == "float32" else precision
            case = f"B={batch_size} C={channels} cells={cells} {kind}"
            rows.append(made_row("retraining step", case, captured[0], launched[0], "ms"))
            if device.type == "cuda":
                rows.append(made_row("peak memory", case, captured[1], launched[1], "MiB"))
            save(rows, args.json)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
