"""What holds for every compiled operator: devices, sizes and derivatives.

With ASNG_CUDA_ON_CPU set (see conftest.py) the CPU's operators are those for CUDA.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import host_operators  # noqa: F401
import pytest
import torch
from torch import Tensor

from asng_ext import _host, ops
from asng_ext.ops import autoencoder as cae_ops

pytestmark = [pytest.mark.operators, pytest.mark.grid]


def _names() -> list[str]:
    """Operators of all libraries that are loaded."""
    schemas = torch._C._jit_get_all_schemas()
    return sorted(s.name.removeprefix("asng::") for s in schemas if s.name.startswith("asng::"))


def _schema(name: str) -> Any:
    return getattr(torch.ops.asng, name).default._schema


def _writes(name: str) -> bool:
    """Whether it changes its arguments."""
    return bool(_schema(name).is_mutable)


def _has_kernel(name: str, key: str) -> bool:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(has_kernel(f"asng::{name}", key))


def _has_fake(name: str) -> bool:
    return _has_kernel(name, "Meta")


def _examples() -> dict[str, tuple[Any, ...]]:
    """Arguments of every operator."""
    generator = torch.Generator().manual_seed(0)
    o = torch.ops.asng

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    operations = [draw(*shape) for shape in _host.operation_weights(2, 2, 2).values()]
    examples: dict[str, tuple[Any, ...]] = {"_release_cached": (), "_cpu_capability": ()}
    images, index = draw(2, 2, 3, 4, 5, 16), torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    images[..., 2:] = 0
    node = (images, index, index + 3, operations)
    out, saved = o.mixed_node(*node, 2, True, False)
    examples["mixed_node"] = (*node, 2, True, False)
    examples["_mixed_node_backward"] = (out, images, saved, *node[1:], 2, False)

    projections, output = (draw(2, 2), draw(2, 2)), draw(2, 2)
    weights = [*projections, *operations, output]
    cell = (images[0], images[1], index[:, None], index[:, None] + 3, weights, False)
    out, saved = o.cell(*cell, True, False)
    examples["cell"] = (*cell, True, False)
    examples["_cell_backward"] = (out, *cell[:2], out, saved, *cell[2:], True, True, False)

    kinds = (index[:, None, None].repeat(1, 2, 1, 1), index[:, None, None].repeat(1, 2, 1, 1) + 3)
    examples["_cell_plans"] = (images[0], *kinds, weights, True)
    has_plans = _has_kernel("_cell_plans", "CPU")
    forward, backward = (
        o._cell_plans(images[0], *kinds, weights, backward)[0]
        if has_plans
        else torch.zeros(8, dtype=torch.uint8)
        for backward in (False, True)
    )
    examples["_planned_cell"] = (forward, *cell, True, False)
    onto = (out, *cell[:2], out, saved, *cell[2:], True, True, torch.zeros_like(cell[1]))
    examples["_cell_backward_onto"] = (*onto, backward, False)

    out, saved = o.cells(images[0], *kinds, weights, True)
    examples["cells"] = (images[0], *kinds, weights, True)
    examples["_cells_backward"] = (out, images[0], out, saved, *kinds, weights, True)

    # Of two nodes, the second of which reads the first.
    edges = [0, 0, 3, 0, 1, 0, 1, 2, 4, 1, 1, 1]
    separable = [[draw(2, 1, k, k), draw(2, 2, 1, 1)] * 2 for k in (3, 5)]
    weights = [*separable[0], draw(1, 2, 1, 1), draw(1, 2, 1, 1), *separable[1]]
    mixture = ([images[0, 0], images[1, 0]], draw(4))
    out, saved = o.mixture(*mixture, edges, weights, 2, 2, True, False)
    examples["mixture"] = (*mixture, edges, weights, 2, 2, True, False)
    examples["_mixture_backward"] = (out, *mixture, out, saved, edges, weights, 2, 2, True, False)

    stem = (draw(2, 4, 5, 3), draw(2, 3, 3, 3), draw(2), draw(2))
    out, saved = o.stem(*stem, False)
    examples["stem"] = (*stem, False)
    examples["_stem_backward"] = (out, stem[0], saved, *stem[1:], False)

    x, weight, y = draw(2, 4, 4, 3), draw(5, 3, 3, 3), draw(2, 2, 2, 5)
    examples["cae_encode"] = (x, weight, 2)
    examples["_cae_encode_backward"] = (y, y, x, weight, 2, True)
    examples["cae_decode"] = (y, weight, x, 2, 4, 4, True)
    examples["_cae_decode_backward"] = (x, x, y, weight, 2, True)
    examples["_cae_finish"] = (x, draw(*x.shape), True)
    weights = [weight, draw(5, 5, 3, 3), draw(5, 3, 3, 3)]
    # Images and two feature maps, padded to 8 and 32 channels.
    kept = [draw(2, 4, 4, 8), draw(2, 2, 2, 32), draw(2, 4, 4, 32)]
    examples["cae_chains"] = (x, weights, [2], [1], True, True)
    examples["_cae_chains_backward"] = ([draw(*x.shape)], kept, weights, [2], [1], True, True)

    pixels, labels = torch.zeros(4, 3, 5, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    plan = (torch.tensor([3, 0]), torch.ones(2, 5, dtype=torch.int64))
    scaling = (torch.ones(2), torch.zeros(2))
    examples["_batch"] = (pixels, labels, *plan, *scaling, 1, True, 2, False)
    examples["_choices"] = (torch.zeros(3, 16, dtype=torch.int64), torch.tensor([2, 1]))
    layer = (draw(3, 16), draw(3))
    examples["head"] = (images[0], *layer, labels[:3])
    examples["_head_backward"] = (draw(2), images[0], draw(6 * 19), *layer)
    tensors = [[draw(2, 3), draw(4)] for _ in range(3)]
    examples["_sgd_step"] = (*tensors, torch.tensor(0.1), 0.9, 1e-4, 5.0)
    slices = [[draw(3, 4), draw(2, 1, 3)] for _ in range(2)]
    examples["_active_sgd_step"] = (
        slices[0],
        [draw(2, 3), draw(1, 1, 3)],
        slices[1],
        0.1,
        0.9,
        5.0,
    )
    examples["_active_sgd_catch_up"] = (*slices, [0.1, 0.2], [0.9, 0.8])
    examples["_add_means"] = (torch.zeros(4), [draw(3), torch.ones(())], 1)

    # Two optimizers of variables with 2 and 3 categories and a Gaussian one.
    theta, s = [0.5, 0.5, 0.2, 0.2, 0.6], [0.0] * 5
    row = [*[0.0] * 8, 0.0, 1.0, torch.inf, *theta, 0.0, 1.0, *s, *[0.0] * 3]
    offsets = torch.tensor([0, 2, 5]).view(torch.float64)
    space = torch.cat([offsets, torch.tensor([0.1, 0.1, -1.0, 1.0, 0.1, 1.0]).double()])
    asng = (torch.tensor([row] * 2, dtype=torch.float64), space, 1, 3)
    categorical, numerical = o._asng_ask(*asng, 2)
    examples["_asng_ask"] = (*asng, 2)
    settings = (1.5, 1.0, 1e9, 0.5, False)
    examples["_asng_tell"] = (*asng, categorical, numerical, draw(2, 2), *settings)
    return examples


EXAMPLES = _examples() if ops.available() else {}


def _has_derivative(name: str) -> bool:
    return _has_kernel(name, "Autograd")


def _own(names: list[str]) -> list[Any]:
    """Parameters of tests of our own kernels: some are for CUDA alone, and what stands in for the
    optimizer's is not ours."""
    grid = pytest.mark.grid(only=True)
    elsewhere = [n for n in names if n.startswith("_asng") or not _has_kernel(n, "CPU")]
    return [pytest.param(n, marks=grid if n in elsewhere else ()) for n in names]


def _run(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """All tensors that an operator gives; its arguments stay as they are."""
    copies = [a.clone() if isinstance(a, Tensor) and not a.requires_grad else a for a in args]
    results = getattr(torch.ops.asng, name)(*copies)
    results = results if isinstance(results, (tuple, list)) else [results]
    flat = [t for r in results for t in (r if isinstance(r, list) else [r])]
    return [t for t in flat if isinstance(t, Tensor)]


def _mapped(args: tuple[Any, ...], change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """The arguments with all tensors, also those in lists, changed."""
    return tuple(
        list(_mapped(tuple(a), change))
        if isinstance(a, list)
        else change(a)
        if isinstance(a, Tensor)
        else a
        for a in args
    )


def _replaced(args: tuple[Any, ...], kind: type, change: Any) -> Iterator[tuple[Any, ...]]:
    """The arguments with one of a kind, or one in a list of them, changed."""
    for i, arg in enumerate(args):
        if type(arg) is kind:
            yield (*args[:i], change(arg), *args[i + 1 :])
        elif isinstance(arg, list):
            for new in _replaced(tuple(arg), kind, change):
                yield (*args[:i], list(new), *args[i + 1 :])


def test_every_operator_has_an_example() -> None:
    assert sorted(EXAMPLES) == _names()
    for name, args in EXAMPLES.items():
        assert len(args) == len(_schema(name).arguments)
        if _has_kernel(name, "CPU") or not args:
            _run(name, args)


@pytest.mark.parametrize("name", [n for n, args in EXAMPLES.items() if args])
def test_a_tensor_on_another_device_is_an_error(name: str) -> None:
    message = "must be on one device" if _has_fake(name) else "no fake impl or Meta kernel"
    for args in _replaced(EXAMPLES[name], Tensor, lambda t: t.to("meta")):
        with pytest.raises(RuntimeError, match=message):
            _run(name, args)


@pytest.mark.parametrize("name", [n for n in EXAMPLES if _has_fake(n)])
def test_results_without_values_have_the_same_shapes(name: str) -> None:
    args = _mapped(EXAMPLES[name], lambda t: t.to("meta"))
    results = _run(name, args)
    assert all(t.device.type == "meta" for t in results)
    if _has_kernel(name, "CPU"):
        real = _run(name, EXAMPLES[name])
        assert [t.shape for t in results] == [t.shape for t in real]


@pytest.mark.parametrize("value", [-(2**63), -1, 2**31, 2**32 + 2, 2**62, 2**63 - 1])
@pytest.mark.parametrize("name", _own([n for n, a in EXAMPLES.items() if int in map(type, a)]))
def test_sizes_out_of_range_are_errors(name: str, value: int) -> None:
    _check_size(name, value)


MAY_BE_0 = ("_batch", "_add_means", "mixture", "_mixture_backward")


@pytest.mark.parametrize(
    "name",
    _own([n for n, a in EXAMPLES.items() if int in map(type, a) and n not in MAY_BE_0]),
)
def test_sizes_of_0_are_errors(name: str) -> None:
    _check_size(name, 0)


def _check_size(name: str, value: int) -> None:
    """It is an error in the place of each of an operator's integers."""
    for args in _replaced(EXAMPLES[name], int, lambda _: value):
        with pytest.raises(RuntimeError, match=r"must (be|have shape)"):
            _run(name, args)


@pytest.mark.grid(only=True)
def test_samples_of_no_variable_are_an_error() -> None:
    """They need no memory, however many."""
    with pytest.raises(RuntimeError, match="at least one variable"):
        torch.ops.asng._asng_ask(*(torch.zeros(n).double() for n in (11, 1)), 0, 0, 2**62)


@pytest.mark.parametrize("name", _own([n for n in EXAMPLES if _has_derivative(n)]))
def test_second_derivatives_are_errors(name: str) -> None:
    leaves: list[Tensor] = []

    def leaf(t: Tensor) -> Tensor:
        if t.is_floating_point() and (t is not EXAMPLES["stem"][0] or name == "_stem_backward"):
            leaves.append(t.detach().clone().requires_grad_())
            return leaves[-1]
        return t

    out = _run(name, _mapped(EXAMPLES[name], leaf))[0]
    if name.startswith("_"):
        with pytest.raises(RuntimeError, match=r"asng::\w+ has no second derivative"):
            out.sum().backward()
        return
    loss = out.pow(2).sum()
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    grads = torch.autograd.grad(loss, leaves, create_graph=True)
    for grad, wanted in zip(grads, expected, strict=True):
        assert torch.equal(grad, wanted)
        if name == "cae_decode" and grad is grads[2]:
            continue  # of what is skipped, by an operator of PyTorch
        with pytest.raises(RuntimeError, match=f"asng::{name} has no second derivative"):
            grad.pow(2).sum().backward(retain_graph=True)


def test_a_gradient_penalty_on_a_layer_is_an_error() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    y = cae_ops.encode(x, weight)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="asng::cae_encode has no second derivative"):
        (y.mean() + grad.norm()).backward()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by PyTorch itself
@pytest.mark.parametrize("function", [cae_ops.encode, cae_ops.decode])
def test_forward_mode_is_an_error(function: Callable[..., Tensor]) -> None:
    x, weight = torch.ones(1, 2, 4, 4), torch.ones(2, 2, 3, 3)
    with pytest.raises(NotImplementedError, match=r"asng::cae_\w+ has no forward-mode derivative"):
        torch.func.jvp(lambda w: function(x, w), (weight,), (weight,))
    with torch.autograd.forward_ad.dual_level():
        function(x, weight)  # without a tangent
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            function(dual, weight)


def test_every_way_to_allow_tf32_is_followed(tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from asng_ext.ops._feature_maps import allows_tf32\n"
        "seen = [allows_tf32()]\n"
        "torch.backends.cudnn.allow_tf32 = False\n"
        "seen.append(allows_tf32())\n"
        "torch.backends.fp32_precision = 'tf32'\n"
        "seen.append(allows_tf32())\n"
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'\n"
        "seen.append(allows_tf32())\n"
        "torch.backends.cudnn.conv.fp32_precision = 'tf32'\n"
        "seen.append(allows_tf32())\n"
        "assert seen == [True, False, True, False, True], seen\n"
    )
    command = [sys.executable, "-c", code]
    # Elsewhere than among the sources, where the package has no compiled parts.
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
