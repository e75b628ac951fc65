"""A search in a training loop of one's own on several processes, with DistributedDataParallel:
digits of 8×8 pixels. Needs scikit-learn.

    torchrun --nproc-per-node 2 ddp_search.py

All processes train the same architectures, each on its part of the batches. Without `same_samples`
each would draw its own, and nothing would say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import asng_ext as asng
from asng_ext.distributed import Ranks, joined, same_samples
from asng_ext.nn import Choice, search_space, subnet

STEPS, BATCH = 200, 32


def supernet() -> nn.Module:
    def convolution(kernel: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(8, 8, kernel, padding=kernel // 2), nn.ReLU())

    candidates = {"conv3": 3, "conv5": 5, "conv1": 1}
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        Choice("first", {name: convolution(kernel) for name, kernel in candidates.items()}),
        nn.MaxPool2d(2),
        Choice("second", {name: convolution(kernel) for name, kernel in candidates.items()}),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 10),
    )


class Losses(nn.Module):
    """The losses of several architectures: one forward pass for DistributedDataParallel, which
    finds in it which weights have a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: Sequence[dict[str, Any]], x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([cross_entropy(subnet(self.model, each)(x), y) for each in samples])


def main(ranks: Ranks) -> None:
    digits = load_digits()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(digits.images), generator=generator)
    x = (torch.as_tensor(digits.images, dtype=torch.float32)[:, None] / 16)[order]
    y = torch.as_tensor(digits.target)[order]
    train, validation, test = torch.arange(len(x)).split([700, 700, len(x) - 1400])

    torch.manual_seed(0)  # DistributedDataParallel sends the weights of rank 0 to all, too
    model = supernet()
    optimizer = same_samples(asng.ASNG(search_space(model), delta_init=0.5, seed=3))
    losses: nn.Module = Losses(model)
    if ranks.size > 1:
        losses = DistributedDataParallel(losses, find_unused_parameters=True)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def part_of_batch(rows: Tensor) -> tuple[Tensor, Tensor]:
        """The batch is the same on all ranks, the generator being that, and each takes its part."""
        drawn = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        own = drawn[ranks.rank :: ranks.size]
        return x[own], y[own]

    for _ in range(STEPS):
        sgd.zero_grad(set_to_none=False)
        losses(list(optimizer.ask()), *part_of_batch(train)).mean().backward()
        sgd.step()
        samples = optimizer.ask()
        with torch.no_grad():  # told are the means over the ranks
            optimizer.tell(samples, losses(list(samples), *part_of_batch(validation)))

    best = optimizer.recommend()
    right = subnet(model, best)(x[test]).argmax(dim=1) == y[test]
    if ranks.first:
        print(f"{best}, test accuracy {right.float().mean():.3f}")


if __name__ == "__main__":
    with joined() as ranks:
        main(ranks)
