"""E-CAE: Cartesian genes, the (1 + λ) rule, and searches with both kinds of fitness."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_classification
import small_runs
import torch
import torch.nn.functional as F
from interrupted_steps import check_first_steps
from torch import Tensor

from asng_ext import strategies
from asng_ext._random import DrawsFrom
from asng_ext.data import unlabeled
from asng_ext.engine.experiment import Experiment
from asng_ext.engine.search import search
from asng_ext.nn import CaeCatSpace, CaeIntSpace, CaeLayer, CaeSpace
from asng_ext.runs.config import SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import MetricsTable
from asng_ext.strategies import ecae
from asng_ext.strategies.ecae import CartesianGenes, Ecae, EcaeOptions
from asng_ext.strategies.protocol import Parts
from asng_ext.tasks.inpainting import InpaintingTask
from asng_ext.training.metrics import Means, psnr
from asng_ext.training.weight_optimizers import make_weight_optimizer

SPACES: dict[str, CaeSpace] = {
    "cat": CaeCatSpace(6, (1, 3, 5), 3, (2, 4, 8)),
    "int": CaeIntSpace(6, (1, 3, 5), 3, low=2, high=9),
}
CONFIG = replace(small_runs.INPAINTING, steps_per_epoch=4)
SEARCH = SearchConfig(epochs=3, batch_size=4, weight_decay=0.0, strategy="ecae")
SHARED = EcaeOptions(generations=6, batches=2)
TRAINED = EcaeOptions(generations=5, batches=2, fitness="trained", child_epochs=2)
of_each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
of_each_fitness = pytest.mark.parametrize("options", [SHARED, TRAINED], ids=["shared", "trained"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def task(seed: int = 0, **changes: Any) -> InpaintingTask:
    images = torch.randint(256, (31, 12, 12, 3), generator=generator()).to(torch.uint8)
    return InpaintingTask(
        unlabeled(images[:21], images[21:]),
        replace(CONFIG, **changes),
        search_batch_size=4,
        retrain_batch_size=5,
        seed=seed,
    )


def begun(options: EcaeOptions, some: InpaintingTask | None = None, seed: int = 0) -> Ecae:
    some = some or task()
    strategy = Ecae(some, options, epochs=SEARCH.epochs, seed=seed)
    with DrawsFrom(0, "supernet"):
        supernet = some.supernet()
    strategy.begin(Parts(some, supernet, make_weight_optimizer(supernet, SEARCH), Means()))
    return strategy


def chi_squared_deviation(counts: list[np.ndarray]) -> float:
    """How many standard deviations χ² is from its mean if the counts of each array have the same
    expectation; with so many degrees of freedom it is nearly normal."""
    freedom = sum(len(each) - 1 for each in counts)
    assert freedom > 20
    found = sum(((each - each.mean()) ** 2).sum() / each.mean() for each in counts)
    return float(abs(found - freedom) / (2 * freedom) ** 0.5)


# ---------------------------------------------------------------------------------------- genes


@of_each_space
def test_genes_are_the_values_of_variables(space: CaeSpace) -> None:
    genes = CartesianGenes(space, 5)
    for _ in range(20):
        one = genes.random(generator(_))
        values = genes.values(one)
        space.search_space().encode(values)  # each is one of its variable
        assert list(values) == list(space.search_space())
        assert genes.genes(values).tolist() == one.tolist()


@of_each_space
def test_active_genes_are_those_the_network_depends_on(space: CaeSpace) -> None:
    genes, draws = CartesianGenes(space, 6), generator()
    for _ in range(20):
        one = genes.random(draws)
        network = space.decode(genes.values(one))
        depends = []
        for i, size in enumerate(genes.sizes):
            others = [np.where(np.arange(len(one)) == i, value, one) for value in range(size)]
            depends.append(any(space.decode(genes.values(each)) != network for each in others))
        assert (genes.active(one) & (genes.sizes > 1)).tolist() == depends


@of_each_space
@pytest.mark.parametrize("most", [1, 3])
def test_a_child_has_another_network_within_the_limit(space: CaeSpace, most: int) -> None:
    genes, draws = CartesianGenes(space, most), generator()
    parent = genes.random(draws)
    inactive_changed = 0
    for _ in range(300):
        before = parent.copy()
        child = genes.child(parent, 0.1, draws)
        assert (parent == before).all()
        layers = space.decode(genes.values(child))
        assert layers != space.decode(genes.values(parent))
        assert sum(not layer.skip for layer in layers) <= most
        assert ((child != parent) & genes.active(parent)).any()
        inactive_changed += ((child != parent) & ~genes.active(parent)).any()
        assert ((child >= 0) & (child < genes.sizes)).all()
        parent = child
    assert inactive_changed > 30


@of_each_space
def test_neutral_drift_keeps_the_network(space: CaeSpace) -> None:
    genes, draws = CartesianGenes(space, 5), generator()
    changed = np.zeros(len(genes.sizes))
    for start in range(10):
        parent = one = genes.random(draws)
        network = space.decode(genes.values(parent))
        for _ in range(40):
            drifted = genes.drifted(one, 0.1, draws)
            assert space.decode(genes.values(drifted)) == network
            assert ((drifted >= 0) & (drifted < genes.sizes)).all()
            changed += drifted != one
            one = drifted
        inactive = ~genes.active(parent)
        assert (one != parent)[inactive].any() or not inactive.any(), start
    assert 100 < changed.sum() < 0.12 * 400 * len(changed)


@of_each_space
def test_a_mutation_redraws_each_gene_at_its_rate_as_any_other_value(space: CaeSpace) -> None:
    genes, draws = CartesianGenes(space, 5), generator()
    parent, rate, count = genes.random(draws), 0.3, 4000
    mutants = np.stack([genes.mutated(parent, rate, draws) for _ in range(count)])
    can_change = genes.sizes > 1
    share = (mutants != parent).mean(axis=0)
    assert share[~can_change].sum() == 0
    assert abs(share[can_change] - rate).max() < 5 * (rate * (1 - rate) / count) ** 0.5
    # Genes change independently of each other.
    together = np.corrcoef((mutants != parent)[:, can_change].T)
    assert abs(together - np.eye(len(together))).max() < 5 / count**0.5
    counts = [
        np.delete(np.bincount(column, minlength=size), value)
        for column, size, value in zip(mutants.T, genes.sizes, parent)
        if size > 1
    ]
    assert chi_squared_deviation(counts) < 4


@of_each_space
def test_random_genes_are_uniform(space: CaeSpace) -> None:
    genes, draws = CartesianGenes(space, 6), generator()
    drawn = np.stack([genes.random(draws) for _ in range(4000)])
    counts = [np.bincount(column, minlength=size) for column, size in zip(drawn.T, genes.sizes)]
    assert chi_squared_deviation(counts) < 4


@pytest.mark.parametrize("kind", [CaeCatSpace, CaeIntSpace])
def test_random_genes_are_within_the_limit(kind: type[CaeSpace]) -> None:
    space = kind(layers=60, levels_back=1)  # all layers count
    genes = CartesianGenes(space, 2)
    halving = np.zeros(60)
    for seed in range(40):
        layers = space.decode(genes.values(genes.random(generator(seed))))
        halving += [not layer.skip for layer in layers]
        assert len({(layer.kernel, layer.channels) for layer in layers}) > 3  # all else is random
    assert halving.sum() == 40 * 2
    assert halving.max() <= 8


def test_children_that_cannot_be_found_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ecae, "_MOST_TRIES", 20)
    genes = CartesianGenes(CaeCatSpace(60, levels_back=1), 1)
    parent = genes.random(generator())
    genes.child(parent, 0.01, generator())
    with pytest.raises(ValueError, match=r"no mutation of 20 with rate=1 .*max_downsamplings=1"):
        genes.child(parent, 1, generator())


# ----------------------------------------------------------------------------------- (1 + λ) rule


def test_the_best_child_replaces_the_parent_only_if_it_is_better() -> None:
    strategy = begun(SHARED)
    for fitness, accepted in (((1.0, 3.0), 1), ((4.0, 2.0), 0), ((4.0, 3.5), None)):
        strategy.fitness = 2.0 if accepted is not None else 4.0  # as good is not better
        parent, children = strategy.parent, strategy.children
        network = strategy.genes.layers(parent)
        assert strategy.select(fitness) is (accepted is not None)
        if accepted is None:
            assert strategy.genes.layers(strategy.parent) == network
            assert strategy.fitness == 4.0
        else:
            assert strategy.parent is children[accepted]
            assert strategy.fitness == max(fitness)
    assert strategy.generation == 3
    assert len(strategy.children) == 2
    assert strategy.recommend() == strategy.genes.values(strategy.parent)


def test_a_parent_that_stays_drifts() -> None:
    strategy = begun(replace(SHARED, rate=0.5))
    before, moved = strategy.parent.copy(), 0
    strategy.fitness = 0.0
    for _ in range(20):
        strategy.select([-1.0, -2.0])
        moved += (strategy.parent != before).any()
    assert strategy.genes.layers(strategy.parent) == strategy.genes.layers(before)
    assert moved > 10


@of_each_space
def test_it_climbs(space: CaeSpace) -> None:
    """A fitness with a known best: all six layers, each with kernels and channels of the most."""
    some = task(layers=6, channels="2,4,8", levels_back=3)
    some.cae_space = space
    strategy = begun(replace(SHARED, children=4), some)

    def fitness(genes: np.ndarray) -> float:
        layers: list[CaeLayer] = list(strategy.genes.layers(genes))
        widest = space.max_channels
        return sum(layer.kernel / 5 + layer.channels / widest + layer.skip for layer in layers)

    strategy.fitness = first = fitness(strategy.parent)
    so_far = [first]
    for _ in range(400):
        strategy.select([fitness(child) for child in strategy.children])
        assert strategy.fitness == fitness(strategy.parent)
        so_far.append(strategy.fitness)
    assert so_far == sorted(so_far)
    assert so_far[-1] > 15 > 12 > first  # of 18


# ---------------------------------------------------------------------------------------- fitness


def steps_of(strategy: Ecae, epochs: int) -> list[int]:
    """Does the steps of epochs; how many generations there were after each."""
    some, generations = strategy.task, []
    for epoch in range(epochs):
        for pair in zip(some.weight_batches(epoch), some.theta_batches(epoch), strict=True):
            strategy.step(pair)
            generations.append(strategy.generation)
        strategy.end_epoch(epoch)
        generations.append(strategy.generation)
    return generations


def test_generations_are_spread_over_the_steps() -> None:
    for generations, expected in (
        (6, [0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6]),
        (2, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2]),
        (24, [2, 4, 6, 8, 8, 10, 12, 14, 16, 16, 18, 20, 22, 24, 24]),
    ):
        assert steps_of(begun(replace(SHARED, generations=generations)), 3) == expected


def test_generations_of_trained_children_are_at_the_ends_of_epochs() -> None:
    for generations, expected in ((5, [2, 4, 5]), (2, [1, 2, 2]), (1, [1, 1, 1])):
        some = begun(replace(TRAINED, generations=generations, child_epochs=1))
        after = steps_of(some, 3)
        assert after[4::5] == expected
        assert after[3::5] == [0, *expected[:-1]]
        assert some.trained == 1 + 2 * generations  # the parent's is known afterwards


def mean_psnr(some: InpaintingTask, run: Callable[[Tensor], Tensor], batches: int) -> float:
    with torch.no_grad():
        each = [
            psnr(run(corrupted).clamp(0, 1), target).mean()
            for corrupted, target in list(some.theta_batches(0))[:batches]
        ]
    return float(np.mean(each))


def test_shared_fitness_is_the_psnr_with_the_shared_weights() -> None:
    strategy = begun(SHARED)
    supernet: Any = strategy.parts.supernet
    for genes in (strategy.parent, *strategy.children):
        layers = strategy.genes.layers(genes)
        expected = mean_psnr(strategy.task, lambda x, layers=layers: supernet(x, layers), 2)
        assert strategy._shared_fitness(genes) == pytest.approx(expected, abs=1e-5)
    everything = begun(replace(SHARED, batches=0))
    layers = everything.genes.layers(everything.parent)
    supernet = everything.parts.supernet
    expected = mean_psnr(everything.task, lambda x: supernet(x, layers), 4)
    assert everything._shared_fitness(everything.parent) == pytest.approx(expected, abs=1e-5)


def test_parent_and_children_train_the_shared_weights() -> None:
    some = task()
    seen = []
    losses = some.losses

    def recording(supernet: Any, batch: Any, samples: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(list(samples))
        return losses(supernet, batch, samples)

    some.losses = recording  # type: ignore[method-assign]
    strategy = begun(SHARED, some)
    members = [strategy.genes.values(each) for each in (strategy.parent, *strategy.children)]
    steps_of(strategy, 1)
    assert seen[0] == seen[1] == members  # the first generation is after the second step
    assert seen[2] != members
    assert len(seen[2]) == 3


def test_trained_fitness_is_the_psnr_of_a_network_trained_alone() -> None:
    strategy = begun(TRAINED)
    some = strategy.task
    before = {n: w.clone() for n, w in strategy.parts.supernet.state_dict().items()}
    fitness, _ = strategy._own_fitness(strategy.parent)
    with DrawsFrom(0, "strategy ecae network 1"):
        network = some.network(strategy.genes.values(strategy.parent))
    adam = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for epoch in range(2):
        for corrupted, target in some.weight_batches(epoch):
            adam.zero_grad()
            F.mse_loss(network(corrupted), target).backward()  # type: ignore[no-untyped-call]
            adam.step()
    assert fitness == pytest.approx(mean_psnr(some, network, 2), abs=1e-4)
    assert small_classification.equal(strategy.parts.supernet.state_dict(), before)


def test_a_child_that_diverges_is_never_better() -> None:
    strategy = begun(SHARED)
    with torch.no_grad():
        for weight in strategy.parts.supernet.parameters():
            weight.fill_(float("nan"))
    assert strategy._shared_fitness(strategy.parent) == -np.inf


# ---------------------------------------------------------------------------------------- searches


@of_each_fitness
@pytest.mark.parametrize("space", ["cat", "int"])
def test_a_state_continues_bit_for_bit(space: str, options: EcaeOptions, tmp_path: Path) -> None:
    through, first = (begun(options, task(space=space)) for _ in range(2))
    steps_of(through, 2)
    steps_of(first, 1)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = begun(options, task(space=space), seed=1)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.seed = first.seed
    second.parts = first.parts
    some = second.task
    for pair in zip(some.weight_batches(1), some.theta_batches(1), strict=True):
        second.step(pair)
    second.end_epoch(1)
    assert small_classification.equal(second.state_dict(), through.state_dict())
    assert second.recommend() == through.recommend()


@of_each_fitness
@pytest.mark.parametrize("space", ["cat", "int"])
def test_an_interrupted_search_is_the_same(
    space: str, options: EcaeOptions, tmp_path: Path
) -> None:
    def run(some: InpaintingTask, folder: RunFolder, minutes: float = 0.0) -> Any:
        config = replace(SEARCH, checkpoint_minutes=minutes)
        strategy = Ecae(some, options, epochs=config.epochs, seed=3)
        result = search(some, strategy, config, seed=3, run=folder, stream=None)
        return result.architecture, dict(result.supernet.state_dict()), result.rows

    through = run(task(space=space), RunFolder.create(tmp_path / "through"))
    folder = RunFolder.create(tmp_path / "interrupted")

    # After each of the first steps.
    some = task(space=space)
    name = "losses" if options.fitness == "shared" else "weight_batches"
    check_first_steps(run, some, name, folder, "search")

    # While children are tested in the second epoch.
    class StoppedError(Exception):
        pass

    some = task(space=space)
    test, tests = some.test_supernet, 0

    def stop(*arguments: Any) -> Any:
        nonlocal tests
        tests += 1
        if tests == 2:
            raise StoppedError
        return test(*arguments)

    some.test_supernet = stop  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        run(some, folder, minutes=1e-9)
    state = folder.load("search.pt")
    assert state is not None
    assert (state["within"]["epochs_done"], state["within"]["steps_done"]) == (1, 3)
    assert small_classification.equal(run(task(space=space), folder), through)


def settings(options: str, **of_task: Any) -> dict[str, Any]:
    return {
        "task": "inpainting",
        "seed": 0,
        "search": asdict(replace(SEARCH, strategy_options=options)),
        "inpainting": asdict(replace(CONFIG, **of_task)),
    }


@pytest.mark.parametrize("options", ["generations=5", "fitness=trained,generations=2"])
def test_a_whole_search_on_photos(options: str, tmp_path: Path) -> None:
    more = ",child_epochs=3,batches=1" if "trained" in options else ""
    experiment = Experiment.create(tmp_path / "run", settings(options + more), stream=None)
    found = experiment.search()
    content = json.loads((tmp_path / "run" / "architecture.json").read_text())
    assert content["architecture"] == found
    assert content["probabilities"] == content["near_ties"] == {}
    rows = MetricsTable(tmp_path / "run" / "search.csv", keep=9).rows
    assert len(rows) == 3
    last = rows[-1]
    assert last["generation"] == (2 if "trained" in options else 5)
    assert last["fitness"] > 5
    assert {"theta_psnr", "test_psnr", "test_ssim"} <= set().union(*rows)
    assert ("train_loss" in last) == ("trained" not in options)
    if "trained" in options:
        state = RunFolder.open(tmp_path / "run").load("search.pt")
        assert state is not None
        tested = state["optimizer"]["tested"]
        assert {name: last[f"test_{name}"] for name in tested} == pytest.approx(tested)
    experiment.task.network(found)  # it can be built


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "of_task", "message"),
    [
        ("children=0", {}, "strategy_options: children must be at least 1"),
        ("rate=0", {}, "strategy_options: rate must be at least 0.001"),
        ("fitness=own", {}, "strategy_options: fitness must be one of shared, trained"),
        ("max_downsamplings=0", {}, "strategy_options: max_downsamplings must be at least 1"),
        ("lambda=2", {}, "strategy_options: unknown settings"),
        ("generations=many", {}, "strategy_options must have int for generations"),
        ("fitness=trained", {"network": "base"}, "network must be found for the strategy ecae"),
    ],
)
def test_settings_that_it_refuses(
    options: str, of_task: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment.create(tmp_path / "run", settings(options, **of_task), stream=None)
    assert not (tmp_path / "run").exists()


def test_other_tasks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = {
        "task": "classification",
        "seed": 0,
        "search": asdict(replace(small_classification.SEARCH, strategy="ecae")),
        "classification": asdict(small_classification.TASK),
    }
    with pytest.raises(
        ValueError, match="ecae is for autoencoders, which the task inpainting searches, got Class"
    ):
        Experiment.create(tmp_path / "run", config, stream=None)
    assert not (tmp_path / "run").exists()


def test_its_defaults_are_the_published_settings() -> None:
    kind = strategies.get("ecae")
    assert kind.load() is Ecae
    assert (kind.published["epochs"], kind.published["batch_size"]) == (250, 16)
    options = EcaeOptions()
    assert (options.children, options.generations, options.rate) == (2, 250, 0.1)
    assert (options.max_downsamplings, options.child_epochs) == (5, 20)
    assert options.child_learning_rate == 1e-3
