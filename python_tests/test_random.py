"""Random numbers of a run: of its own, whatever else runs in the process."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import small_classification as small
import torch
from choice_task import ChoiceTask
from torch import Tensor, nn

import asng_ext as asng
from asng_ext._random import DrawsFrom, GlobalGenerators, seeded_generator
from asng_ext.engine.retrain import retrain
from asng_ext.engine.search import search
from asng_ext.nn import Choice, search_space
from asng_ext.runs.config import SearchConfig

CPU = torch.device("cpu")


def test_seeded_generators_are_functions_of_their_arguments() -> None:
    draws = [
        float(torch.rand((), generator=seeded_generator(seed, purpose, CPU)))
        for seed, purpose in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


DRAWS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(3, 4).weight.detach(),
    "convolution": lambda: nn.Conv2d(3, 4, 3).bias.detach(),  # type: ignore[union-attr]
    "orthogonal": lambda: nn.init.orthogonal_(torch.empty(4, 4)),
    "truncated": lambda: nn.init.trunc_normal_(torch.empty(4, 4)),
    "embedding": lambda: nn.Embedding(5, 3).weight.detach(),
    "rand": lambda: torch.rand(5, dtype=torch.float64),
    "randn": lambda: torch.randn(5),
    "randint": lambda: torch.randint(2, 1000, (5,)),
    "randperm": lambda: torch.randperm(20),
    "rand_like": lambda: torch.rand_like(torch.ones(5)),
    "bernoulli": lambda: torch.bernoulli(torch.full((50,), 0.5)),
    "dropout": lambda: nn.functional.dropout(torch.ones(50)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_the_global_generator_seeded_alike(name: str) -> None:
    torch.set_rng_state(seeded_generator(5, "weights", CPU).get_state())
    expected = DRAWS[name]()
    state = torch.get_rng_state()
    with DrawsFrom(5, "weights"):
        assert torch.equal(DRAWS[name](), expected)
        assert not torch.equal(DRAWS[name](), expected)  # the generator goes on
    assert torch.equal(torch.get_rng_state(), state)


def test_a_generator_that_is_given_is_used_and_meta_tensors_draw_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    expected = torch.rand(4, generator=generator)
    with DrawsFrom(5, "weights"):
        assert torch.equal(torch.rand(4, generator=generator.manual_seed(3)), expected)
        assert nn.Linear(3, 4, device="meta").weight.is_meta
        first = torch.rand(4)
    with DrawsFrom(5, "weights"):
        assert torch.equal(torch.rand(4), first)


def test_borrowed_global_generators_go_on_and_are_given_back() -> None:
    whole = torch.rand(5, generator=seeded_generator(1, "epoch", CPU))
    state = torch.get_rng_state()
    draws = GlobalGenerators(1, "epoch", CPU)
    with draws:
        first = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    state = torch.get_rng_state()
    with contextlib.suppress(ValueError), draws:
        second = torch.rand(3)
        raise ValueError
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat([first, second]), whole)


@pytest.mark.cuda
def test_on_a_device() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    expected = torch.rand(6, generator=seeded_generator(1, "a", device), device=device)
    state = torch.cuda.get_rng_state(device)
    with DrawsFrom(1, "a"):
        assert torch.equal(torch.rand(6, device="cuda"), expected)
    assert torch.equal(torch.cuda.get_rng_state(device), state)
    with GlobalGenerators(1, "a", device):
        assert torch.equal(torch.rand(6, device=device), expected)
    assert torch.equal(torch.cuda.get_rng_state(device), state)


class Dropping(ChoiceTask):
    """A user's task: it shuffles and drops with PyTorch's global generators, as people do."""

    search_steps = 4

    def __init__(self) -> None:
        self.x = torch.linspace(-1, 1, 96).view(16, 6)
        self.space = search_space(self.supernet())

    def supernet(self) -> nn.Module:
        ways = {"drop": nn.Dropout(0.5), "rest": nn.Identity()}
        return nn.Sequential(nn.Linear(6, 16), Choice("way", ways), nn.Linear(16, 1))

    def weight_batches(self, epoch: int) -> Iterator[Tensor]:
        return (self.x[part] for part in torch.randperm(16).split(4))

    theta_batches = weight_batches

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        return (network(batch) - batch.prod(dim=1, keepdim=True)).square().mean()

    def test_supernet(self, supernet: nn.Module, values: Any) -> dict[str, float]:
        return {}


DROPPING = Dropping()


def of_ones_own(seed: int) -> list[Any]:
    optimizer = asng.ASNG(DROPPING.space, population_size=2, seed=seed)
    result = search(DROPPING, optimizer, SearchConfig(epochs=6), seed=seed, stream=None)
    return [dict(result.supernet.state_dict()), result.rows, optimizer.state_dict()]


CELLS = small.task()


def of_cells(seed: int) -> list[Any]:
    optimizer = small.optimizer(CELLS, seed)
    config = replace(small.SEARCH, epochs=1)
    result = search(CELLS, optimizer, config, seed=seed, stream=None)
    values = dict(asng.ASNG(CELLS.space, population_size=2, seed=0).ask()[0])
    config = replace(small.RETRAIN, epochs=2, test_every=2)  # the second epoch has drop-path
    network, tested = retrain(CELLS, values, config, seed=seed, stream=None)
    return [dict(result.supernet.state_dict()), result.rows, dict(network.state_dict()), tested]


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns ten times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 10)
    yield
    sys.setswitchinterval(before)


def side_by_side(*works: Callable[[], Any]) -> list[Any]:
    """The results of works that run at the same time in threads of their own."""
    results: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def run(i: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        results[i] = works[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("work", [of_cells, of_ones_own])
def test_threads_do_not_mix_their_draws(work: Callable[[int], list[Any]]) -> None:
    alone = {seed: work(seed) for seed in (3, 4)}
    together = side_by_side(*(functools.partial(work, seed) for seed in (3, 3, 4)))
    for seed, result in zip((3, 3, 4), together, strict=True):
        assert small.equal(result, alone[seed])


@pytest.mark.usefixtures("eager_switching")
def test_the_global_generator_is_left_alone() -> None:
    """Not even set and restored: a thread beside a run draws from it undisturbed."""
    done = threading.Event()
    draws: list[Tensor] = []

    def draw() -> None:
        while not done.is_set():
            draws.append(torch.rand(1))

    def run() -> None:
        try:
            of_cells(3)
        finally:
            done.set()

    torch.manual_seed(0)
    side_by_side(draw, run)
    assert len(draws) > 100
    expected = torch.rand(len(draws), generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(draws), expected)
