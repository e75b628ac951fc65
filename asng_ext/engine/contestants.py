"""What `asng compare` compares, and for how long each may search. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from asng_ext import strategies
from asng_ext._checks import brief, check_integer, check_number
from asng_ext.runs.config import pairs

__all__ = [
    "BUDGETS",
    "DECIDED",
    "Budget",
    "Contestant",
    "contestant",
    "default_names",
    "epochs_within",
    "names",
]


@dataclass(frozen=True)
class Budget:
    """What each search may take; one of both.

    Attributes:
        steps: Steps, each of the weights and of the distribution; None for no such limit.
        minutes: Minutes of these steps, without tests; None for no such limit.

    Raises:
        TypeError, ValueError: If a number is of the wrong kind or not above 0, or there are none or
            two.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(
                f"budget must be of steps or of minutes, got {self.steps} and {self.minutes}"
            )
        if self.steps is not None:
            check_integer("budget of steps", self.steps, 1, 10**12)
        if self.minutes is not None:
            check_number("budget of minutes", self.minutes, 0.0, most=1e6)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that "steps=N" or "minutes=M" says (ValueError if it is neither)."""
        given = pairs("budget", text)
        try:
            if list(given) == ["steps"]:
                return cls(steps=int(given["steps"]))
            if list(given) == ["minutes"]:
                return cls(minutes=float(given["minutes"]))
        except ValueError:
            pass
        raise ValueError(
            f"budget must be steps=N or minutes=M with a number above 0, got {brief(text)}"
        )

    def __str__(self) -> str:
        return f"steps={self.steps}" if self.steps is not None else f"minutes={self.minutes:g}"


_OF_OTHERS = ("population_size", "alpha", "delta_init", "step_size", "margin")
"""Settings that strategies without an optimizer do not have, and do without."""
UNEQUAL = (
    *("strategy", "strategy_options"),
    *(name for name in strategies.OF_OPTIMIZERS if name not in _OF_OTHERS),
)
"""Settings of the search that would make strategies differ in more than they do."""
DECIDED = (*UNEQUAL, "epochs", "autotune", "mask", "space", "network")
"""Settings of the search and of the task that are not the user's, or not the same for all."""

BUDGETS: Mapping[str, str] = {
    "digits": "minutes=0.75",
    "cifar10": "steps=39000",  # the paper's 100 epochs
    "photos": "steps=2500",
    "celeba": "steps=50000",  # the paper's 50K iterations
}
"""What a search takes where nothing else is said, by preset."""


FEW_STEPS = 100
"""An epoch of at most so many steps is much shorter than in the papers."""
_OF_FEW_STEPS: Mapping[str, str] = {
    "enas": "updates=2,samples=5,derive=50,baseline_decay=0.9,learning_rate=0.01",
    "nao": "rounds=3,pool=100,seeds=20,predictor_epochs=20,batch=25,learning_rate=0.01,hidden=32",
    "smash": "samples=50,perturbed=20,chain=20,batches=3,learning_rate=0.005",
    "ecae": "generations=80,batches=2",
    **dict.fromkeys(("darts", "darts2", "snas", "gdas", "proxyless"), "learning_rate=0.03"),
}
"""Options of strategies for these: what they do after epochs and at the end must not take longer
than the epochs, and logits, which Adam moves by its learning rate at most, must get as far in some
hundred steps as in the papers' ten thousand."""


@dataclass(frozen=True)
class Contestant:
    """A strategy by name, with the settings that make it what it is.

    Attributes:
        name: Its name in tables and folders.
        settings: Settings by section that come before all others.
        architecture: Gives, from the settings of the task, the architecture that is retrained
            without a search; None where one is searched.
    """

    name: str
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    architecture: Callable[[Any], dict[str, Any]] | None = None

    def config(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All settings, from those that are given: without what is for other strategies."""
        config = dict(given)
        if strategies.get(self.settings.get("search", {}).get("strategy", "asng")).place:
            own = given.get("search", {})
            config["search"] = {n: v for n, v in own.items() if n not in _OF_OTHERS}
        for section, values in self.settings.items():
            config[section] = {**config.get(section, {}), **values}
        return config


def _as_deep_as_can_be(config: Any) -> dict[str, Any]:
    """An autoencoder of all layers of the space; BASE is as deep, and has its own layers."""
    from asng_ext.nn import CaeLayer  # needs torch

    space = config.make_space()
    widths = space.max_channels
    layers = [CaeLayer(i, space.kernels[0], widths, skip=True) for i in range(space.layers)]
    architecture: dict[str, Any] = space.encode(layers)
    return architecture


_OF_INPAINTING = {
    "asng-cat": ("asng", "cat"),
    "asng-int": ("asng", "int"),
    "ecae": ("ecae", "cat"),
}
"""Strategies and spaces of Table 2."""
_BASE = "base"


def names(task: str) -> tuple[str, ...]:
    """What can be compared for a task, by name."""
    own = (*_OF_INPAINTING, _BASE) if task == "inpainting" else ()
    return (*own, *(name for name in strategies.names(task) if name not in own))


def default_names(task: str) -> tuple[str, ...]:
    """What is compared where nothing else is said: the paper's tables."""
    return (*_OF_INPAINTING, _BASE) if task == "inpainting" else strategies.names(task)


def contestant(task: str, name: str, steps: int = FEW_STEPS + 1) -> Contestant:
    """What is compared under that name, with the options that suit so many steps an epoch.

    Raises:
        ValueError: If there is none.
    """
    if name not in names(task):
        raise ValueError(f"strategies must be of {', '.join(names(task))}, got {brief(name)}")
    if task == "inpainting" and name == _BASE:
        settings = {"inpainting": {"network": "base"}}
        return Contestant(name, settings, architecture=_as_deep_as_can_be)
    strategy, own = name, {}
    if task == "inpainting" and name in _OF_INPAINTING:
        strategy, space = _OF_INPAINTING[name]
        own = {"inpainting": {"space": space}}
    options = _OF_FEW_STEPS.get(strategy, "") if steps <= FEW_STEPS else ""
    search = {"strategy": strategy, "strategy_options": options}
    return Contestant(name, {"search": search, **own})


def epochs_within(
    budget: Budget, steps_per_epoch: int, seconds_per_epoch: float = 0.0, seconds_more: float = 0.0
) -> int:
    """How many epochs a budget is for: of steps, so many that they are at least as many; of
    minutes, as many as fit in beside what takes ``seconds_more`` in any case, at least one."""
    if budget.steps is not None:
        return math.ceil(budget.steps / steps_per_epoch)
    assert budget.minutes is not None
    return max(1, int((60 * budget.minutes - seconds_more) / seconds_per_epoch))
