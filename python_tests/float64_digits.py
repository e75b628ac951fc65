"""A classification of images of the size of digits, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import small_classification as small

from asng_ext.tasks.classification import ClassificationTask


class Double(ClassificationTask):
    """In float64, untested."""

    def supernet(self) -> Any:
        return super().supernet().double()

    def network(self, values: Any) -> Any:
        return super().network(values).double()

    def losses(self, supernet: Any, batch: Any, samples: Any) -> Any:
        x, y = self._weight_stream.make(batch)
        losses, accuracy = supernet.population_losses(
            x.double(), y, samples.categorical, self._class_weights
        )
        return losses, {"accuracy": accuracy}

    def training_loss(self, network: Any, batch: Any) -> Any:
        return super().training_loss(network, (batch[0].double(), *batch[1:]))

    def test_supernet(self, supernet: Any, values: Any) -> dict[str, float]:
        return {}

    def test(self, network: Any) -> dict[str, float]:
        return {}

    details = test


def cells(**changes: Any) -> ClassificationTask:
    return Double(
        small.noise(),
        replace(small.TASK, implementation="plain", **changes),
        search_batch_size=20,
        retrain_batch_size=33,
        seed=0,
    )
