"""The task of classification."""

from __future__ import annotations

import pytest
import small
import torch

from asng_ext import ops


@pytest.mark.parametrize("implementation", ["plain", "fused"])
def test_bfloat16_is_close_to_float32(implementation: str) -> None:
    if implementation == "fused" and not ops.available():
        pytest.skip("the operators are not built")
    losses, tested = [], []
    for precision in ("float32", "bfloat16"):
        task = small.task(implementation=implementation, precision=precision)
        torch.manual_seed(0)
        supernet = task.supernet()
        optimizer = small.optimizer(task)
        batch = next(iter(task.weight_batches(0)))
        values, metrics = task.losses(supernet, batch, optimizer.ask())
        assert values.dtype == torch.float32
        values.sum().backward()
        assert all(p.grad is None or p.grad.dtype == p.dtype for p in supernet.parameters())
        assert 0 <= float(metrics["accuracy"]) <= 1
        losses.append(values.detach())
        tested.append(task.test_supernet(supernet, optimizer.recommend())["loss"])
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.03, atol=0)
    assert tested[1] == pytest.approx(tested[0], rel=0.03)
