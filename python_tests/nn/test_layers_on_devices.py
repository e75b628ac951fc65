"""Gradients of every layer that networks in plain PyTorch are made of, against float64 on the CPU.

A release of PyTorch may be wrong on a GPU alone. The layers are found by walking the networks, so
that none is forgotten.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES
from torch import Tensor, nn

from asng_ext.nn import CellNetwork, CellSpace, CellSupernet, autoencoder
from asng_ext.nn.operations import OPERATIONS, AveragePool

FORMATS = [torch.contiguous_format, torch.channels_last]
ALONE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}
"""What rounding may do to a layer without parts, relative to the norm."""
IN_A_ROW = {torch.float64: 1e-9, torch.float32: 1e-3}
"""What it may do where layers follow each other. An error δ of ReLU's arguments turns the sign of
δ/π of them, and the norm feels the square root: with half precision that hides what is wrong."""
SPACE = CellSpace(1, OPERATIONS)

Call = tuple[Callable[..., Tensor], list[Tensor]]
"""A function, and tensors to call it with."""


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in tensors(v)] if isinstance(value, (tuple, list)) else []


def replaced(value: Any, by: Iterator[Tensor]) -> Any:
    """The same with other tensors."""
    if isinstance(value, Tensor):
        return next(by)
    if isinstance(value, list) or type(value) is tuple:
        return type(value)(replaced(v, by) for v in value)
    return value


def networks() -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
    """Both networks of cells, with each operation on both inputs, and what to call them with."""
    torch.manual_seed(0)
    for i in range(len(OPERATIONS)):
        architecture = [0, 1, i, (i + 1) % len(OPERATIONS)] * 2
        supernet = CellSupernet(SPACE, cells=3, channels=4).double()
        yield supernet, (torch.randn(2, 3, 14, 14).double(), architecture)
        network = CellNetwork(SPACE, architecture, cells=3, channels=4, image_size=32)
        yield network.double(), (torch.randn(4, 3, 32, 32).double(),)


@cache
def layers() -> tuple[dict[str, tuple[nn.Module, tuple[Any, ...]]], set[type[nn.Module]]]:
    """Layers with what they were called with, by how they print; types that were never called."""
    found: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}
    there: set[type[nn.Module]] = set()

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        shapes = [tuple(t.shape) for t in tensors(arguments)]
        kept = replaced(arguments, (t.detach() for t in tensors(arguments)))
        found.setdefault(f"{module} {shapes}", (module, kept))

    for network, arguments in networks():
        parts = [m for m in network.modules() if m is not network]
        hooks = [m.register_forward_pre_hook(note) for m in parts]
        network(*arguments)
        for hook in hooks:
            hook.remove()
        there |= {type(m) for m in parts}
    return found, there - {type(module) for module, _ in found.values()}


def gradients(
    call: Callable[..., Tensor],
    given: list[Tensor],
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> list[Tensor]:
    """Of a scalar of the result. In half precision as under autocast: a module has float32."""
    halved = dtype.itemsize == 2
    images = {"memory_format": memory_format}
    leaves = [
        t.detach().to(device, dtype, **(images if t.ndim == 4 else {})).requires_grad_()
        for t in given
    ]
    if isinstance(call, nn.Module):
        call = copy.deepcopy(call).to(device, torch.float32 if halved else dtype)
        leaves += call.parameters()
    with torch.autocast(device, dtype) if halved else nullcontext():
        out = call(*leaves[: len(given)])
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    return torch.autograd.grad(
        (out * probe).sum(), leaves, allow_unused=True, materialize_grads=True
    )


def wrong(
    call: Callable[..., Tensor],
    given: list[Tensor],
    device: str,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    bounds: dict[torch.dtype, float] = ALONE,
) -> bool:
    """Whether a gradient differs from that in float64 on the CPU, of the same rounded tensors."""
    given = [t.to(dtype).double() for t in given]
    expected = gradients(call, given)
    size = sum(float(b.norm()) for b in expected)
    got = gradients(call, given, device, dtype, memory_format)
    return any(
        not (a.cpu().double() - b).norm() <= bounds[dtype] * (b.norm() + size / 100)
        for a, b in zip(got, expected, strict=True)
    )


class Called(nn.Module):
    """A layer as a function of the tensors among its arguments."""

    def __init__(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.arguments = arguments

    def forward(self, *given: Tensor) -> Tensor:
        result: Tensor = self.layer(*replaced(self.arguments, iter(given)))
        return result


def test_every_type_of_layer_is_called() -> None:
    found, never = layers()
    assert never == {nn.ModuleDict, nn.ModuleList}
    assert {nn.BatchNorm2d, nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, AveragePool} <= {
        type(module) for module, _ in found.values()
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", ALONE)
def test_layers_of_cells(
    device: str, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    bad = []
    for name, (layer, arguments) in layers()[0].items():
        bounds = IN_A_ROW if any(layer.children()) else ALONE
        call, given = Called(layer, arguments), tensors(arguments)
        if dtype in bounds and wrong(call, given, device, dtype, memory_format, bounds):
            bad.append(name)
    assert not bad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", ALONE)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_layers_of_autoencoders(
    device: str,
    memory_format: torch.memory_format,
    dtype: torch.dtype,
    stride: int,
    kernel: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autoencoder, "_fuses", lambda *_: False)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 15, 14), torch.randn(5, 3, kernel, kernel) / kernel
    small = torch.randn(2, 5, -(-15 // stride), -(-14 // stride))
    # With ReLU, whose argument's sign rounding may turn in a few places: which, and whether any,
    # depends on the instruction set. In float16 one place is 0.05.
    bounds = {**{d: 3 * bound for d, bound in ALONE.items()}, torch.float16: 0.1}
    where = (device, dtype, memory_format, bounds)
    assert not wrong(lambda x, w: autoencoder._encode(x, w, stride), [x, weight], *where)
    for skipped in ([], [x]):
        assert not wrong(
            lambda low, w, *skip: autoencoder._decode(low, w, *(skip or [None]), stride, (15, 14)),
            [small, weight, *skipped],
            *where,
        )


class _Wrong(torch.autograd.Function):
    """An average pool whose gradient forgets a pixel of each image."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.avg_pool2d(x, 3, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (right,) = torch.autograd.grad(F.avg_pool2d(x, 3, padding=1), x, grad)
        right[..., 0, 0] = 0
        return right


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_wrong_gradient_is_found(dtype: torch.dtype) -> None:
    def pool(x: Tensor) -> Tensor:
        right = F.avg_pool2d(x, 3, padding=1)
        return right if x.dtype == torch.float64 else _Wrong.apply(x)

    x = torch.randn(2, 4, 14, 14)
    assert not wrong(lambda x: F.avg_pool2d(x, 3, padding=1), [x], "cpu", dtype, FORMATS[1])
    assert wrong(pool, [x], "cpu", dtype, FORMATS[1])
