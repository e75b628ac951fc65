"""E-CAE: evolution of autoencoders by Cartesian genes (Suganuma et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from asng_ext._random import DrawsFrom
from asng_ext.nn import CaeLayer, CaeSpace
from asng_ext.runs.config import Checked, setting
from asng_ext.space import Categorical, Integer
from asng_ext.strategies.protocol import Parts
from asng_ext.strategies.seeded import SeededStrategy
from asng_ext.tasks.inpainting import InpaintingTask, Pair
from asng_ext.tasks.protocol import Batch, Metrics, SearchTask

__all__ = ["CartesianGenes", "Ecae", "EcaeOptions"]

Genes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_MOST_TRIES = 10_000
"""Mutations of one parent, of which some tens are usual until one is a child."""
_BETAS = (0.5, 0.999)


class CartesianGenes:
    """Architectures of an autoencoder space as genes.

    There is one gene for each variable, which says which of its values it has, counted from 0:
    (G,) integers. A gene is active if the network depends on it, that is, if it is the output's or
    of a layer that counts.

    Args:
        space: The space.
        max_downsamplings: How many layers without a skip may count, 1 or more.
    """

    def __init__(self, space: CaeSpace, max_downsamplings: int) -> None:
        self.space = space
        self.max_downsamplings = max_downsamplings
        variables = space.search_space()
        self._values: list[Sequence[Any]] = []
        for variable in variables.values():
            assert isinstance(variable, Categorical | Integer)
            if isinstance(variable, Categorical):
                self._values.append(variable.values)
            else:
                self._values.append(range(variable.low, variable.high + 1, variable.step))
        self.names = variables.names
        self.sizes = np.array([len(values) for values in self._values])
        self._owners = [name.partition("/")[0] for name in self.names]

    def values(self, genes: Genes) -> dict[str, Any]:
        """The architecture by names."""
        return {name: own[i] for name, own, i in zip(self.names, self._values, genes.tolist())}

    def genes(self, values: Mapping[str, Any]) -> Genes:
        """The inverse of :meth:`values`."""
        return np.array([own.index(values[name]) for name, own in zip(self.names, self._values)])

    def layers(self, genes: Genes) -> tuple[CaeLayer, ...]:
        """The layers that count."""
        return self.space.decode(self.values(genes))

    def active(self, genes: Genes) -> Mask:
        """(G,), which genes are active."""
        counting = {"output", *(f"layer{layer.index}" for layer in self.layers(genes))}
        return np.array([owner in counting for owner in self._owners])

    def fits(self, genes: Genes) -> bool:
        """Whether the network has no more down-samplings than it may."""
        return len(_downsamplings(self.layers(genes))) <= self.max_downsamplings

    def random(self, generator: torch.Generator) -> Genes:
        """An architecture all of whose values are equally likely. Where it has too many
        down-samplings, some of these layers get a skip."""
        genes = _below(self.sizes, generator)
        layers = list(self.layers(genes))
        without = _downsamplings(layers)
        excess = len(without) - self.max_downsamplings
        if excess <= 0:
            return genes
        for i in torch.randperm(len(without), generator=generator)[:excess].tolist():
            layers[without[i]] = replace(layers[without[i]], skip=True)
        return np.where(self.active(genes), self.genes(self.space.encode(layers)), genes)

    def mutated(self, genes: Genes, rate: float, generator: torch.Generator) -> Genes:
        """Each gene has, with the probability ``rate``, another value, all others being equally
        likely."""
        chosen = torch.rand(len(genes), generator=generator, dtype=torch.float64).numpy() < rate
        others = 1 + _below(np.maximum(self.sizes - 1, 1), generator)
        return np.where(chosen, (genes + others) % self.sizes, genes)

    def child(self, genes: Genes, rate: float, generator: torch.Generator) -> Genes:
        """A mutation that changes the network: of the parent once more, until one does and has no
        more down-samplings than it may.

        Raises:
            ValueError: If thousands of mutations have more.
        """
        active = self.active(genes)
        for _ in range(_MOST_TRIES):
            child = self.mutated(genes, rate, generator)
            if (child != genes)[active].any() and self.fits(child):
                return child
        raise ValueError(
            f"no mutation of {_MOST_TRIES} with rate={rate} changes the network and leaves it at "
            f"most max_downsamplings={self.max_downsamplings}; choose a lower rate, or allow more"
        )

    def drifted(self, genes: Genes, rate: float, generator: torch.Generator) -> Genes:
        """A neutral mutation: of the genes that are not active alone."""
        return np.where(self.active(genes), genes, self.mutated(genes, rate, generator))


def _below(sizes: Genes, generator: torch.Generator) -> Genes:
    """(G,) integers from 0 to below the sizes, all equally likely."""
    draws = torch.rand(len(sizes), generator=generator, dtype=torch.float64)
    return (draws.numpy() * sizes).astype(np.int64)


def _downsamplings(layers: Sequence[CaeLayer]) -> list[int]:
    """The places of those layers that halve the feature map."""
    return [i for i, layer in enumerate(layers) if not layer.skip]


@dataclass(frozen=True)
class EcaeOptions(Checked):
    """Settings of E-CAE; the defaults are the published ones, but for ``fitness``."""

    children: int = setting(2, "of each generation, λ", low=1, high=1024)
    generations: int = setting(250, "spread evenly over the search", low=1, high=1_000_000)
    rate: float = setting(0.1, "of the mutation of a gene", low=0.001, high=1)
    max_downsamplings: int = setting(5, "of an architecture", low=1, high=200)
    fitness: str = setting(
        "shared",
        "PSNR of an architecture: with the shared weights, or trained by itself",
        choices=("shared", "trained"),
    )
    batches: int = setting(
        8,
        "that an architecture is tested on, of data that train no weights; 0 for an epoch's",
        low=0,
        high=1_000_000,
    )
    child_epochs: int = setting(20, "that a child is trained for by itself", low=1, high=1_000_000)
    child_learning_rate: float = setting(1e-3, "of Adam, for that", above=0, high=1e3)


class Ecae(SeededStrategy):
    """A (1 + λ) evolution strategy, whose parent drifts.

    In each generation the best child takes the place of the parent if it is better; otherwise the
    parent gets a neutral mutation. Then λ children are made of the parent.

    With the fitness "shared", each step trains the shared weights on the mean loss of parent and
    children, and all of them are tested with these. Otherwise a child is trained by itself, on the
    data that train the weights, from new weights, and generations are at the ends of epochs; the
    supernet is left as it is.

    Raises:
        ValueError: If the task is not inpainting, or children are to be trained and its setting
            ``network`` is not "found".
    """

    name = "ecae"
    Options = EcaeOptions
    task: InpaintingTask
    options: EcaeOptions

    def __init__(self, task: SearchTask, options: Any, *, epochs: int, seed: int) -> None:
        super().__init__(task, options, epochs=epochs, seed=seed)
        if not isinstance(task, InpaintingTask):
            raise ValueError(
                f"strategy {self.name} is for autoencoders, which the task inpainting searches, "
                f"got {type(task).__name__}"
            )
        self.trains_alone = self.options.fitness == "trained"
        if self.trains_alone and task.config.network != "found":
            raise ValueError(
                f"network must be found for the strategy {self.name} with fitness=trained, which "
                f"trains what it finds, got {task.config.network!r}"
            )
        self.genes = CartesianGenes(task.cae_space, self.options.max_downsamplings)
        self.population_size = 0 if self.trains_alone else 1 + self.options.children

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        self.parent = self.genes.random(self.generator)
        self.children = self._reproduced()
        self.fitness: float | None = None
        self.tested: dict[str, float] = {}
        self.steps = 0
        self.generation = 0
        self.trained = 0  # networks
        self._validation: list[Pair] = []

    def step(self, batches: tuple[Batch, Batch]) -> None:
        self.steps += 1
        if self.trains_alone:
            return
        members = [self.genes.values(genes) for genes in (self.parent, *self.children)]
        self.train_weights(batches[0], self.space.samples(members))
        due = self.options.generations * self.steps // (self.epochs * self.task.search_steps)
        while self.generation < due:
            # The weights have changed since the parent was tested.
            self.fitness = self._shared_fitness(self.parent)
            self.select([self._shared_fitness(child) for child in self.children])

    def end_epoch(self, epoch: int) -> None:
        if not self.trains_alone:
            return
        # The first is in the first epoch, so that there is a network to test.
        due = math.ceil(self.options.generations * (epoch + 1) / self.epochs)
        while self.generation < due:
            if self.fitness is None:
                self.fitness, network = self._own_fitness(self.parent)
                self.tested = self.task.test(network)
            fitness, networks = zip(*map(self._own_fitness, self.children))
            if self.select(fitness):
                self.tested = self.task.test(networks[int(np.argmax(fitness))])

    def select(self, fitness: Sequence[float]) -> bool:
        """Ends a generation, whose children have that fitness. Returns whether the best of them has
        replaced the parent."""
        assert self.fitness is not None
        best = int(np.argmax(fitness))
        better = fitness[best] > self.fitness
        if better:
            self.parent, self.fitness = self.children[best], fitness[best]
        else:
            self.parent = self.genes.drifted(self.parent, self.options.rate, self.generator)
        self.children = self._reproduced()
        self.generation += 1
        return better

    def _reproduced(self) -> list[Genes]:
        """New children of the parent."""
        return [
            self.genes.child(self.parent, self.options.rate, self.generator)
            for _ in range(self.options.children)
        ]

    def _shared_fitness(self, genes: Genes) -> float:
        """PSNR in dB with the shared weights."""
        samples = self.space.samples([self.genes.values(genes)])
        return self._mean_psnr(lambda batch: self.evaluate(batch, samples))

    def _own_fitness(self, genes: Genes) -> tuple[float, nn.Module]:
        """PSNR in dB with weights of its own, and the network."""
        self.trained += 1
        purpose = f"strategy {self.name} network {self.trained}"
        with DrawsFrom(self.seed, purpose):
            network = self.task.network(self.genes.values(genes))
        adam = torch.optim.Adam(
            network.parameters(), lr=self.options.child_learning_rate, betas=_BETAS
        )
        network.train()
        for epoch in range(self.options.child_epochs):
            for batch in islice(self.task.weight_batches(epoch), self.task.search_steps):
                loss, _ = self.task.training_loss(network, batch)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
        network.eval()
        with torch.no_grad():
            return self._mean_psnr(partial(self.task.training_loss, network)), network

    def _mean_psnr(self, run: Callable[[Pair], tuple[Tensor, Metrics]]) -> float:
        """Over batches that are the same in every generation; -∞ where a network has diverged."""
        if not self._validation:
            count = self.options.batches or self.task.search_steps
            self._validation = list(islice(self.task.theta_batches(0), count))
        each = []
        for batch in self._validation:
            losses, metrics = run(batch)
            self.parts.means.add({"loss": losses, **metrics}, "theta_")
            each.append(metrics["psnr"])
        mean = float(torch.stack(each).mean())
        return mean if math.isfinite(mean) else -math.inf

    def recommend(self) -> dict[str, Any]:
        return self.genes.values(self.parent)

    @property
    def theta(self) -> None:
        """None: nothing is drawn but mutations."""
        return None

    def numbers(self) -> dict[str, float]:
        """How many generations there were, and the fitness of the parent."""
        known = {} if self.fitness is None else {"fitness": self.fitness}
        return {"generation": float(self.generation), **known}

    def test(self) -> dict[str, float]:
        """Those of the parent's own network, if it has been trained by itself."""
        return self.tested

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "parent": self.parent.tolist(),
            "children": [child.tolist() for child in self.children],
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.parent = np.array(state["parent"])
        self.children = [np.array(child) for child in state["children"]]
        for name in _PLAIN:
            setattr(self, name, state[name])


_PLAIN = ("fitness", "tested", "steps", "generation", "trained")
"""What else changes in a search, as plain values."""
