"""Times ask and tell of the optimizer on a GPU against Algorithm 1 in eager PyTorch there.

Both have all their state on the device and never synchronize with it, so both can be captured: rows
"in a graph" are per call of a CUDA graph of many, rows without are launched from Python. The
baseline has no loop over variables.

Run with ``python bench/gpu_optimizer.py [--device cpu] [--quick] [--json PATH]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from gpu_timing import Run, arguments, captured, compare, describe
from table import Row, finish, save
from torch import Tensor

import asng_ext as asng

LOSSES = 64
"""Different losses, used one after the other."""


class EagerASNG:
    """Algorithm 1 for d categorical variables of K categories, in tensors of shape (d, K)."""

    def __init__(self, variables: int, categories: int, device: torch.device) -> None:
        self.theta = torch.full(
            (variables, categories), 1 / categories, dtype=torch.float64, device=device
        )
        self.n_theta = variables * (categories - 1)
        self.low = 1 / (variables * (categories - 1))
        self.values = torch.arange(categories, device=device)
        self.s = self.theta.new_zeros(variables, categories - 1)
        self.gamma = self.theta.new_zeros(())
        self.Delta = self.theta.new_ones(())

    def ask(self, samples: int) -> Tensor:
        """(λ, d) category indices."""
        draws = torch.rand(samples, len(self.theta), 1, device=self.theta.device)
        chosen = (self.theta.cumsum(1) <= draws).sum(-1)
        return chosen.clamp_(max=self.theta.shape[1] - 1)

    @staticmethod
    def utilities(losses: Tensor) -> Tensor:
        """(λ,), equal losses sharing the mean of their places."""
        number = len(losses)
        selected = math.ceil(number / 4)
        below = (losses[:, None] > losses).sum(1)
        ties = (losses[:, None] == losses).sum(1)
        # Places below..below + ties - 1: how many of them are among the best, and the worst.
        best = (below + ties).clamp(max=selected) - below.clamp(max=selected)
        first_worst = number - selected
        worst = (below + ties).clamp(min=first_worst) - below.clamp(min=first_worst)
        return (best - worst).double() / (selected * ties)

    def tell(self, samples: Tensor, losses: Tensor) -> None:
        """Updates the distribution; where there is no gradient it stays as it is."""
        theta = self.theta
        chosen = (samples[..., None] == self.values).double()
        utilities = self.utilities(losses)
        gradient = (utilities[:, None, None] * (chosen - theta)).mean(0)  # eq. (12)
        free, last, g = theta[:, :-1], theta[:, -1:], gradient[:, :-1]
        scale = free.sqrt()
        root = g / scale + scale * (g.sum(1, keepdim=True) / (last + last.sqrt()))
        norm = root.square().sum().sqrt()
        moves = norm > 1e-12  # samples that do not differ leave rounding errors
        norm = torch.where(moves, norm, 1.0)
        delta = 1 / self.Delta
        beta = torch.where(moves, delta / math.sqrt(self.n_theta), 0.0)
        self.s.mul_(1 - beta).add_((beta * (2 - beta)).sqrt() * root / norm)  # eq. (19)
        self.gamma.mul_((1 - beta) ** 2).add_(beta * (2 - beta))  # eq. (20)
        self.Delta.mul_(torch.exp(beta * (self.gamma - self.s.square().sum() / 1.5)))  # eq. (21)
        moved = theta + delta * gradient / norm  # eq. (13), eq. (14)
        moved = moved.clamp_(min=self.low)
        excess = moved.sum(1, keepdim=True) - 1
        room = 1 + excess - self.low * theta.shape[1]
        moved = moved - excess * (moved - self.low) / room
        self.theta.copy_(torch.where(moves, moved / moved.sum(1, keepdim=True), theta))


def ours(variables: int, categories: int, samples: int, device: torch.device) -> dict[str, Run]:
    """Calls of `asng.ASNG` by their names."""
    space = asng.SearchSpace.from_sizes([categories] * variables)
    optimizer = asng.ASNG(space, population_size=samples, seed=0, device=device.type)
    losses = torch.rand(LOSSES, samples, device=device, dtype=torch.float64)
    rows: Sequence[object] = losses.unbind(0) if device.type == "cuda" else losses.tolist()
    return calls_of(optimizer.ask, optimizer.tell, rows)


def eager(variables: int, categories: int, samples: int, device: torch.device) -> dict[str, Run]:
    """Calls of `EagerASNG` by their names."""
    optimizer = EagerASNG(variables, categories, device)
    rows = torch.rand(LOSSES, samples, device=device, dtype=torch.float64).unbind(0)
    return calls_of(lambda: optimizer.ask(samples), optimizer.tell, rows)


def calls_of(
    ask: Callable[[], Any], tell: Callable[[Any, Any], Any], losses: Sequence[object]
) -> dict[str, Run]:
    """Ask and tell, and each of them alone, `tell` with one and the same population."""
    step = count()
    samples = ask()
    return {
        "ask + tell": lambda: tell(ask(), losses[next(step) % LOSSES]),
        "ask": ask,
        "tell": lambda: tell(samples, losses[next(step) % LOSSES]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(__doc__, argv)
    device = torch.device(args.device)
    print(describe(device))
    calls = 4 if args.quick else LOSSES
    shapes = [(30, 5, 2), (40, 5, 2)]
    if not args.quick:
        shapes += [(1000, 5, 2), (1000, 5, 64), (100_000, 5, 2)]
    rows: list[Row] = []
    for shape in shapes:
        case = f"{shape[0]} × {shape[1]}, λ={shape[2]}"
        runs = [make(*shape, device) for make in (ours, eager)]
        for name in runs[0]:
            pair = [run[name] for run in runs]
            rows.append(compare(name, case, *pair, device, quick=args.quick))
            pair = [captured(run, device, calls) for run in pair]
            name += ", in a graph"
            rows.append(compare(name, case, *pair, device, quick=args.quick, calls=calls))
            save(rows, args.json)
    finish(rows, args.json)


if __name__ == "__main__":
    main()
