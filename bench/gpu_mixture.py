"""Times relaxations of the cell space on a GPU at the paper's size, compiled against eager PyTorch.

What is timed is that of `mixture.py`: a forward pass, and an iteration of first-order DARTS. Both
are launched from Python and replayed as CUDA graphs, ours and channels-last PyTorch's alike, in
each precision.

Run with ``python bench/gpu_mixture.py [--device cpu] [--quick] [--json PATH]``.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from gpu_timing import PRECISIONS, arguments, captured, compare, describe, precision
from mixture import Size, case
from table import Row, finish, made_row, save

PAPER = Size(5, 8, 16, 64, 32, 3)
QUICK = Size(2, 3, 4, 4, 8, 1)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, argv)
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True  # eager PyTorch at its best
    print(describe(device))
    size = QUICK if args.quick else PAPER
    rows: list[Row] = []

    def measure(kind: str) -> None:
        label = f"B={size.batch} C={size.channels} {kind}"
        ours, eager = (case(size, compiled, device) for compiled in (True, False))
        if device.type == "cuda":
            peaks = []
            for way in (ours, eager):
                gc.collect()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
                way["iteration"]()
                peaks.append(torch.cuda.max_memory_reserved(device) / 2**20)
            rows.append(made_row("mixture, peak memory", label, *peaks, "MiB"))
        for what in ours:
            launched = ours[what], eager[what]
            replayed = [captured(run, device, 1) for run in launched]
            for how, pair in (("launched", launched), ("captured", replayed)):
                row = compare(
                    f"mixture, {what}, {how}",
                    label,
                    *pair,
                    device,
                    quick=args.quick,
                    unit="ms",
                    rounds=3,
                )
                rows.append(row)
            save(rows, args.json)

    for kind in PRECISIONS:
        with precision(kind, device):
            measure(kind)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
