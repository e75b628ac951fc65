"""Methods that train the weights with random architectures, and choose one by them afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from asng_ext.runs.config import Checked, setting
from asng_ext.strategies.categorical import CategoricalStrategy
from asng_ext.strategies.protocol import Parts
from asng_ext.tasks.protocol import Batch

__all__ = ["Evolution", "RandomSearch", "TrainsUniformly"]


class TrainsUniformly(CategoricalStrategy):
    """Each step trains one architecture, all being equally likely; what follows the last epoch
    chooses one. Until then an arbitrary one is recommended.
    """

    @property
    def chosen_on(self) -> int:
        """The number of batches on which it is chosen; 0 for all that there are."""
        return 0

    @property
    def theta(self) -> None:
        """None: nothing is learned of single choices."""

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        self.best: list[int] = self.uniform(1).categorical[0].tolist()

    def step(self, batches: tuple[Batch, Batch]) -> None:
        self.train_weights(batches[0], self.uniform(1))

    def end_epoch(self, epoch: int) -> None:
        if epoch + 1 == self.epochs:
            self.best = self.choose(list(islice(self.validation(epoch), self.chosen_on or None)))

    def choose(self, batches: Sequence[Batch]) -> list[int]:
        """The architecture that is best on batches that trained no weights."""
        raise NotImplementedError

    def recommend(self) -> dict[str, Any]:
        return self.decoded(self.best)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": list(self.best)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.best = [int(index) for index in state["best"]]


@dataclass(frozen=True)
class RandomSearchOptions(Checked):
    """Settings of random search."""

    rounds: int = setting(1, "rounds of samples", low=1, high=10_000)
    samples: int = setting(1000, "architectures of a round", low=1, high=1_000_000)
    finalists: int = setting(
        10, "of a round: its best on one batch, compared on all batches", low=1, high=1_000_000
    )


class RandomSearch(TrainsUniformly):
    """Random search with weight sharing (Li and Talwalkar, 2019).

    After the last epoch rounds of architectures are drawn and compared on one batch of data that
    trained no weights; the best of each round on all of these data.
    """

    name = "random"
    Options = RandomSearchOptions
    options: RandomSearchOptions

    def choose(self, batches: Sequence[Batch]) -> list[int]:
        best: tuple[float, list[int]] | None = None
        for number in range(self.options.rounds):
            drawn = self.uniform(self.options.samples).categorical.tolist()
            batch = batches[number % len(batches)]
            drawn.sort(key=lambda indices: -self.reward(batch, indices))
            for indices in drawn[: self.options.finalists]:
                reward = self.mean_reward(batches, indices)
                if best is None or reward > best[0]:
                    best = reward, indices
        assert best is not None
        return best[1]


@dataclass(frozen=True)
class EvolutionOptions(Checked):
    """Settings of evolution."""

    population: int = setting(10, "architectures at a time", low=2, high=100_000)
    tournament: int = setting(3, "of them, drawn, whose best has a child", low=1, high=100_000)
    cycles: int = setting(200, "children", low=1, high=1_000_000)
    batches: int = setting(
        10, "of data that train no weights, to compare on; 0 for all", low=0, high=1_000_000
    )


class Evolution(TrainsUniformly):
    """Regularized evolution (Real et al., 2019) on shared weights.

    After the last epoch a population of random architectures evolves: the best of a few that are
    drawn has a child, in which one variable has another choice, and the oldest dies. The best of
    all that lived is chosen.
    """

    name = "evolution"
    Options = EvolutionOptions
    options: EvolutionOptions

    @property
    def chosen_on(self) -> int:
        return self.options.batches

    def choose(self, batches: Sequence[Batch]) -> list[int]:
        options = self.options

        def scored(indices: list[int]) -> tuple[float, list[int]]:
            return self.mean_reward(batches, indices), indices

        population = [scored(row) for row in self.uniform(options.population).categorical.tolist()]
        best = max(population, key=lambda each: each[0])
        for _ in range(options.cycles):
            order = torch.randperm(len(population), generator=self.generator).tolist()
            parent = max(
                (population[i] for i in order[: options.tournament]), key=lambda each: each[0]
            )
            child = scored(self.mutated(parent[1]))
            population = [*population[1:], child]
            best = max(best, child, key=lambda each: each[0])
        return best[1]

    def mutated(self, indices: Sequence[int]) -> list[int]:
        """The architecture with another choice of one variable, all being equally likely."""
        free = [i for i, size in enumerate(self.space.sizes) if size > 1]
        changed = list(indices)
        if free:
            i = free[self._draw(len(free))]
            # One of the others.
            changed[i] = (changed[i] + 1 + self._draw(self.space.sizes[i] - 1)) % self.space.sizes[
                i
            ]
        return changed

    def _draw(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.generator))
