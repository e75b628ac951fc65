"""Times every operation of the cell space on a GPU, compiled against eager channels-last PyTorch.

First in float32; then with TF32 allowed what multiplies matrices, and with images in bfloat16 under
autocast, eager PyTorch under the same settings.

`share` is how close the operator comes to the time that its arithmetic or its memory traffic takes
at least, the larger of both: at the rate of a large product of matrices under these settings, and
at the speed of copying a large array, both measured in the same run; in bfloat16 half as many bytes
go through memory. Inputs rotate, so that none is found in the cache of the last call. The stem and
whole cells follow, at the paper's setting, without a floor.

Run with ``python bench/gpu_ops.py [--device cpu] [--quick] [--json PATH]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from gpu_timing import (
    PRECISIONS,
    Run,
    arguments,
    captured,
    ceilings,
    compare,
    describe,
    image_type,
    in_turn,
    precision,
)
from ops import case, print_floor, work
from table import Row, finish, save
from torch import Tensor, nn

from asng_ext import _host
from asng_ext.nn import CellSpace, CellSupernet, FusedCellSupernet
from asng_ext.nn.operations import OPERATIONS

SIZES = ((16, 32), (32, 16), (64, 8), (64, 32))
"""Channels, and height and width in pixels: the three of the search, and a larger one."""
BATCH = 512
SPACE = CellSpace()
ROTATING_BYTES = 1 << 29
"""Several times what a cache holds."""


def sets(channels: int, size: int, batch: int, value_bytes: int) -> int:
    """How many inputs to rotate."""
    return max(2, min(8, ROTATING_BYTES // (value_bytes * batch * channels * size * size)))


def _projections(cell: nn.Module) -> list[Tensor]:
    """The weights that read the two inputs of a cell."""
    weights = dict(cell.named_parameters())
    return [weights["prev_prev_weight"], weights["prev_weight"]]


def layer(
    plain: CellSupernet,
    fused: FusedCellSupernet,
    which: int | None,
    batch: int,
    backward: bool,
    dtype: torch.dtype,
) -> tuple[Run, Run]:
    """The stem (None) or a cell for two architectures, compiled and in eager PyTorch."""
    device = plain.classifier.weight.device

    def randn(channels: int) -> Tensor:
        images = torch.randn(batch, channels, 32, 32, device=device).to(dtype)
        return images.to(memory_format=torch.channels_last)

    images = randn(3)
    if which is None:
        modules = (fused.stem, plain.stem)
        runs: list[Callable[[], list[Tensor]]] = [
            lambda: [fused._run_stem(images)],
            lambda: [plain.stem(images)],
        ]
    else:
        cells = (fused.cells[which], plain.cells[which])
        modules, kind = cells, int(plain.is_reduction[which])
        prev_prev, prev = (randn(weight.shape[1]) for weight in _projections(cells[0]))
        wide = [image.permute(0, 2, 3, 1)[None].contiguous() for image in (prev_prev, prev)]
        drawn = np.random.default_rng(0).integers(SPACE.categories, size=(2, len(SPACE.categories)))
        parsed = [SPACE.parse(row)[kind] for row in drawn]
        population = torch.from_numpy(drawn).to(device)
        index = [indices[kind] for indices in fused._index_tensors(population, device)]
        runs = [
            lambda: [cells[0](*wide, *index)[0]],
            lambda: [cells[1](prev_prev, prev, architecture) for architecture in parsed],
        ]

    def made(run: Callable[[], list[Tensor]], module: nn.Module) -> Run:
        if not backward:
            return torch.no_grad()(run)
        weights = list(module.parameters())
        grads = [torch.randn_like(out) for out in run()]
        return lambda: torch.autograd.grad(run(), weights, grads, allow_unused=True)

    ours, eager = (made(run, module) for run, module in zip(runs, modules, strict=True))
    return ours, eager


def layers(device: torch.device, quick: bool, kind: str) -> list[Row]:
    """Rows of the stem, a normal cell and a reduction cell, two architectures, in a precision."""
    rows = []
    torch.manual_seed(0)
    networks = [make(SPACE, cells=3).to(device) for make in (CellSupernet, FusedCellSupernet)]
    dtype = image_type(kind)
    batch = 2 if quick else 64
    for name, which in (("stem", None), ("normal cell", 0), ("reduction cell", 1)):
        for backward in (False, True):
            runs = layer(*networks, which, batch, backward, dtype)
            pair = [captured(run, device, 1) for run in runs]
            case_name = f"B={batch} C=16 λ=2 {'fwd + bwd' if backward else 'forward'} {kind}"
            rows.append(compare(name, case_name, *pair, device, quick=quick))
    return rows


def operations(
    device: torch.device, quick: bool, kind: str
) -> Iterator[tuple[Row, dict[str, object]]]:
    """A row and its floor for every operation, size and direction, in a precision."""
    flops, speed = ceilings(device, quick)
    print(f"{kind}: {flops / 1e12:.3g} TFLOP/s, {speed / 1e12:.3g} TB/s")
    batch, dtype = 8 if quick else BATCH, image_type(kind)
    for channels, size in SIZES[2:3] if quick else SIZES:
        for name in OPERATIONS:
            if kind == "TF32" and _host.OPERATIONS[OPERATIONS.index(name)].form != "separable":
                continue  # the same as in float32
            for backward in (False, True):
                count = sets(channels, size, batch, dtype.itemsize)
                pairs = [
                    case(name, channels, size, batch, backward, device.type, dtype)
                    for _ in range(count)
                ]
                # Both as graphs, so that the time of the device shows and not that of Python.
                ours, eager = (
                    captured(in_turn(runs), device, count) for runs in zip(*pairs, strict=True)
                )
                label = f"{'fwd + bwd' if backward else 'forward'} {kind}"
                label = f"{batch}×{channels}×{size}×{size} {label}"
                row = compare(name, label, ours, eager, device, quick=quick, calls=count)
                arithmetic, traffic = work(name, channels, size, batch, backward, dtype.itemsize)
                floor = 1e6 * max(arithmetic / flops, traffic / speed)
                share = print_floor(row, floor)
                yield row, {"name": name, "case": row["case"], "floor": floor, "share": share}


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, argv)
    device = torch.device(args.device)
    print(describe(device))
    rows: list[Row] = []
    shares: list[dict[str, object]] = []
    for kind in PRECISIONS:
        with precision(kind, device):
            for row, share in operations(device, args.quick, kind):
                rows.append(row)
                shares.append(share)
                save(rows, args.json)
                save(shares, args.json and args.json.removesuffix(".json") + ".shares.json")
    for kind in PRECISIONS:
        with precision(kind, device):
            rows += layers(device, args.quick, kind)
        save(rows, args.json)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
