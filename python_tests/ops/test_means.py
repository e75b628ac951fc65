"""Sums of metrics by one operator, for CUDA devices alone, against those in PyTorch."""

from __future__ import annotations

import pytest
import torch
from devices import CUDA_DEVICES
from torch import Tensor

from asng_ext.ops import _libraries
from asng_ext.ops.means import add_means
from asng_ext.training.metrics import Means

pytestmark = [pytest.mark.operators, pytest.mark.grid]


def steps(device: str) -> list[dict[str, Tensor]]:
    """Losses of three samples, among them some that are not finite, and numbers of other types."""
    losses = [[1.0, 2.0, 4.5], [torch.inf, torch.nan, -torch.inf], [torch.nan, 1.0, 2.0], [0.0] * 3]
    return [
        {
            "loss": torch.tensor(row, device=device),
            "accuracy": torch.tensor(i / 8, device=device),
            "exact": torch.tensor([[i / 3]], dtype=torch.float64, device=device),
            "half": torch.tensor(i, dtype=torch.bfloat16, device=device),
            "whether": torch.tensor(i > 1, device=device),
        }
        for i, row in enumerate(losses)
    ]


@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestMeans:
    def test_the_same_as_without(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = []
        for has_kernel in (True, False):
            monkeypatch.setattr(_libraries, "has_cuda_kernels", lambda _, has=has_kernel: has)
            means = Means()
            for step in steps(device):
                means.add(step, "theta_", watched="loss")
                means.add({"loss": step["loss"].nan_to_num(0, 0, 0)}, "train_")
            rows.append(means.read())
        assert list(rows[0]) == list(rows[1])
        assert rows[0] == pytest.approx(rows[1], rel=1e-6, nan_ok=True)
        assert rows[0]["theta_without_loss"] == 1 / 4

    @pytest.mark.parametrize("watched", [-1, 0, 64, 149])
    def test_more_than_a_launch_takes(self, watched: int, device: str) -> None:
        values = torch.arange(150, device=device).float()
        values[[0, 64, 149]] = torch.inf
        totals = torch.zeros(151 + (watched >= 0), device=device)
        for _ in range(2):
            add_means(totals, values[:, None].repeat(1, 40).unbind(), watched)
        assert torch.equal(totals[:150], 2 * values)
        assert totals[150:].tolist() == ([2] if watched < 0 else [2, 2])

    def test_opcheck(self, device: str) -> None:
        metrics = [torch.ones(3, device=device), torch.ones((), device=device).double()]
        totals = torch.zeros(4, device=device)
        torch.library.opcheck(torch.ops.asng._add_means, (totals, metrics, 1))

    def test_wrong_arguments(self, device: str) -> None:
        totals, one = torch.zeros(3, device=device), torch.ones((), device=device)
        for wrong, message in (
            ((totals, []), "there must be metrics"),
            ((totals, [one]), r"totals must have shape \(2\)"),
            ((totals, [one], 1), "watched must be from -1 to 0, got 1"),
            ((totals, [one, one.int()]), "metrics must be float32 or float64, got Int"),
            ((totals, [one, one.new_ones(0)]), "metrics must not be empty"),
        ):
            with pytest.raises(RuntimeError, match=message):
                add_means(*wrong)
