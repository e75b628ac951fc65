"""Image classification by stacked cells (Section 3.2): data, supernet, loss, retraining recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext._random import seeded_generator
from asng_ext._terminal import STDERR, say
from asng_ext.costs import Cost
from asng_ext.data import BatchPlan, ImageData, evaluation_batches, load_images, search_parts
from asng_ext.data.images import UNEVEN
from asng_ext.data.labels import check_classes
from asng_ext.data.sources import is_own
from asng_ext.nn import (
    CellNetwork,
    CellSpace,
    CellSupernet,
    Latencies,
    Relaxation,
    cell_costs,
    cell_supernet,
    count_flops,
    parameter_count,
    widest_channels,
)
from asng_ext.nn.cell_network import accuracy_of
from asng_ext.nn.operations import make_operation, plain_norm
from asng_ext.ops import _libraries
from asng_ext.ops.cell import CANDIDATES
from asng_ext.retrained import ImageClassifier
from asng_ext.space import Samples, SearchSpace
from asng_ext.tasks.images import ImageTask
from asng_ext.tasks.protocol import Metrics
from asng_ext.tasks.settings import ClassificationConfig
from asng_ext.training.precision import autocast
from asng_ext.training.spread import BatchPart, rows_of_part

__all__ = ["ClassificationConfig", "ClassificationTask", "load_data"]

Labeled = tuple[Tensor, Tensor]
"""(x, y): images and labels. Of a part of a batch, in addition which rows it has of how many."""
_TEST_BATCH = 500
"""Images that are tested at once; of more than 32×32 pixels as many fewer."""
_SHOWN = 18
"""Test images in the picture of mistakes."""


@lru_cache(maxsize=64)
def _widest_channels(
    space: CellSpace,
    architecture: tuple[int, ...],
    limit: int,
    cells: int,
    classes: int,
    in_channels: int,
) -> int:
    """Kept, as a run asks several times, and each time takes as long as three networks."""
    return widest_channels(
        space, architecture, limit, cells=cells, classes=classes, in_channels=in_channels
    )


def load_data(config: ClassificationConfig, seed: int) -> ImageData:
    """The data set that the settings name, with the augmentation they ask for.

    What is not bundled is described on standard error.

    Raises:
        ValueError, FileNotFoundError, ImportError: If no data set is named, or as
            :func:`asng_ext.data.load_images` does.
    """
    if not config.data:
        raise ValueError(
            'data must be "digits" or "mnist5k", the folder of CIFAR-10, a folder with a subfolder '
            "of images for each class, a .npz file or hf:NAME; got nothing"
        )
    data = load_images(
        config.data, image_size=config.image_size, seed=seed, cache=config.cache, stream=STDERR
    )
    if is_own(config.data):
        advice = "; --class-weights balanced makes them count alike"
        uneven = data.imbalance >= UNEVEN and config.class_weights == "none"
        say(STDERR, f"{data.describe()}{advice * uneven}\n")
    given = {"crop_padding": config.crop_padding, "cutout": config.cutout}
    chosen: dict[str, Any] = {name: pixels for name, pixels in given.items() if pixels >= 0}
    if config.flip != "auto":
        chosen["flip"] = config.flip == "yes"
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
        check_classes(data.train.labels.cpu(), data.train.class_names)
        sizes = [len(part) for part in search_parts(data, named["seed"])]
        most = min(sizes) if data.validation else max(sizes)
        for what, size, images in (
            ("search", search_batch_size, most),
            ("retraining", named["retrain_batch_size"], len(data.train)),
        ):
            if size > images:
                raise ValueError(
                    f"the batch_size of the {what} must be at most {images}, as many images as "
                    f"there are for it, got {size}"
                )
        # One size of batches for both halves, of which one may be an image larger.
        super().__init__(data, config, search_batch_size=min(search_batch_size, *sizes), **named)
        balanced = config.class_weights == "balanced"
        self._class_weights = self.data.class_weights() if balanced else None
        self._shows_balanced = balanced or data.imbalance >= UNEVEN
        height, width = data.image_size
        self._test_batch = min(_TEST_BATCH, max(8, _TEST_BATCH * 32 * 32 // (height * width)))
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
        """Batch normalization cannot train on a single value per channel: found out before the
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

    @property
    def kernel_candidates(self) -> Mapping[str, Mapping[str, str]]:  # type: ignore[override]
        """Ways to compute cells on a GPU."""
        compiled = self.capturable and _libraries.has_cuda_kernels(self.device)
        return CANDIDATES if compiled else {}

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
        steps = self.search_steps
        if self.data.validation:  # of another size
            return islice(self._theta_stream.plans_of_steps(epoch * steps), steps)
        return islice(self._theta_stream.plans(epoch), steps)

    def losses(
        self, supernet: nn.Module, batch: BatchPlan, samples: Samples
    ) -> tuple[Tensor, Metrics]:
        """(λ,) cross-entropy in nats, and the mean accuracy.

        The images are made here, so that preparing them is part of the step that is captured.
        """
        x, y = self._make(batch)
        run = cast(CellSupernet, supernet).population_losses
        with autocast(self.config.precision, self.device):
            losses, accuracy = run(x, y, samples.categorical, self._class_weights)
        return losses, {"accuracy": accuracy}

    def relaxed_losses(
        self, supernet: nn.Module, batch: BatchPlan, relaxation: Relaxation
    ) -> tuple[Tensor, Metrics]:
        """() cross-entropy in nats of a relaxation, and its accuracy."""
        x, y = self._make(batch)
        run = cast(CellSupernet, supernet).relaxed_losses
        with autocast(self.config.precision, self.device):
            loss, accuracy = run(x, y, relaxation, self._class_weights)
        return loss, {"accuracy": accuracy}

    def _make(self, batch: BatchPlan) -> Labeled:
        """The images and labels that a plan is of, from either half."""
        # What autocast would make of the images with one more launch.
        half = _libraries.has_cuda_kernels(self.device) and self.config.precision == "bfloat16"
        dtype = torch.bfloat16 if half else torch.float32
        return self._weight_stream.make(batch, dtype)  # the other stream would make the same of it

    def part_of_batch(self, batch: Any, index: int, count: int) -> BatchPart:
        """Some rows of a plan, or of images and labels. Where classes have weights, these decide
        what the loss of the part counts."""
        if isinstance(batch, BatchPlan):
            rows = rows_of_part(len(batch.indices), index, count)
            part: Any = BatchPlan(
                batch.indices[rows], None if batch.draws is None else batch.draws[rows]
            )
            y, total = self.data.train.labels, len(batch.indices)
            y = y.index_select(0, batch.indices) if self._class_weights is not None else y
        else:
            y, total = batch[1], len(batch[1])
            rows = rows_of_part(total, index, count)
            part = tuple(rows_of_all[rows] for rows_of_all in batch)
        share = (rows.stop - rows.start) / total
        if self._class_weights is None:
            return BatchPart(part, share)
        weights = self._class_weights.index_select(0, y)
        return BatchPart(part, share, weights[rows].sum() / weights.sum())

    def identity(self, loop: str) -> dict[str, Any]:
        """What results of a loop depend on, by name; of what earlier versions lacked, no more than
        is not as it was. The size of images is said by the data, flips by the augmentation."""
        identity = super().identity(loop)
        for name in ("image_size", "flip"):
            del identity[name]
        if self._class_weights is None:
            del identity["class_weights"]
        return identity

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        """Cross-entropy and accuracy of one architecture on the test images.

        Normalization uses the statistics of the test batch, as the supernet keeps none.
        """
        indices = self.cell_space.to_indices(values)

        def run(x: Tensor) -> Tensor:
            with autocast(self.config.precision, self.device):
                return cast(Tensor, supernet(x, indices))

        return self._test(run)

    def test_relaxed(self, supernet: nn.Module, relaxation: Relaxation) -> dict[str, float]:
        """Cross-entropy and accuracy of a relaxation on the test images; see `test_supernet`."""

        def run(x: Tensor) -> Tensor:
            with autocast(self.config.precision, self.device):
                return cast(Tensor, cast(CellSupernet, supernet).forward_relaxed(x, relaxation))

        return self._test(run)

    # Retraining

    def channels(self, values: Mapping[str, Any]) -> int:
        """Channels of the first cell of the final network."""
        config = self.config
        return config.final_channels or _widest_channels(
            self.cell_space,
            tuple(self.cell_space.to_indices(values)),
            config.parameter_limit,
            config.final_cells,
            self.data.classes,
            self.data.channels,
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

    def prepare_batch(self, network: nn.Module, batch: Labeled) -> tuple[Tensor, ...]:
        """With the factors of drop-path, also in an epoch in which its rate is still 0."""
        if not self.config.drop_path:
            return batch
        # Compiled or not, the network has the methods of a CellNetwork.
        factors = cast(CellNetwork, network).draw_drop_path(len(batch[0]))
        return (*batch, factors)

    def training_loss(
        self, network: nn.Module, batch: tuple[Tensor, ...]
    ) -> tuple[Tensor, Metrics]:
        """Cross-entropy in nats, with the auxiliary head's share, and the accuracy."""
        x, y, *factors = batch
        out = network(x, *factors)
        weights = self._class_weights
        if isinstance(out, tuple):
            logits, auxiliary = out
            extra = self.config.auxiliary_weight * F.cross_entropy(auxiliary, y, weights)
            loss = F.cross_entropy(logits, y, weights) + extra
        else:
            logits, loss = out, F.cross_entropy(out, y, weights)
        return loss, {"accuracy": accuracy_of(logits, y)}

    def test(self, network: nn.Module) -> dict[str, float]:
        """Cross-entropy and accuracy on the test images; if the classes are uneven, also the mean
        of their accuracies."""
        network.eval()
        return self._test(network)

    def details(self, network: nn.Module) -> dict[str, Any]:
        """Of each class by name: its training and test images, and the accuracy on these, None
        without any."""
        network.eval()
        _, right = self._run_test(network)
        train, test = self.data.train, self.data.test
        counts = zip(train.class_names, train.counts(), test.counts(), right.tolist())
        return {
            "classes": {
                name: {"train": trained, "test": tested, "accuracy": correct / tested}
                if tested
                else {"train": trained, "test": 0, "accuracy": None}
                for name, trained, tested, correct in counts
            }
        }

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
                "limits need final_channels: with 0 each architecture is made as wide as "
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

    def draw_architecture(
        self,
        values: Mapping[str, Any],
        path: Path,
        near_ties: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ) -> None:
        """Draws both kinds of cells, with the sizes of the final network."""
        from asng_ext.plots import draw_cells

        indices, sizes = self.cell_space.to_indices(values), self.summary(values)
        draw_cells(self.cell_space, indices, path, sizes=sizes, near_ties=near_ties)

    def draw_results(self, network: nn.Module, folder: Path) -> None:
        """Draws which classes are predicted for test images into confusion.png, and those images
        whose true class is least probable, of the mistakes, into mistakes.png."""
        from asng_ext.plots import draw_confusion, draw_mistakes

        network.eval()
        data, names = self.data, self.data.test.class_names
        found = []
        with torch.no_grad():
            for x, y in evaluation_batches(
                data.test, self._test_batch, mean=data.mean, std=data.std
            ):
                likely = network(x).float().softmax(dim=1)
                found.append((*likely.max(dim=1), likely.gather(1, y[:, None])[:, 0]))
        confidence, predicted, of_label = (torch.cat(parts).cpu() for parts in zip(*found))
        labels = data.test.labels.cpu()
        counts = (labels * data.classes + predicted).bincount(minlength=data.classes**2)
        draw_confusion(counts.reshape(data.classes, -1).numpy(), names, folder / "confusion.png")
        wrong = (predicted != labels).nonzero()[:, 0]
        worst = wrong[of_label[wrong].argsort(stable=True)[:_SHOWN]]
        images = data.test.select(worst.to(data.device)).permute(0, 3, 1, 2) / 255
        title = f"Mistakes: {len(wrong):,} of {len(labels):,} test images"
        draw_mistakes(
            images,
            [names[label] for label in labels[worst]],
            [(names[label], float(p)) for label, p in zip(predicted[worst], confidence[worst])],
            folder / "mistakes.png",
            title=title + ", the worst of them" * (len(wrong) > len(worst)),
        )

    def _test(self, run: Any) -> dict[str, float]:
        loss, right = self._run_test(run)
        count = len(self.data.test)
        tested = {"loss": float(loss) / count, "accuracy": int(right.sum()) / count}
        if self._shows_balanced:
            counts = torch.tensor(self.data.test.counts())
            shares = right.cpu().double()[counts > 0] / counts[counts > 0]
            tested["balanced_accuracy"] = float(shares.mean())
        return tested

    def _run_test(self, run: Any) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies, () float64, and how many images of each class are classified
        rightly, (classes,) int64."""
        data = self.data
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        right = torch.zeros(data.classes, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            for x, y in evaluation_batches(
                data.test, self._test_batch, mean=data.mean, std=data.std
            ):
                logits = run(x)
                loss += F.cross_entropy(logits.float(), y, reduction="sum")
                right.index_add_(0, y, (logits.argmax(dim=1) == y).long())
        return loss, right
