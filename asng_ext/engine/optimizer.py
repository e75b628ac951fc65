"""The optimizer of a search: what its settings make, and where it starts."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asng_ext import optimizers, strategies
from asng_ext.optimizers import Theta
from asng_ext.retrained import read_architecture
from asng_ext.runs.checkpoints import fitting
from asng_ext.runs.config import SearchConfig, pairs
from asng_ext.runs.folder import RunFolder
from asng_ext.space import Categorical, Integer, SearchSpace
from asng_ext.tasks.protocol import Optimizer, Task

__all__ = ["make_optimizer", "read_start"]


def read_start(init: str, space: SearchSpace) -> dict[str, Any]:
    """What the setting init names: an "architecture" by names, or a distribution as "theta";
    nothing if it is empty."""
    if not init:
        return {}
    path = Path(init)
    if not path.is_dir():
        return {"architecture": read_architecture(path)[1]["architecture"]}
    saved = RunFolder.open(path).load("search.pt")
    if saved is None:
        raise FileNotFoundError(f"init: {path} has no search.pt, and so no distribution")
    with fitting(path / "search.pt", "choose another run as init"):
        state = saved["optimizer"]
        if difference := space.difference(state["space"]):
            raise ValueError(f"its search is of another space: {difference}")
        sizes, mean = space.sizes, np.array(state["mean"])
        rows = np.zeros((len(sizes), max(sizes, default=0)))
        rows[np.arange(rows.shape[1]) < np.array(sizes)[:, None]] = state["theta"]
        moments = [mean.tolist(), (mean**2 + state["variance"]).tolist()]
    return {"theta": {"categorical": rows.tolist(), "numerical": moments}}


def make_optimizer(
    task: Task,
    config: SearchConfig,
    start: Mapping[str, Any] | None = None,
    *,
    seed: int,
    device: torch.device,
) -> Optimizer:
    """A new optimizer with those settings of the search that it takes; λ is read here, and
    nowhere else. It starts from ``start``, an "architecture" or a distribution, "theta".

    ASNG is on the GPU if the task takes samples from there; for one that looks at each sample
    on the host it is better there, too.
    """
    wanted = strategies.get(config.strategy).optimizer or config.optimizer
    arguments = inspect.signature(optimizers.REGISTRY[wanted]).parameters
    own = [name for name in ("alpha", "delta_init") if name in arguments]

    def takes(name: str) -> bool:
        return name in arguments or any(p.kind is p.VAR_KEYWORD for p in arguments.values())

    if takes("margin"):
        own.append("margin")
    settings = {name: getattr(config, name) for name in own}
    if start and "theta" in start:
        parts = (np.array(start["theta"][name], dtype=np.float64) for name in Theta._fields)
        settings["init"] = Theta(*parts)
    elif start:
        settings["init"] = start["architecture"]
        settings["init_probability"] = config.init_probability
    if config.fixed:
        settings["fixed"] = _values(task.space, pairs("fixed", config.fixed))
    lacking = [name for name in ("init", "fixed") if name in settings and not takes(name)]
    if lacking:
        raise ValueError(f"settings of [search]: {wanted} takes no {lacking[0]}")
    if config.step_size:
        settings |= {n: config.step_size for n in ("delta", "step_size") if n in arguments}
    if wanted == "ASNG":  # the others live on the CPU
        on_device = device.type == "cuda" and task.capturable
        settings["device"] = str(device) if on_device else "cpu"
    made: Optimizer = optimizers.make(
        wanted,
        task.space,
        seed=seed,
        population_size=config.population_size,
        **settings,
    )
    return made


def _values(space: SearchSpace, texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of variables that are given as texts."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        variable = space.get(name)
        if variable is None:
            raise ValueError(
                f"fixed must name variables of the space, such as "
                f"{next(iter(space))!r}, got {name!r}"
            )
        if isinstance(variable, Categorical):
            fitting_ones = [value for value in variable.values if str(value) == text]
            values[name] = fitting_ones[0] if fitting_ones else text
            continue
        try:
            values[name] = int(text) if isinstance(variable, Integer) else float(text)
        except ValueError:
            raise ValueError(f"fixed must have a number for {name!r}, got {text!r}") from None
    return values
