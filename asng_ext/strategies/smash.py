"""SMASH (Brock et al., 2018): a hypernetwork makes weights for the architecture that is run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext import _host
from asng_ext.nn import CellSpace, CellSupernet, FusedCellSupernet
from asng_ext.nn.cell import FIRST_NODE, Architecture, Population
from asng_ext.nn.fused import StackedCell
from asng_ext.nn.operations import SeparableConv
from asng_ext.runs.config import Checked, setting
from asng_ext.strategies.protocol import Parts
from asng_ext.strategies.sampling import TrainsUniformly
from asng_ext.tasks.protocol import Batch, SearchTask

__all__ = ["FusedSmashSupernet", "HyperNetwork", "Smash", "SmashOptions", "SmashSupernet"]


class HyperNetwork(nn.Module):
    """Makes the weights of 1×1 convolutions of as many input as output channels.

    Those of a layer come from the sum of an encoding of the architecture, linear in its one-hot
    form, and of one of the layer, through two layers of ReLUs and a head for all layers of so many
    channels.

    Args:
        sizes: Choices of each variable of an architecture.
        channels: Of each layer.
        hidden: Units.
    """

    def __init__(self, sizes: list[int], channels: list[int], hidden: int) -> None:
        super().__init__()
        self._sizes = sizes
        self._channels = channels
        self.architectures = nn.Linear(sum(sizes), hidden)
        self.layers = nn.Embedding(len(channels), hidden)
        self.mixed = nn.Linear(hidden, hidden)
        self.heads = nn.ModuleDict(
            {str(width): nn.Linear(hidden, width * width) for width in sorted(set(channels))}
        )

    def encode(self, indices: Tensor) -> Tensor:
        """(hidden,) of an architecture of (d,) category indices."""
        hot = [F.one_hot(k, size) for k, size in zip(indices, self._sizes)]
        weight = self.architectures.weight
        return cast(Tensor, self.architectures(torch.cat(hot).to(weight.device, weight.dtype)))

    def forward(self, encoded: Tensor, layers: Sequence[int]) -> Tensor:
        """(len(layers), channels, channels) of layers with as many channels, of length 1 for each
        output: what follows is normalized, whatever the length."""
        width = self._channels[layers[0]]
        units = self.mixed((encoded + self.layers.weight[list(layers)]).relu()).relu()
        rows = self.heads[str(width)](units).view(len(layers), width, width)
        return F.normalize(rows, dim=2)


class _MadeConv(nn.Module):
    """A 1×1 convolution whose weights are made when it runs."""

    def __init__(self, supernet: SmashSupernet, layer: int) -> None:
        super().__init__()
        # Not as a module, of which the supernet would be a part.
        self._of = (supernet,)
        self._layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to the same."""
        return F.conv2d(x, self._of[0].made(self._layer))


class SmashSupernet(CellSupernet):
    """A supernet without weights of the 1×1 convolutions in its separable convolutions: those of
    the sampled operations are made by a hypernetwork, for the architecture that is run.

    The hypernetwork is none of its modules, as it is trained by another optimizer.

    Args:
        space: The search space.
        hidden: Units of the hypernetwork.
        settings: The other arguments of `CellSupernet`.

    Raises:
        ValueError: If the space has no separable convolution, or as `CellSupernet`.
    """

    def __init__(self, space: CellSpace, hidden: int, **settings: Any) -> None:
        super().__init__(space, **settings)
        channels: list[int] = []
        for module in list(self.modules()):
            if isinstance(module, SeparableConv):
                for stage in module.children():
                    channels.append(cast(nn.Conv2d, stage.pointwise).out_channels)
                    stage.pointwise = _MadeConv(self, len(channels) - 1)
        if not channels:
            raise _nothing_to_make(space)
        self._made_by = (HyperNetwork(space.categories, channels, hidden),)

    @property
    def hypernetwork(self) -> HyperNetwork:
        """What makes weights."""
        return self._made_by[0]

    def made(self, layer: int) -> Tensor:
        """The weights of a layer for the architecture that runs."""
        return cast(Tensor, self.hypernetwork(self._encoded, [layer]))[0, :, :, None, None]

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor | tuple[Tensor, Tensor]:
        """Runs one architecture; see `CellSupernet.forward`."""
        self._encoded = self.hypernetwork.encode(torch.tensor(self.space.check(architecture)))
        try:
            return super().forward(x, architecture)
        finally:
            del self._encoded


class FusedSmashSupernet(FusedCellSupernet):
    """A `SmashSupernet` on the compiled operators; it computes the same numbers, starts from the
    same weights for the same seed, and has the same state dict.

    Args: see `SmashSupernet`.

    Raises:
        ValueError: See `SmashSupernet`.
        RuntimeError: The compiled operators are not available.
    """

    def __init__(self, space: CellSpace, hidden: int, **settings: Any) -> None:
        super().__init__(space, **settings)
        made = {o.name: o.weights[1] for o in _host.OPERATIONS if o.form == "separable"}
        self._separable = [name for name in space.operations if name in made]
        if not self._separable:
            raise _nothing_to_make(space)
        self._pointwise = [made[name] for name in self._separable]
        # Of each edge of a cell and each separable convolution there: two layers.
        self._edges = space.nodes * (space.nodes + 3) // 2
        channels: list[int] = []
        for cell in self._stacked_cells():
            for name in self._pointwise:
                cell.give_up(name)
            channels += [cell.channels] * (2 * self._edges * len(self._separable))
        self._made_by = (HyperNetwork(space.categories, channels, hidden),)

    @property
    def hypernetwork(self) -> HyperNetwork:
        """What makes weights."""
        return self._made_by[0]

    def _stacked_cells(self) -> list[StackedCell]:
        return [cast(StackedCell, cell) for cell in self.cells]

    def _features(self, x: Tensor, architectures: Population) -> tuple[Tensor, Tensor | None]:
        """Architectures run one after the other: each has weights of its own."""
        if len(architectures) > 1:
            each = [self._features(x, architectures[i : i + 1]) for i in range(len(architectures))]
            outs, auxiliary = zip(*each, strict=True)
            return torch.cat(outs), None if auxiliary[0] is None else torch.cat(auxiliary)
        made = self._made(self.space.check(architectures[0])) if len(architectures) else []
        with contextlib.ExitStack() as given:
            for cell, weights in zip(self._stacked_cells(), made):
                given.enter_context(cell.given(weights))
            return super()._features(x, architectures)

    def _made(self, architecture: Sequence[int]) -> list[dict[str, Tensor]]:
        """The weights of the 1×1 convolutions of each cell as the operators take them: those that
        the architecture has no use for are 0."""
        encoded = self.hypernetwork.encode(torch.tensor(architecture))
        parsed = self.space.parse(architecture)
        # Of cells that are read: others have no gradient, so that Adam is to leave theirs alone.
        read = {len(self.cells) - 1, *[self.auxiliary_at] * (self.auxiliary is not None)}
        for c in reversed(range(len(self.cells))):
            inputs = parsed[self.is_reduction[c]].inputs if c in read else ()
            read.update(c - 2 + i for i in inputs if i < FIRST_NODE)
        used = [
            sorted(
                (node * (node + 3) // 2 + edge.input, self._separable.index(edge.operation))
                for node, edges in enumerate(kind.nodes)
                for edge in set(edges)
                if edge.operation in self._separable
            )
            for kind in parsed
        ]
        count, cells = len(self._separable), self._stacked_cells()
        made: list[dict[str, Tensor]] = [{} for _ in cells]
        for width in dict.fromkeys(cell.channels for cell in cells):
            members = [c for c, cell in enumerate(cells) if cell.channels == width]
            # The numbers of layers, and where their weights go.
            layers, places = [], []
            for m, c in enumerate(members):
                for edge, which in used[self.is_reduction[c]] if c in read else ():
                    for stage in (0, 1):
                        layers.append(((c * self._edges + edge) * count + which) * 2 + stage)
                        places.append(((m * count + which) * self._edges + edge) * 2 + stage)
            stacked = encoded.new_zeros(len(members) * count * self._edges * 2, width, width)
            if layers:
                to = torch.tensor(places, device=encoded.device)
                stacked = stacked.index_copy(0, to, self.hypernetwork(encoded, layers))
            shape = (len(members) * count, self._edges, 2, width, width)
            for place, weight in enumerate(stacked.view(shape).unbind()):
                made[members[place // count]][self._pointwise[place % count]] = weight
        return made


def _nothing_to_make(space: CellSpace) -> ValueError:
    return ValueError(
        "space must have a separable convolution, whose weights can be made, got the operations "
        f"{', '.join(space.operations)}"
    )


@dataclass(frozen=True)
class SmashOptions(Checked):
    """Settings; the defaults are the published ones where there are such."""

    learning_rate: float = setting(1e-3, "of the hypernetwork's Adam", above=0, high=1e3)
    weight_decay: float = setting(1e-4, "of the hypernetwork", low=0, high=1e3)
    hidden: int = setting(64, "units of the hypernetwork", low=1, high=65536)
    samples: int = setting(500, "random architectures at the end", low=1, high=1_000_000)
    perturbed: int = setting(100, "changes of their best", low=0, high=1_000_000)
    chain: int = setting(100, "links of the Markov chain that follows", low=0, high=1_000_000)
    rate: float = setting(
        0.1, "probability of each variable to be drawn anew in a change", low=0, high=1
    )
    batches: int = setting(
        10, "of data that train no weights, to compare on; 0 for all", low=0, high=1_000_000
    )


class Smash(TrainsUniformly):
    """Each step trains one architecture, all being equally likely: the weights that the supernet
    has by the optimizer of the loop, the hypernetwork, which makes the others, by Adam.

    After the last epoch random architectures are compared by their rewards on data that trained no
    weights, then changes of the best of them, and at last a Markov chain begins with the best of
    all: a change of its state becomes its state if it is not worse. The best of all is chosen, and
    until then an arbitrary architecture. In a change at least one variable is drawn anew.

    It is for tasks whose supernet is a :class:`asng_ext.nn.CellSupernet`; a ValueError says so when
    a search begins.
    """

    name = "smash"
    Options = SmashOptions
    options: SmashOptions

    @property
    def chosen_on(self) -> int:
        return self.options.batches

    def supernet(self, task: SearchTask) -> nn.Module:
        made = task.supernet()
        if not isinstance(made, CellSupernet):
            raise ValueError(
                "strategy smash needs a task whose supernet is a CellSupernet, got "
                f"{type(made).__name__}"
            )
        settings = {name: value for name, value in made.settings.items() if name != "nodes"}
        kind = FusedSmashSupernet if isinstance(made, FusedCellSupernet) else SmashSupernet
        supernet = kind(made.space, self.options.hidden, **settings)
        device = next(made.parameters()).device
        supernet.hypernetwork.to(device)
        return supernet.to(device)

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        supernet = cast(SmashSupernet | FusedSmashSupernet, parts.supernet)
        self._hypernetwork = supernet.hypernetwork
        self._adam = torch.optim.Adam(
            self._hypernetwork.parameters(),
            lr=self.options.learning_rate,
            betas=(0.5, 0.999),
            weight_decay=self.options.weight_decay,
        )

    def step(self, batches: tuple[Batch, Batch]) -> None:
        self._adam.zero_grad()
        super().step(batches)
        self._adam.step()

    def choose(self, batches: Sequence[Batch]) -> list[int]:
        options = self.options
        drawn: list[list[int]] = self.uniform(options.samples).categorical.tolist()
        rewards = [self.mean_reward(batches, indices) for indices in drawn]
        first = int(np.argmax(rewards))
        best, reward = drawn[first], rewards[first]
        center = best
        for number in range(options.perturbed + options.chain):
            changed = self.changed(center if number < options.perturbed else best)
            found = self.mean_reward(batches, changed)
            if found >= reward:
                best, reward = changed, found
        return best

    def changed(self, indices: list[int]) -> list[int]:
        """The architecture with some variables drawn anew."""
        count = len(indices)
        anew = torch.rand(count, generator=self.generator) < self.options.rate
        anew[torch.randint(count, (), generator=self.generator)] = True
        others = self.uniform(1).categorical[0].tolist()
        return [other if new else index for index, other, new in zip(indices, others, anew)]

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "hypernetwork": self._hypernetwork.state_dict(),
            "adam": self._adam.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._hypernetwork.load_state_dict(state["hypernetwork"])
        self._adam.load_state_dict(state["adam"])
