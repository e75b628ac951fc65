"""A choice between any PyTorch modules: the building block of home-made supernets.

Example:
    model = nn.Sequential(Choice("op", {"conv": nn.Conv2d(3, 8, 3), "pool": nn.MaxPool2d(3)}))
    space = search_space(model)  # {"op": Categorical(["conv", "pool"])}
    network = subnet(model, {"op": "conv"})  # runs these candidates, with the model's weights
    final = derive(model, {"op": "conv"})  # the same with weights of its own
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from asng_ext._checks import brief, check_mapping, listed
from asng_ext.space import Categorical, SearchSpace, without_addresses

__all__ = ["Choice", "derive", "search_space", "set_architecture", "subnet"]


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
            named = listed(f"candidates of choice {name!r}", candidates, "modules")
            candidates = {str(i): module for i, module in enumerate(named)}
        if not candidates:
            raise ValueError(f"candidates of choice {name!r} must not be empty")
        self.name = name
        self.candidates = nn.ModuleDict()
        for key, module in candidates.items():
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"candidate {key!r} of choice {name!r} must be a torch.nn.Module, "
                    f"got {brief(module)}"
                )
            try:
                self.candidates[key] = module
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{key!r} cannot name a candidate of choice {name!r}: {error.args[0]}"
                ) from error
        self._active: str | None = None
        self._switched = False

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
        self._switched = self._switched or self._active not in (None, value)
        self._active = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Passes everything to the active candidate; the others are not touched.

        Raises:
            RuntimeError: None is active yet; or a backward pass repeats the call, as in gradient
                checkpointing, after different candidates were active. Compiled code does not check
                the latter.
        """
        if self._active is None:
            raise RuntimeError(
                f"choice {self.name!r} has no active candidate yet: use subnet, or call "
                "set_architecture first"
            )
        # Nothing tells which candidate was active when the call was made first.
        if not torch.compiler.is_compiling() and self._switched and _in_backward():
            raise RuntimeError(
                f"choice {self.name!r} is called again in a backward pass, and other candidates "
                "were active before: for gradient checkpointing run subnet(model, values) instead "
                "of the model after set_architecture"
            )
        return self.candidates[self._active](*args, **kwargs)

    def extra_repr(self) -> str:
        return f"name={self.name!r}, active={self._active!r}"


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _choices(model: nn.Module) -> Iterator[Choice]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {brief(model)}")
    return (module for module in model.modules() if isinstance(module, Choice))


def _variables(model: nn.Module) -> dict[str, Choice]:
    """The first choice of every name."""
    variables: dict[str, Choice] = {}
    for choice in _choices(model):
        names = variables.setdefault(choice.name, choice).names
        if names != choice.names:
            raise ValueError(
                f"choices with the same name must have the same candidates, but choice "
                f"{choice.name!r} has {', '.join(names)} and {', '.join(choice.names)}"
            )
    if not variables:
        raise ValueError("model must contain at least one Choice")
    return variables


def _labels(choice: Choice) -> list[str]:
    """What candidates that are only numbered are called in the state of an optimizer."""
    if choice.names != tuple(str(i) for i in range(len(choice.names))):
        return []

    def described(module: nn.Module) -> str:
        # Not the repr of a choice, which says what is active.
        inner = module.name if isinstance(module, Choice) else module.extra_repr()
        return without_addresses(f"{type(module).__name__}({inner})")

    return [" ".join(map(described, module.modules())) for module in choice.candidates.values()]


def search_space(model: nn.Module, *, conditional: bool = False) -> SearchSpace:
    """One categorical variable for each name of a `Choice` in the model, in order of occurrence.

    Choices inside candidates of other choices count too.

    Args:
        model: The supernet.
        conditional: Whether choices that are only inside candidates of one other are conditional
            variables: samples that select none of these have no value of them, and say nothing of
            their distribution. Without it they have one all the same.

    In the states of optimizers candidates that were given without names are called by what they
    are, so that a state does not fit when they come in another order.

    Raises:
        ValueError: There is no choice, or two choices of one name differ in their candidates.
    """
    variables = _variables(model).items()
    active_if: dict[str, dict[str, list[str]]] = {}
    if conditional:
        for name, places in _places(model, None, {}).items():
            outer = {place[0] for place in places if place is not None}
            if None not in places and len(outer) == 1 and name not in outer:
                active_if[name] = {outer.pop(): [place[1] for place in places if place is not None]}
    return SearchSpace(
        {name: Categorical(c.names, _labels(c)) for name, c in variables}, active_if=active_if
    )


Place: TypeAlias = tuple[str, str] | None


def _places(
    module: nn.Module, inside: Place, found: dict[str, list[Place]]
) -> dict[str, list[Place]]:
    """Where the choices of each name are: in which candidate of which other, None for in none."""
    if isinstance(module, Choice):
        found.setdefault(module.name, []).append(inside)
        for value in module.names:
            _places(module.candidate(value), (module.name, value), found)
    else:
        for child in module.children():
            _places(child, inside, found)
    return found


def _reached(module: nn.Module, values: Mapping[str, object], found: set[str]) -> set[str]:
    """Names of the choices that a network with these values has."""
    if not isinstance(module, Choice):
        for child in module.children():
            _reached(child, values, found)
        return found
    found.add(module.name)
    if module.name in values:
        _reached(module.candidate(values[module.name]), values, found)
    return found


def _check(model: nn.Module, values: Mapping[str, object]) -> None:
    variables = _variables(model)
    check_mapping("values", values)
    missing, unknown = variables.keys() - values.keys(), values.keys() - variables.keys()
    if missing and not unknown:  # of choices in candidates that are not selected
        missing &= _reached(model, values, set())
    if missing or unknown:
        raise ValueError(
            f"values must have exactly the choices of the model; missing: "
            f"{sorted(missing) or 'none'}, unknown: {sorted(unknown, key=str) or 'none'}"
        )
    for choice in _choices(model):
        if choice.name in values:
            choice.candidate(values[choice.name])


def set_architecture(model: nn.Module, values: Mapping[str, object]) -> None:
    """Activates a candidate in every `Choice` of the model; after an error none has changed.

    It is for code that must call the model itself. All threads and all calls to come see the
    change, also those that repeat an earlier one: prefer `subnet`, which changes nothing.

    Args:
        model: The supernet.
        values: Name of a candidate for the name of every choice; those inside candidates that are
            not selected may be left out.

    Raises:
        ValueError: A choice has no value, or a value no choice or no candidate.
    """
    _check(model, values)
    for choice in _choices(model):
        if choice.name in values:
            choice.activate(str(values[choice.name]))


def subnet(model: nn.Module, values: Mapping[str, object]) -> nn.Module:
    """The model with the selected candidate in the place of every `Choice`, on the same weights.

    The model stays as it is, and what is later set or made does not change the network, so that it
    can be repeated in a backward pass (gradient checkpointing) and run in threads beside others.

    Modules around choices are copied without what they hold; all others are the model's own. Make
    the network after `train()` or `eval()` was called: the copies do not follow the model's mode.

    Args:
        model: The supernet.
        values: Name of a candidate for the name of every choice; those inside candidates that are
            not selected may be left out.

    Raises:
        ValueError: A choice has no value, or a value no choice or no candidate; or a module around
            a choice was compiled.
    """
    _check(model, values)
    resolved: dict[nn.Module, nn.Module] = {}

    def resolve(module: nn.Module) -> nn.Module:
        while isinstance(module, Choice):  # a candidate may be a choice itself
            module = module.candidate(values[module.name])
        if module not in resolved:
            children = {k: m if m is None else resolve(m) for k, m in module._modules.items()}
            changed = any(m is not children[k] for k, m in module._modules.items())
            resolved[module] = _with_children(module, children) if changed else module
        return resolved[module]

    return resolve(model)


def _with_children(module: nn.Module, children: dict[str, nn.Module | None]) -> nn.Module:
    """A shallow copy with other children."""
    attributes = vars(module)
    # Both are bound to the module itself and would run its own children.
    if "forward" in attributes or attributes.get("_compiled_call_impl") is not None:
        raise ValueError(
            f"{type(module).__name__} around a choice must not be compiled: "
            "compile the network that subnet returns"
        )
    copied = object.__new__(type(module))
    copied.__dict__ = {**attributes, "_modules": children}
    return copied


def derive(model: nn.Module, values: Mapping[str, object]) -> nn.Module:
    """A copy of the model in which the selected candidate stands in the place of every `Choice`.

    The copy shares nothing with the model. Modules shared inside the model stay shared inside
    the copy.

    Args and raises: see `subnet`.
    """
    return copy.deepcopy(subnet(model, values))
