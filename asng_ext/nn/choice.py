"""A choice between any PyTorch modules: the building block of home-made supernets.

Example:
    model = nn.Sequential(Choice("op", {"conv": nn.Conv2d(3, 8, 3), "pool": nn.MaxPool2d(3)}))
    space = search_space(model)  # {"op": Categorical(["conv", "pool"])}
    set_architecture(model, {"op": "conv"})  # the supernet runs these candidates
    final = derive(model, {"op": "conv"})  # a network of its own, without any choice left
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from asng_ext.space import Categorical, SearchSpace

__all__ = ["Choice", "derive", "search_space", "set_architecture"]


class Choice(nn.Module):
    """Runs one of several candidate modules, the one that the architecture selects.

    The candidates' weights appear in the state dict under `candidates.<candidate's name>`,
    whichever is active; which one is active is no part of the state.

    Args:
        name: Name of the variable. Choices of the same name make the same choice.
        candidates: The modules by name; in a sequence they are named "0", "1", and so on. Names
            become attributes, so they must not be empty or contain a dot, and a few names of
            `torch.nn.ModuleDict`, such as "type", are taken.

    Raises:
        ValueError: `name` is empty, there is no candidate, or a candidate has a name that PyTorch
            does not allow.
        TypeError: A candidate is not a module.
    """

    def __init__(
        self, name: str, candidates: Mapping[str, nn.Module] | Sequence[nn.Module]
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        if not isinstance(candidates, Mapping):
            candidates = {str(i): module for i, module in enumerate(candidates)}
        if not candidates:
            raise ValueError(f"candidates of choice {name!r} must not be empty")
        self.name = name
        self.candidates = nn.ModuleDict()
        for key, module in candidates.items():
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"candidate {key!r} of choice {name!r} must be a torch.nn.Module, "
                    f"got {type(module).__name__}"
                )
            try:
                self.candidates[key] = module
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{key!r} cannot name a candidate of choice {name!r}: {error.args[0]}"
                ) from error
        self._active: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates, in order: the values of the variable."""
        return tuple(self.candidates)

    @property
    def active(self) -> str | None:
        """Name of the candidate that runs, None before one was selected."""
        return self._active

    def candidate(self, value: object) -> nn.Module:
        """The candidate named `value`.

        Raises:
            ValueError: There is none.
        """
        if not isinstance(value, str) or value not in self.candidates:
            raise ValueError(
                f"choice {self.name!r} must be one of {', '.join(self.names)}, got {value!r}"
            )
        return self.candidates[value]

    def activate(self, value: str) -> None:
        """Makes the candidate named `value` the one that runs.

        Raises:
            ValueError: There is none.
        """
        self.candidate(value)
        self._active = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Passes everything to the active candidate; the others are not touched.

        Raises:
            RuntimeError: None is active yet.
        """
        if self._active is None:
            raise RuntimeError(
                f"choice {self.name!r} has no active candidate yet: call set_architecture first"
            )
        return self.candidates[self._active](*args, **kwargs)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, active={self._active!r}"


def _choices(model: nn.Module) -> Iterator[Choice]:
    return (module for module in model.modules() if isinstance(module, Choice))


def _variables(model: nn.Module) -> dict[str, tuple[str, ...]]:
    variables: dict[str, tuple[str, ...]] = {}
    for choice in _choices(model):
        names = variables.setdefault(choice.name, choice.names)
        if names != choice.names:
            raise ValueError(
                f"choices with the same name must have the same candidates, but choice "
                f"{choice.name!r} has {', '.join(names)} and {', '.join(choice.names)}"
            )
    if not variables:
        raise ValueError("model must contain at least one Choice")
    return variables


def search_space(model: nn.Module) -> SearchSpace:
    """One categorical variable for each name of a `Choice` in the model, in order of occurrence.

    Choices inside candidates of other choices count too.

    Raises:
        ValueError: There is no choice, or two choices of one name differ in their candidates.
    """
    return SearchSpace({name: Categorical(v) for name, v in _variables(model).items()})


def _check(model: nn.Module, values: Mapping[str, object]) -> None:
    variables = _variables(model)
    missing, unknown = variables.keys() - values.keys(), values.keys() - variables.keys()
    if missing or unknown:
        raise ValueError(
            f"values must have exactly the choices of the model; missing: "
            f"{sorted(missing) or 'none'}, unknown: {sorted(unknown, key=str) or 'none'}"
        )
    for choice in _choices(model):
        choice.candidate(values[choice.name])


def set_architecture(model: nn.Module, values: Mapping[str, object]) -> None:
    """Activates a candidate in every `Choice` of the model; after an error none has changed.

    Args:
        model: The supernet.
        values: Name of a candidate for the name of every choice.

    Raises:
        ValueError: A choice has no value, or a value no choice or no candidate.
    """
    _check(model, values)
    for choice in _choices(model):
        choice.activate(str(values[choice.name]))


def derive(model: nn.Module, values: Mapping[str, object]) -> nn.Module:
    """A copy of the model in which the selected candidate stands in the place of every `Choice`.

    The copy shares nothing with the model. Modules shared inside the model stay shared inside
    the copy.

    Args:
        model: The supernet, left as it is.
        values: Name of a candidate for the name of every choice.

    Raises:
        ValueError: A choice has no value, or a value no choice or no candidate.
    """
    _check(model, values)

    def resolve(module: nn.Module) -> nn.Module:
        while isinstance(module, Choice):  # a candidate may be a choice itself
            module = module.candidate(values[module.name])
        return module

    derived = resolve(copy.deepcopy(model))
    # modules() asks a module for its children only after the loop has replaced them.
    for parent in derived.modules():
        # Not named_children(), which leaves out the second name of a module that has two.
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = resolve(child)
    return derived
