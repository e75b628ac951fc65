"""Times relaxations of the cell space, compiled against eager channels-last PyTorch.

An iteration is that of first-order DARTS: a step of the logits on one batch, with the gradient of
these alone, then one of the weights on another. On a GPU, `gpu_mixture.py` times it.

Run with ``python bench/mixture.py [--quick] [--json PATH]``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from table import Row, compare, finish, options, peak_memory, peak_row
from torch import Tensor

from asng_ext import ops
from asng_ext.nn import CellSpace, CellSupernet, FusedCellSupernet, Relaxation


class Size(NamedTuple):
    """A supernet, and a batch of images."""

    nodes: int
    cells: int
    channels: int
    batch: int
    pixels: int
    in_channels: int


SIZES = {
    "3 nodes, 3 cells, 8 channels": Size(3, 3, 8, 64, 8, 1),
    "5 nodes, 8 cells, 16 channels": Size(5, 8, 16, 16, 32, 3),
}


def case(size: Size, compiled: bool, device: torch.device) -> dict[str, Callable[[], Any]]:
    """What to time, by name, of one implementation."""
    torch.manual_seed(0)
    space = CellSpace(size.nodes)
    kind = FusedCellSupernet if compiled else CellSupernet
    supernet = kind(
        space, cells=size.cells, channels=size.channels, in_channels=size.in_channels
    ).to(device)
    shape = (size.batch, size.in_channels, size.pixels, size.pixels)
    batches = [
        (torch.randn(shape).to(device), torch.randint(10, (size.batch,)).to(device))
        for _ in range(2)
    ]
    logits = [(1e-3 * torch.randn(k)).to(device).requires_grad_() for k in space.categories]
    weights = list(supernet.parameters())
    of_weights = torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
    of_logits = torch.optim.Adam(
        logits,
        lr=3e-4,
        betas=(0.5, 0.999),
        weight_decay=1e-3,
        capturable=device.type == "cuda",
    )

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        relaxation = Relaxation(tuple(v.softmax(0) for v in logits))
        return supernet.relaxed_losses(*batch, relaxation)[0]

    def forward() -> None:
        with torch.no_grad():
            loss(batches[0])

    def step(optimizer: torch.optim.Optimizer, of: list[Tensor], batch: int) -> None:
        for tensor, grad in zip(of, torch.autograd.grad(loss(batches[batch]), of), strict=True):
            tensor.grad = grad
        if optimizer is of_weights:
            torch.nn.utils.clip_grad_norm_(of, 5)
        optimizer.step()

    def iteration() -> None:
        step(of_logits, logits, 0)
        step(of_weights, weights, 1)

    return {"forward": forward, "iteration": iteration}


def main() -> None:
    parser = options(__doc__, quick="few rounds, the smaller size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", choices=["ours", "baseline"], help="print peak memory alone, MiB")
    args = parser.parse_args()
    device = torch.device("cpu")
    torch.set_num_threads(args.threads)
    names = list(SIZES)[: 1 if args.quick else None]
    if args.peak:
        case(SIZES[names[-1]], args.peak == "ours", device)["iteration"]()
        print(peak_memory())
        return
    print(f"instruction set: {ops.capability()}, threads: {args.threads}", file=sys.stderr)
    rows: list[Row] = []
    for name in names:
        ours, eager = (case(SIZES[name], compiled, device) for compiled in (True, False))
        for what in ours:
            rounds = 3 if args.quick else 5
            row = compare(name, what, ours[what], eager[what], rounds=rounds, unit="ms")
            rows.append(row)
    common = [f"--threads={args.threads}", *["--quick"] * args.quick]
    rows.append(
        peak_row(
            names[-1],
            "peak memory",
            [*common, "--peak=ours"],
            [*common, "--peak=baseline"],
        )
    )
    finish(rows, args.json)


if __name__ == "__main__":
    main()
