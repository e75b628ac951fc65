"""What tasks on images have in common: the streams of batches, and what results depend on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from asng_ext.data import BatchStream, ImageData, search_parts
from asng_ext.runs.config import Checked, affecting_results
from asng_ext.tasks.protocol import TaskDefaults

__all__ = ["ImageTask"]

Config = TypeVar("Config", bound=Checked)


class ImageTask(TaskDefaults, Generic[Config]):
    """Search and retraining on a set of images, for both loops.

    Args:
        data: The images; half of the training images, drawn by ``seed``, train the weights in the
            search and the other half moves the distribution, unless there is a validation set for
            that.
        config: Settings of the task.
        search_batch_size, retrain_batch_size: Images per step.
        seed: Decides the halves, the order of the images, and whatever else the task draws.
        device: Where to compute.

    Attributes:
        name: The name of the task.
        steps_per_epoch: Steps in an epoch of search and of retraining; 0 for a pass over the data.
    """

    own_generators = True
    retrain_capturable = True
    name: str
    steps_per_epoch = 0

    def __init__(
        self,
        data: ImageData,
        config: Config,
        *,
        search_batch_size: int,
        retrain_batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.data = data.to(self.device)
        self.config = config
        self.seed = seed
        for_weights, for_theta = search_parts(self.data, seed)
        self._weight_stream = self._stream("weights", for_weights, search_batch_size)
        self._theta_stream = self._stream("theta", for_theta, search_batch_size)
        self._retrain_stream = self._stream("retrain", None, retrain_batch_size)

    def _stream(self, name: str, indices: Tensor | None, batch_size: int) -> BatchStream:
        data = self.data
        return BatchStream(
            data.train,
            indices,
            batch_size,
            seed=self.seed,
            name=name,
            augmentation=data.augmentation,
            mean=data.mean,
            std=data.std,
        )

    def identity(self, loop: str) -> dict[str, Any]:
        """What results of a loop depend on, by name."""
        return {
            "task": self.name,
            "task_seed": self._weight_stream.seed,
            **affecting_results(self.config, loop),
            "augmentation": asdict(self.data.augmentation),
            "data": self.data.fingerprint(),
        }

    @property
    def search_steps(self) -> int:
        """Steps per epoch of the search: halves that differ by an image may differ by a batch. A
        validation set is repeated, or not all of it used, in a pass over the other images."""
        weights, theta = len(self._weight_stream), len(self._theta_stream)
        return self.steps_per_epoch or (weights if self.data.validation else min(weights, theta))

    @property
    def retrain_steps(self) -> int:
        """Steps per epoch of the retraining."""
        return self.steps_per_epoch or len(self._retrain_stream)
