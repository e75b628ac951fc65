"""Limits of what an architecture may cost, kept by the order in which samples are ranked.

The utility of a sample is a function of its rank alone (Section 2.4), so a limit needs no weight
against the loss. Samples are ranked by the rules of Deb (2000), "An efficient constraint handling
method for genetic algorithms":

1. Of two samples within all limits the one with the lower loss is better.
2. A sample within all limits is better than one beyond.
3. Of two samples beyond, the one that exceeds the limits less is better.

Update and step size stay as they are, and the scale of losses, which changes while weights are
trained, has no influence. While most samples are beyond, the natural gradient lowers the cost the
most for the change it makes to the distribution, which is left as undecided as the limit allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asng_ext._checks import brief, check_mapping, check_number, check_truth_value
from asng_ext.costs import Cost
from asng_ext.optimizers._distribution import Theta
from asng_ext.optimizers._evaluations import as_array
from asng_ext.space import Samples

__all__ = ["Penalty"]

_BEYOND = 1e300
"""Losses of samples beyond a limit start here."""


class Penalty:
    """Ranks samples that cost more than they may behind those that do not.

    Use ``optimizer.tell(samples, penalty.losses(samples, losses))`` in the place of
    ``optimizer.tell(samples, losses)``.

    Args:
        costs: By name, what gives the costs of samples, such as a :class:`CostTable`.
        limits: By the same names, the most that a sample may cost, above 0, in the cost's unit.
        maximize: Losses are scores to maximize instead; for an optimizer with ``maximize``.

    Raises:
        ValueError, TypeError: If there is no limit, one is not a number above 0, or a name is
            missing on either side.
    """

    def __init__(
        self, costs: Mapping[str, Cost], limits: Mapping[str, float], *, maximize: bool = False
    ) -> None:
        check_mapping("costs", costs)
        check_mapping("limits", limits)
        check_truth_value("maximize", maximize)
        if not limits:
            raise ValueError("limits must hold at least one, got none")
        if set(costs) != set(limits):
            raise ValueError(
                f"costs and limits must have the same names, got {sorted(costs, key=str)} and "
                f"{sorted(limits, key=str)}"
            )
        for name, cost in costs.items():
            if not callable(cost):
                raise TypeError(f"costs[{name!r}] must be a function of samples, got {brief(cost)}")
        for name, limit in limits.items():
            check_number(f"limits[{name!r}]", limit, 0.0)
        self.costs = dict(costs)
        self.limits = {name: float(limit) for name, limit in limits.items()}
        self.maximize = bool(maximize)

    def losses(self, samples: Samples, losses: Any) -> Any:
        """Losses by which samples are ranked as they should be.

        Within the limits they are those given, so that ``best`` of the optimizer is the best sample
        within them. Beyond, they are numbers from 1e300 on that grow with the excess. Losses that
        are not finite stay as they are and rank last.

        Args:
            samples: As ``ask`` gave them.
            losses: (λ,) of them: a list, an array or a tensor.

        Returns:
            (λ,) float64, an array or a tensor on the device of ``losses``.

        Raises:
            ValueError, TypeError: If the numbers of costs, samples and losses differ, or costs or
                losses are no numbers.
        """
        return self.ranked(samples, losses)[0]

    def ranked(self, samples: Samples, losses: Any) -> tuple[Any, dict[str, Any]]:
        """As :meth:`losses`, and what there is to show, (λ,) and beside the losses: the costs of
        the samples by name, and as "within_limits" 1 for those within all limits and 0 for
        others."""
        tensor = hasattr(losses, "detach")
        losses = losses.detach().double() if tensor else as_array(losses)
        costs = self.costs_of(samples, losses if tensor else None)
        excess = self.excess_of(costs)
        if losses.ndim != 1:
            raise ValueError(f"losses must have shape (λ,), got {tuple(losses.shape)}")
        if excess.shape != losses.shape:
            raise ValueError(
                f"costs must be one for each of {losses.shape[0]} losses, got {excess.shape[0]}"
            )
        within = excess <= 0
        # Not finite where the excess is not a number: such a sample ranks last.
        beyond = _BEYOND * (2 - 1 / (1 + excess))
        kept = within | ~(abs(losses) < _BEYOND)
        signed = -beyond if self.maximize else beyond
        if tensor:
            return losses.where(kept, signed), {**costs, "within_limits": within.double()}
        return np.where(kept, losses, signed), {**costs, "within_limits": within.astype(float)}

    def costs_of(self, samples: Samples, beside: Any = None) -> dict[str, Any]:
        """(λ,) float64 costs of samples by name, as arrays, or as tensors on the device of one.

        Args:
            samples: The samples.
            beside: A tensor, or None.
        """
        found = {name: cost(samples) for name, cost in self.costs.items()}
        if beside is None:
            return {name: as_array(cost, f"costs[{name!r}]") for name, cost in found.items()}
        import torch

        return {
            name: torch.as_tensor(cost, dtype=torch.float64, device=beside.device)
            for name, cost in found.items()
        }

    def excess_of(self, costs: Mapping[str, Any]) -> Any:
        """(λ,) by how much costs exceed their limits: the sum over limits of
        max(0, cost / limit - 1), 0 within all of them."""
        return sum((costs[name] / limit - 1).clip(0.0) for name, limit in self.limits.items())

    def identity(self) -> dict[str, Any]:
        """Plain values by name that are the same where the limits are and, as far as costs have a
        ``fingerprint``, the costs."""
        prints = {
            name: cost.fingerprint()
            for name, cost in self.costs.items()
            if hasattr(cost, "fingerprint")
        }
        return {"limits": self.limits, "costs": prints}

    def recommend(self, optimizer: Any) -> dict[str, Any]:
        """The most likely sample within the limits, as far as a greedy search finds it.

        From what the optimizer recommends, one variable after the other is changed, the one that
        lowers the excess most for the likelihood that it costs, until the sample is within the
        limits or no variable lowers the excess.

        Args:
            optimizer: One of this package; what another recommends is left as it is.
        """
        values: dict[str, Any] = optimizer.recommend()
        theta = getattr(optimizer, "theta", None)
        if not isinstance(theta, Theta):
            return values
        space = optimizer.space
        with np.errstate(divide="ignore"):
            likely = np.log(theta.categorical)
        mean = theta.numerical[0]
        std = np.sqrt(np.maximum(theta.numerical[1] - mean**2, 0.0))
        choice, draw = space.encode(values)
        while True:
            rows: list[tuple[Any, Any]] = [(choice, draw)]
            lost = [0.0]
            for i, size in enumerate(space.sizes):
                for other in set(range(size)) - {int(choice[i])}:
                    rows.append((_with(choice, i, other), draw))
                    lost.append(likely[i, choice[i]] - likely[i, other])
            for i in np.flatnonzero(std).tolist():
                for z in _STEPS:
                    moved = mean[i] + z * std[i]
                    rows.append((choice, _with(draw, i, moved)))
                    lost.append((z**2 - ((draw[i] - mean[i]) / std[i]) ** 2) / 2)
            samples = Samples(space, *(np.stack(columns) for columns in zip(*rows)))
            excess = self.excess_of(self.costs_of(samples))
            lowered = excess[0] - excess
            possible = np.flatnonzero((lowered > 0) & np.isfinite(lost))
            if not excess[0] > 0 or not len(possible):
                found: dict[str, Any] = space.decode(choice, draw)
                return found
            best = possible[np.argmin(np.array(lost)[possible] / lowered[possible])]
            choice, draw = rows[best]


_STEPS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
"""Standard deviations from the mean that are tried."""


def _with(row: Any, position: int, value: float) -> Any:
    changed = row.copy()
    changed[position] = value
    return changed
