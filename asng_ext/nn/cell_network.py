"""Networks of stacked cells (Section 3.2): the supernet of the search and the derived network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext._checks import brief, check_number, is_integer, is_number
from asng_ext.nn.cell import Architecture, Cell, CellArchitecture, CellSpace, Population
from asng_ext.nn.mixture import CellMixture, Relaxation, cell_mixtures
from asng_ext.nn.operations import Norm, batch_statistics_norm, drop_path_factors, plain_norm

__all__ = ["CellNetwork", "CellSupernet", "parameter_count", "widest_channels"]


class _AuxiliaryHead(nn.Module):
    """A second classifier half-way, which sends a gradient straight to the middle in training.

    ReLU, 5×5 average pool of stride 3, 1×1 convolution to 128 channels, 2×2 convolution to 768
    (each with normalization and ReLU), global average, linear. The pool is left out on a map
    smaller than 8×8, where it would leave less than 2×2 to the second convolution; on a 1×1 map
    that convolution is 1×1.
    """

    def __init__(self, channels: int, classes: int, map_size: int, norm: Norm) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3) if map_size >= 8 else nn.Identity()
        self.conv0 = nn.Conv2d(channels, 128, 1, bias=False)
        self.norm0 = norm(128)
        self.conv1 = nn.Conv2d(128, 768, min(2, map_size), bias=False)
        self.norm1 = norm(768)
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm0(self.conv0(self.pool(F.relu(x)))))
        x = F.relu(self.norm1(self.conv1(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def _check_space(space: object) -> None:
    if not isinstance(space, CellSpace):
        raise TypeError(f"space must be a CellSpace, got {brief(space)}")


class _CellStack(nn.Module):
    """Stem, cells and classifier: what the supernet and the derived network have in common."""

    NORMS: ClassVar[tuple[Norm, Norm]]
    """What makes the normalizations outside of the cells, and those inside."""

    def __init__(
        self,
        space: CellSpace,
        classes: int = 10,
        cells: int = 8,
        channels: int = 16,
        in_channels: int = 3,
        stem_multiplier: int = 3,
        auxiliary: bool = False,
        image_size: int = 32,
        *,
        _architectures: tuple[CellArchitecture, CellArchitecture] | None = None,
    ) -> None:
        super().__init__()
        _check_space(space)
        counts = {
            "classes": classes,
            "cells": cells,
            "channels": channels,
            "in_channels": in_channels,
            "stem_multiplier": stem_multiplier,
        }
        for name, value in {**counts, "image_size": image_size}.items():
            if not is_integer(value):
                raise TypeError(f"{name} must be an integer, got {brief(value)}")
        if cells < 3:
            raise ValueError(
                f"cells must be at least 3, so that both kinds of cells occur, got {cells}"
            )
        self.space = space
        self.settings = {"nodes": space.nodes, **counts}
        for name, value in {**self.settings, "image_size": image_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.auxiliary_at = 2 * cells // 3
        self.is_reduction = tuple(i in (cells // 3, 2 * cells // 3) for i in range(cells))

        outer_norm, cell_norm = self.NORMS
        prev_prev = prev = stem_multiplier * channels
        conv = nn.Conv2d(in_channels, prev, 3, padding=1, bias=False)
        self.stem = nn.Sequential(OrderedDict(conv=conv, norm=outer_norm(prev)))
        self.cells = nn.ModuleList()
        self.auxiliary: _AuxiliaryHead | None = None
        for i, reduction in enumerate(self.is_reduction):
            channels = 2 * channels if reduction else channels
            cell = Cell(
                space,
                prev_prev,
                prev,
                channels,
                reduction=reduction,
                prev_prev_is_larger=i > 0 and self.is_reduction[i - 1],
                norm=cell_norm,
                architecture=None if _architectures is None else _architectures[reduction],
            )
            self.cells.append(cell)
            prev_prev, prev = prev, channels
            if auxiliary and i == self.auxiliary_at:
                map_size = -(-image_size // 4)  # two reductions, each of which rounds up
                self.auxiliary = _AuxiliaryHead(channels, classes, map_size, outer_norm)
        self.classifier = nn.Linear(channels, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _run(
        self,
        x: Tensor,
        architectures: tuple[CellArchitecture, CellArchitecture] | tuple[CellMixture, CellMixture],
        drop_path_factors: Iterator[Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (N, classes); with those of the auxiliary head in training, if there is one.

        Mixtures know no drop-path.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        prev_prev = prev = self.stem(x)
        auxiliary_logits: Tensor | None = None
        for i, cell in enumerate(self.cells):
            # Not by a bool, which torch.compile of PyTorch 2.11 does not take for an index.
            architecture = architectures[int(self.is_reduction[i])]
            if isinstance(architecture, CellMixture):
                y = self._run_mixture(architecture, cell, prev_prev, prev)
            else:
                y = cell(prev_prev, prev, architecture, drop_path_factors)
            prev_prev, prev = prev, y
            if self.training and self.auxiliary is not None and i == self.auxiliary_at:
                auxiliary_logits = self.auxiliary(prev)
        logits: Tensor = self.classifier(prev.mean((2, 3)))
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)

    def _run_mixture(
        self, mixture: CellMixture, cell: nn.Module, prev_prev: Tensor, prev: Tensor
    ) -> Tensor:
        return mixture.run(cast(Cell, cell), prev_prev, prev)


class CellSupernet(_CellStack):
    """All networks of a cell space with shared weights.

    Each (cell, node, input, operation) has its own weights. Normalization always uses the
    statistics of the batch and keeps none, so a pass in whatever mode changes nothing; inside the
    cells it has no weights either. Weights and activations are channels-last.

    Args:
        space: The search space.
        classes: Number of classes.
        cells: Number of cells; those at cells//3 and 2·cells//3 are reduction cells.
        channels: Channels in the first cell; every reduction cell doubles them.
        in_channels: Channels of the images.
        stem_multiplier: The stem makes `stem_multiplier * channels` channels.
        auxiliary: Adds the auxiliary head. The search does not need it.
        image_size: Shorter side of the images, in pixels; only the auxiliary head depends on it.

    Raises:
        ValueError: `cells` is less than 3, or another number less than 1.
    """

    NORMS = (batch_statistics_norm, plain_norm)

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor | tuple[Tensor, Tensor]:
        """Runs one architecture, and of the operations only those that it uses.

        Args:
            x: Images, (N, in_channels, H, W), in any memory format.
            architecture: (d,) category indices.

        Returns:
            Logits, (N, classes). With an auxiliary head, in training mode, the pair of the logits
            and those of the head.

        Raises:
            ValueError: The architecture is not one of the space.
        """
        return self._run(x, self.space.parse(architecture))

    def forward_population(
        self, x: Tensor, architectures: Population
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs several architectures, one after the other, on the same images.

        Args:
            x: Images, (N, in_channels, H, W), in any memory format.
            architectures: (λ, d) category indices.

        Returns:
            Logits, (λ, N, classes). With an auxiliary head, in training mode, the pair of the
            logits and those of the head.

        Raises:
            ValueError: An architecture is not one of the space, or there is none.
        """
        if len(architectures) == 0:
            raise ValueError("architectures must hold at least one architecture, got none")
        outs = [self(x, architecture) for architecture in architectures]
        if isinstance(outs[0], Tensor):
            return torch.stack(outs)
        logits, auxiliary = zip(*outs, strict=True)
        return torch.stack(logits), torch.stack(auxiliary)

    def population_losses(
        self,
        x: Tensor,
        labels: Tensor,
        architectures: Population,
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of several architectures on the same images, without the auxiliary head's.

        Args:
            x: Images, (N, in_channels, H, W), in any memory format.
            labels: Their classes, (N,) int64.
            architectures: (λ, d) category indices.
            class_weights: (classes,) weights of the images of each class in the mean loss; by
                default all weigh the same.

        Returns:
            The mean losses in nats, (λ,), and the mean accuracy, ().

        Raises:
            ValueError: An architecture is not one of the space, or there is none.
        """
        out = self.forward_population(x, architectures)
        return _losses(out if isinstance(out, Tensor) else out[0], labels, class_weights)

    def forward_relaxed(self, x: Tensor, relaxation: Relaxation) -> Tensor | tuple[Tensor, Tensor]:
        """Runs the mixture of all architectures that a relaxation describes.

        Node n is Σ over its two slots j, inputs i and operations k of p^j_i q^j_k o_ik(h_i), where
        p and q are the weights of the slot's input and of its operation. The slots share what
        o_ik needs: it runs once, and only if i and k are active in the same slot. The cell reads a
        node as far as no other node does, with the weight Π (1 − p_n) over the slots of later
        nodes; if one of these has only the node as an active input, not at all.

        If each variable has one active choice, of weight 1, these are the numbers and the work of
        `forward` with that architecture, and the weights get the gradients of factors that are 1.

        Args:
            x: Images, (N, in_channels, H, W), in any memory format.
            relaxation: Weights for the choices of the space's variables, on the device of the
                images, in any precision.

        Returns:
            Logits, (N, classes). With an auxiliary head, in training mode, the pair of the logits
            and those of the head.

        Raises:
            TypeError: The relaxation is no `Relaxation`.
            ValueError: The relaxation is none of the space.
        """
        return self._run(x, cell_mixtures(self.space, relaxation))

    def relaxed_losses(
        self,
        x: Tensor,
        labels: Tensor,
        relaxation: Relaxation,
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of a mixture of architectures, without the auxiliary head's.

        Args:
            x, labels, class_weights: See `population_losses`.
            relaxation: See `forward_relaxed`.

        Returns:
            The mean loss in nats, (), and the accuracy, ().

        Raises:
            TypeError, ValueError: See `forward_relaxed`.
        """
        out = self.forward_relaxed(x, relaxation)
        logits = out if isinstance(out, Tensor) else out[0]
        losses, accuracy = _losses(logits[None], labels, class_weights)
        return losses[0], accuracy


class CellNetwork(_CellStack):
    """One architecture of a cell space as a network of its own, to be trained from scratch.

    It has the operations that the architecture uses and no others; normalization has weights and
    running statistics. Weights and activations are channels-last. Both input projections of a
    cell exist, and count, even if no node reads one of them; that one never runs.

    Args:
        space: The search space.
        architecture: (d,) category indices.
        classes: Number of classes.
        cells: Number of cells; those at cells//3 and 2·cells//3 are reduction cells.
        channels: Channels in the first cell; every reduction cell doubles them.
        in_channels: Channels of the images.
        stem_multiplier: The stem makes `stem_multiplier * channels` channels.
        auxiliary: Adds the auxiliary head after the second reduction cell.
        image_size: Shorter side of the images, in pixels; only the auxiliary head depends on it.
            Below 29 it goes without its pooling.
        drop_path_rate: See the attribute.

    Attributes:
        generator: On the network's device; where `draw_drop_path` draws. None, as at first, for
            PyTorch's global one.

    Raises:
        ValueError: The architecture is not one of the space, `cells` is less than 3, another number
            is less than 1, or the rate is not in [0, 1).
    """

    NORMS = (nn.BatchNorm2d, nn.BatchNorm2d)

    def __init__(
        self,
        space: CellSpace,
        architecture: Architecture,
        classes: int = 10,
        cells: int = 20,
        channels: int = 36,
        in_channels: int = 3,
        stem_multiplier: int = 3,
        auxiliary: bool = True,
        image_size: int = 32,
        drop_path_rate: float = 0.0,
    ) -> None:
        _check_space(space)
        architectures = space.parse(architecture)
        super().__init__(
            space,
            classes,
            cells,
            channels,
            in_channels,
            stem_multiplier,
            auxiliary,
            image_size,
            _architectures=architectures,
        )
        self._architectures = architectures
        self.architecture = space.check(architecture)
        self._dropped_edges = sum(
            cast(Cell, cell).dropped_edges(architectures[reduction])
            for cell, reduction in zip(self.cells, self.is_reduction, strict=True)
        )
        self.drop_path_rate = drop_path_rate
        self.generator: torch.Generator | None = None

    @property
    def drop_path_rate(self) -> float:
        """Probability, in [0, 1), with which an image of the batch skips an operation in training.

        It concerns every operation but identities; a factorized reduction in the place of an
        identity is no identity. A network that is compiled or captured is to be given what it
        drops, see `draw_drop_path`.
        """
        return self._drop_path_rate

    @drop_path_rate.setter
    def drop_path_rate(self, rate: float) -> None:
        if not is_number(rate):
            raise TypeError(f"drop_path_rate must be a number, got {brief(rate)}")
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path_rate must be at least 0 and less than 1, got {rate}")
        self._drop_path_rate = float(rate)

    def draw_drop_path(self, images: int) -> Tensor:
        """Draws what drop-path does in a forward pass, whatever mode the network is in.

        Drawn outside of `forward`, which then does the same whatever the rate: a compiled or
        captured one need not be made anew for another.

        Args:
            images: N, how many.

        Returns:
            (N, edges) factors of `drop_path_factors`.
        """
        device = self.classifier.weight.device
        draws = torch.rand(self._dropped_edges, images, generator=self.generator, device=device)
        return drop_path_factors(draws, self.drop_path_rate).t()

    def forward(
        self, x: Tensor, drop_path_factors: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Classifies images of shape (N, in_channels, H, W), in any memory format.

        Args:
            x: The images.
            drop_path_factors: What `draw_drop_path` gives for N images, which counts in training
                only; without them, `forward` calls it where the rate is above 0.

        Returns:
            Logits, (N, classes). With an auxiliary head, in training mode, the pair of the logits
            and those of the head.
        """
        factors = drop_path_factors if self.training else None
        if factors is None and self.training and self.drop_path_rate > 0:
            factors = self.draw_drop_path(len(x))
        return self._run(
            x, self._architectures, None if factors is None else iter(factors.unbind(1))
        )

    def inherit_weights(self, supernet: CellSupernet) -> None:
        """Starts from the supernet's weights instead of random ones.

        What the supernet does not have, such as the weights of the normalizations in the cells,
        stays as it is; so does the auxiliary head.

        Raises:
            ValueError: The supernet was made with other settings than this network.
        """
        if supernet.settings != self.settings:
            raise ValueError(
                f"supernet must have the settings of the network, {self.settings}, "
                f"got {supernet.settings}"
            )
        weights = supernet.state_dict()
        for i, architecture in enumerate(self._architectures[r] for r in self.is_reduction):
            name = f"cells.{i}.output.conv.weight"
            # The columns of the nodes that are leaves in this architecture, as in the supernet.
            columns = weights[name].split(len(weights[name]), dim=1)
            weights[name] = torch.cat([columns[n] for n in architecture.leaf_nodes], dim=1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in weights and not name.startswith("auxiliary."):
                    parameter.copy_(weights[name])


def _losses(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean losses (λ,) and the mean accuracy () of (λ, N, classes) logits."""
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    each, accuracy = each.view(len(logits), -1), accuracy_of(logits, labels)
    if class_weights is None:
        return each.mean(dim=1), accuracy
    weights = class_weights.index_select(0, labels)
    return (each * weights).sum(dim=1) / weights.sum(), accuracy


def accuracy_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of (..., N, classes) logits that are largest at the label, ()."""
    return (logits.argmax(dim=-1) == labels).float().mean()


def parameter_count(network: nn.Module, auxiliary: bool = False) -> int:
    """Number of weights of a network, with or without those of its auxiliary head."""
    return sum(
        p.numel()
        for name, p in network.named_parameters()
        if auxiliary or "auxiliary" not in name.split(".")
    )


def widest_channels(
    space: CellSpace, architecture: Architecture, limit: int, **settings: Any
) -> int:
    """The most channels in the first cell with which a `CellNetwork` has at most `limit` weights.

    The auxiliary head does not count. The settings are further arguments of the network.

    Raises:
        ValueError: Even one channel makes more weights, or another argument is not one that
            `CellNetwork` takes.
    """

    check_number("limit", limit)

    def count(channels: int) -> int:
        with torch.device("meta"):  # shapes without memory
            network = CellNetwork(
                space, architecture, channels=channels, auxiliary=False, **settings
            )
        return parameter_count(network)

    # Every layer has a number of weights that is linear or quadratic in the channels, so three
    # counts tell all others: count(n) = one + (n − 1)·slope + (n − 1)(n − 2)/2·bend.
    one, two, three = count(1), count(2), count(3)
    slope, bend = two - one, three - 2 * two + one
    if one > limit:
        raise ValueError(
            f"limit must be at least {one}, what this architecture needs with one channel, "
            f"got {limit}"
        )
    channels = 1
    while one + channels * slope + channels * (channels - 1) // 2 * bend <= limit:
        channels += 1
    return channels
