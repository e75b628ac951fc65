"""Parts of batches."""

from __future__ import annotations

import re
from typing import Any

import pytest
import small_classification as small
import torch

from asng_ext.training.spread import part_of_batch


def test_parts_are_the_rows_of_a_batch() -> None:
    batch = {"x": torch.arange(14).view(7, 2), "more": (torch.arange(7), "name", None)}
    parts = [part_of_batch(batch, index, 3) for index in range(3)]
    assert [len(part.batch["x"]) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part.batch["x"] for part in parts]), batch["x"])
    assert torch.equal(torch.cat([part.batch["more"][0] for part in parts]), torch.arange(7))
    assert parts[0].batch["more"][1:] == ("name", None)
    assert sum(part.share for part in parts) == pytest.approx(1)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (
            (torch.ones(4), torch.ones(5, 2)),
            "same number of rows to be divided among ranks, got [4, 5]",
        ),
        ({"name": 3}, "same number of rows to be divided among ranks, got []"),
        (torch.tensor(1.0), "ranks for it, 2, got 0"),
        ([torch.ones(1, 3)], "ranks for it, 2, got 1"),
    ],
)
def test_batches_that_cannot_be_divided(batch: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        part_of_batch(batch, 0, 2)


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_losses_of_parts_make_that_of_the_batch(weights: str) -> None:
    """Images are augmented as in the whole batch; weights of classes decide what a part counts."""
    task = small.task(images=small.noise(), class_weights=weights, implementation="plain")
    samples = small.optimizer(task).ask()
    plan = next(iter(task.weight_batches(0)))
    whole, _ = task._weight_stream.make(plan)
    parts = [task.part_of_batch(plan, index, 3) for index in range(3)]
    images = torch.cat([task._weight_stream.make(part.batch)[0] for part in parts])
    assert torch.equal(images, whole)

    def mean_of_squares(batch: Any) -> torch.Tensor:
        """A loss without batch normalization, weighted as the task's is."""
        x, y = task._weight_stream.make(batch)
        each = x.square().mean(dim=(1, 2, 3))
        own = torch.ones(10) if task._class_weights is None else task._class_weights
        return (each * own[y]).sum() / own[y].sum()

    shares = [part.share if part.loss_share is None else part.loss_share for part in parts]
    total = sum(share * mean_of_squares(part.batch) for share, part in zip(shares, parts))
    assert torch.allclose(torch.as_tensor(total), mean_of_squares(plan))
    losses, _ = task.losses(task.supernet(), parts[0].batch, samples)
    assert losses.shape == (2,)
