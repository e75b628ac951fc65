"""Search spaces: named categorical, integer and real variables, and samples of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import zip_longest
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from asng_ext._checks import (
    brief,
    check_integer,
    check_mapping,
    check_number,
    check_truth_value,
    is_integer,
    is_number,
    listed,
)

__all__ = ["Categorical", "Integer", "Real", "Samples", "SearchSpace", "Variable"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

MOST_CHOICES = 2**24
"""Of one categorical variable."""

# Squares and cubes of sigma^2 occur in the Fisher information, hence the limit.
_MOST_BOUND = 10**30


@dataclass(frozen=True)
class Categorical:
    """A choice among values that have no order.

    Args:
        values: The choices, at least one: a list or tuple, a range, or an array of one dimension.
            NumPy's numbers and texts are kept as Python's. With a single value there is nothing to
            search, and the variable costs nothing.
        labels: What the choices are called in the state of an optimizer, one text for each, which
            must be the same when the state is loaded. By default their ``repr`` without memory
            addresses, which does not tell apart two lambdas, for instance.

    Raises:
        ValueError: If ``values`` is empty or too long, holds a value twice (equal values of
            different types, such as 1 and True, are two), or there is not one label for each.
        TypeError: If ``values`` is a string or not a sequence, or a label is not a string.
    """

    values: tuple[Any, ...]
    labels: tuple[str, ...] = field(default=(), repr=False)

    def __init__(
        self, values: Sequence[Any] | npt.NDArray[Any], labels: Sequence[str] = ()
    ) -> None:
        if isinstance(values, np.ndarray):
            if values.ndim != 1:
                raise ValueError(f"values must have one dimension, got shape {values.shape}")
            values = list(values)
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TypeError(
                "values must be a list or tuple of choices, a range or an array, "
                f"got {brief(values)}"
            )
        if not values:
            raise ValueError("values must hold at least one choice, got none")
        try:
            count = len(values)
        except OverflowError:  # a very long range
            count = MOST_CHOICES + 1
        if count > MOST_CHOICES:
            raise ValueError(
                f"values must hold at most {MOST_CHOICES} choices, got {brief(values)}"
            )
        labels = listed("labels", labels, "strings")
        if not all(isinstance(label, str) for label in labels):
            raise TypeError(f"labels must be a list or tuple of strings, got {brief(labels)}")
        if labels and len(labels) != count:
            raise ValueError(f"labels must hold one for each of {count} values, got {len(labels)}")
        if not isinstance(values, range):
            values = tuple(map(_plain, values))
            twice = _duplicate(values)
            if twice is not None:
                first, second = twice
                raise ValueError(
                    f"values must differ, got {values[first]!r} twice, at {first} and {second}"
                )
        object.__setattr__(self, "values", tuple(values))
        object.__setattr__(self, "labels", tuple(labels))

    def index(self, value: Any) -> int:
        """The position of ``value`` among the choices (ValueError if it is none of them)."""
        for position, choice in enumerate(self.values):
            if choice is value or (type(choice) is type(value) and _equal(choice, value)):
                return position
        for position, choice in enumerate(self.values):
            if _equal(choice, value):
                return position
        raise ValueError(f"must be one of {brief(list(self.values))}, got {brief(value)}")


@dataclass(frozen=True)
class Integer:
    """An integer between ``low`` and ``high``, both included.

    Its distribution is a Gaussian whose draws are clipped and rounded only when they are decoded
    (Section 3.3); the standard deviation stays at or above 1/4, or, in general, a quarter of the
    least distance of two values. With a single value, ``low == high``, there is nothing to search,
    and the variable costs nothing.

    Args:
        low, high: The range.
        step: Values are ``low, low + step, ..., high``.
        log: The Gaussian is one of the logarithm, for a variable whose ratios matter rather than
            its differences. Draws are rounded to the value that is nearest in the logarithm.

    Raises:
        TypeError: If an argument is not an integer, or ``log`` not a truth value.
        ValueError: If ``low > high``, ``step`` is below 1 or does not lead from low to high, or
            the range of a logarithm is not above 0.
    """

    low: int
    high: int
    step: int = field(default=1, kw_only=True)
    log: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            check_integer(name, value, 1 if name == "step" else -_MOST_BOUND, _MOST_BOUND + 1)
            object.__setattr__(self, name, int(value))
        _check_bounds(self)
        beyond = (self.high - self.low) % self.step
        if beyond:
            raise ValueError(
                f"high must be low plus a multiple of step={self.step}, such as "
                f"{self.high - beyond}, got low={self.low} and high={self.high}"
            )

    def __repr__(self) -> str:
        # States of optimizers hold it: without options it must stay as it is.
        step = f", step={self.step}" if self.step > 1 else ""
        log = ", log=True" if self.log else ""
        return f"Integer(low={self.low}, high={self.high}{step}{log})"

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Least and largest mean of the Gaussian, the range or its logarithm."""
        return _bounds(self)

    @property
    def std_min(self) -> float:
        """The smallest standard deviation of the Gaussian."""
        if self.log and self.low < self.high:
            # The two largest values are the nearest ones.
            return math.log1p(self.step / (self.high - self.step)) / 4
        return self.step / 4

    def decode(self, draw: float) -> int:
        """The value of a draw, clipped and rounded."""
        draw = min(max(draw, self.bounds[0]), self.bounds[1])
        if self.log:
            number = math.exp(draw)
            below = self.low + self.step * math.floor((number - self.low) / self.step)
            below = min(max(below, self.low), self.high - self.step)
            above = below + self.step
            return above if number * number > below * above else below
        if self.step > 1:
            return self.low + self.step * round((draw - self.low) / self.step)
        return round(draw)

    def encode(self, value: Any) -> float:
        """The draw that stands for ``value`` (TypeError, ValueError if it is none of the range)."""
        if not is_integer(value):
            raise TypeError(f"must be an integer, got {brief(value)}")
        _check_range(self, value)
        if (int(value) - self.low) % self.step:
            raise ValueError(f"must be {self.low} plus a multiple of {self.step}, got {value}")
        return math.log(value) if self.log else float(value)


@dataclass(frozen=True)
class Real:
    """A real number between ``low`` and ``high``, both included.

    Its distribution is a Gaussian whose draws are clipped when they are decoded.

    Args:
        low, high: The range.
        resolution: The difference that begins to matter, by default a hundredth of the range. The
            standard deviation stays at or above a quarter of it, as for integers, whose
            resolution is 1. With a single value, ``low == high``, it is of no use and kept as 0.
        log: The Gaussian is one of the natural logarithm, for a variable whose ratios matter
            rather than its differences, such as a learning rate. ``resolution`` is then the
            logarithm's: 0.01 is about a percent of the value. Values have 12 digits.

    Raises:
        TypeError: If an argument is not a number, or ``log`` not a truth value.
        ValueError: If ``low > high``, a bound is not finite, the range is too narrow for double
            precision, the resolution is not in (0, 2 * (high - low)], or the range of a logarithm
            is not above 0.
    """

    low: float
    high: float
    resolution: float = field(default=math.nan)
    log: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("low", "high", "resolution"):
            value = getattr(self, name)
            if not (name == "resolution" and is_number(value) and value != value):
                most = math.inf if name == "resolution" else float(_MOST_BOUND)
                check_number(name, value, least=-most, most=most)
            object.__setattr__(self, name, float(value))
        _check_bounds(self)
        width = self.bounds[1] - self.bounds[0]
        if width == 0 or math.isnan(self.resolution):
            object.__setattr__(self, "resolution", width / 100)
        if width > 0 and not 0 < self.resolution <= 2 * width:
            of = " of the logarithm" if self.log else ""
            raise ValueError(
                f"resolution must be above 0 and at most twice the range {width}{of}, "
                f"got {self.resolution}"
            )

    def __repr__(self) -> str:
        # States of optimizers hold it: without options it must stay as it is.
        log = ", log=True" if self.log else ""
        return f"Real(low={self.low}, high={self.high}, resolution={self.resolution}{log})"

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """Least and largest mean of the Gaussian, the range or its logarithm."""
        return _bounds(self)

    @property
    def std_min(self) -> float:
        """The smallest standard deviation of the Gaussian."""
        return self.resolution / 4

    def decode(self, draw: float) -> float:
        """The value of a draw, clipped."""
        low, high = self.bounds
        if not self.log:
            return min(max(draw, low), high)
        if low < draw < high:
            # exp(log(x)) is not quite x: without the last digits, what was encoded comes back.
            return min(max(float(f"{math.exp(draw):.12g}"), self.low), self.high)
        return self.low if draw <= low else self.high

    def encode(self, value: Any) -> float:
        """The draw that stands for ``value`` (TypeError, ValueError if it is none of the range)."""
        if not is_number(value):
            raise TypeError(f"must be a number, got {brief(value)}")
        _check_range(self, value)
        return math.log(value) if self.log else float(value)


Variable = Categorical | Integer | Real


def _plain(choice: Any) -> Any:
    """A number, truth value or text of NumPy as Python's; anything else as it is."""
    return choice.item() if isinstance(choice, (np.number, np.bool_, np.character)) else choice


def _duplicate(choices: Sequence[Any]) -> tuple[int, int] | None:
    """Positions of the first choice that comes again, and of where it does."""
    places: dict[tuple[type, Any], int] = {}
    unhashable: list[int] = []
    for i, choice in enumerate(choices):
        try:
            first = places.setdefault((type(choice), choice), i)
        except TypeError:
            first = next((j for j in unhashable if _same(choices[j], choice)), i)
            unhashable.append(i)
        if first != i:
            return first, i
    return None


def _equal(choice: Any, value: Any) -> bool:
    """Whether a value is a choice; an array of answers is no answer."""
    try:
        answer = choice == value
    except (TypeError, ValueError, RuntimeError):
        return False
    return isinstance(answer, (bool, np.bool_)) and bool(answer)


def _same(one: Any, other: Any) -> bool:
    """Whether two choices are one; those which cannot tell, such as arrays, are if identical."""
    if one is other or type(one) is not type(other):
        return one is other
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):
        return False


def _label(choice: Any) -> str:
    """A choice as text that is the same in every process."""
    if isinstance(choice, np.generic):
        choice = choice.item()
    kind: Any = type(choice)
    if kind in (int, str, float, bytes):
        return repr(choice)
    if kind in (tuple, list):
        inner = ", ".join(map(_label, choice))
        return f"[{inner}]" if kind is list else f"({inner})"
    if kind in (set, frozenset):  # their order differs between processes
        return f"{kind.__name__}({', '.join(sorted(map(_label, choice)))})"
    if kind is dict:
        return f"{{{', '.join(f'{_label(k)}: {_label(v)}' for k, v in choice.items())}}}"
    # Without the module, which is __main__ in a script and has its name when that is imported.
    if isinstance(choice, type):
        return f"<class {choice.__qualname__}>"
    if kind.__repr__ is object.__repr__:
        return f"<{kind.__qualname__} object>"
    return without_addresses(repr(choice))


def without_addresses(text: str) -> str:
    """A ``repr`` without the memory addresses in it."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _bounds(variable: Integer | Real) -> tuple[float, float]:
    low, high = variable.low, variable.high
    return (math.log(low), math.log(high)) if variable.log else (low, high)


def _check_bounds(variable: Integer | Real) -> None:
    low, high, log = variable.low, variable.high, variable.log
    check_truth_value("log", log)
    object.__setattr__(variable, "log", bool(log))
    if low > high:
        raise ValueError(f"low must be at most high, got low={low} and high={high}")
    if log and low <= 0:
        raise ValueError(f"low must be above 0 for a logarithm, got {low}")
    start, end = variable.bounds
    if low < high and end - start < max(1e-30, 1e-9 * max(abs(start), abs(end))):
        what = "log(high / low)" if log else "high - low"
        size = "logarithms'" if log else "bounds'"
        raise ValueError(
            f"{what} must be at least 1e-9 of the {size} size, got low={low} and high={high}"
        )


def _check_range(variable: Integer | Real, value: Any) -> None:
    if not variable.low <= value <= variable.high:
        raise ValueError(f"must be in [{variable.low}, {variable.high}], got {brief(value)}")


class SearchSpace(Mapping[str, Variable]):
    """Named variables in a fixed order; a read-only mapping from name to variable.

    Columns of ``Samples.categorical`` are the categorical variables, columns of
    ``Samples.numerical`` the integer and real ones, each in the order of the mapping. An integer
    or real variable of a single value has no Gaussian: it is a choice of one among the former.

    Args:
        variables: At least one variable by name.
        active_if: By name of a variable, on which it depends whether there is one: the value, or
            the list of values, that categorical variables must have, by their names, such as
            ``{"momentum": {"optimizer": "sgd"}}``. A sample that does not have them has no value of
            the variable, and its draw, which is in the arrays all the same, moves no distribution.
            A variable on which another depends may itself depend on others.

    Attributes:
        categorical: Variable of each column of ``Samples.categorical`` by name.
        numerical: Variable of each column of ``Samples.numerical`` by name.
        active_if: The conditions, with tuples of values.

    Raises:
        TypeError: If a name is not a string, a variable is none of the three kinds, or conditions
            are not mappings.
        ValueError: If there is no variable, or a condition is not of other, categorical variables
            and their values, or they go round in a circle.
    """

    def __init__(
        self,
        variables: Mapping[str, Variable],
        *,
        active_if: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if not isinstance(variables, Mapping):
            raise TypeError(
                f"variables must map names to variables, got {type(variables).__name__}"
            )
        if not variables:
            raise ValueError("variables must hold at least one variable, got none")
        for name, variable in variables.items():
            if not isinstance(name, str):
                raise TypeError(f"the name of a variable must be a string, got {brief(name)}")
            if not isinstance(variable, (Categorical, Integer, Real)):
                raise TypeError(
                    f"variable {name!r} must be Categorical, Integer or Real, got {brief(variable)}"
                )
        self._variables = dict(variables)
        self.categorical: dict[str, Categorical] = {}
        self.numerical: dict[str, Integer | Real] = {}
        for name, variable in variables.items():
            if isinstance(variable, Categorical):
                self.categorical[name] = variable
            elif variable.low == variable.high:
                self.categorical[name] = Categorical((variable.low,))
            else:
                self.numerical[name] = variable
        self.active_if: dict[str, dict[str, tuple[Any, ...]]] = {}
        self._conditions = self._checked_conditions(active_if or {})

    def _checked_conditions(
        self, active_if: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, list[tuple[str, int, list[int]]]]:
        """For each conditional variable names, columns and indices of the choices that it needs;
        those come first on which others depend."""
        if not isinstance(active_if, Mapping):
            raise TypeError(f"active_if must map names to conditions, got {brief(active_if)}")
        columns = {name: column for column, name in enumerate(self.categorical)}
        found: dict[str, list[tuple[str, int, list[int]]]] = {}
        for name, conditions in active_if.items():
            if name not in self._variables:
                raise ValueError(f"active_if must be of variables of the space, got {name!r}")
            if not isinstance(conditions, Mapping) or not conditions:
                raise TypeError(
                    f"active_if[{name!r}] must map names to values, at least one, "
                    f"got {brief(conditions)}"
                )
            needed = []
            for other, values in conditions.items():
                if other not in columns:
                    raise ValueError(
                        f"active_if[{name!r}] must name categorical variables, got {other!r}"
                    )
                choices = self.categorical[other]
                try:
                    try:  # a choice may itself be a tuple
                        indices = [choices.index(values)]
                    except ValueError:
                        if not isinstance(values, (list, tuple, range)) or not values:
                            raise
                        indices = sorted({choices.index(value) for value in values})
                except ValueError as error:
                    raise ValueError(f"active_if[{name!r}]: value of {other!r} {error}") from None
                needed.append((other, columns[other], indices))
            found[name] = needed
            self.active_if[name] = {
                other: tuple(self.categorical[other].values[i] for i in indices)
                for other, _, indices in needed
            }
        try:
            order = TopologicalSorter({n: [o for o, *_ in c] for n, c in found.items()})
            return {name: found[name] for name in order.static_order() if name in found}
        except CycleError as error:
            circle = " → ".join(reversed(error.args[1]))
            raise ValueError(f"active_if must not go round in a circle, got {circle}") from None

    @classmethod
    def from_sizes(
        cls,
        categories: Sequence[int] | npt.NDArray[Any] = (),
        integers: Sequence[tuple[int, int]] | npt.NDArray[Any] = (),
        reals: Sequence[tuple[float, float]] | npt.NDArray[Any] = (),
    ) -> SearchSpace:
        """An anonymous space: variables ``x0, x1, ...``, categorical ones first.

        Args:
            categories: Number of categories of each categorical variable; values are indices.
            integers: (low, high) of each integer variable.
            reals: (low, high) of each real variable.
        """
        variables: list[Variable] = []
        for size in listed("categories", categories, "integers"):
            if not is_integer(size) or not 1 <= size <= MOST_CHOICES:
                raise ValueError(
                    f"categories must be integers from 1 to {MOST_CHOICES}, got {brief(size)}"
                )
            variables.append(Categorical(range(int(size))))
        kinds: tuple[tuple[str, Any, type[Integer | Real]], ...] = (
            ("integers", integers, Integer),
            ("reals", reals, Real),
        )
        for name, ranges, kind in kinds:
            for pair in listed(name, ranges, "pairs (low, high)"):
                bounds = listed(name, pair, "pairs (low, high)")
                if len(bounds) != 2:
                    raise ValueError(f"{name} must be pairs (low, high), got {brief(pair)}")
                try:
                    variables.append(kind(*bounds))
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{name}: {error}") from None
        return cls({f"x{i}": variable for i, variable in enumerate(variables)})

    def __getitem__(self, name: str) -> Variable:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        given = f", active_if={self.active_if!r}" if self.active_if else ""
        if len(self) > 8:
            return (
                f"SearchSpace({len(self.categorical)} categorical, "
                f"{len(self.numerical)} numerical variables, n_theta={self.n_theta})"
            )
        return f"SearchSpace({self._variables!r}{given})"

    @property
    def names(self) -> tuple[str, ...]:
        """The variables' names in order."""
        return tuple(self._variables)

    @property
    def variables(self) -> dict[str, Variable]:
        """A copy of the mapping."""
        return dict(self._variables)

    @property
    def sizes(self) -> list[int]:
        """Number of categories of each categorical variable."""
        return [len(variable.values) for variable in self.categorical.values()]

    @property
    def n_theta(self) -> int:
        """Dimension of theta: K - 1 for each categorical variable, 2 for each Gaussian."""
        return sum(self.sizes) - len(self.categorical) + 2 * len(self.numerical)

    @cached_property
    def description(self) -> tuple[str, ...]:
        """Name, kind, and choices or range of each variable in order, as text that is the same in
        every process: two spaces are the same to an optimizer if their descriptions are."""
        described = []
        for name, variable in self._variables.items():
            text = repr(variable)
            if isinstance(variable, Categorical):
                labels = variable.labels or map(_label, variable.values)
                text = f"Categorical({', '.join(labels)})"
            if name in self.active_if:
                needed = (
                    f"{other!r} in [{', '.join(map(_label, values))}]"
                    for other, values in self.active_if[name].items()
                )
                text += f" if {' and '.join(needed)}"
            described.append(f"{name!r}: {text}")
        return tuple(described)

    def difference(self, description: Sequence[str]) -> str | None:
        """Where another space, given by its description, differs first; None if it does not."""
        for i, (other, own) in enumerate(zip_longest(description, self.description)):
            if other != own:
                return f"variable {i} is {other or 'absent'}, not {own or 'absent'}"
        return None

    def decode(
        self,
        categorical: Sequence[int] | npt.NDArray[Any] = (),
        numerical: Sequence[float] | npt.NDArray[Any] = (),
    ) -> dict[str, Any]:
        """Values by name for one sample, without variables that are not active; draws are clipped
        and rounded as variables say.

        Args:
            categorical: (n_cat,) category indices.
            numerical: (n_num,) raw draws.
        """
        for name, row, wanted in (
            ("categorical", categorical, len(self.categorical)),
            ("numerical", numerical, len(self.numerical)),
        ):
            if not isinstance(row, (list, tuple, np.ndarray)):
                raise TypeError(f"{name} must be a sequence of numbers, got {brief(row)}")
            if len(row) != wanted:
                raise ValueError(f"{name} must have {wanted} elements, got {len(row)}")
        indices, draws = iter(categorical), iter(numerical)
        values: dict[str, Any] = {}
        for name in self._variables:
            variable = self.numerical.get(name)
            if variable is not None:
                draw = next(draws)
                if type(draw) is not float:
                    check_number(f"numerical draw of {name!r}", draw)
                    draw = float(draw)
                if draw != draw:
                    raise ValueError(f"numerical draw of {name!r} must be a number, got {draw}")
                values[name] = variable.decode(draw)
                continue
            choices = self.categorical[name].values
            index = next(indices)
            if type(index) is not int and not is_integer(index):
                raise TypeError(
                    f"categorical index of {name!r} must be an integer, got {brief(index)}"
                )
            if not 0 <= index < len(choices):
                raise ValueError(
                    f"categorical index of {name!r} must be in [0, {len(choices)}), "
                    f"got {brief(index)}"
                )
            values[name] = choices[index]
        return {name: values[name] for name in self._active(values)} if self._conditions else values

    def _active(self, values: Mapping[str, Any]) -> list[str]:
        """The variables that are active where others have these values, in order."""
        inactive: set[str] = set()
        for name, needed in self._conditions.items():
            for other, _, indices in needed:
                choices = self.categorical[other]
                if other in inactive or (
                    other in values and choices.index(values[other]) not in indices
                ):
                    inactive.add(name)
        return [name for name in self._variables if name not in inactive]

    @property
    def conditional(self) -> tuple[str, ...]:
        """Names of the conditional variables; those come first on which others depend."""
        return tuple(self._conditions)

    def activity(self, categorical: IntArray) -> tuple[BoolArray, BoolArray]:
        """Which variables each of several samples has.

        Args:
            categorical: (λ, n_cat) category indices.

        Returns:
            (λ, n_cat) and (λ, n_num).
        """
        active = dict.fromkeys(self._variables, np.ones(len(categorical), dtype=bool))
        for name, needed in self._conditions.items():
            active[name] = np.logical_and.reduce(
                [active[o] & np.isin(categorical[:, column], rows) for o, column, rows in needed]
            )
        of_choices = [active[name] for name in self.categorical]
        of_numbers = [active[name] for name in self.numerical]
        empty = np.ones((len(categorical), 0), dtype=bool)
        return (
            np.stack(of_choices, axis=1) if of_choices else empty,
            np.stack(of_numbers, axis=1) if of_numbers else empty,
        )

    def encode(self, values: Mapping[str, Any]) -> tuple[IntArray, FloatArray]:
        """The inverse of :meth:`decode`: (n_cat,) indices and (n_num,) numbers. What stands for
        variables that are not active does not matter: the first choice, or the middle.

        Raises:
            ValueError: If a name is missing or unknown, or a value is outside its variable.
            TypeError: If a number is expected and something else came.
        """
        check_mapping("values", values)
        unknown, missing = set(values) - set(self), set(self) - set(values)
        if missing and self._conditions and not unknown:
            for name in set(self.categorical) & set(values):
                self.position(name, values[name])
            missing &= set(self._active(values))
        if unknown or missing:
            raise ValueError(
                f"values must name the variables of the space; missing: {sorted(missing)}, "
                f"unknown: {sorted(unknown, key=str)}, got {brief(list(values))}"
            )
        indices: list[int] = []
        numbers: list[float] = []
        for name in self._variables:
            if name in values:
                position = self.position(name, values[name])
            else:
                position = sum(self.numerical[name].bounds) / 2 if name in self.numerical else 0
            if name in self.numerical:
                numbers.append(position)
            else:
                indices.append(int(position))
        return np.array(indices, dtype=np.int64), np.array(numbers, dtype=np.float64)

    def position(self, name: str, value: Any) -> float:
        """What stands for a value of a variable: its category index, or the draw of a number.

        Raises:
            ValueError: If the value is outside the variable.
            TypeError: If a number is expected and something else came.
        """
        if not isinstance(name, str) or name not in self._variables:
            raise ValueError(f"name must be one of {brief(list(self))}, got {brief(name)}")
        variable = self._variables[name]
        try:
            if isinstance(variable, Categorical):
                return variable.index(value)
            draw = variable.encode(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"value of {name!r} {error}") from None
        return draw if name in self.numerical else 0

    def samples(self, rows: Sequence[Mapping[str, Any]]) -> Samples:
        """Samples made from dicts, for telling an optimizer about candidates of one's own.

        Raises:
            ValueError, TypeError: If there is none, or one is not a mapping as :meth:`encode` takes
                it.
        """
        return self.samples_called("rows", rows)

    def samples_called(self, argument: str, rows: Any) -> Samples:
        """As :meth:`samples`, of an argument of that name."""
        rows = listed(argument, rows, "mappings from names to values")
        if not rows:
            raise ValueError(f"{argument} must hold at least one sample, got none")
        for i, row in enumerate(rows):
            check_mapping(f"{argument}[{i}]", row)
        encoded = [self.encode(row) for row in rows]
        return Samples(self, np.stack([c for c, _ in encoded]), np.stack([n for _, n in encoded]))


class Samples(Sequence[dict[str, Any]]):
    """Samples of a search space: a sequence of dicts over two arrays.

    Attributes:
        space: The search space.
        categorical: (λ, n_cat) int64, category indices.
        numerical: (λ, n_num) float64, raw draws of the integer and real variables, before
            clipping and rounding; logarithms of those with ``log``. The update uses these.

    Both are arrays, or tensors on its device if an optimizer on a CUDA device drew them; reading
    dicts then synchronizes with the device.
    """

    __slots__ = ("categorical", "numerical", "space")

    def __init__(self, space: SearchSpace, categorical: IntArray, numerical: FloatArray) -> None:
        self.space = space
        self.categorical = categorical
        self.numerical = numerical

    def __len__(self) -> int:
        return len(self.categorical)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int]) -> Samples: ...

    def __getitem__(self, index: int | slice | Sequence[int]) -> dict[str, Any] | Samples:
        """One sample as a dict, or several (a slice or a list of positions) as Samples."""
        if is_integer(index):
            return self.space.decode(
                self.categorical[index].tolist(), self.numerical[index].tolist()
            )
        chosen = index if isinstance(index, slice) else listed("index", index, "positions")
        try:
            return Samples(self.space, self.categorical[chosen], self.numerical[chosen])
        except IndexError as error:
            raise IndexError(
                f"index must be a position among {len(self)} samples, a slice or a list of "
                f"positions, got {brief(index)}: {error}"
            ) from None

    def __repr__(self) -> str:
        return f"Samples({list(self)!r})"
