"""Typed settings of a run: dataclasses that are also a TOML file and command line options."""

from __future__ import annotations

import dataclasses
import math
import operator
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Checked",
    "RetrainConfig",
    "SearchConfig",
    "affecting_results",
    "dump_toml",
    "load_toml",
    "pairs",
    "precision_setting",
    "section_from",
    "setting",
]

Section = TypeVar("Section")


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    for_retraining: bool = False,
    runtime_only: bool = False,
    may_grow: bool = False,
    only: str | None = None,
    option: str | None = None,
    several: bool = False,
) -> Any:
    """A field of a config section.

    Args:
        default: The default; its type is the setting's.
        help: What it means, with the unit.
        low, high: Inclusive bounds of a number.
        above, below: Exclusive bounds of a number. Every number has an upper bound.
        choices: The values a string may have.
        for_retraining: Whether a setting of a task may still be changed after the search, since it
            concerns the retrained network only, or where the data are.
        runtime_only: Whether results do not depend on it but for rounding, so that it may change
            when a run is continued.
        may_grow: Whether it may be raised when a run is continued.
        only: The loop, "search" or "retrain", on whose results alone it has an influence; None for
            both.
        option: Its option on the command line, if that is not called as the setting is.
        several: Whether a string is of parts separated by commas, which the option takes one by
            one.
    """
    metadata = {name: value for name, value in locals().items() if name != "default"}
    return field(default=default, metadata=metadata)


def precision_setting(of: str, **named: Any) -> Any:
    """The setting that :func:`asng_ext.training.precision.autocast` takes."""
    choices = ("float32", "bfloat16")
    return setting("float32", f"of the {of}; bfloat16 is autocast", choices=choices, **named)


def _threads_setting() -> Any:
    # More than processors run at once; tens of thousands would end the process.
    what, most = "of PyTorch on the CPU; 0 leaves that to PyTorch", 1024
    return setting(0, what, low=0, high=most, runtime_only=True)


_BOUNDS = (
    ("at least", "low", operator.ge),
    ("above", "above", operator.gt),
    ("at most", "high", operator.le),
    ("below", "below", operator.lt),
)


class Checked:
    """Checks every field of a section against its type and limits."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value, limits = getattr(self, item.name), item.metadata
            _check_type(item.name, value, types[item.name])
            choices = limits["choices"]
            if choices is not None and value not in choices:
                raise ValueError(f"{item.name} must be one of {', '.join(choices)}, got {value!r}")
            bounds = [
                (word, limits[key], holds)
                for word, key, holds in _BOUNDS
                if limits[key] is not None
            ]
            if not all(holds(value, bound) for _, bound, holds in bounds):
                wanted = " and ".join(f"{word} {bound}" for word, bound, _ in bounds)
                raise ValueError(f"{item.name} must be {wanted}, got {value!r}")
            # An integer that no float can hold is out of bounds.
            object.__setattr__(self, item.name, types[item.name](value))


def _check_type(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")


_MOST_EPOCHS = 1_000_000
_MOST_IMAGES = 1_000_000


def _checkpoint_minutes_setting() -> Any:
    what = "minutes between checkpoints within epochs; 0 for those at their ends alone"
    return setting(5.0, what, low=0, high=1e6, runtime_only=True)


def _keep_setting() -> Any:
    what = "how many checkpoints to keep"
    return setting(2, what, low=1, high=1000, runtime_only=True)


def _check_every_setting() -> Any:
    what = "steps between looks whether losses, gradients and weights are finite"
    return setting(100, what, low=1, high=1e9, runtime_only=True)


def _on_divergence_setting() -> Any:
    what = (
        "when they are not: stop, or retry from the last checkpoint at half the learning rate, at "
        "most three times"
    )
    return setting("stop", what, choices=("stop", "retry"), runtime_only=True)


def _graphs_setting() -> Any:
    what = "replay steps as CUDA graphs, on a GPU and where they can be captured"
    return setting(True, what, runtime_only=True)


@dataclass(frozen=True)
class SearchConfig(Checked):
    """Settings of the search loop; the defaults are those of Section 3.2."""

    epochs: int = setting(
        100,
        "passes over the half of the data that trains weights",
        low=1,
        high=_MOST_EPOCHS,
        may_grow=True,
    )
    batch_size: int = setting(64, "images per step", low=1, high=_MOST_IMAGES)
    learning_rate: float = setting(
        0.025, "of SGD at the start; falls on a cosine", above=0, high=1e3
    )
    learning_rate_min: float = setting(0.0, "where the cosine ends", low=0, high=1e3)
    restart_epochs: int = setting(
        0,
        "epochs of the first cosine, after which others follow, each twice as long; 0 for one of "
        "all epochs",
        low=0,
        high=_MOST_EPOCHS,
    )
    momentum: float = setting(0.9, "of SGD", low=0, high=1)
    nesterov: bool = setting(False, "Nesterov's momentum")
    weight_decay: float = setting(3e-4, "of SGD", low=0, high=1e3)
    gradient_clip: float = setting(5.0, "largest Euclidean norm of the gradient", above=0, high=1e9)
    strategy: str = setting("asng", "the method, by name")
    strategy_options: str = setting(
        "", "settings of the method's own, see docs/comparison.md", several=True
    )
    optimizer: str = setting(
        "ASNG",
        "what the strategy asng moves the distribution with, by name",
        option="search-optimizer",
    )
    population_size: int = setting(2, "architectures per step, λ", low=2, high=1024)
    alpha: float = setting(1.5, "ASNG's threshold α", above=0, high=1e6)
    delta_init: float = setting(1.0, "ASNG's initial trust-region radius δ⁰", above=0, high=1e6)
    step_size: float = setting(
        0.0, "of SNG (δ) and NaturalAdam; 0 for what they have by default", low=0, high=1e6
    )
    margin: str = setting("paper", "lower bound of probabilities", choices=("paper", "catcma"))
    init: str = setting(
        "", "where the search starts: an architecture.json, or a run folder for its distribution"
    )
    init_probability: float = setting(
        0.75, "of each choice of the architecture in init", above=0, high=1
    )
    fixed: str = setting("", "values of variables that are not searched, by name", several=True)
    penalty: str = setting(
        "",
        "the most that the network may have: parameters=N, flops=N (of an image), latency=MS "
        "(measured on the device)",
        several=True,
    )
    threads: int = _threads_setting()
    test_every: int = setting(
        1,
        "epochs between tests of the most likely architecture; 0 for none",
        low=0,
        high=_MOST_EPOCHS,
    )
    checkpoint_minutes: float = _checkpoint_minutes_setting()
    keep: int = _keep_setting()
    check_every: int = _check_every_setting()
    on_divergence: str = _on_divergence_setting()
    graphs: bool = _graphs_setting()
    autotune: bool = setting(
        True,
        "on a GPU, try which kernels are the fastest, before a search of 10,000 steps or more",
        runtime_only=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.limits()
        pairs("fixed", self.fixed)
        pairs("strategy_options", self.strategy_options)
        if self.learning_rate_min > self.learning_rate:
            raise ValueError(
                f"learning_rate_min must be at most learning_rate, {self.learning_rate}, got "
                f"{self.learning_rate_min}"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov must be off without momentum, got True")

    def limits(self) -> dict[str, float]:
        """The numbers in ``penalty`` by name (ValueError if one is not a number above 0)."""
        limits: dict[str, float] = {}
        for name, text in pairs("penalty", self.penalty).items():
            try:
                limits[name] = float(text)
            except ValueError:
                limits[name] = math.nan
            if not 0 < limits[name] < math.inf:
                raise ValueError(f"penalty must have a number above 0 for {name}, got {text!r}")
        return limits


@dataclass(frozen=True)
class RetrainConfig(Checked):
    """Settings of the retraining loop; the defaults are those of Section 3.2."""

    epochs: int = setting(
        600, "passes over all training data", low=1, high=_MOST_EPOCHS, may_grow=True
    )
    batch_size: int = setting(80, "images per step", low=1, high=_MOST_IMAGES)
    optimizer: str = setting("sgd", "what trains the weights", choices=("sgd", "adam"))
    schedule: str = setting(
        "cosine",
        "of the learning rate: a half cosine to 0, or a tenth after 2/5 and again after 4/5",
        choices=("cosine", "steps"),
    )
    learning_rate: float = setting(0.025, "at the start", above=0, high=1e3)
    momentum: float = setting(0.9, "of SGD", low=0, high=1)
    weight_decay: float = setting(3e-4, "times the weights, added to the gradient", low=0, high=1e3)
    gradient_clip: float = setting(5.0, "largest Euclidean norm of the gradient", above=0, high=1e9)
    precision: str = precision_setting("retrained network", option="retrain-precision")
    compile: bool = setting(False, "compile the network with torch.compile")
    sync_batch_norm: bool = setting(
        False, "on several ranks, batch normalization by the statistics of the whole batch"
    )
    threads: int = _threads_setting()
    test_every: int = setting(
        1, "epochs between tests; the last is always tested", low=1, high=_MOST_EPOCHS
    )
    checkpoint_minutes: float = _checkpoint_minutes_setting()
    keep: int = _keep_setting()
    check_every: int = _check_every_setting()
    on_divergence: str = _on_divergence_setting()
    graphs: bool = _graphs_setting()


def pairs(setting: str, text: str) -> dict[str, str]:
    """A setting of the form "name=value,name=value" by name (ValueError if it is not)."""
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not (name and equals and value) or name in found:
            raise ValueError(f"{setting} must be of NAME=VALUE, each name once, got {part!r}")
        found[name] = value
    return found


def section_from(kind: type[Section], values: Mapping[str, Any]) -> Section:
    """A section from settings by name; the others are the defaults.

    Raises:
        ValueError, TypeError: If a setting is unknown, of the wrong type or out of its limits.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"a section of settings must be a table, got {values!r}")
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"unknown settings {unknown}; there are {names}")
    return kind(**values)


def affecting_results(section: Any, loop: str | None = None) -> dict[str, Any]:
    """The settings of a section on which results depend, by name; those of one loop, if given."""
    return {
        item.name: getattr(section, item.name)
        for item in dataclasses.fields(section)
        if not item.metadata["runtime_only"]
        and (loop is None or item.metadata["only"] in (None, loop))
    }


def dump_toml(config: Mapping[str, Any]) -> str:
    """Settings as TOML."""
    import tomli_w  # only what writes a run folder needs it

    return tomli_w.dumps(config)


def load_toml(text: str | bytes, name: str) -> dict[str, Any]:
    """Settings from TOML; ``name`` is the file's, for the message of the ValueError."""
    try:
        return dict(tomllib.loads(text.decode() if isinstance(text, bytes) else text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid TOML: {error}") from None
