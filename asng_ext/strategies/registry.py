"""The strategies of the command line, by name.

Nothing here imports torch before a strategy is made, so that ``--help`` is quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_type_hints

from asng_ext._kinds import add_kind, kind_named
from asng_ext.runs.config import Checked, SearchConfig, pairs, section_from

if TYPE_CHECKING:
    from asng_ext.strategies.seeded import SeededStrategy
    from asng_ext.tasks.protocol import SearchTask

__all__ = ["OF_OPTIMIZERS", "StrategyKind", "check", "get", "make", "names", "register"]

OF_OPTIMIZERS = (
    *("optimizer", "population_size", "alpha", "delta_init", "step_size", "margin"),
    *("init", "init_probability", "fixed", "penalty"),
)
"""Settings of a search by strategies that ask and tell an optimizer alone."""
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class StrategyKind:
    """A strategy of the command line.

    Attributes:
        name: Its name.
        help: What it is, in a few words.
        place: Its class, as "module:class"; empty for one that asks and tells an optimizer.
        optimizer: That optimizer, by name; empty for the one that the settings name.
        published: Settings of the search loop in its own paper or reference code, by name.
        suits: The tasks that it is for, by name; empty for all with categorical variables.
        in_phases: Whether it has phases between or after epochs that take as long however many
            epochs there are.
        measured_with: Options with which its steps take as long as most of a search's do.
    """

    name: str
    help: str
    place: str = ""
    optimizer: str = ""
    published: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    suits: tuple[str, ...] = ()
    in_phases: bool = False
    measured_with: str = ""

    def load(self) -> type[SeededStrategy]:
        """Its class."""
        module, _, name = self.place.partition(":")
        found: type[SeededStrategy] = getattr(importlib.import_module(module), name)
        return found


_DARTS_WEIGHTS = {
    "batch_size": 64,
    "learning_rate": 0.025,
    "learning_rate_min": 0.001,
    "momentum": 0.9,
    "weight_decay": 3e-4,
    "gradient_clip": 5.0,
}
_ENAS_WEIGHTS = {
    "batch_size": 160,
    "learning_rate": 0.05,
    "learning_rate_min": 5e-4,
    "restart_epochs": 10,
    "nesterov": True,
}
_OURS = "asng_ext.strategies."
_CELLS = ("classification",)

_KINDS: dict[str, StrategyKind] = {
    kind.name: kind
    for kind in (
        StrategyKind("asng", "adaptive stochastic natural gradient (Akimoto et al., 2019)"),
        StrategyKind("sng", "stochastic natural gradient of a fixed step", optimizer="SNG"),
        StrategyKind(
            "naturaladam", "stochastic natural gradient with Adam", optimizer="NaturalAdam"
        ),
        StrategyKind(
            "random",
            "random search with weight sharing (Li and Talwalkar, 2019)",
            _OURS + "sampling:RandomSearch",
            published={"epochs": 50, **_DARTS_WEIGHTS},
            in_phases=True,
        ),
        StrategyKind(
            "evolution",
            "regularized evolution on shared weights",
            _OURS + "sampling:Evolution",
            published={"epochs": 50, **_DARTS_WEIGHTS},
            in_phases=True,
        ),
        StrategyKind(
            "enas",
            "a controller trained by REINFORCE (Pham et al., 2018)",
            _OURS + "enas:Enas",
            published={"epochs": 150, **_ENAS_WEIGHTS},
        ),
        StrategyKind(
            "nao",
            "gradient ascent in the code of an autoencoder of architectures (Luo et al., 2018)",
            _OURS + "nao:Nao",
            published={"epochs": 150, **_DARTS_WEIGHTS},
            in_phases=True,
        ),
        StrategyKind(
            "smash",
            "weights made by a hypernetwork (Brock et al., 2018)",
            _OURS + "smash:Smash",
            published={"epochs": 100, **_DARTS_WEIGHTS},
            suits=_CELLS,
            in_phases=True,
        ),
        StrategyKind(
            "darts",
            "gradients of a mixture of all operations (Liu et al., 2019), first order",
            _OURS + "differentiable:Darts",
            published={"epochs": 50, **_DARTS_WEIGHTS},
            suits=_CELLS,
        ),
        StrategyKind(
            "darts2",
            "the same, second order",
            _OURS + "differentiable:DartsSecondOrder",
            published={"epochs": 50, **_DARTS_WEIGHTS},
            suits=_CELLS,
        ),
        StrategyKind(
            "snas",
            "gradients of relaxed samples (Xie et al., 2019)",
            _OURS + "differentiable:Snas",
            published={"epochs": 150, **_DARTS_WEIGHTS},
            suits=_CELLS,
        ),
        StrategyKind(
            "gdas",
            "straight-through gradients of samples (Dong and Yang, 2019)",
            _OURS + "differentiable:Gdas",
            published={"epochs": 250, **_DARTS_WEIGHTS},
            suits=_CELLS,
        ),
        StrategyKind(
            "proxyless",
            "gradients of two sampled paths (Cai et al., 2019)",
            _OURS + "differentiable:Proxyless",
            published={"epochs": 120, **_DARTS_WEIGHTS},
            suits=_CELLS,
            measured_with="warmup=0",
        ),
        StrategyKind(
            "ecae",
            "evolution of autoencoders by neutral drift, E-CAE (Suganuma et al., 2018)",
            _OURS + "ecae:Ecae",
            published={"epochs": 250, "batch_size": 16, "weight_decay": 0.0},
            suits=("inpainting",),
            in_phases=True,
        ),
    )
}


def register(kind: StrategyKind) -> None:
    """Makes a strategy known to the command line and to run folders.

    Raises:
        TypeError: If ``kind`` is no StrategyKind.
        ValueError: If there is a strategy of that name already.
    """
    add_kind("strategy", _KINDS, kind, StrategyKind)


def names(task: str | None = None) -> tuple[str, ...]:
    """The names of all strategies; of those for a task, if one is given."""
    return tuple(
        name
        for name, kind in _KINDS.items()
        if task is None or not kind.suits or task in kind.suits
    )


def get(name: Any) -> StrategyKind:
    """The strategy of that name.

    Raises:
        ValueError: If there is none.
    """
    return kind_named("strategy", _KINDS, name)


def check(config: SearchConfig) -> None:
    """ValueError if the settings of a search name no strategy, or have some for another one."""
    kind = get(config.strategy)
    if kind.place:
        for name in OF_OPTIMIZERS:
            value = getattr(config, name)
            if value != getattr(SearchConfig, name):
                raise ValueError(
                    f"{name} is for strategies that ask and tell an optimizer, and must be left "
                    f"out for the strategy {kind.name}, got {value!r}"
                )
        return
    if config.strategy_options:
        raise ValueError(
            f"strategy_options must be empty for the strategy {kind.name}, which has none, got "
            f"{config.strategy_options!r}"
        )
    if kind.optimizer and config.optimizer not in (SearchConfig.optimizer, kind.optimizer):
        raise ValueError(
            f"optimizer must be left out for the strategy {kind.name}, got {config.optimizer!r}"
        )


def make(task: SearchTask, config: SearchConfig, *, seed: int) -> SeededStrategy:
    """A strategy that is none of an optimizer, for a task.

    Raises:
        ValueError, TypeError: If the settings are not its own, or ask for what it does not do, or
            the task or its space lacks what it needs.
    """
    check(config)
    strategy = get(config.strategy).load()
    return strategy(
        task, _options(strategy.Options, config.strategy_options), epochs=config.epochs, seed=seed
    )


def _options(kind: type[Checked], text: str) -> Any:
    """The settings of a strategy's own from "name=value,…"."""
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in pairs("strategy_options", text).items():
        wanted = types.get(name, str)
        try:
            values[name] = wanted(value)
        except ValueError:
            raise ValueError(
                f"strategy_options must have {wanted.__name__} for {name}, got {value!r}"
            ) from None
    try:
        return section_from(kind, values)
    except (ValueError, TypeError) as error:
        raise type(error)(f"strategy_options: {error}") from None
