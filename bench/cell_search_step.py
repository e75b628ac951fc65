"""Times one search iteration of the cell space: a weight step and a θ step.

Three implementations run the same architectures on the same images, alternately:

* ``fused``: `FusedCellSupernet`, all architectures at once on the compiled operators.
* ``plain``: `CellSupernet`, one architecture after the other, channels-last PyTorch.
* ``2019``: the same modules with images and weights in NCHW, as the code of 2019 had them.

A weight step is forward and backward of λ architectures on one mini-batch with the mean loss,
gradient clipping and SGD; a θ step is a forward pass of λ fresh architectures on another batch.

Run with ``python bench/cell_search_step.py [--quick] [--json PATH]``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from table import Row, finish, options, peak_memory, peak_row, row_of_pairs
from torch import Tensor, nn

from asng_ext import ops
from asng_ext.nn import CellSpace, CellSupernet, FusedCellSupernet

SPACE = CellSpace()
PHASES = ("weight forward", "weight backward", "optimizer", "theta forward", "iteration")


class NCHW(CellSupernet):
    """A supernet whose activations are not channels-last."""

    def forward(self, x: Tensor, architecture: Any) -> Any:
        prev_prev = prev = self.stem(x)
        architectures = self.space.parse(architecture)
        for i, cell in enumerate(self.cells):
            prev_prev, prev = prev, cell(prev_prev, prev, architectures[self.is_reduction[i]])
        return self.classifier(prev.mean((2, 3)))


def make_step(kind: type[nn.Module], batch: int, channels: int, size: int) -> Callable[..., Any]:
    """A function of (weight-step architectures, θ-step architectures) to seconds of each phase."""
    torch.manual_seed(0)
    model = kind(SPACE, channels=channels)
    if kind is NCHW:
        model.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4, foreach=True
    )
    images, others = torch.randn(2, batch, 3, size, size)
    target = torch.randint(10, (batch,))

    def step(first: np.ndarray, second: np.ndarray) -> list[float]:
        times = [time.perf_counter()]
        logits = model.forward_population(images, first)
        loss = F.cross_entropy(logits.flatten(0, 1), target.repeat(len(first)))
        times.append(time.perf_counter())
        optimizer.zero_grad(set_to_none=kind is not NCHW)
        loss.backward()
        times.append(time.perf_counter())
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        times.append(time.perf_counter())
        with torch.no_grad():
            for row in model.forward_population(others, second):
                F.cross_entropy(row, target).item()
        times.append(time.perf_counter())
        return [b - a for a, b in itertools.pairwise(times)] + [times[-1] - times[0]]

    return step


def compare(
    case: str, kinds: dict[str, type[nn.Module]], rounds: int, count: int, *size: int
) -> list[Row]:
    """Rows of the fused supernet against each other kind."""
    steps = {name: make_step(kind, *size) for name, kind in kinds.items()}
    rng = np.random.default_rng(0)
    seconds: dict[str, list[list[float]]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        pair = rng.integers(SPACE.categories, size=(2, count, len(SPACE.categories)))
        for name, step in steps.items():
            times = step(*pair)
            if i:  # the first round warms up
                seconds[name].append(times)
    rows: list[Row] = []
    for name in list(steps)[1:]:
        for phase, label in enumerate(PHASES):
            pairs = [
                (ours[phase], theirs[phase])
                for ours, theirs in zip(seconds["fused"], seconds[name], strict=True)
            ]
            rows.append(
                row_of_pairs(f"cell search step, {label}", f"{case} vs {name}", pairs, 1e3, "ms")
            )
    return rows


def main() -> None:
    parser = options(__doc__, quick="few rounds, the main case only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak-of", choices=("fused", "plain"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        step = make_step(FusedCellSupernet if args.peak_of == "fused" else CellSupernet, 64, 16, 32)
        rng = np.random.default_rng(0)
        for _ in range(3):
            step(*rng.integers(SPACE.categories, size=(2, 2, len(SPACE.categories))))
        print(peak_memory())
        return
    print(f"instruction set: {ops.capability()}, threads: {args.threads}")
    rounds = 2 if args.quick else args.rounds
    plain: dict[str, type[nn.Module]] = {"fused": FusedCellSupernet, "plain": CellSupernet}
    main_case = "B=64 C=16 λ=2"
    rows = compare(main_case, {**plain, "2019": NCHW}, rounds, 2, 64, 16, 32)
    if not args.quick:
        name, kinds = "cell search step, peak memory", ("fused", "plain")
        rows.append(peak_row(name, f"{main_case} vs plain", *(["--peak-of", k] for k in kinds)))
        for count, batch, channels in ((4, 64, 16), (8, 64, 16), (2, 16, 16), (2, 64, 32)):
            case = f"B={batch} C={channels} λ={count}"
            rows += compare(case, plain, max(3, rounds // 3), count, batch, channels, 32)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
