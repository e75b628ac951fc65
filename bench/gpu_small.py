"""Runs every kernel once or twice on small cases: what tools that slow a program down look at.

The operators run forward and backward in all precisions with both strides and ragged sizes, the
optimizer with all kinds of variables, and a few iterations of a search. Nothing is timed; that
results are finite is checked, what they are is for the tests.

Run with ``compute-sanitizer python bench/gpu_small.py [--device cpu]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from gpu_search_step import random_images
from gpu_timing import PRECISIONS, allow_tf32, precision

import asng_ext as asng
from asng_ext import _host, ops
from asng_ext.engine.search import search
from asng_ext.nn import CaeIntSpace, CaeLayer, CaeSupernet
from asng_ext.ops import autoencoder as cae_ops
from asng_ext.ops._feature_maps import padded_channels
from asng_ext.runs.config import SearchConfig
from asng_ext.tasks.classification import ClassificationConfig, ClassificationTask
from asng_ext.training.active_sgd import ActiveSGD


def finite(*tensors: torch.Tensor) -> None:
    """Raises FloatingPointError where a number is not finite."""
    for tensor in tensors:
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"a result of shape {tuple(tensor.shape)} is not finite")


def node(channels: int, size: int, stride: int, device: str) -> None:
    """Every operation, on both of two inputs, for three architectures."""
    inputs, archs, batch = 2, 3, 2
    bank = torch.randn(inputs, archs, batch, size, size, channels, device=device)
    shapes = _host.operation_weights(inputs, inputs, channels).values()
    weights = [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
    bank.requires_grad_()
    for first in range(ops.OPERATION_COUNT):
        kinds = (torch.arange(archs * 2).view(archs, 2) + first) % ops.OPERATION_COUNT
        index = torch.arange(archs * 2).view(archs, 2) % inputs
        given = weights if stride == 2 else weights[:-1]
        out = ops.mixed_node(
            bank, index.to(device), kinds.to(device), ops.NodeWeights(*given), stride
        )
        grads = torch.autograd.grad(out.square().sum(), [bank, *given])
        finite(out, *grads)


def mixture(channels: int, size: int, stride: int, device: str) -> None:
    """Every edge of two nodes."""
    edges = [(n, i, k) for n in range(2) for i in range(n + 2) for k in range(ops.OPERATION_COUNT)]
    weights = []
    for _, i, number in edges:
        kind = _host.OPERATIONS[number]
        if kind.form == "separable":
            shapes = [(channels, 1, kind.kernel, kind.kernel), (channels, channels, 1, 1)] * 2
        else:
            halves = (channels - channels // 2, channels // 2)
            reduces = kind.form == "identity" and i < 2 and stride == 2
            shapes = [(half, channels, 1, 1) for half in halves] if reduces else []
        weights += [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
    padded = padded_channels(channels)
    maps = [torch.randn(2, size, size, padded, device=device).requires_grad_() for _ in range(2)]
    coefficients = torch.randn(len(edges), device=device).requires_grad_()
    out = ops.mixture.mixture(maps, coefficients, edges, weights, 2, stride)
    leaves = [*maps, coefficients, *weights]
    finite(out, *torch.autograd.grad(out.square().sum(), leaves))


def autoencoder(dtype: torch.dtype, device: str) -> None:
    """Layers of an autoencoder with and without a skip; odd sizes leave tails."""
    x = torch.randn(2, 3, 7, 5, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(6, 5, 3, 3, device=device, dtype=dtype, requires_grad=True)
    for stride in (1, 2):
        small = cae_ops.encode(x, weight[:, :3], stride)
        out = cae_ops.decode(small, weight[:, :3], x, stride, (7, 5))
        finite(out, *torch.autograd.grad(out.square().sum(), [x, weight]))


def whole_autoencoders(dtype: torch.dtype) -> None:
    """All layers in one operator, with kernels of every size, and SGD on what is in use."""
    space = CaeIntSpace(layers=3, low=2, high=40)
    supernet = CaeSupernet(space).cuda()
    sgd = ActiveSGD(supernet, 0.1, 0.9, 1.0)
    x = torch.rand(2, 3, 7, 5, device="cuda")
    for width in (2, 33, 40):
        layers = [CaeLayer(i, 2 * i + 1, width - i % 2, i != 1) for i in range(3)]
        for part in (layers, layers[1:], []):
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                out = supernet(x, part)
            (out.float() - x).square().mean().backward()
            sgd.step()
            finite(out)
    finite(*supernet.state_dict().values())


def optimizer(device: str) -> None:
    """Categorical variables of different sizes and integers; ties and NaN among the losses."""
    space = asng.SearchSpace.from_sizes([2, 3, 5, 1] * 3, [(1, 3), (64, 256)])
    for population in (2, 5):
        some = asng.ASNG(space, population_size=population, seed=1, device=device)
        for step in range(4):
            losses = torch.arange(population, device=device, dtype=torch.float64)
            losses[-1] = float("nan") if step == 2 else 0.0
            some.tell(some.ask(), losses)
        if not all(0 <= p <= 1 for row in some.theta.categorical for p in row):
            raise FloatingPointError("probabilities are out of their range")


def iterations(device: str, kind: str) -> None:
    """A search of a few iterations in one of `PRECISIONS`."""
    config = SearchConfig(epochs=1, batch_size=2, test_every=0, graphs=False)
    halves = "bfloat16" if kind == "bfloat16" else "float32"
    task = ClassificationTask(
        random_images(10, 10),
        ClassificationConfig(data="random", nodes=2, cells=3, channels=4, precision=halves),
        search_batch_size=2,
        retrain_batch_size=2,
        seed=0,
        device=device,
    )
    where = device if task.capturable else "cpu"
    some = asng.ASNG(task.space, population_size=2, seed=0, device=where)
    with allow_tf32(kind != "float32"):
        result = search(task, some, config, seed=0, stream=None)
    finite(*result.supernet.state_dict().values())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args(argv).device
    torch.manual_seed(0)
    for kind in PRECISIONS:
        for channels, size in ((4, 5), (16, 8), (20, 7)):
            for stride in (1, 2):
                with precision(kind, torch.device(device)):
                    node(channels, size, stride, device)
                    mixture(channels, size, stride, device)
        iterations(device, kind)
    autoencoder(torch.float32, device)
    if device == "cuda":
        autoencoder(torch.bfloat16, device)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            whole_autoencoders(dtype)
    optimizer(device)
    print("all finite")


if __name__ == "__main__":
    main()
