"""The step of the weights, for CUDA devices alone, against PyTorch's clipping and SGD."""

from __future__ import annotations

import math

import pytest
import torch
from devices import CUDA_DEVICES
from torch import Tensor, nn

from asng_ext.ops.sgd import sgd_step

pytestmark = [pytest.mark.operators, pytest.mark.grid]

Shapes = list[tuple[int, ...]]
SHAPES: dict[str, Shapes] = {
    "one number": [()],
    "odd sizes": [(3, 5), (7,), (2, 3, 3, 3), (1,), (0,), (11, 13)],
    "several chunks": [(2048,), (2049,), (2047,), (3, 5000)],
    "more than a launch takes": [(3,)] * 200 + [(5000,)],
}


def draw(shapes: Shapes, device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [t.to(device, dtype) for t in drawn]


@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestStep:
    @pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 2e-6)])
    @pytest.mark.parametrize("max_norm", [0.1, 1e6])
    @pytest.mark.parametrize(("momentum", "decay"), [(0.9, 3e-4), (0.0, 0.0), (0.5, 0.1)])
    def test_reference(
        self,
        shapes: Shapes,
        dtype: torch.dtype,
        tolerance: float,
        max_norm: float,
        momentum: float,
        decay: float,
        device: str,
    ) -> None:
        weights = draw(shapes, device, dtype, 0)
        velocities = [torch.zeros_like(weight) for weight in weights]
        expected = [nn.Parameter(weight.clone()) for weight in weights]
        sgd = torch.optim.SGD(expected, lr=0.1, momentum=momentum, weight_decay=decay)
        for step in range(3):
            gradients = draw(shapes, device, dtype, step + 1)
            rate = 0.1 / (step + 1)
            for weight, gradient in zip(expected, gradients, strict=True):
                weight.grad = gradient.clone()
            nn.utils.clip_grad_norm_(expected, max_norm)
            sgd.param_groups[0]["lr"] = rate
            sgd.step()
            kept = [gradient.clone() for gradient in gradients]
            sgd_step(
                weights,
                gradients,
                velocities,
                torch.tensor(rate, device=device),
                momentum,
                decay,
                max_norm,
            )
            assert all(torch.equal(a, b) for a, b in zip(gradients, kept, strict=True))
        for a, b in zip(weights, expected, strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=tolerance, atol=tolerance)

    def test_the_same_bits_again(self, device: str) -> None:
        shapes: Shapes = [(300, 31), (5000,)]
        results = []
        for _ in range(2):
            weights = draw(shapes, device, torch.float32, 0)
            velocities = draw(shapes, device, torch.float32, 1)
            gradients = draw(shapes, device, torch.float32, 2)
            rate = torch.tensor(0.1, device=device)
            sgd_step(weights, gradients, velocities, rate, 0.9, 1e-4, 1.0)
            results.append([*weights, *velocities])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_channels_last(self, device: str) -> None:
        """Elements belong together that lie at the same place."""
        one, other = (draw([(4, 3, 5, 2)] * 3, device, torch.float32, 0) for _ in range(2))
        other = [t.contiguous(memory_format=torch.channels_last) for t in other]
        for weight, gradient, velocity in (one, other):
            rate = torch.tensor(0.1, device=device)
            sgd_step([weight], [gradient], [velocity], rate, 0.9, 1e-4, 1e6)
        torch.testing.assert_close(other[0], one[0])
        torch.testing.assert_close(other[2], one[2])

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_gradient_that_is_not_finite(self, value: float, device: str) -> None:
        """It shows in the weights, as in PyTorch."""
        weights = draw([(5,), (3,)], device, torch.float32, 0)
        velocities = [torch.zeros_like(weight) for weight in weights]
        gradients = draw([(5,), (3,)], device, torch.float32, 1)
        gradients[0][2] = value
        sgd_step(weights, gradients, velocities, torch.tensor(0.1, device=device), 0.9, 0.0, 1.0)
        # The norm is infinite: all else has a share of nothing.
        wanted = [[math.isnan(value) or i == 2 for i in range(5)], [math.isnan(value)] * 3]
        assert [weight.isnan().tolist() for weight in weights] == wanted

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_opcheck(self, dtype: torch.dtype, device: str) -> None:
        tensors = [draw([(3, 4), (5,)], device, dtype, seed) for seed in range(3)]
        rate = torch.tensor(0.1, device=device)
        torch.library.opcheck(torch.ops.asng._sgd_step, (*tensors, rate, 0.9, 1e-4, 1.0))

    def test_wrong_arguments(self, device: str) -> None:
        w, g, v = (draw([(3, 4), (5,)], device, torch.float32, seed) for seed in range(3))
        rate = torch.tensor(0.1, device=device)
        for wrong, message in (
            ((w, g[:1], v, rate), "as many gradients and velocities as weights"),
            (([], [], [], rate), "at least one"),
            ((w, g, [v[0], v[0]], rate), r"velocities must have shape \(5\)"),
            ((w, [g[0], g[1].double()], v, rate), "gradients must have dtype Float"),
            ((w, g, v, rate.double()), "learning_rate must have dtype Float"),
            (([t.half() for t in w], g, v, rate), "weights must be float32 or float64, got Half"),
        ):
            with pytest.raises(RuntimeError, match=message):
                sgd_step(*wrong, 0.9, 1e-4, 1.0)
