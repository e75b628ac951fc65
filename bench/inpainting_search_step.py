"""Times one inpainting search iteration (Section 3.3): our supernet against a plain one.

An iteration trains the weights with two architectures and evaluates two more. The baseline is
written as in 2019: every layer has all 256 channels in memory order NCHW, those that an
architecture lacks are computed and then multiplied by 0, gradients are zeroed and not dropped, and
SGD goes over all weights. Both take the same ten architectures, alternately, in one process; times
are means. Peak memory is that of processes which run one of the two.

Run with ``python bench/inpainting_search_step.py [--quick] [--json PATH]``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from table import Row, finish, made_row, options, peak_memory, peak_row
from torch import Tensor, nn

import asng_ext as asng
from asng_ext.nn import CaeCatSpace, CaeIntSpace, CaeLayer, CaeSpace, CaeSupernet
from asng_ext.nn.autoencoder_space import fitting_layers
from asng_ext.training.active_sgd import ActiveSGD

Layers = Sequence[CaeLayer]
Iteration = tuple[tuple[Layers, Layers], tuple[Layers, Layers]]
"""Two architectures to train and two to evaluate."""

SPACES: dict[str, CaeSpace] = {"cat": CaeCatSpace(), "int": CaeIntSpace()}
KINDS = ("2019", "float32", "bfloat16")
"""The baseline, and ours without and with autocast."""


class MaskedSupernet(nn.Module):
    """All channels of every layer, then zeros where the architecture has none."""

    def __init__(self, space: CaeSpace) -> None:
        super().__init__()
        self.channels = space.max_channels
        self.encoder, self.decoder = nn.ParameterDict(), nn.ParameterDict()
        for i in range(space.layers):
            for kernel in space.kernels:
                for skip in (True, False):
                    for part in (self.encoder, self.decoder):
                        weight = torch.randn(self.channels, self.channels, kernel, kernel) * 0.01
                        part[f"{i}_{kernel}_{int(skip)}"] = nn.Parameter(weight)
        self.output = nn.Parameter(torch.randn(self.channels, 3, 3, 3) * 0.01)

    def forward(self, x: Tensor, architecture: Layers) -> Tensor:
        layers, sizes = fitting_layers(architecture, *x.shape[2:])
        x = F.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))
        encoded = []
        for layer in layers:
            weight = self.encoder[f"{layer.index}_{layer.kernel}_{int(layer.skip)}"]
            x = F.conv2d(x, weight, stride=layer.stride, padding=layer.kernel // 2)
            x = F.relu(self.masked(x, layer))
            encoded.append(x)
        for layer, size in zip(reversed(layers), reversed(sizes)):
            weight = self.decoder[f"{layer.index}_{layer.kernel}_{int(layer.skip)}"]
            padding = [s - layer.stride * (n - 1) - 1 for s, n in zip(size, x.shape[2:])]
            x = F.conv_transpose2d(
                x,
                weight,
                stride=layer.stride,
                padding=layer.kernel // 2,
                output_padding=padding,
            )
            x = self.masked(x, layer)
            skipped = encoded.pop()
            x = F.relu(x + skipped if layer.skip else x)
        return F.conv_transpose2d(x, self.output, padding=1)

    def restore(self, x: Tensor, architectures: Sequence[Layers]) -> list[Tensor]:
        return [self(x, layers) for layers in architectures]

    def masked(self, x: Tensor, layer: CaeLayer) -> Tensor:
        mask = x.new_zeros(1, self.channels, 1, 1)
        mask[:, : layer.channels] = 1
        return x * mask


def some_iterations(space: CaeSpace, count: int) -> list[Iteration]:
    """Iterations over 2·count architectures as they are drawn at the start of a search.

    Each architecture is trained once and evaluated once.
    """
    samples = asng.ASNG(space.search_space(), population_size=2 * count, seed=0).ask()
    architectures = [space.decode(values) for values in samples]
    pairs = list(zip(architectures[::2], architectures[1::2], strict=True))
    return list(zip(pairs, pairs[1:] + pairs[:1], strict=True))


def iteration(
    supernet: CaeSupernet | MaskedSupernet,
    step: Callable[[], None],
    architectures: Iteration,
    target: Tensor,
    precision: torch.dtype | None,
) -> None:
    corrupted = target * (target > 0.5)

    def losses(both: Sequence[Layers]) -> Tensor:
        enabled = precision is torch.bfloat16
        with torch.autocast(target.device.type, torch.bfloat16, enabled=enabled):
            outs = supernet.restore(corrupted, both)
        return torch.stack([F.mse_loss(out.float(), target) for out in outs])

    training, testing = architectures
    losses(training).mean().backward()
    step()
    with torch.no_grad():
        losses(testing)


def stepper(supernet: nn.Module) -> Callable[[], None]:
    """The baseline's update: clipped, over every weight, with gradients that stay and are 0."""
    sgd = torch.optim.SGD(supernet.parameters(), lr=0.025, momentum=0.9)
    for parameter in supernet.parameters():  # as after iterations that used all of them
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        nn.utils.clip_grad_norm_(supernet.parameters(), 5.0)
        sgd.step()
        sgd.zero_grad(set_to_none=False)

    return step


def seconds(run: Callable[[Iteration], None], architectures: Iteration) -> float:
    start = time.perf_counter()
    run(architectures)
    return time.perf_counter() - start


def make_run(kind: str, space: CaeSpace, target: Tensor) -> Callable[[Iteration], None]:
    """A supernet of a kind on the target's device, as a function that makes one iteration."""
    if kind == "2019":
        with target.device:
            baseline = MaskedSupernet(space)
        step = stepper(baseline)
        return lambda architectures: iteration(baseline, step, architectures, target, None)
    with target.device:
        ours = CaeSupernet(space)
    sgd = ActiveSGD(ours, 0.025, 0.9, 5.0)
    precision = torch.bfloat16 if kind == "bfloat16" else None
    return lambda architectures: iteration(ours, sgd.step, architectures, target, precision)


def measure(
    name: str, space: CaeSpace, target: Tensor, count: int, precisions: Sequence[str]
) -> list[Row]:
    """Both supernets on the same iterations, alternately."""
    iterations = some_iterations(space, count)
    kinds = ("2019", *precisions)
    runs = {kind: make_run(kind, space, target) for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    # Memory comes into being, and momentum. The baseline has all of it after any step.
    runs["2019"]((((), ()), ((), ())))
    for kind in precisions:
        for architectures in iterations:
            runs[kind](architectures)
    for architectures in iterations:
        for kind, run in runs.items():
            times[kind].append(seconds(run, architectures))
    rows: list[Row] = []
    means = {kind: statistics.mean(values) for kind, values in times.items()}
    for kind in precisions:
        case = f"{name}, batch {target.shape[0]}, {target.shape[2]}x{target.shape[3]}"
        title = f"inpainting iteration, {kind}"
        rows.append(made_row(title, case, means[kind], means["2019"], "s"))
    return rows


def main() -> None:
    parser = options(__doc__, quick="small images, two iterations")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--precisions", nargs="+", choices=KINDS[1:], default=KINDS[1:])
    parser.add_argument("--peak-of", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size, batch, count = (16, 2, 2) if args.quick else (64, 16, 5)
    target = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    if args.peak_of:
        space = SPACES[args.spaces[0]]
        run = make_run(args.peak_of, space, target)
        for architectures in some_iterations(space, count):
            run(architectures)
        print(peak_memory())
        return
    rows: list[Row] = []
    for name in args.spaces:
        rows += measure(name, SPACES[name], target, count, args.precisions)
        settings = ["--spaces", name, "--threads", str(args.threads), *["--quick"] * args.quick]
        kinds = ("float32", "2019")
        title = "inpainting iteration, peak memory"
        rows.append(peak_row(title, name, *(["--peak-of", kind, *settings] for kind in kinds)))
    finish(rows, args.json)


if __name__ == "__main__":
    main()
