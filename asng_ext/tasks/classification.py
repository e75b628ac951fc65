"""Image classification by stacked cells (Section 3.2): data, supernet, loss, retraining recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext._random import seeded_generator
from asng_ext.costs import Cost
from asng_ext.data import (
    BatchPlan,
    ImageData,
    evaluation_batches,
    load_cifar10,
    load_digits,
)
from asng_ext.nn import (
    CellNetwork,
    CellSupernet,
    Latencies,
    cell_costs,
    cell_supernet,
    count_flops,
    parameter_count,
    widest_channels,
)
from asng_ext.nn.cell_network import accuracy_of
from asng_ext.nn.operations import make_operation, plain_norm
from asng_ext.ops import _libraries
from asng_ext.retrained import ImageClassifier
from asng_ext.space import Samples, SearchSpace
from asng_ext.tasks.images import ImageTask
from asng_ext.tasks.protocol import Metrics
from asng_ext.tasks.settings import ClassificationConfig
from asng_ext.training.precision import autocast

__all__ = ["ClassificationConfig", "ClassificationTask", "load_data"]

Labeled = tuple[Tensor, Tensor]
"""(x, y): images and labels."""
_TEST_BATCH = 500


def load_data(config: ClassificationConfig, seed: int) -> ImageData:
    """The data set that the settings name, with the augmentation they ask for.

    Raises:
        ValueError: If no data set is named, or files of it are broken.
        FileNotFoundError: If the folder does not hold CIFAR-10.
    """
    if not config.data:
        raise ValueError(
            'data must be "digits" or the folder of CIFAR-10, the one that holds '
            "cifar-10-batches-py or cifar-10-batches-bin, or one of these itself; got nothing"
        )
    data = load_digits(seed) if config.data == "digits" else load_cifar10(config.data)
    given = {"crop_padding": config.crop_padding, "cutout": config.cutout}
    chosen: dict[str, Any] = {name: pixels for name, pixels in given.items() if pixels >= 0}
    return replace(data, augmentation=replace(data.augmentation, **chosen))


class ClassificationTask(ImageTask[ClassificationConfig]):
    """Search and retraining of a classifier, for both loops.

    Its arguments are those of :class:`ImageTask`; the settings are of the supernet and the final
    network, and ``seed`` also decides augmentation and drop-path.
    """

    name = "classification"
    shown_metrics = MappingProxyType({"accuracy": "accuracy"})

    def __init__(
        self, data: ImageData, config: ClassificationConfig, *, search_batch_size: int, **named: Any
    ) -> None:
        self.cell_space = config.make_space()
        self._space = self.cell_space.search_space()
        # One size of batches for both halves, of which one may be an image larger.
        smaller_half = len(data.train) // 2
        super().__init__(
            data, config, search_batch_size=min(search_batch_size, smaller_half), **named
        )
        self._check_limit()
        self._check_batch_sizes()

    def _check_limit(self) -> None:
        """Every architecture must fit into the limit: found out before the search, not after."""
        try:
            self.channels(self._largest())
        except ValueError:
            raise ValueError(
                f"parameter_limit must leave room for the largest architecture of "
                f"{self.config.nodes} nodes and {self.config.final_cells} cells, "
                f"got {self.config.parameter_limit}"
            ) from None

    def _check_batch_sizes(self) -> None:
        """Labeled normalization cannot train on a single value per channel: found out before the
        search, not after."""
        height, width = self.data.image_size
        if self._weight_stream.batch_size == 1 and max(height, width) <= 4:
            raise ValueError(
                f"batch_size must be at least 2 for images of {height}×{width} pixels, of which "
                "the last cells see one, got 1"
            )
        if self._retrain_stream.batch_size > 1:
            return
        with torch.device("meta"):  # shapes without arithmetic
            network = self._network(self._largest())
            try:
                network(torch.empty(1, self.data.channels, height, width))
            except ValueError:
                raise ValueError(
                    "the batch_size of retraining must be at least 2 for this network and images "
                    f"of {height}×{width} pixels, got 1"
                ) from None

    def _largest(self) -> dict[str, Any]:
        """The architecture with the most weights."""

        def weights(name: str) -> int:  # with stride 2, where an identity has some, too
            with torch.device("meta"):  # shapes without drawing random weights
                return parameter_count(make_operation(name, 2, 2, plain_norm))

        operations = self.cell_space.operations
        largest = operations.index(max(operations, key=weights))
        return self.cell_space.to_dict([0, 1, largest, largest] * (2 * self.config.nodes))

    # Search

    @property
    def space(self) -> SearchSpace:
        """4 categorical variables per node of each kind of cell."""
        return self._space

    @property
    def capturable(self) -> bool:  # type: ignore[override]
        """Whether steps can be captured in a graph: on the compiled operators `losses` takes
        samples that are on the device, and reads no number on the host."""
        if self.config.implementation != "auto":
            return self.config.implementation == "fused"
        return _libraries.available_on(self.device)

    def supernet(self) -> CellSupernet:
        """The supernet, on the compiled operators where they can be used."""
        config = self.config
        return cell_supernet(
            self.cell_space,
            implementation="fused" if self.capturable else "plain",
            device=self.device,
            classes=self.data.classes,
            cells=config.cells,
            channels=config.channels,
            in_channels=self.data.channels,
        )

    def weight_batches(self, epoch: int) -> Iterable[BatchPlan]:
        """Plans of the batches of the half that trains the weights."""
        return islice(self._weight_stream.plans(epoch), self.search_steps)

    def theta_batches(self, epoch: int) -> Iterable[BatchPlan]:
        """Plans of the batches of the half that moves the distribution."""
        return islice(self._theta_stream.plans(epoch), self.search_steps)

    def losses(
        self, supernet: nn.Module, batch: BatchPlan, samples: Samples
    ) -> tuple[Tensor, Metrics]:
        """(λ,) cross-entropy in nats, and the mean accuracy.

        The images are made here, so that preparing them is part of the step that is captured.
        """
        # What autocast would make of the images with one more launch.
        half = _libraries.has_cuda_kernels(self.device) and self.config.precision == "bfloat16"
        dtype = torch.bfloat16 if half else torch.float32
        x, y = self._weight_stream.make(batch, dtype)  # the other stream would make the same of it
        run = cast(CellSupernet, supernet).population_losses
        with autocast(self.config.precision, self.device):
            losses, accuracy = run(x, y, samples.categorical)
        return losses, {"accuracy": accuracy}

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        """Cross-entropy and accuracy of one architecture on the test images.

        Normalization uses the statistics of the test batch, as the supernet keeps none.
        """
        indices = self.cell_space.to_indices(values)

        def run(x: Tensor) -> Tensor:
            with autocast(self.config.precision, self.device):
                return cast(Tensor, supernet(x, indices))

        return self._test(run)

    # Retraining

    def channels(self, values: Mapping[str, Any]) -> int:
        """Channels of the first cell of the final network."""
        config = self.config
        return config.final_channels or widest_channels(
            self.cell_space,
            self.cell_space.to_indices(values),
            config.parameter_limit,
            cells=config.final_cells,
            classes=self.data.classes,
            in_channels=self.data.channels,
        )

    def network(self, values: Mapping[str, Any]) -> CellNetwork:
        """The final network of an architecture, channels last."""
        return self._network(values).to(self.device)

    def _network(self, values: Mapping[str, Any]) -> CellNetwork:
        return CellNetwork(
            self.cell_space,
            self.cell_space.to_indices(values),
            classes=self.data.classes,
            cells=self.config.final_cells,
            channels=self.channels(values),
            in_channels=self.data.channels,
            auxiliary=self.config.auxiliary_weight > 0,
            image_size=min(self.data.image_size),
        )

    def train_batches(self, epoch: int) -> Iterable[Labeled]:
        """(x, y) batches of all training images."""
        return self._retrain_stream.epoch(epoch)

    def begin_epoch(self, network: nn.Module, epoch: int, epochs: int) -> None:
        """Drop-path grows linearly to its final rate, and begins with draws of the epoch's own."""
        if not isinstance(network, CellNetwork):
            raise TypeError(f"network must be a CellNetwork, got {type(network).__name__}")
        network.drop_path_rate = self.config.drop_path * epoch / max(1, epochs - 1)
        network.generator = seeded_generator(self.seed, f"retrain epoch {epoch}", self.device)

    def training_loss(self, network: nn.Module, batch: Labeled) -> tuple[Tensor, Metrics]:
        """Cross-entropy in nats, with the auxiliary head's share, and the accuracy."""
        x, y = batch
        # Compiled or not, the network has the methods of a CellNetwork.
        draws = cast(CellNetwork, network).draw_drop_path(len(x))
        out = network(x, draws)
        if isinstance(out, tuple):
            logits, auxiliary = out
            extra = self.config.auxiliary_weight * F.cross_entropy(auxiliary, y)
            loss = F.cross_entropy(logits, y) + extra
        else:
            logits, loss = out, F.cross_entropy(out, y)
        return loss, {"accuracy": accuracy_of(logits, y)}

    def test(self, network: nn.Module) -> dict[str, float]:
        """Cross-entropy and accuracy on the test images."""
        network.eval()
        return self._test(network)

    def blueprint(self, network: nn.Module) -> dict[str, Any]:
        """All that the network is built from, with the normalization and the names of the
        classes."""
        data = self.data
        return ImageClassifier(
            cast(CellNetwork, network),
            mean=data.mean,
            std=data.std,
            class_names=data.train.class_names,
            image_size=data.image_size,
        ).blueprint()

    def summary(self, values: Mapping[str, Any]) -> dict[str, int]:
        """Size of the final network of an architecture; FLOPs are of one image, as
        :mod:`asng_ext.nn.costs` counts them."""
        with torch.device("meta"):  # shapes without memory and without random weights
            network = self._network(values)
            flops = count_flops(network, torch.empty(1, self.data.channels, *self.data.image_size))
        parameters = parameter_count(network)
        return {
            "cells": self.config.final_cells,
            "channels": network.settings["channels"],
            "parameters": parameters,
            "parameters_auxiliary": parameter_count(network, auxiliary=True) - parameters,
            "flops": flops,
        }

    def cost(self, name: str, latencies: Latencies) -> Cost:
        """What final networks cost, without the auxiliary head; latency of one image."""
        if not self.config.final_channels:
            raise ValueError(
                "penalty needs final_channels: with 0 each architecture is made as wide as "
                "parameter_limit allows, so that none is smaller than others"
            )
        return cell_costs(
            self.cell_space,
            name,
            image_size=self.data.image_size,
            latencies=latencies,
            classes=self.data.classes,
            cells=self.config.final_cells,
            channels=self.config.final_channels,
            in_channels=self.data.channels,
        )

    def draw_architecture(self, values: Mapping[str, Any], path: Path) -> None:
        """Draws both kinds of cells."""
        from asng_ext.plots import draw_cells

        draw_cells(self.cell_space, self.cell_space.to_indices(values), path)

    def _test(self, run: Any) -> dict[str, float]:
        data = self.data
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        with torch.no_grad():
            for x, y in evaluation_batches(data.test, _TEST_BATCH, mean=data.mean, std=data.std):
                logits = run(x)
                loss += F.cross_entropy(logits.float(), y, reduction="sum")
                correct += (logits.argmax(dim=1) == y).sum()
        count = len(data.test)
        return {"loss": float(loss) / count, "accuracy": int(correct) / count}
