"""The operator of the stem against plain PyTorch.

With ASNG_CUDA_ON_CPU set (see conftest.py) the CPU's operators are those for CUDA.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from devices import CUDA_DEVICES, DEVICES
from torch import Tensor

from asng_ext.ops.reference import normalize

pytestmark = pytest.mark.operators

CHANNELS = 20


def sample(
    channels: int, size: tuple[int, int], device: str, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor]]:
    """Images, and weights with gradients: of the convolution, scale and bias."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    shapes = ((CHANNELS, channels, 3, 3), (CHANNELS,), (CHANNELS,))
    return draw(3, *size, channels), [draw(*shape).requires_grad_() for shape in shapes]


def reference(images: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    y = normalize(F.conv2d(images.permute(0, 3, 1, 2), weight, padding=1))
    return (y * scale[:, None, None] + bias[:, None, None]).permute(0, 2, 3, 1)


@pytest.mark.grid
@pytest.mark.parametrize("device", DEVICES)
class TestStem:
    @pytest.mark.parametrize(
        ("channels", "size"), [(3, (5, 6)), (1, (1, 1)), (4, (2, 9)), (2, (8, 8))]
    )
    def test_reference(self, channels: int, size: tuple[int, int], device: str) -> None:
        images, weights = sample(channels, size, device)
        got, _ = torch.ops.asng.stem(images, *weights, False)
        expected = reference(images, *weights)
        torch.testing.assert_close(got[0, ..., :CHANNELS], expected, rtol=1e-10, atol=1e-10)
        assert got[..., CHANNELS:].abs().max() == 0
        probe = torch.randn(expected.shape, dtype=torch.float64).to(device)
        for a, b in zip(
            torch.autograd.grad((got[0, ..., :CHANNELS] * probe).sum(), weights),
            torch.autograd.grad((expected * probe).sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)

    def test_gradcheck(self, device: str) -> None:
        images, weights = sample(2, (4, 3), device)
        assert torch.autograd.gradcheck(
            lambda *weights: torch.ops.asng.stem(images, *weights, False)[0], weights
        )

    @pytest.mark.parametrize(
        ("channels", "size"), [(3, (5, 6)), (1, (1, 1)), (4, (2, 9)), (2, (8, 8))]
    )
    def test_opcheck(self, channels: int, size: tuple[int, int], device: str) -> None:
        images, weights = sample(channels, size, device)
        torch.library.opcheck(torch.ops.asng.stem, (images, *weights, False))

    def test_the_same_bits_again(self, device: str) -> None:
        images, weights = sample(3, (12, 9), device, torch.float32)
        results = []
        for threads in (1, 2, 1):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                got, _ = torch.ops.asng.stem(images, *weights, False)
                results.append([got, *torch.autograd.grad(got.square().sum(), weights)])
            finally:
                torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_images_have_no_gradient(self, device: str) -> None:
        images, weights = sample(3, (5, 6), device)
        got, _ = torch.ops.asng.stem(images.requires_grad_(), *weights, False)
        with pytest.raises(RuntimeError, match="no gradient with respect to the images"):
            got.sum().backward()


@pytest.mark.grid
@pytest.mark.parametrize("device", CUDA_DEVICES)
def test_opcheck_of_bfloat16(device: str) -> None:
    images, weights = sample(3, (4, 5), device, torch.float32)
    torch.library.opcheck(torch.ops.asng.stem, (images.bfloat16(), *weights, False))
