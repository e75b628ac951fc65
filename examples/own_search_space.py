"""A search space of PyTorch modules, and a search loop of one's own: digits of 8×8 pixels.

`Choice` stands where the network should decide; ASNG and SGD take turns. Needs scikit-learn.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import asng_ext as asng
from asng_ext.nn import Choice, derive, search_space, subnet


def convolution(kernel: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, kernel, padding=kernel // 2), nn.BatchNorm2d(8))


def make_supernet() -> nn.Module:
    """Two layers and what joins them, each to be chosen: 3 · 3 · 3 architectures."""
    candidates = {"conv3": convolution(3), "conv1": convolution(1), "skip": nn.Identity()}
    more = {"conv3": convolution(3), "conv5": convolution(5), "pool": nn.AvgPool2d(3, 1, 1)}
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        Choice("first", candidates),
        Choice("activation", {"relu": nn.ReLU(), "tanh": nn.Tanh(), "identity": nn.Identity()}),
        Choice("second", more),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (network(x).argmax(1) == y).float().mean().item()


def main(steps: int = 200) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    y = torch.from_numpy(digits.target)
    for_weights, for_theta, for_test = torch.randperm(len(x)).split([700, 700, 397])

    supernet = make_supernet()
    optimizer = asng.ASNG(search_space(supernet), population_size=2, delta_init=0.2, seed=0)
    sgd = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)
    for step in range(1, steps + 1):
        # The weights of two architectures that are drawn, by their mean loss.
        rows = for_weights[torch.randint(len(for_weights), (64,))]
        sgd.zero_grad()
        for sample in optimizer.ask():
            (cross_entropy(subnet(supernet, sample)(x[rows]), y[rows]) / 2).backward()
        sgd.step()
        # The distribution, by the losses of two more on images that trained no weight.
        rows = for_theta[torch.randint(len(for_theta), (64,))]
        samples = optimizer.ask()
        with torch.no_grad():
            losses = [cross_entropy(subnet(supernet, s)(x[rows]), y[rows]) for s in samples]
        optimizer.tell(samples, losses)
        if step % 50 == 0:
            print(f"step {step}: convergence {optimizer.convergence:.2f}")

    network = derive(supernet, optimizer.recommend())  # a plain network, without any Choice
    network.eval()
    print("found", optimizer.recommend())
    print(f"test accuracy {accuracy(network, x[for_test], y[for_test]):.3f}")


if __name__ == "__main__":
    main()
