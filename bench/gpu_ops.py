"""Times every operation of the cell space on a GPU, compiled against eager channels-last PyTorch.

`share` is how close the operator comes to the time that its arithmetic or its memory traffic takes
at least, the larger of both: at the float32 rate of a large product of matrices, and at the speed
of copying a large array, both measured in the same run. Inputs rotate, so that none is found in the
cache of the last call.

Run with ``python bench/gpu_ops.py [--device cpu] [--quick] [--json PATH]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gpu_timing import arguments, captured, ceilings, compare, describe, in_turn
from ops import case, work
from table import Row, finish, save

from asng_ext.nn.operations import OPERATIONS

SIZES = ((16, 32), (32, 16), (64, 8), (64, 32))
"""Channels, and height and width in pixels: the three of the search, and a larger one."""
BATCH = 512
ROTATING_BYTES = 1 << 29
"""Several times what a cache holds."""


def sets(channels: int, size: int, batch: int) -> int:
    """How many inputs to rotate."""
    return max(2, min(8, ROTATING_BYTES // (4 * batch * channels * size * size)))


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__ or "", argv)
    device = torch.device(args.device)
    flops, speed = ceilings(device, args.quick)
    print(f"{describe(device)}, {flops / 1e12:.3g} TFLOP/s, {speed / 1e12:.3g} TB/s")
    batch = 8 if args.quick else BATCH
    rows: list[Row] = []
    shares: list[dict[str, object]] = []
    for channels, size in SIZES[2:3] if args.quick else SIZES:
        for name in OPERATIONS:
            for backward in (False, True):
                count = sets(channels, size, batch)
                pairs = [
                    case(name, channels, size, batch, backward, args.device) for _ in range(count)
                ]
                # Both as graphs, so that the time of the device shows and not that of Python.
                ours, eager = (
                    captured(in_turn(runs), device, count) for runs in zip(*pairs, strict=True)
                )
                label = "fwd + bwd" if backward else "forward"
                row = compare(
                    name,
                    f"{batch}×{channels}×{size}×{size} {label}",
                    ours,
                    eager,
                    device,
                    quick=args.quick,
                    calls=count,
                )
                rows.append(row)
                arithmetic, traffic = work(name, channels, size, batch, backward)
                floor = 1e6 * max(arithmetic / flops, traffic / speed)
                share = floor / row["ours"]
                shares.append({"name": name, "case": row["case"], "floor": floor, "share": share})
                print(f"{'':36}floor {floor:.4g} us, share {share:.2f}", flush=True)
                save(rows, args.json)
                save(shares, args.json and args.json.removesuffix(".json") + ".shares.json")
    finish(rows, args.json)


if __name__ == "__main__":
    main()
