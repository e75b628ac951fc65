"""A search optimizer of one's own in the search loop of this package: PBIL.

Population-based incremental learning (Baluja, 1994) moves the probabilities towards the best
sample. The loop needs the members of `asng_ext.tasks.protocol.Optimizer`, no more; `register` makes
it known as `asng search classification --search-optimizer PBIL` to a program that imports this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import asng_ext as asng
from asng_ext import optimizers


class PBIL:
    """Of categorical variables.

    Args:
        space: What to search.
        population_size: Samples per `ask`.
        seed: Decides the samples.
        rate: How far the probabilities move, in (0, 1].
    """

    capturable = False  # it works on the host, so its steps are not replayed as CUDA graphs

    def __init__(
        self, space: asng.SearchSpace, *, population_size: int, seed: int | None, rate: float = 0.05
    ) -> None:
        self.space = space
        self.population_size = population_size
        self.delta = rate
        self.theta = [np.full(size, 1 / size) for size in space.sizes]
        self.generator = np.random.default_rng(seed)

    def ask(self) -> asng.Samples:
        indices = [self.generator.choice(len(p), self.population_size, p=p) for p in self.theta]
        return asng.Samples(self.space, np.stack(indices, 1), np.empty((self.population_size, 0)))

    def tell(self, samples: asng.Samples, losses: Any) -> None:
        best = samples.categorical[int(np.argmin([float(loss) for loss in losses]))]
        for probabilities, index in zip(self.theta, best):
            probabilities *= 1 - self.delta
            probabilities[index] += self.delta
            probabilities /= probabilities.sum()

    def recommend(self) -> dict[str, Any]:
        return self.space.decode([int(p.argmax()) for p in self.theta], [])

    @property
    def convergence(self) -> float:
        return float(np.mean([p.max() for p in self.theta]))

    def state_dict(self) -> dict[str, Any]:
        return {
            "theta": [p.tolist() for p in self.theta],
            "generator": self.generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.theta = [np.array(p) for p in state["theta"]]
        self.generator.bit_generator.state = state["generator"]


optimizers.register("PBIL", PBIL)


def main() -> None:
    from asng_ext.engine.search import search
    from asng_ext.runs.config import SearchConfig
    from asng_ext.tasks.classification import ClassificationConfig, ClassificationTask, load_data

    config = ClassificationConfig(data="digits", nodes=1, cells=3, channels=8)
    task = ClassificationTask(
        load_data(config, seed=0), config, search_batch_size=32, retrain_batch_size=32, seed=0
    )
    settings = SearchConfig(epochs=8, learning_rate=0.1)
    for name in ("PBIL", "ASNG"):
        optimizer = optimizers.make(name, task.space, population_size=2, seed=0)
        row = search(task, optimizer, settings, seed=0, stream=None).rows[-1]
        print(f"{name}: convergence {row['convergence']:.2f}", end=", ")
        print(f"test accuracy {row['test_accuracy']:.3f}")


if __name__ == "__main__":
    main()
