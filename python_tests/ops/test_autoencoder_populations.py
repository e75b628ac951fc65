"""Populations of whole autoencoders in one operator: the bits of each one alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from autoencoder_samples import (
    ChainCase,
    assert_same,
    chain_sample,
    fused_chain,
    in_dtype,
    plain_chain,
    random_layers,
)
from devices import CUDA_DEVICES
from torch import Tensor

from asng_ext.nn import CaeCatSpace, CaeIntSpace, CaeSpace
from asng_ext.ops import autoencoder as cae_ops

pytestmark = [
    pytest.mark.operators,
    pytest.mark.grid,
    pytest.mark.parametrize("device", CUDA_DEVICES),
]

SPACES: dict[str, CaeSpace] = {
    "cat": CaeCatSpace(layers=4, channels=(3, 8, 40)),
    "int": CaeIntSpace(layers=4, low=1, high=32),
}


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all of cuDNN's algorithms give the same bits again."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def population(space: CaeSpace, seed: int) -> list[ChainCase]:
    """1 to 4 random architectures with the same images. At times the first one has no layers, or
    the last one is the first one again."""
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 8, (2,), generator=generator).tolist()
    cases: list[ChainCase] = []
    for i in range(1 + seed % 4):
        chain = () if i == 0 and seed % 5 == 0 else random_layers(space, 4 * seed + i)
        case = chain_sample(
            [layer.channels for layer in chain],
            [layer.kernel for layer in chain],
            [layer.stride for layer in chain],
            (height, width),
            1 + seed % 2,
            1 + seed % 3,
            seed=4 * seed + i,
        )
        cases.append((cases[0][0] if cases else case[0], *case[1:]))
    if seed % 3 == 0:
        cases[-1] = cases[0]
    return cases


def leaves_of(cases: Sequence[ChainCase], device: str) -> tuple[Tensor, list[list[Tensor]]]:
    """The images, and the weights of each as the function of a chain takes them."""

    def leaf(t: Tensor) -> Tensor:
        return t.detach().to(device).requires_grad_()

    weights = [[leaf(w) for w in (*case[1], *case[2], case[3])] for case in cases]
    return leaf(cases[0][0]), weights


def loss_of(out: Tensor, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    probe = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return (out * probe.to(out)).sum()


def results(
    x: Tensor, weights: Sequence[Sequence[Tensor]], cases: Sequence[ChainCase]
) -> list[Tensor]:
    autoencoders = []
    for own, case in zip(weights, cases):
        count = len(case[4])
        autoencoders.append(cae_ops.Chain(own[:count], own[count:-1], own[-1], case[4]))
    return cae_ops.chains(x, autoencoders)


def run_at_once(
    cases: Sequence[ChainCase], device: str = "cpu", used: Sequence[int] | None = None
) -> list[list[Tensor | None]]:
    """Of each its result and the gradients of its weights, and the gradient of the images, by the
    results with the numbers that are used, which are all."""
    x, weights = leaves_of(cases, device)
    outs = results(x, weights, cases)
    losses = [loss_of(outs[i], i) for i in (range(len(cases)) if used is None else used)]
    torch.stack(losses).sum().backward()
    rows = [[out.detach(), *(w.grad for w in own)] for out, own in zip(outs, weights)]
    return [*rows, [x.grad]]


def run_one_by_one(
    function: Callable[..., Tensor],
    cases: Sequence[ChainCase],
    device: str = "cpu",
    used: Sequence[int] | None = None,
) -> list[list[Tensor | None]]:
    """The same, of one after the other."""
    rows: list[list[Tensor | None]] = []
    total: Tensor | None = None
    for i, case in enumerate(cases):
        x, (weights,) = leaves_of([case], device)
        out = function(x, *weights, strides=case[4])
        rows.append([out.detach(), *[None] * len(weights)])
        if used is None or i in used:
            loss_of(out, i).backward()
            rows[-1][1:] = [w.grad for w in weights]
            assert x.grad is not None
            total = x.grad if total is None else total + x.grad
    return [*rows, [total]]


def assert_equal(got: list[list[Tensor | None]], expected: list[list[Tensor | None]]) -> None:
    for a, b in zip(got, expected, strict=True):
        for one, other in zip(a, b, strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)


def there(rows: list[list[Tensor | None]]) -> list[Tensor]:
    return [t.cpu() for row in rows for t in row if t is not None]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_many_in_double_precision(space: CaeSpace, device: str) -> None:
    for seed in range(24):
        cases = population(space, seed)
        got = run_at_once(cases, device)
        assert_equal(got, run_one_by_one(fused_chain, cases, device))
        assert_same(there(got), there(run_one_by_one(plain_chain, cases)))


def check_launches(
    cases: Sequence[ChainCase],
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    ways: Sequence[str] = ("each", "persistent"),
) -> None:
    """The bits of each alone, however layers are launched."""
    monkeypatch.setenv("ASNG_CUDA_LAYERS", "each")
    expected = run_one_by_one(fused_chain, cases, device)
    for launches in ways:
        monkeypatch.setenv("ASNG_CUDA_LAYERS", launches)
        assert_equal(run_at_once(cases, device), expected)
        with torch.no_grad():
            outs = results(*leaves_of(cases, device), cases)
        assert_equal([[out] for out in outs], [row[:1] for row in expected[:-1]])


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_kernels_of_our_own(
    space: CaeSpace, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", "own")
    for seed in (2, 5, 15):
        cases = population(space, seed)
        check_launches([in_dtype(case, dtype) for case in cases], device, monkeypatch)


@pytest.mark.usefixtures("tf32")
def test_convolutions_of_pytorch(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", "cudnn")
    for seed in range(6):
        cases = population(SPACES["int"], seed)
        check_launches([in_dtype(case, torch.float32) for case in cases], device, monkeypatch)


@pytest.mark.usefixtures("tf32")
def test_some_kernels_of_our_own(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of large maps are not, which are in other places of each architecture."""
    size = (1, 16_002)
    cases = [
        chain_sample([3, 5, 4], [1, 1, 3], [2, 2, 2], size, 1, 1),
        chain_sample([4, 6, 2], [1, 1, 1], [1, 2, 2], size, 1, 1),
        chain_sample([], [], [], size, 1, 1),
    ]
    cases = [in_dtype((cases[0][0], *case[1:]), torch.float32) for case in cases]
    check_launches(cases, device, monkeypatch, ["persistent"])
    monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", "own")
    with pytest.raises(RuntimeError, match="own, which is not for maps as large as these"):
        run_at_once(cases, device)


@pytest.mark.usefixtures("tf32")
def test_results_that_are_not_used(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [in_dtype(case, torch.float32) for case in population(SPACES["cat"], 2)]
    for launches, used in (("each", [1]), ("persistent", [0, 2]), ("persistent", [1])):
        monkeypatch.setenv("ASNG_CUDA_LAYERS", launches)
        got = run_at_once(cases, device, used)
        expected = run_one_by_one(fused_chain, cases, device, used)
        assert_equal(got, expected)
        none = [all(grad is None for grad in row[1:]) for row in got[:-1]]
        assert none == [i not in used for i in range(3)]
    # Where PyTorch traces, too.
    x, weights = leaves_of(cases, device)
    compiled = torch.compile(results, backend="aot_eager", fullgraph=True)
    outs = compiled(x, weights, cases)
    loss_of(outs[1], 1).backward()
    for own, row in zip(weights, expected):
        for weight, grad in zip(own, row[1:], strict=True):
            if grad is not None:
                assert weight.grad is not None
                assert torch.equal(weight.grad, grad)
            else:
                assert weight.grad is None or not weight.grad.any()


def test_weights_and_images_that_need_no_gradient(device: str) -> None:
    cases = population(SPACES["int"], 6)
    expected = run_at_once(cases, device)
    x, weights = leaves_of(cases, device)
    weights[1] = [w.detach() for w in weights[1]]
    outs = results(x.detach(), weights, cases)
    torch.stack([loss_of(out, i) for i, out in enumerate(outs)]).sum().backward()
    for i in (0, 2):
        assert_equal([[w.grad for w in weights[i]]], [expected[i][1:]])


def small_population(device: str) -> tuple[Tensor, list[list[Tensor]], list[ChainCase]]:
    cases = [
        chain_sample([2, 1], [3, 1], [1, 2], (2, 1), 1, images=1),
        chain_sample([], [], [], (2, 1), 1, images=1),
        chain_sample([1], [1], [2], (2, 1), 1, images=1, seed=1),
    ]
    return *leaves_of(cases, device), cases


def test_gradcheck(device: str) -> None:
    x, weights, cases = small_population(device)

    def function(x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        rest = iter(flat)
        again = [[next(rest) for _ in own] for own in weights]
        return tuple(results(x, again, cases))

    assert torch.autograd.gradcheck(function, [x, *(w for own in weights for w in own)])


def operator_arguments(device: str) -> tuple[Tensor, list[Tensor], list[int], list[int]]:
    """Images, weights in the operator's order, strides and numbers of layers."""
    x, weights, cases = small_population(device)
    flat = []
    for own in weights:
        count = len(own) // 2
        flat += [*own[:count], *own[count:-1][::-1], own[-1]]
    images = x.detach().permute(0, 2, 3, 1).contiguous().requires_grad_()
    return images, flat, [s for case in cases for s in case[4]], [len(case[4]) for case in cases]


def test_opcheck(device: str) -> None:
    x, weights, strides, layers = operator_arguments(device)
    operators = torch.ops.asng
    for save in (True, False):
        # Without, there is no derivative.
        leaves = [t if save else t.detach() for t in (x, *weights)]
        arguments = (leaves[0], leaves[1:], strides, layers, save, False)
        torch.library.opcheck(operators.cae_chains, arguments)
    plain = [w.detach() for w in weights]
    grads, saved = operators.cae_chains(x.detach(), plain, strides, layers, True, False)
    for needs_grad in (True, False):
        arguments = (grads, saved, plain, strides, layers, needs_grad, True)
        torch.library.opcheck(operators._cae_chains_backward, arguments)


def test_errors(device: str) -> None:
    x, weights, strides, layers = operator_arguments(device)
    x, weights = x.detach(), [w.detach() for w in weights]
    forward, backward = torch.ops.asng.cae_chains, torch.ops.asng._cae_chains_backward
    grads, saved = forward(x, weights, strides, layers, True, False)

    def fails(call: Callable[..., Any], *arguments: Any, match: str) -> None:
        with pytest.raises(RuntimeError, match=match):
            call(*arguments, True, False)

    wrong = partial(fails, forward, x)
    wrong(weights, strides, [2, 0, -1], match="layers must be from 0 to the number of strides")
    wrong(weights, strides, [2, 0, 9], match="layers must be from 0 to the number of strides")
    wrong(weights, strides, [1, 0, 1], match="must be 2 strides for so many layers, got 3")
    wrong([], [], [], match="there must be an autoencoder")
    wrong(weights, strides, [2, 1], match="must be 8 weights for 3 layers of 2 auto.*, got 9")
    # A weight is named by its place among all.
    wrong([*weights[:5], x.new_zeros(2, 1, 3, 3), *weights[6:]], strides, layers, match="weight 5")
    other = [*weights[:7], weights[7].float(), weights[8]]
    wrong(other, strides, layers, match="of one dtype")
    rest = (weights, strides, layers)
    fails(backward, grads[:2], saved, *rest, match="grads must have 3 tensors, .* got 2")
    fails(backward, [], saved, weights, strides, [], match="at least one, got 0")
    narrow = [*grads[:2], grads[2][:, :1].contiguous()]
    fails(backward, narrow, saved, *rest, match="grads must have shape")
    fails(backward, grads, saved[:-1], *rest, match="saved must have 7 tensors, got 6")
    swapped = [*saved[:-2], *saved[:-3:-1]]
    fails(backward, grads, swapped, *rest, match="saved must have shape")
