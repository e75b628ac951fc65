"""The operator of the head, for CUDA devices alone, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from devices import CUDA_DEVICES
from torch import Tensor

from asng_ext.ops import head

pytestmark = pytest.mark.operators

# λ, B, H, W, P, channels, classes
SIZES = [
    (1, 1, 1, 1, 16, 16, 2),
    (2, 5, 8, 8, 64, 64, 10),
    (3, 2, 3, 5, 16, 5, 7),
    (8, 3, 2, 2, 48, 33, 1),
    (2, 2, 1, 3, 1040, 1030, 300),
    (5, 103, 1, 2, 16, 9, 3),
]


def sample(size: tuple[int, ...], device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Features, weight and bias with gradients, and labels."""
    *shape, padded, channels, classes = size
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = draw(*shape, padded)
    features[..., channels:] = 0
    of_weights = torch.float32 if dtype == torch.bfloat16 else dtype
    tensors = (features.to(dtype), draw(classes, channels), 3 * draw(classes))
    leaves = [
        t.to(device, dtype if t is tensors[0] else of_weights).requires_grad_() for t in tensors
    ]
    return (*leaves, torch.randint(classes, (shape[1],), generator=generator).to(device))


def reference(
    features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    means = features.mean((2, 3), dtype=weight.dtype)[..., : weight.shape[1]]
    logits = F.linear(means, weight, bias)
    each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    accuracy = (logits.argmax(dim=-1) == labels).float().mean()
    return each.view(len(logits), -1).mean(dim=1), accuracy


@pytest.mark.grid
@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestHead:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-12), (torch.float32, 3e-5), (torch.bfloat16, 3e-5)],
    )
    def test_reference(
        self, size: tuple[int, ...], dtype: torch.dtype, tolerance: float, device: str
    ) -> None:
        *leaves, labels = sample(size, device, dtype)
        losses, accuracy = head.losses(*leaves, labels)
        expected, expected_accuracy = reference(*leaves, labels)
        torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(accuracy, expected_accuracy)
        assert not accuracy.requires_grad
        shares = torch.linspace(-1, 2, len(losses)).to(losses)
        got = torch.autograd.grad(losses, leaves, shares)
        for a, b in zip(got, torch.autograd.grad(expected, leaves, shares), strict=True):
            assert a.dtype == b.dtype
            # The gradient of the features is rounded to their type.
            near = 1e-2 if a.dtype == torch.bfloat16 else tolerance
            torch.testing.assert_close(a, b, rtol=near, atol=near * float(b.abs().max()))
        assert not got[0][..., size[5] :].any()

    def test_gradcheck(self, device: str) -> None:
        *leaves, labels = sample((2, 3, 2, 3, 16, 5, 4), device, torch.float64)

        def losses(features: Tensor, *weights: Tensor) -> Tensor:
            whole = F.pad(features, (0, 11))
            return head.losses(whole, *weights, labels)[0]

        assert torch.autograd.gradcheck(
            losses, (leaves[0][..., :5].detach().requires_grad_(), *leaves[1:])
        )

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_opcheck(self, dtype: torch.dtype, device: str) -> None:
        torch.library.opcheck(torch.ops.asng.head, sample(SIZES[2], device, dtype))

    def test_the_same_bits_again(self, device: str) -> None:
        *leaves, labels = sample(SIZES[1], device, torch.float32)
        first, second = (
            [*out, *torch.autograd.grad(out[0].sum(), leaves)]
            for out in (head.losses(*leaves, labels) for _ in range(2))
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_large_logits(self, device: str) -> None:
        """Their exponentials are beyond every range."""
        *leaves, labels = sample(SIZES[1], device, torch.float32)
        with torch.no_grad():
            leaves[2].mul_(1e4)
        losses, _ = head.losses(*leaves, labels)
        torch.testing.assert_close(losses, reference(*leaves, labels)[0])

    def test_of_equal_logits_the_first_counts(self, device: str) -> None:
        features, weight, bias, _ = sample(SIZES[1], device, torch.float32)
        with torch.no_grad():
            weight.zero_()
            bias.fill_(0.5)
        labels = torch.tensor([0, 1, 0, 9, 0]).to(device)
        assert float(head.losses(features, weight, bias, labels)[1]) == pytest.approx(3 / 5)

    @pytest.mark.parametrize("label", [-1, 10, 2**40])
    def test_a_label_that_is_no_class(self, label: int, device: str) -> None:
        *leaves, labels = sample(SIZES[1], device, torch.float32)
        labels[2] = label
        losses, accuracy = head.losses(*leaves, labels)
        assert losses.isnan().all()
        assert float(accuracy) <= 4 / 5

    def test_architectures_without_logits(self, device: str) -> None:
        """What an architecture that is none of the space gives."""
        *leaves, labels = sample(SIZES[1], device, torch.float32)
        with torch.no_grad():
            leaves[0][1] = torch.nan
        losses, _ = head.losses(*leaves, labels)
        assert losses.isnan().tolist() == [False, True]

    def test_wrong_arguments(self, device: str) -> None:
        features, weight, bias, labels = sample(SIZES[1], device, torch.float32)
        for wrong, message in (
            ((features, weight[:, :-1], bias, labels), "weight must be contiguous"),
            ((features, weight, bias[1:], labels), r"bias must have shape \(10\)"),
            ((features, weight, bias, labels[1:]), r"labels must have shape \(5\)"),
            ((features, weight.double(), bias, labels), "weight must have dtype Float"),
            ((features, torch.ones(2, 65).to(weight), bias, labels), "at most 64 columns"),
        ):
            with pytest.raises(RuntimeError, match=message):
                head.losses(*wrong)


@pytest.mark.grid
@pytest.mark.parametrize("device", CUDA_DEVICES)
def test_autocast(device: str) -> None:
    """Features that are float32 are rounded, as where the cells store bfloat16."""
    *leaves, labels = sample(SIZES[1], device, torch.float32)
    with torch.autocast(device, torch.bfloat16):
        losses, _ = head.losses(*leaves, labels)
    assert losses.dtype == torch.float32
    rounded = [leaves[0].bfloat16(), *leaves[1:]]
    torch.testing.assert_close(losses, reference(*rounded, labels)[0])
