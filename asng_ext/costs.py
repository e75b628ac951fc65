"""What samples of a search space cost, as tables of their choices."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from asng_ext._checks import brief, check_mapping, check_number, listed

if TYPE_CHECKING:
    from asng_ext.optimizers import Theta
    from asng_ext.space import Samples, SearchSpace

__all__ = ["Cost", "CostTable", "Term"]

Cost: TypeAlias = "Callable[[Samples], Any]"
"""What gives (λ,) costs of samples, at least 0: an array, a list, or a tensor on the device where
samples are."""


@dataclass(frozen=True)
class Term:
    """A part of a cost that some architectures have.

    Attributes:
        cost: How much, in any unit; negative for what is counted otherwise as well.
        where: Those in which all of these variables have these values.
        unless: Of them, those in which none of these variables has its value.
    """

    cost: float
    where: Mapping[str, Any] = field(default_factory=dict)
    unless: Mapping[str, Any] = field(default_factory=dict)


class CostTable:
    """A cost that is a sum of terms of choices.

    Args:
        space: The search space.
        terms: What adds to the cost, and where. Conditions are of categorical variables.
        base: What all architectures cost.

    Raises:
        ValueError, TypeError: If a cost is not finite, or a condition not of a categorical variable
            and one of its values.
    """

    def __init__(self, space: SearchSpace, terms: Iterable[Term] = (), base: float = 0.0) -> None:
        if not hasattr(space, "categorical"):
            raise TypeError(f"space must be a SearchSpace, got {brief(space)}")
        check_number("base", base)
        self.space = space
        self.base = float(base)
        self.terms = tuple(listed("terms", terms, "Term"))
        names = list(space.categorical)
        rows: list[list[tuple[int, int, bool]]] = []
        for term in self.terms:
            if not isinstance(term, Term):
                raise TypeError(f"terms must be a sequence of Term, got {brief(term)} in it")
            check_number("the cost of a term", term.cost)
            check_mapping("where of a term", term.where)
            check_mapping("unless of a term", term.unless)
            row = []
            for equal, conditions in ((True, term.where), (False, term.unless)):
                for name, value in conditions.items():
                    if name not in space.categorical:
                        raise ValueError(
                            f"terms must be of categorical variables of the space, got {name!r}"
                        )
                    for other, allowed in space.active_if.get(name, {}).items():
                        if term.where.get(other) not in allowed:
                            raise ValueError(
                                f"terms of {name!r}, which is conditional, must say as well that "
                                f"{other!r} is one of {list(allowed)}"
                            )
                    row.append((names.index(name), int(space.position(name, value)), equal))
            rows.append(row)
        width = max(1, max(map(len, rows), default=0))
        filling = (0, -1, False)  # no choice has this index: the condition holds
        filled = [row + [filling] * (width - len(row)) for row in rows]
        table = np.array(filled, dtype=np.int64).reshape(len(rows), width, 3)
        costs = np.array([term.cost for term in self.terms], dtype=np.float64)
        self._arrays = (table[..., 0], table[..., 1], table[..., 2] != 0, costs)
        self._on_device: dict[Any, tuple[Any, ...]] = {}

    @classmethod
    def of_choices(
        cls,
        space: SearchSpace,
        costs: Mapping[str, Mapping[Any, float] | Sequence[float]],
        base: float = 0.0,
    ) -> CostTable:
        """A cost to which each variable adds what its choice costs.

        Args:
            space: The search space.
            costs: By variable, the cost of each of its choices: by choice, where those that are
                left out cost nothing, or all in order.
            base: What all architectures cost.

        Raises:
            ValueError, TypeError: As the constructor does.
        """
        terms = []
        check_mapping("costs", costs)
        for name, of_choice in costs.items():
            if not isinstance(of_choice, Mapping):
                of_choice = listed(f"costs of {name!r}", of_choice, "numbers")
                values = space.categorical[name].values if name in space.categorical else ()
                if len(values) != len(of_choice):
                    raise ValueError(
                        f"costs of {name!r} must be one for each of its {len(values)} choices, "
                        f"got {len(of_choice)}"
                    )
                of_choice = dict(zip(values, of_choice))
            terms += [Term(cost, {name: value}) for value, cost in of_choice.items()]
        return cls(space, terms, base)

    def __call__(self, samples: Samples) -> Any:
        """(λ,) float64 costs of samples, where they are.

        Raises:
            ValueError, TypeError: If they are not samples with the choices of the table's space.
        """
        if not hasattr(samples, "space"):
            raise TypeError(f"samples must be Samples, got {brief(samples)}")
        if samples.space is not self.space:
            choices = [dict(zip(s.categorical, s.sizes)) for s in (self.space, samples.space)]
            if list(choices[0].items()) != list(choices[1].items()):
                raise ValueError(
                    f"samples must have the choices of the table's space, {brief(choices[0])}, "
                    f"got {brief(choices[1])}"
                )
        indices = samples.categorical
        columns, values, equal, costs = self._beside(indices)
        holds = ((indices[:, columns] == values) == equal).all(-1)
        return (holds * costs).sum(-1) + self.base

    def _beside(self, indices: Any) -> tuple[Any, ...]:
        """The table where the samples are."""
        if isinstance(indices, np.ndarray):
            return self._arrays
        if indices.device not in self._on_device:
            import torch

            self._on_device[indices.device] = tuple(
                torch.from_numpy(array).to(indices.device) for array in self._arrays
            )
        return self._on_device[indices.device]

    def expected(self, theta: Theta) -> float:
        """The expected cost of a sample of the distribution, exactly.

        Args:
            theta: As :attr:`Optimizer.theta` gives it.

        Raises:
            ValueError: If it is none of the table's space.
        """
        shape = getattr(getattr(theta, "categorical", None), "shape", None)
        wanted = len(self.space.sizes), max(self.space.sizes, default=0)
        if shape != wanted:
            raise ValueError(
                f"theta must have probabilities of shape {wanted}, got {shape or brief(theta)}"
            )
        columns, values, equal, costs = self._arrays
        likely = theta.categorical[columns, values]
        likely = np.where(equal, likely, np.where(values < 0, 1.0, 1 - likely))
        return float((likely.prod(axis=1) * costs).sum()) + self.base

    def fingerprint(self) -> str:
        """A text that is the same where the table is."""
        content = [self.base, *(array.tolist() for array in self._arrays)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
