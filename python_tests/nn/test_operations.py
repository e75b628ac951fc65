"""The operations of the cell space against their definition in functional PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext.nn.operations import (
    OPERATIONS,
    FactorizedReduction,
    ReLUConvNorm,
    SeparableConv,
    average_pool,
    batch_statistics_norm,
    drop_path,
    drop_path_factors,
    make_operation,
    plain_norm,
)
from asng_ext.ops.reference import _average_pool_of_padded


def image(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def normalized(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (5, 6), (2, 1), (1, 1)])
def test_every_operation_keeps_channels_and_rounds_size_up(
    name: str, stride: int, size: tuple[int, int]
) -> None:
    operation = make_operation(name, 4, stride, plain_norm).double()
    x = image(3, 4, *size).contiguous(memory_format=torch.channels_last)
    y = operation(x)
    assert y.shape == (3, 4, -(-size[0] // stride), -(-size[1] // stride))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients(name: str, stride: int) -> None:
    torch.manual_seed(0)
    operation = make_operation(name, 2, stride, plain_norm).double()
    x = image(2, 2, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(operation, (x,), atol=1e-4)


@pytest.mark.parametrize(("name", "kernel"), [("sep_conv_3x3", 3), ("sep_conv_5x5", 5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_conv_is_two_rounds_with_the_stride_in_the_first(
    name: str, kernel: int, stride: int
) -> None:
    operation = make_operation(name, 3, stride, plain_norm).double()
    assert isinstance(operation, SeparableConv)
    x = expected = image(2, 3, 8, 8)
    for half, half_stride in ((operation.half0, stride), (operation.half1, 1)):
        weight = half.depthwise.weight
        assert weight.shape == (3, 1, kernel, kernel)
        expected = F.conv2d(F.relu(expected), weight, None, half_stride, kernel // 2, groups=3)
        expected = normalized(F.conv2d(expected, half.pointwise.weight))
    torch.testing.assert_close(operation(x), expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_pools(stride: int) -> None:
    x = image(2, 3, 6, 6)
    average = average_pool(x, stride)
    nine = F.conv2d(x, torch.full((3, 1, 3, 3), 1 / 9).double(), None, stride, 1, groups=3)
    torch.testing.assert_close(average, nine)
    largest = make_operation("max_pool_3x3", 3, stride, plain_norm)(x)
    padded = F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, stride).unfold(3, 3, stride)
    torch.testing.assert_close(largest, padded.amax((-2, -1)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
def test_average_pool_is_the_same_on_every_device_to_the_bit(
    stride: int, memory_format: torch.memory_format
) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for size in ((2, 3, 6, 6), (3, 4, 7, 5), (1, 2, 1, 1), (2, 2, 2, 1)):
            x = image(*size).to(dtype, memory_format=memory_format).requires_grad_()
            on_cpu, on_gpu = average_pool(x, stride), _average_pool_of_padded(x, stride)
            assert torch.equal(on_cpu, on_gpu)
            probe = image(*on_cpu.shape, seed=1).to(dtype)
            assert torch.equal(*(torch.autograd.grad(y, x, probe)[0] for y in (on_cpu, on_gpu)))


def test_identity() -> None:
    assert isinstance(make_operation("identity", 4, 1, plain_norm), nn.Identity)
    assert isinstance(make_operation("identity", 4, 2, plain_norm), FactorizedReduction)


def test_factorized_reduction_equals_strided_convolutions() -> None:
    reduction = FactorizedReduction(3, 6, plain_norm).double()
    x = image(2, 3, 8, 6)
    even = F.conv2d(F.relu(x), reduction.conv_even.weight, stride=2)
    odd = F.conv2d(F.relu(x)[:, :, 1:, 1:], reduction.conv_odd.weight, stride=2)
    torch.testing.assert_close(reduction(x), normalized(torch.cat((even, odd), 1)))


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (5, 5), (1, 3)])
def test_factorized_reduction_takes_odd_sizes_as_if_padded_with_zeros(
    size: tuple[int, int],
) -> None:
    reduction = FactorizedReduction(3, 4, plain_norm).double()
    x = image(2, 3, *size)
    padded = F.pad(x, (0, size[1] % 2, 0, size[0] % 2))
    torch.testing.assert_close(reduction(x), reduction(padded))


def test_factorized_reduction_of_odd_channels() -> None:
    reduction = FactorizedReduction(3, 5, plain_norm)
    assert reduction.conv_even.out_channels == 3
    assert reduction.conv_odd.out_channels == 2
    assert reduction(torch.randn(2, 3, 4, 4)).shape == (2, 5, 2, 2)
    with pytest.raises(ValueError, match="out_channels must be at least 2 to be halved, got 1"):
        FactorizedReduction(3, 1, plain_norm)


def test_factorized_reduction_of_three_channels_last() -> None:
    reduction = FactorizedReduction(3, 16, plain_norm).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    reduction(x).square().sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_relu_conv_norm() -> None:
    block = ReLUConvNorm(3, 5, plain_norm).double()
    x = image(2, 3, 4, 4)
    torch.testing.assert_close(block(x), normalized(F.conv2d(F.relu(x), block.conv.weight)))


def test_norms_of_the_supernet_hold_no_statistics() -> None:
    x = image(4, 3, 5, 5)
    for norm, parameters in ((plain_norm(3), 0), (batch_statistics_norm(3).double(), 2)):
        assert not list(norm.buffers())
        assert len(list(norm.parameters())) == parameters
        trained = norm.train()(x)
        torch.testing.assert_close(trained, normalized(x))
        torch.testing.assert_close(norm.eval()(x), trained)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"name must be one of identity, .*, got 'conv'"):
        make_operation("conv", 4, 1, plain_norm)
    with pytest.raises(ValueError, match="stride must be 1 or 2, got 3"):
        make_operation("identity", 4, 3, plain_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_drop_path_zeroes_whole_images_and_scales_the_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 2, 1, dtype=dtype)
    y = drop_path(x, drop_path_factors(torch.rand(4000), 0.25))
    assert y.dtype == dtype
    first = y[:, :1, :1]
    assert torch.equal(y, first.expand_as(y))
    kept = first != 0
    torch.testing.assert_close(first[kept], torch.full_like(first[kept], 1 / 0.75))
    assert abs(kept.double().mean().item() - 0.75) < 5 * (0.75 * 0.25 / 4000) ** 0.5


def test_drop_path_without_a_rate_changes_nothing() -> None:
    x = image(64, 2, 3, 3)
    assert torch.equal(drop_path(x, drop_path_factors(torch.rand(64), 0.0)), x)
