"""Times every operation of the cell space, compiled against eager channels-last PyTorch.

`floor` is the time that the arithmetic (at the speed of a product of large matrices) or the memory
traffic (at the best speed of copying as many bytes as the images have) takes at least, the larger
of both; the share of it is how close the operator comes.

Run with ``python bench/ops.py [--quick] [--json PATH]``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from table import Row, compare, finish, options

from asng_ext import _host, ops
from asng_ext.nn.operations import OPERATIONS, make_operation, plain_norm

SIZES = ((16, 32), (32, 16), (64, 8))


def least_seconds(run: Callable[[], Any], count: int = 15) -> float:
    """The shortest time of a call."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def arithmetic_speed() -> float:
    """FLOP/s of a product of large matrices."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / least_seconds(lambda: a @ a)


def copying_speed(values: int) -> float:
    """Bytes/s, read and written, of copying `values` float32 values."""
    source, target = torch.randn(2, values)
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source))


def work(
    name: str, channels: int, size: int, batch: int, backward: bool, value_bytes: int = 4
) -> tuple[float, float]:
    """FLOP and bytes that an operation on images of `value_bytes` a value cannot do without."""
    values = batch * size * size * channels
    operation = _host.OPERATIONS[OPERATIONS.index(name)]
    elements = operation.kernel**2
    if operation.form != "separable":
        per_value = 0 if operation.form == "identity" else elements
        flop = per_value * values * (2 if backward else 1)
        return flop, value_bytes * values * (4 if backward else 2)
    forward = 2 * 2 * values * (channels + elements)
    # Normalization needs the whole batch, so what is normalized goes to memory and back, twice.
    passes = 6
    if not backward:
        return forward, value_bytes * values * passes
    return 3 * forward, value_bytes * values * (passes + 9)


def case(
    name: str,
    channels: int,
    size: int,
    batch: int,
    backward: bool,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, Any]:
    """The operation compiled and in eager PyTorch, on images of a dtype; weights are float32."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size, device=device).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    probe = torch.randn_like(x)
    module = make_operation(name, channels, 1, plain_norm)
    module.to(device=device, memory_format=torch.channels_last)
    bank = x.permute(0, 2, 3, 1)[None, None].contiguous()
    index = torch.zeros(1, 1, dtype=torch.int32, device=device)
    kind = torch.full((1, 1), OPERATIONS.index(name), dtype=torch.int32, device=device)
    shapes = list(_host.operation_weights(1, 1, channels).values())
    weights = ops.NodeWeights(*(torch.randn(shape, device=device) for shape in shapes[:-1]))
    if not backward:

        def fused() -> None:
            with torch.no_grad():
                ops.mixed_node(bank, index, kind, weights)

        def eager() -> None:
            with torch.no_grad():
                # A node writes a new image even where its operation is an identity.
                module(x) + 0 if name == "identity" else module(x)

        return fused, eager
    for t in (bank, x, *weights[:-1]):
        t.requires_grad_()
    grad = probe.permute(0, 2, 3, 1)[None].contiguous()

    def fused_step() -> None:
        out = ops.mixed_node(bank, index, kind, weights)
        torch.autograd.grad(out, (bank, *weights[:-1]), grad.to(out.dtype))

    def eager_step() -> None:
        out = module(x) + 0 if name == "identity" else module(x)
        torch.autograd.grad(out, (x, *module.parameters()), probe.to(out.dtype))

    return fused_step, eager_step


def print_floor(row: Row, floor: float) -> float:
    """Prints the least microseconds under a row; returns the share of it."""
    share = floor / row["ours"]
    print(f"{'':36}floor {floor:.4g} us, share {share:.2f}", flush=True)
    return share


def main() -> None:
    parser = options(__doc__, quick="few rounds, one size")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    flops = arithmetic_speed()
    print(
        f"instruction set: {ops.capability()}, threads: {args.threads}, {flops / 1e9:.0f} GFLOP/s"
    )
    rows: list[Row] = []
    for channels, size in SIZES[:1] if args.quick else SIZES:
        speed = copying_speed(64 * channels * size * size)
        for name in OPERATIONS:
            for backward in (False, True):
                fused, eager = case(name, channels, size, 64, backward)
                rounds = 3 if args.quick else 9
                label = "forward + backward" if backward else "forward"
                row = compare(
                    name, f"64×{channels}×{size}×{size} {label}", fused, eager, rounds=rounds
                )
                rows.append(row)
                work_flops, work_bytes = work(name, channels, size, 64, backward)
                floor = max(work_flops / flops, work_bytes / speed)
                print_floor(row, 1e6 * floor)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
