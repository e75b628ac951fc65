"""Steps on leading slices of weights, for CUDA devices alone, against PyTorch's operators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from devices import CUDA_DEVICES
from torch import Tensor, nn

from asng_ext.ops.active_sgd import active_sgd_catch_up, active_sgd_step

pytestmark = [pytest.mark.operators, pytest.mark.grid]

Shape = tuple[int, ...]
SHAPES: list[tuple[Shape, Shape, Shape]] = [
    ((5, 7, 3, 3), (4, 6, 3, 3), (4, 2, 3, 3)),
    ((3, 300), (3, 300), (3, 300)),
    ((6, 5, 1, 1), (6, 2, 1, 1), (1, 2, 1, 1)),
    ((2, 1, 5, 5), (1, 1, 5, 5), (1, 1, 5, 5)),
]
"""Of a weight, its velocity and its gradient."""
SOME = {"few": SHAPES, "more than a launch takes": SHAPES * 30, "more rows": [((1100, 2),) * 3]}


def draw(shapes: list[tuple[Shape, Shape, Shape]], device: str, dtype: torch.dtype) -> Any:
    """Weights, velocities and gradients."""
    generator = torch.Generator().manual_seed(0)
    return [
        [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
            for shape in of
        ]
        for of in zip(*shapes, strict=True)
    ]


def leading(whole: Tensor, part: Tensor) -> Tensor:
    return whole[: part.shape[0], : part.shape[1]]


@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestActiveSgd:
    @pytest.mark.parametrize("shapes", SOME.values(), ids=SOME)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("max_norm", [0.1, 1e6, math.inf])
    def test_step(self, shapes: Any, dtype: torch.dtype, max_norm: float, device: str) -> None:
        weights, velocities, gradients = draw(shapes, device, dtype)
        expected = [[t.clone() for t in of] for of in (weights, velocities, gradients)]
        scale = (max_norm / (nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1)
        for weight, velocity, gradient in zip(*expected, strict=True):
            velocity.mul_(0.9)
            leading(velocity, gradient).add_(gradient * scale)
            leading(weight, velocity).sub_(0.3 * velocity)
        active_sgd_step(weights, gradients, velocities, 0.3, 0.9, max_norm)
        tolerance = 1e-12 if dtype == torch.float64 else 1e-5
        for got, want in zip((weights, velocities, gradients), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        assert all(torch.equal(*pair) for pair in zip(gradients, expected[2], strict=True))

    @pytest.mark.parametrize("shapes", SOME.values(), ids=SOME)
    def test_catch_up(self, shapes: Any, device: str) -> None:
        weights, velocities, _ = draw(shapes, device, torch.float64)
        expected = [[t.clone() for t in of] for of in (weights, velocities)]
        distances = [0.1 + 0.01 * i for i in range(len(weights))]
        factors = [0.9**i for i in range(len(weights))]
        for weight, velocity, distance, factor in zip(*expected, distances, factors, strict=True):
            leading(weight, velocity).sub_(distance * velocity)
            velocity.mul_(factor)
        active_sgd_catch_up(weights, velocities, distances, factors)
        torch.testing.assert_close([weights, velocities], expected, rtol=1e-12, atol=1e-12)

    def test_nan(self, device: str) -> None:
        """A gradient without a norm, as `clip_grad_norm_` has it, moves everything to NaN."""
        weights, velocities, gradients = draw(SHAPES, device, torch.float32)
        gradients[0][0, 0, 0, 0] = torch.nan
        active_sgd_step(weights, gradients, velocities, 0.3, 0.9, 1.0)
        for weight, gradient in zip(weights, gradients, strict=True):
            assert leading(weight, gradient).isnan().all()

    def test_the_same_bits_again(self, device: str) -> None:
        results = []
        for _ in range(2):
            weights, velocities, gradients = draw(SOME["more rows"], device, torch.float32)
            active_sgd_step(weights, gradients, velocities, 0.3, 0.9, 0.1)
            results.append([*weights, *velocities])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_opcheck(self, device: str) -> None:
        weights, velocities, gradients = draw(SHAPES, device, torch.float32)
        arguments = (weights, gradients, velocities, 0.3, 0.9, 1.0)
        torch.library.opcheck(torch.ops.asng._active_sgd_step, arguments)
        numbers = [0.5] * len(weights)
        caught_up = (weights, velocities, numbers, numbers)
        torch.library.opcheck(torch.ops.asng._active_sgd_catch_up, caught_up)

    def test_errors(self, device: str) -> None:
        weights, velocities, gradients = draw(SHAPES, device, torch.float32)
        rest = (0.3, 0.9, 1.0)
        for given, message in [
            ((weights, gradients[:1], velocities), "as many gradients as weights"),
            ((weights, gradients, velocities[:1]), "as many velocities as weights"),
            ((weights, velocities, gradients), "gradients must be leading slices of velocities"),
            ((velocities, gradients, weights), "velocities must be leading slices of weights"),
            (([w.double() for w in weights], gradients, velocities), "velocities must have dtype"),
            (([w.int() for w in weights], gradients, velocities), "weights must be float32 or"),
            (([w.mT for w in weights], gradients, velocities), "weights must be contiguous"),
        ]:
            with pytest.raises(RuntimeError, match=message):
                active_sgd_step(*given, *rest)
        with pytest.raises(RuntimeError, match="as many distances and factors"):
            active_sgd_catch_up(weights, velocities, [1.0], [1.0])
