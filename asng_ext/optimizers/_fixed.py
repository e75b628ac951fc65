"""Variables that an optimizer leaves at a value.

The optimizer works in a reduced space, where such a variable has that value alone, so that it costs
nothing and the distribution, its margins and its states need to know of nothing. Samples are of
the whole space, so that what reads their columns, such as a supernet, need not know either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asng_ext.optimizers._distribution import Theta
from asng_ext.space import Categorical, Samples, SearchSpace, Variable

if TYPE_CHECKING:
    import torch

__all__ = ["Fixed"]


class Columns(NamedTuple):
    """What stands where, as arrays or as tensors on a device.

    Attributes:
        categorical, numerical: Columns, in samples of the whole space, of the free variables.
        reduced: Columns of the same categorical variables in the reduced space; numerical ones are
            there in the same order and nothing else.
        row, numbers: A sample of the whole space with the values that are fixed and 0 elsewhere.
        reduced_row: The same in the reduced space: zeros.
    """

    categorical: Any
    numerical: Any
    reduced: Any
    row: Any
    numbers: Any
    reduced_row: Any


class Fixed:
    """Between the samples of a space and those of its reduced space.

    Args:
        space: The whole space.
        values: Values by name, all of the space.

    Attributes:
        space: The reduced space.
        values: As samples have them: a logarithm of a real number has 12 digits.
    """

    def __init__(self, space: SearchSpace, values: Mapping[str, Any]) -> None:
        self.whole = space
        self.values: dict[str, Any] = {}
        variables: dict[str, Variable] = dict(space)
        for name, value in values.items():
            variable = variables[name]
            if isinstance(variable, Categorical):
                index = variable.index(value)
                choice = slice(index, index + 1)
                variables[name] = Categorical(variable.values[choice], variable.labels[choice])
                self.values[name] = variable.values[index]
            else:
                number = variable.decode(variable.encode(value))
                variables[name] = replace(variable, low=number, high=number)  # type: ignore[arg-type]
                self.values[name] = number
        active_if, never = _left(space, self.values, variables)
        self.space = SearchSpace(variables, active_if=active_if)

        reduced, categorical = list(self.space.categorical), list(space.categorical)
        numerical = list(space.numerical)
        free = [name for name in categorical if name not in values]
        placed = {**never, **self.values}

        def row(names: list[str]) -> list[float]:
            return [space.position(name, placed[name]) if name in placed else 0 for name in names]

        self._arrays = Columns(
            np.array([categorical.index(name) for name in free], dtype=np.int64),
            np.array([numerical.index(name) for name in self.space.numerical], dtype=np.int64),
            np.array([reduced.index(name) for name in free], dtype=np.int64),
            np.array(row(categorical), dtype=np.int64),
            np.array(row(numerical), dtype=np.float64),
            np.zeros(len(reduced), dtype=np.int64),
        )
        self._tensors: Columns | None = None

    def use(self, device: torch.device) -> None:
        """Gets ready for samples that are tensors on a device."""
        import torch

        self._tensors = Columns(*(torch.from_numpy(array).to(device) for array in self._arrays))

    def to_whole(self, categorical: Any, numerical: Any) -> tuple[Any, Any]:
        """Samples of the whole space from the columns of the reduced one."""
        columns = self._columns(categorical)
        return (
            _placed(columns.row, columns.categorical, categorical[:, columns.reduced]),
            _placed(columns.numbers, columns.numerical, numerical),
        )

    def to_reduced(self, samples: Samples) -> tuple[Any, Any]:
        """Columns of the reduced space from samples of the whole one.

        Raises:
            ValueError: If samples lack columns, or, unless they are tensors, whose values are not
                read, have another value where one is fixed.
        """
        columns = self._columns(samples.categorical)
        if columns is self._arrays:
            categorical: Any = np.asarray(samples.categorical)
            numerical: Any = np.asarray(samples.numerical)
        else:
            device = columns.row.device
            categorical, numerical = samples.categorical.to(device), samples.numerical.to(device)  # type: ignore[attr-defined]
        for name, values, wanted in (
            ("categorical", categorical, len(columns.row)),
            ("numerical", numerical, len(columns.numbers)),
        ):
            if values.ndim != 2 or values.shape[1] != wanted:
                raise ValueError(
                    f"samples.{name} must have shape (λ, {wanted}), got {tuple(values.shape)}"
                )
        if columns is self._arrays:
            self._check(categorical, numerical)
        return (
            _placed(columns.reduced_row, columns.reduced, categorical[:, columns.categorical]),
            numerical[:, columns.numerical],
        )

    def theta(self, reduced: Theta) -> Theta:
        """The distribution over the whole space: at a value that is fixed the probability is 1, or
        the variance 0."""
        columns = self._arrays
        sizes = self.whole.sizes
        probabilities = np.zeros((len(sizes), max(sizes, default=0)))
        probabilities[np.arange(len(sizes)), columns.row] = 1.0
        width = min(probabilities.shape[1], reduced.categorical.shape[1])
        probabilities[columns.categorical] = 0.0
        probabilities[columns.categorical, :width] = reduced.categorical[columns.reduced, :width]
        numbers = np.stack([columns.numbers, columns.numbers**2])
        numbers[:, columns.numerical] = reduced.numerical
        return Theta(probabilities, numbers)

    def _columns(self, samples: Any) -> Columns:
        tensors = self._tensors
        return self._arrays if tensors is None or isinstance(samples, np.ndarray) else tensors

    def _check(self, categorical: Any, numerical: Any) -> None:
        """ValueError unless all have the values that are fixed."""
        columns, names = self._arrays, list(self.whole.categorical)
        differs = categorical != columns.row
        differs[:, columns.categorical] = False
        has: Any = True
        has_number: Any = True
        if self.whole.active_if:
            has, has_number = self.whole.activity(categorical)
            differs &= has
        wrong = [names[i] for i in differs.any(axis=0).nonzero()[0]] if differs.any() else []
        differs = numerical != columns.numbers
        differs[:, columns.numerical] = False
        differs &= has_number
        if differs.any():  # draws that are rounded or clipped to the value have it, too
            for i, (name, variable) in enumerate(self.whole.numerical.items()):
                draws = numerical[differs[:, i], i].tolist()
                if any(variable.decode(draw) != self.values[name] for draw in draws):
                    wrong.append(name)
        if wrong:
            name = wrong[0]
            raise ValueError(
                f"samples must have {name!r} at {self.values[name]!r}, where it is fixed, and some "
                "do not"
            )


def _left(
    space: SearchSpace, values: Mapping[str, Any], variables: dict[str, Variable]
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The conditions that are left where variables are fixed, and variables that are never active,
    with the single value that they get."""
    left: dict[str, dict[str, Any]] = {}
    never: dict[str, Any] = {}
    for name in space.conditional:
        conditions, variable = space.active_if[name], variables[name]
        if any(
            other in never or (other in values and values[other] not in allowed)
            for other, allowed in conditions.items()
        ):
            if isinstance(variable, Categorical):
                never[name] = variable.values[0]
                variables[name] = Categorical(variable.values[:1], variable.labels[:1])
            else:
                never[name] = variable.low
                variables[name] = replace(variable, high=variable.low)  # type: ignore[arg-type]
        elif open_ := {o: list(allowed) for o, allowed in conditions.items() if o not in values}:
            left[name] = open_
    return left, never


def _placed(row: Any, columns: Any, values: Any) -> Any:
    """Copies of a row, one for each row of ``values``, which takes the place of some columns."""
    shape = (len(values), len(row))
    arrays = isinstance(row, np.ndarray)
    rows = np.empty(shape, values.dtype) if arrays else values.new_empty(shape)
    rows[:] = row
    rows[:, columns] = values
    return rows
