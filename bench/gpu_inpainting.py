"""Times the inpainting search (Section 3.3) on a GPU: whole iterations, and single layers.

Against two baselines on the same GPU:

* ``plain``: just the active channels, as slices of the weight, channels-last, in eager PyTorch; in
  iterations with autograd's gradients of whole weights and SGD over all weights.
* ``2019``: all 256 channels of a layer computed in memory order NCHW, those that the architecture
  lacks multiplied by 0, SGD over all weights; in TF32 alone, which PyTorch's convolutions take by
  default.

On a GPU iterations are also compared in the ways of docs/gpu.md: a launch for each layer or
persistent kernels, products of warps or of warpgroups.

An iteration trains the weights with two architectures and evaluates two more, as they are drawn at
the start of a search; times are means over the same ones for all. cuDNN's own search for the
fastest algorithm, which begins anew for every shape, is off without ``--search-algorithms``.

Run with ``python bench/gpu_inpainting.py [--device cpu] [--quick] [--layers] [--kernels]``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from gpu_kernels import kernel_table
from gpu_timing import PRECISIONS, Run, allow_tf32, arguments, compare, describe
from inpainting_search_step import SPACES, iteration, make_run, some_iterations, stepper
from table import Row, finish, made_row, save
from torch import Tensor

from asng_ext.nn import CaeCatSpace, CaeIntSpace, CaeSpace, CaeSupernet, autoencoder
from asng_ext.ops import autoencoder as cae_ops

WIDEST = 256
QUICK_SPACES: dict[str, CaeSpace] = {
    "cat": CaeCatSpace(4, channels=(4, 8)),
    "int": CaeIntSpace(4, low=4, high=8),
}


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """The supernet's layers in eager PyTorch."""
    before = autoencoder._fuses, autoencoder._fuses_chain
    autoencoder._fuses = autoencoder._fuses_chain = lambda *_: False
    try:
        yield
    finally:
        autoencoder._fuses, autoencoder._fuses_chain = before


@dataclass(frozen=True)
class Layer:
    """A layer of an encoder, or of a decoder if `transposed`, on images of a side `size`.

    As in the supernet, a decoder's layer with stride 1 adds what was skipped.
    """

    transposed: bool
    kernel: int
    stride: int
    rows: int
    columns: int
    size: int

    def __str__(self) -> str:
        kind = "dec" if self.transposed else "enc"
        wide = (self.rows, self.columns) if self.transposed else (self.columns, self.rows)
        return f"{kind} {self.kernel}x{self.kernel}/{self.stride} {wide[0]}-{wide[1]}"


LAYERS = (
    Layer(False, 5, 1, 256, 256, 64),
    Layer(False, 3, 1, 128, 64, 64),
    Layer(False, 5, 2, 128, 256, 64),
    Layer(True, 5, 1, 256, 128, 64),
    Layer(True, 3, 1, 64, 128, 64),
    Layer(True, 3, 2, 128, 64, 64),
)


def with_gradients(out: Tensor, leaves: Sequence[Tensor | None], probe: Tensor) -> list[Tensor]:
    """The result, and the gradients of those that are there."""
    there = [leaf for leaf in leaves if leaf is not None]
    return [out, *torch.autograd.grad(out, there, probe)]


class Inputs:
    """Tensors of a layer of which just the active channels are computed."""

    def __init__(self, layer: Layer, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        low = -(-layer.size // layer.stride)
        known, made = (low, layer.size) if layer.transposed else (layer.size, low)
        channels = (layer.rows, layer.columns)
        taken, given = channels if layer.transposed else channels[::-1]
        self.layer = layer
        self.device = device
        self.dtype = dtype

        def images(count: int, size: int) -> Tensor:
            x = torch.randn(batch, count, size, size, device=device, dtype=dtype)
            return x.contiguous(memory_format=torch.channels_last)

        whole = torch.randn(WIDEST, WIDEST, layer.kernel, layer.kernel, device=device) * 0.01
        self.whole = whole.requires_grad_()
        self.weight = whole.detach()[: layer.rows, : layer.columns].requires_grad_()
        self.x = images(taken, known).requires_grad_()
        self.probe = images(given, made)
        skips = layer.transposed and layer.stride == 1
        self.skipped = images(given, made).requires_grad_() if skips else None
        self.mask = torch.zeros(1, WIDEST, 1, 1, device=device)
        self.mask[:, :given] = 1

    def active(self, backward: bool) -> list[Tensor]:
        """Just the active channels, as the supernet computes them."""
        layer, half = self.layer, self.dtype != torch.float32
        size = (layer.size, layer.size)
        with (
            torch.set_grad_enabled(backward),
            torch.autocast(self.device.type, torch.bfloat16, enabled=half),
        ):
            if layer.transposed:
                out = autoencoder._decode(self.x, self.weight, self.skipped, layer.stride, size)
            else:
                out = autoencoder._encode(self.x, self.weight, layer.stride)
        leaves = [self.x, self.weight, self.skipped]
        return with_gradients(out, leaves, self.probe) if backward else [out]

    def plain(self, backward: bool) -> list[Tensor]:
        """The same in eager PyTorch."""
        with plain_layers():
            return self.active(backward)


class Inputs2019:
    """Inputs with all channels, NCHW, zeros where the architecture has none."""

    def __init__(self, inputs: Inputs) -> None:
        def wide(x: Tensor) -> Tensor:
            padded = F.pad(x.detach(), (0, 0, 0, 0, 0, WIDEST - x.shape[1]))
            return padded.contiguous(memory_format=torch.contiguous_format)

        self.inputs = inputs
        self.x = wide(inputs.x).requires_grad_()
        self.probe = wide(inputs.probe)
        skipped = inputs.skipped
        self.skipped = None if skipped is None else wide(skipped).requires_grad_()

    def run(self, backward: bool) -> list[Tensor]:
        """The layer, and its gradients."""
        inputs, layer = self.inputs, self.inputs.layer
        padding = layer.kernel // 2
        with torch.set_grad_enabled(backward):
            if layer.transposed:
                output_padding = layer.size - layer.stride * (self.x.shape[2] - 1) - 1
                y = F.conv_transpose2d(
                    self.x, inputs.whole, None, layer.stride, padding, output_padding=output_padding
                )
            else:
                y = F.conv2d(self.x, inputs.whole, None, layer.stride, padding)
            y = y * inputs.mask
            y = F.relu(y if self.skipped is None else y + self.skipped)
        leaves = [self.x, inputs.whole, self.skipped]
        return with_gradients(y, leaves, self.probe) if backward else [y]


def layer_rows(layer: Layer, batch: int, device: torch.device, quick: bool) -> list[Row]:
    """Forward and forward with backward; the slow baseline with backward only."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        short = "float32" if dtype == torch.float32 else "bfloat16"
        inputs = Inputs(layer, batch, device, dtype)
        for backward in (False, True):
            name = f"layer {'fwd + bwd' if backward else 'fwd'}, {short}"
            runs = [partial(run, backward) for run in (inputs.active, inputs.plain)]
            rows.append(compare(name, f"{layer}, plain", *runs, device, quick=quick))
        if dtype == torch.float32:
            runs = [partial(run, True) for run in (inputs.active, Inputs2019(inputs).run)]
            rows.append(compare(name, f"{layer}, 2019", *runs, device, quick=quick))
    return rows


def plain_run(kind: str, space: CaeSpace, target: Tensor) -> Callable[[Any], None]:
    """An iteration of the supernet as slices of plain PyTorch."""
    with target.device:
        supernet = CaeSupernet(space)
    step = stepper(supernet)
    precision = torch.bfloat16 if kind == "bfloat16" else None

    def run(architectures: Any) -> None:
        with plain_layers():
            iteration(supernet, step, architectures, target, precision)

    return run


def ways(kind: str, device: torch.device) -> dict[str, dict[str, str]]:
    """How convolutions may be computed, by environment variables; first as they are without."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    return cae_ops.candidates(dtype, device) or {"cuDNN": {}}


def running(way: dict[str, str], run: Callable[[Any], None]) -> Callable[[Any], None]:
    """Runs in one of these ways."""

    def ran(architectures: Any) -> None:
        with patch.dict(os.environ, way):
            run(architectures)

    return ran


def halved(kind: str) -> str:
    """With or without autocast."""
    return kind if kind == "bfloat16" else "float32"


def iteration_rows(
    kind: str, name: str, space: CaeSpace, target: Tensor, count: int, quick: bool
) -> Iterator[Row]:
    """Whole iterations in a precision against the baselines, and on a GPU peak memory."""
    device = target.device
    iterations = some_iterations(space, count)
    ours = partial(make_run, halved(kind), space, target)
    baselines = {"plain": partial(plain_run, halved(kind), space, target)}
    if kind == "TF32":
        baselines["2019"] = partial(make_run, "2019", space, target)
    contests = {baseline: (ours, make) for baseline, make in baselines.items()}
    if device.type == "cuda":
        usual, *others = ways(kind, device).items()
        for way in others:
            starts = [lambda way=way: running(way[1], ours()) for way in (way, usual)]
            contests[f"{way[0]} and {usual[0]}"] = (starts[0], starts[1])
    for baseline, starts in contests.items():
        peaks, runs = [], []
        for start in starts:
            before = _begin_peak(device)
            runs.append(_over(start(), iterations))
            runs[-1]()
            peaks.append(_peak(device) - before)
        case = f"{name}, {baseline}"
        yield compare(
            f"inpainting iteration, {kind}",
            case,
            *runs,
            device,
            quick=quick,
            unit="ms",
            calls=len(iterations),
            rounds=5,
        )
        del runs
        if device.type == "cuda":
            yield made_row(f"peak memory, {kind}", case, *peaks, "MiB")


def _over(run: Callable[[Any], None], iterations: Sequence[Any]) -> Run:
    def all_of_them() -> None:
        for architectures in iterations:
            run(architectures)

    return all_of_them


def _begin_peak(device: torch.device) -> float:
    """MiB in use now."""
    gc.collect()  # a supernet and its SGD refer to each other
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def _peak(device: torch.device) -> float:
    """Most MiB that were in use since."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def show_kernels(kind: str, name: str, space: CaeSpace, target: Tensor, count: int) -> None:
    """Which kernels one of our iterations launches, and what that takes the host."""
    for way, variables in ways(kind, target.device).items():
        print(f"{way}:")
        run = running(variables, make_run(kind, space, target))
        _show_kernels(kind, name, run, some_iterations(space, count))


def _show_kernels(
    kind: str, name: str, run: Callable[[Any], None], iterations: Sequence[Any]
) -> None:
    all_of_them, count = _over(run, iterations), len(iterations)
    for _ in range(2):
        all_of_them()
    torch.cuda.synchronize()
    start = time.perf_counter()
    all_of_them()
    host = (time.perf_counter() - start) / count
    torch.cuda.synchronize()
    both = (time.perf_counter() - start) / count
    print(f"{name}, {kind}: {host * 1e3:.2f} ms on the host, {both * 1e3:.2f} ms in all")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        all_of_them()
        torch.cuda.synchronize()
    kernel_table(profiler, count)


def all_rows(
    device: torch.device, quick: bool, kinds: Sequence[str], layers: bool, kernels: bool
) -> Iterator[Row]:
    """The most telling ones first."""
    size, batch, count = (16, 2, 1) if quick else (64, 16, 5)
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(batch, 3, size, size, generator=generator).to(device)
    for kind in kinds:
        with allow_tf32(kind != "float32"):
            if device.type == "cuda":
                dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
                print(f"{kind}: {cae_ops.convolutions(dtype)}")
            for name, space in (QUICK_SPACES if quick else SPACES).items():
                yield from iteration_rows(kind, name, space, target, count, quick)
                if kernels:
                    show_kernels(halved(kind), name, space, target, count)
    if layers:
        for layer in LAYERS[::3] if quick else LAYERS:
            small = Layer(layer.transposed, layer.kernel, layer.stride, 8, 6, 9)
            yield from layer_rows(small if quick else layer, batch, device, quick)


def main(argv: Sequence[str] | None = None) -> None:
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--layers", action="store_true", help="single layers, too")
        parser.add_argument("--kernels", action="store_true", help="print our kernels, too")
        parser.add_argument(
            "--precisions", nargs="+", choices=PRECISIONS, default=("TF32", "bfloat16", "float32")
        )
        parser.add_argument(
            "--search-algorithms",
            action="store_true",
            help="cuDNN tries all algorithms of a shape, for ours and the baselines",
        )

    args = arguments(__doc__, argv, add_options)
    torch.backends.cudnn.benchmark = args.search_algorithms
    device = torch.device(args.device)
    print(describe(device))
    rows: list[Row] = []
    for row in all_rows(
        device, args.quick, args.precisions, args.layers, args.kernels and device.type == "cuda"
    ):
        rows.append(row)
        save(rows, args.json)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
