"""A space with variables of every kind, its best sample, and steps towards it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import asng_ext as asng
from asng_ext import SearchSpace

MIXED = SearchSpace(
    {
        "op": asng.Categorical(["a", "b", "c"]),
        "one": asng.Categorical([7]),
        "flag": asng.Categorical([False, True]),
        "width": asng.Integer(64, 256),
        "rate": asng.Real(0.1, 0.9),
    }
)


def loss(sample: dict[str, Any]) -> float:
    return float(
        (sample["op"] != "b") + (not sample["flag"]) + abs(sample["width"] - 130) / 64
    ) + 4 * abs(sample["rate"] - 0.3)


Optimizer = asng.ASNG | asng.SNG | asng.NaturalAdam


def advance(
    optimizer: Optimizer, steps: int, loss: Callable[[dict[str, Any]], float] = loss
) -> None:
    for _ in range(steps):
        samples = optimizer.ask()
        optimizer.tell(samples, [loss(sample) for sample in samples])


def state_of(optimizer: Optimizer) -> str:
    return json.dumps(optimizer.state_dict())
