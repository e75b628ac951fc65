"""The limits of a search: what is limited, and what an architecture costs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from asng_ext import optimizers
from asng_ext._threads import cpu_threads
from asng_ext.costs import CostTable
from asng_ext.distributed import Ranks
from asng_ext.nn import Latencies
from asng_ext.optimizers import Penalty
from asng_ext.runs.config import SearchConfig
from asng_ext.space import SearchSpace
from asng_ext.tasks.protocol import Optimizer, Task

__all__ = ["costs_and_limits", "make_penalty"]


def make_penalty(
    task: Task, config: SearchConfig, latencies: Latencies, ranks: Ranks
) -> Penalty | None:
    """The limits of the settings with the costs of the task; None without limits. What is missing
    in ``latencies`` is measured, by rank 0."""
    limits = config.limits()
    if not limits:
        return None
    if ranks.size > 1:  # all go by what rank 0 has measured
        latencies.measured.update(
            ranks.from_first(lambda: (_costs(task, config, latencies), latencies.measured)[1])
        )
    return Penalty(_costs(task, config, latencies), limits)


def _costs(task: Task, config: SearchConfig, latencies: Latencies) -> dict[str, Any]:
    """What is limited, by name."""
    limits, costs = config.limits(), {}
    for name, limit in limits.items():
        try:
            with cpu_threads(config.threads):
                costs[name] = task.cost(name, latencies)
        except ValueError as error:
            raise ValueError(f"penalty {name}={limit:g}: {error}") from error
    return costs


def costs_and_limits(
    space: SearchSpace, values: Mapping[str, Any], penalty: Penalty, optimizer: Optimizer
) -> dict[str, dict[str, float]]:
    """Costs and limits by name, with the expected cost of a sample if there is a table; a
    warning if a cost is above its limit."""
    costs = penalty.costs_of(space.samples([values]))
    found = {
        name: {"cost": float(costs[name][0]), "limit": limit}
        for name, limit in penalty.limits.items()
    }
    for name, cost in penalty.costs.items():
        if isinstance(cost, CostTable) and isinstance(optimizer, optimizers.Optimizer):
            found[name]["expected"] = cost.expected(optimizer.theta)
    beyond = [
        f"{name} {one['cost']:.6g} (limit {one['limit']:.6g})"
        for name, one in found.items()
        if one["cost"] > one["limit"]
    ]
    if beyond:
        warnings.warn(
            f"no architecture within the limits was found, but one of {', '.join(beyond)}; "
            "search longer, or raise the limits",
            stacklevel=3,
        )
    return found
