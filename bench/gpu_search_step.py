"""Times the search of cells on a GPU at the paper's setting against plain PyTorch on the same GPU.

An iteration is a weight step and a θ step on CIFAR-shaped random images, from their augmentation
to the update of the distribution, as `asng_ext.engine.search` makes it. Three ways, with TF32
allowed, which is PyTorch's own setting for convolutions:

* ``captured``: compiled operators and the optimizer on the GPU, replayed as one CUDA graph.
* ``launched``: the same, launched from Python every time.
* ``plain``: the supernet in eager channels-last PyTorch, the optimizer on the CPU.

Marks are put between iterations while the search runs; the median of their distances counts. An
epoch is timed as a whole, and a hundred are extrapolated from it; those of ``plain`` are its median
iteration as many times. Iterations of ``captured`` and ``plain`` follow with TF32 forbidden, and
with the supernet under autocast to bfloat16. On a CPU there are no graphs:
``captured`` and ``launched`` are the same there. A line says how many of the cells are computed in
one launch for all nodes, and what keeps the others from that.

Run with ``python bench/gpu_search_step.py [--device cpu] [--quick] [--json PATH]``.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from gpu_timing import PRECISIONS, Mark, allow_tf32, arguments, describe, laps
from table import finish, made_row, save

import asng_ext as asng
from asng_ext.data import CIFAR10_AUGMENTATION, ImageData, ImageSet
from asng_ext.engine.search import search
from asng_ext.nn import FusedCellSupernet
from asng_ext.ops import _libraries
from asng_ext.runs.config import SearchConfig
from asng_ext.tasks.classification import ClassificationConfig, ClassificationTask

PAPER = SearchConfig(test_every=0)
PAPER_TASK = ClassificationConfig(data="random")
QUICK = SearchConfig(batch_size=8, test_every=0)
QUICK_TASK = ClassificationConfig(data="random", nodes=2, cells=3, channels=4)
EPOCHS = 100
"""Of the paper's search."""


def random_images(count: int, size: int) -> ImageData:
    """Images of CIFAR's shape and kind."""
    generator = torch.Generator().manual_seed(0)

    def images(number: int) -> ImageSet:
        pixels = torch.randint(0, 256, (number, size, size, 3), generator=generator)
        labels = torch.arange(number) % 10  # of every class some
        return ImageSet(pixels.to(torch.uint8), labels, tuple("0123456789"))

    augmentation = replace(CIFAR10_AUGMENTATION, cutout=size // 2)
    return ImageData.of(images(count), images(100), augmentation)


def obstacle(run: Callable[[], Any]) -> str | None:
    """What keeps a pass of a cell from one launch for all nodes; None if nothing does."""
    with patch.dict(os.environ, ASNG_CUDA_PATH="persistent"):
        try:
            run()
        except RuntimeError as error:
            found = re.search("ASNG_CUDA_PATH is persistent.*because of (.*)", str(error))
            if found is None:
                raise
            return found[1]
    return None


def paths_of_cells(supernet: FusedCellSupernet, x: torch.Tensor, population: int) -> str:
    """How many cells have one launch for all nodes where some architectures run on images `x`, and
    what keeps others from it."""
    if not _libraries.has_cuda_kernels(x.device):
        return "cells: computed on the CPU"
    if os.environ.get("ASNG_CUDA_PATH") == "generic":
        return "cells: a launch for each step, as ASNG_CUDA_PATH says"
    calls: list[tuple[Any, list[torch.Tensor]]] = []

    def note(cell: Any, args: tuple[Any, ...]) -> None:
        # Without the plan, which is for one pass.
        calls.append((cell, [arg.detach() for arg in args[:4]]))

    hooks = [cell.register_forward_pre_hook(note) for cell in supernet.cells]
    variables = len(supernet.space.categories)
    supernet.forward_population(
        x, torch.zeros((population, variables), dtype=torch.int64).to(x.device)
    )
    for hook in hooks:
        hook.remove()
    found: dict[str, list[str | None]] = {"forward": [], "backward": []}
    for cell, args in calls:
        found["forward"].append(obstacle(lambda cell=cell, args=args: cell(*args)))
        found["backward"].append(obstacle(cell(*args)[0].sum().backward))
    parts = []
    for name, obstacles in found.items():
        reasons = Counter(reason for reason in obstacles if reason is not None)
        others = "".join(f"; {n} not because of {reason}" for reason, n in reasons.items())
        parts.append(f"{name} {obstacles.count(None)} of {len(obstacles)}{others}")
    return f"cells in one launch for all nodes: {', '.join(parts)}"


def line_of_cells(
    data: ImageData, config: SearchConfig, task_config: ClassificationConfig, device: torch.device
) -> str:
    """`paths_of_cells` for a search."""
    batch = config.batch_size
    task = ClassificationTask(
        data, task_config, search_batch_size=batch, retrain_batch_size=batch, seed=0, device=device
    )
    supernet = task.supernet()
    if not isinstance(supernet, FusedCellSupernet):
        return "cells: plain PyTorch"
    x = torch.rand(batch, data.channels, *data.train.images.shape[1:3], device=device)
    return paths_of_cells(supernet, x, config.population_size)


class Marked(ClassificationTask):
    """Puts a mark before every iteration and one after the last of an epoch."""

    def weight_batches(self, epoch: int) -> Iterator[Any]:
        self.marks: list[Mark] = []
        for plan in super().weight_batches(epoch):
            self.marks.append(Mark(self.device))
            yield plan
        self.marks.append(Mark(self.device))


@dataclass
class Measured:
    """Of the last epoch of a search: the median iteration and all of it in ms, memory in MiB."""

    iteration: float
    epoch: float
    steps: int
    memory: float


def measure(
    data: ImageData,
    config: SearchConfig,
    task_config: ClassificationConfig,
    device: torch.device,
    *,
    plain: bool,
    kind: str,
) -> Measured:
    """Searches two epochs in one of `PRECISIONS`; the first warms up."""
    implementation = "plain" if plain else "auto"
    task = Marked(
        data,
        replace(
            task_config,
            implementation=implementation,
            precision="bfloat16" if kind == "bfloat16" else "float32",
        ),
        search_batch_size=config.batch_size,
        retrain_batch_size=config.batch_size,
        seed=0,
        device=device,
    )
    on_device = task.capturable and device.type == "cuda"
    optimizer = asng.ASNG(
        task.space,
        population_size=config.population_size,
        seed=0,
        device=device.type if on_device else "cpu",
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    # What is printed shows whether steps were captured, and if not, why.
    with allow_tf32(kind != "float32"):
        search(task, optimizer, replace(config, epochs=2), seed=0, stream=sys.stdout)
    times = laps(task.marks)
    memory = torch.cuda.max_memory_reserved(device) / 2**20 if device.type == "cuda" else 0.0
    return Measured(statistics.median(times), sum(times), len(times), memory)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, argv)
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True  # eager PyTorch at its best
    print(describe(device))
    config, task_config = (QUICK, QUICK_TASK) if args.quick else (PAPER, PAPER_TASK)
    size = 16 if args.quick else 32
    # Half of the images train weights, and the other half moves the distribution.
    whole = random_images(6 * 2 * config.batch_size if args.quick else 50_000, size)
    steps = 6 if args.quick else 60
    part = replace(
        whole,
        train=replace(
            whole.train,
            images=whole.train.images[: steps * 2 * config.batch_size],
            labels=whole.train.labels[: steps * 2 * config.batch_size],
        ),
    )
    case = f"B={config.batch_size} C={task_config.channels} λ={config.population_size}"

    print(line_of_cells(part, config, task_config, device))

    def run(
        data: ImageData, *, graphs: bool = True, plain: bool = False, kind: str = "TF32"
    ) -> Measured:
        settings = replace(config, graphs=graphs)
        return measure(data, settings, task_config, device, plain=plain, kind=kind)

    plain = run(part, plain=True)
    launched = run(part, graphs=False)
    captured = run(part)
    rows = [
        made_row(f"search iteration, {name}", f"{case} TF32", way.iteration, plain.iteration, "ms")
        for name, way in (("captured", captured), ("launched", launched))
    ]
    if device.type == "cuda":
        rows.append(made_row("peak memory", f"{case} TF32", captured.memory, plain.memory, "MiB"))
    save(rows, args.json)
    epoch = run(whole)
    minutes = EPOCHS / 60e3
    rows.append(
        made_row(
            f"{EPOCHS} epochs from one",
            f"{case} TF32 steps={epoch.steps}",
            epoch.epoch * minutes,
            plain.iteration * epoch.steps * minutes,
            "min",
        )
    )
    save(rows, args.json)
    for kind in PRECISIONS:
        if kind == "TF32":
            continue
        ours, eager = run(part, kind=kind), run(part, plain=True, kind=kind)
        label = f"{case} {kind}"
        rows.append(
            made_row("search iteration, captured", label, ours.iteration, eager.iteration, "ms")
        )
        if device.type == "cuda":
            rows.append(made_row("peak memory", label, ours.memory, eager.memory, "MiB"))
        save(rows, args.json)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
