"""Typed settings of a run: dataclasses that are also a TOML file and command line options."""

from __future__ import annotations

import dataclasses
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
    "dump_toml",
    "lasting",
    "load_toml",
    "section_from",
    "section_to_dict",
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
    choices: tuple[str, ...] | None = None,
    final: bool = False,
    neutral: bool = False,
    only: str | None = None,
) -> Any:
    """A field of a config section.

    Args:
        default: The default; its type is the setting's.
        help: What it means, with the unit.
        low, high: Inclusive bounds of a number.
        above: Exclusive lower bound of a number.
        choices: The values a string may have.
        final: Whether a setting of a task concerns the final network only, and so may still be
            changed after the search.
        neutral: Whether results do not depend on it but for rounding, so that it may change when a
            run goes on.
        only: The loop, "search" or "retrain", on whose results alone it has an influence; None for
            both.
    """
    limits = {"low": low, "high": high, "above": above, "choices": choices}
    kinds = {"final": final, "neutral": neutral, "only": only}
    return field(default=default, metadata={"help": help, **kinds, **limits})


class Checked:
    """Checks every field of a section against its type and limits."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _typed(item.name, getattr(self, item.name), types[item.name])
            object.__setattr__(self, item.name, value)
            limits = item.metadata
            choices = limits.get("choices")
            if choices is not None and value not in choices:
                raise ValueError(f"{item.name} must be one of {', '.join(choices)}, got {value!r}")
            low, high, above = (limits.get(key) for key in ("low", "high", "above"))
            if (
                (low is not None and not value >= low)
                or (high is not None and not value <= high)
                or (above is not None and not value > above)
            ):
                parts = [
                    f"at least {low:g}" if low is not None else "",
                    f"above {above:g}" if above is not None else "",
                    f"at most {high:g}" if high is not None else "",
                ]
                wanted = " and ".join(part for part in parts if part)
                raise ValueError(f"{item.name} must be {wanted}, got {value!r}")


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value


@dataclass(frozen=True)
class SearchConfig(Checked):
    """Settings of the search loop; the defaults are those of Section 3.2."""

    epochs: int = setting(100, "passes over the half of the data that trains weights", low=1)
    batch_size: int = setting(64, "images per step", low=1)
    learning_rate: float = setting(0.025, "of SGD at the start; falls to 0 on a cosine", above=0)
    momentum: float = setting(0.9, "of SGD", low=0, high=1)
    weight_decay: float = setting(3e-4, "of SGD", low=0)
    gradient_clip: float = setting(5.0, "largest Euclidean norm of the gradient", above=0)
    population_size: int = setting(2, "architectures per step, λ", low=2)
    alpha: float = setting(1.5, "ASNG's threshold α", above=0)
    delta_init: float = setting(1.0, "ASNG's initial trust-region radius δ⁰", above=0)
    margin: str = setting("paper", "lower bound of probabilities", choices=("paper", "catcma"))
    threads: int = setting(
        0, "of PyTorch on the CPU; 0 leaves that to PyTorch", low=0, neutral=True
    )
    test_every: int = setting(
        1, "epochs between tests of the most likely architecture; 0 for none", low=0
    )
    graphs: bool = setting(
        True, "replay steps as CUDA graphs, on a GPU and where they can be captured", neutral=True
    )


@dataclass(frozen=True)
class RetrainConfig(Checked):
    """Settings of the retraining loop; the defaults are those of Section 3.2."""

    epochs: int = setting(600, "passes over all training data", low=1)
    batch_size: int = setting(80, "images per step", low=1)
    optimizer: str = setting("sgd", "what trains the weights", choices=("sgd", "adam"))
    schedule: str = setting(
        "cosine",
        "of the step size: a half cosine to 0, or a tenth after 2/5 and again after 4/5",
        choices=("cosine", "steps"),
    )
    learning_rate: float = setting(0.025, "step size at the start", above=0)
    momentum: float = setting(0.9, "of SGD", low=0, high=1)
    weight_decay: float = setting(3e-4, "times the weights, added to the gradient", low=0)
    gradient_clip: float = setting(5.0, "largest Euclidean norm of the gradient", above=0)
    precision: str = setting(
        "float32",
        "bfloat16 runs the network under autocast",
        choices=("float32", "bfloat16"),
    )
    compile: bool = setting(False, "compile the network with torch.compile")
    threads: int = setting(
        0, "of PyTorch on the CPU; 0 leaves that to PyTorch", low=0, neutral=True
    )
    test_every: int = setting(1, "epochs between tests; the last is always tested", low=1)


def section_from(
    kind: type[Section], values: Mapping[str, Any], base: Section | None = None
) -> Section:
    """A section from settings by name; the others come from ``base`` or are the defaults.

    Raises:
        ValueError, TypeError: If a setting is unknown, of the wrong type or out of its limits.
    """
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(f"unknown settings {unknown}; there are {names}")
    start = section_to_dict(base) if base is not None else {}
    return kind(**{**start, **values})


def section_to_dict(section: Any) -> dict[str, Any]:
    """The settings of a section by name."""
    return dataclasses.asdict(section)


def lasting(section: Any, loop: str | None = None) -> dict[str, Any]:
    """The settings of a section on which results depend, by name; those of one loop, if given."""
    return {
        item.name: getattr(section, item.name)
        for item in dataclasses.fields(section)
        if not item.metadata["neutral"] and (loop is None or item.metadata["only"] in (None, loop))
    }


def dump_toml(config: Mapping[str, Any]) -> str:
    """Settings as TOML."""
    import tomli_w  # only what writes a run folder needs it

    return tomli_w.dumps(config)


def load_toml(text: str, name: str) -> dict[str, Any]:
    """Settings from TOML; ``name`` is the file's, for the message of the ValueError."""
    try:
        return dict(tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid TOML: {error}") from None
