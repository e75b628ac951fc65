"""NAO: the autoencoder predicts and reproduces, its gradient leads upwards, and searches find what
is best."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import planted_choices as planted
import pytest
import torch
from torch import Tensor

from asng_ext._random import DrawsFrom
from asng_ext.engine.search import search
from asng_ext.strategies.nao import Autoencoder, Nao

SIZES = [2, 3, 5, 3, 2, 5, 4, 4]


def nao(**options: Any) -> planted.Make:
    chosen = Nao.Options(**options)
    return lambda task, epochs: Nao(task, chosen, epochs=epochs, seed=3)


SMALL = {"pool": 20, "seeds": 5, "predictor_epochs": 2, "hidden": 8, "rounds": 2}


def drawn(count: int, generator: torch.Generator) -> Tensor:
    return torch.stack([torch.randint(k, (count,), generator=generator) for k in SIZES], dim=1)


@pytest.fixture(scope="module")
def trained() -> tuple[Autoencoder, Tensor, list[Tensor]]:
    """An autoencoder, the architectures that it has seen, best first, and what choices are
    worth."""
    generator = torch.Generator().manual_seed(0)
    worth = [torch.randn(size, generator=generator) for size in SIZES]
    indices = drawn(200, generator)
    scores = value(worth, indices)
    order = scores.argsort(descending=True)
    indices, scores = indices[order], scores[order]
    with DrawsFrom(0, "autoencoder"):
        autoencoder = Autoencoder(SIZES, 32)
    autoencoder.fit(
        indices,
        (scores - scores[-1]) / (scores[0] - scores[-1]),
        epochs=60,
        batch_size=50,
        learning_rate=5e-3,
        generator=generator,
    )
    return autoencoder, indices, worth


def value(worth: list[Tensor], indices: Tensor) -> Tensor:
    return torch.stack([row[k] for row, k in zip(worth, indices.unbind(dim=1))]).sum(dim=0)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(ranks.corrcoef()[0, 1])


def test_unseen_architectures_are_ranked_and_reproduced(
    trained: tuple[Autoencoder, Tensor, list[Tensor]],
) -> None:
    autoencoder, _, worth = trained
    unseen = drawn(300, torch.Generator().manual_seed(1))
    with torch.no_grad():
        code = autoencoder.encode(unseen)
        predicted = autoencoder.predict(code)
        assert rank_correlation(predicted, value(worth, unseen)) > 0.9
        assert float((autoencoder.decode(code) == unseen).float().mean()) > 0.98
        # One by one or all at once, the decoder gives the same choices.
        at_once = autoencoder.log_probabilities(code, unseen)
    assert float((at_once.argmax(dim=2) == unseen).float().mean()) > 0.98
    sums = at_once.exp().sum(dim=2)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_climbed_architectures_are_new_and_better(
    trained: tuple[Autoencoder, Tensor, list[Tensor]],
) -> None:
    autoencoder, indices, worth = trained
    for seeds in (indices[:30], indices[80:110]):
        found = autoencoder.climb(seeds, indices, 100)
        assert 20 <= len(found) <= 30
        assert float(value(worth, found).mean()) > float(value(worth, seeds).mean()) + 0.3
        rows = list(map(tuple, found.tolist()))
        assert len(set(rows)) == len(rows)
        assert not set(rows) & set(map(tuple, indices.tolist()))
        assert bool(((found >= 0) & (found < torch.tensor(SIZES))).all())
    assert autoencoder.climb(indices[:3], indices, 0).shape == (0, len(SIZES))


def test_it_finds_what_is_planted() -> None:
    """The pool of 30 of 243 architectures lacks it at first."""
    task = planted.Planted()
    options = Nao.Options(
        rounds=4, pool=30, seeds=10, predictor_epochs=60, learning_rate=0.01, batch=30, hidden=16
    )
    strategy = Nao(task, options, epochs=4, seed=3)
    pools: list[Tensor] = []
    original = strategy.end_epoch

    def end_epoch(epoch: int) -> None:
        pools.append(strategy.state_dict()["pool"])
        original(epoch)

    strategy.end_epoch = end_epoch  # type: ignore[method-assign]
    result = search(task, strategy, replace(planted.CONFIG, epochs=4), seed=3, stream=None)
    assert list(planted.BEST) not in pools[0].tolist()
    assert result.architecture == planted.best()
    assert result.rows[-1]["score"] == 1
    right = [float((pool == torch.tensor(planted.BEST)).float().mean()) for pool in pools]
    assert right == sorted(right)


def test_rounds_are_evenly_spread() -> None:
    """Of three in seven epochs, the last is after the last epoch and trains no predictor."""
    task = planted.Planted()
    strategy = nao(**{**SMALL, "rounds": 3})(task, 7)
    pools: list[Tensor] = []
    scored: list[int] = []
    original, end_epoch = strategy.reward, strategy.end_epoch

    def reward(batch: Any, indices: Any) -> float:
        scored.append(len(pools))
        return original(batch, indices)

    def ends(epoch: int) -> None:
        end_epoch(epoch)
        pools.append(strategy.state_dict()["pool"])

    strategy.reward, strategy.end_epoch = reward, ends  # type: ignore[method-assign]
    search(task, strategy, replace(planted.CONFIG, epochs=7), seed=3, stream=None)
    assert {epoch: scored.count(epoch) for epoch in scored} == {2: 20, 4: 20, 6: 20}
    as_sets = [set(map(tuple, pool.tolist())) for pool in pools]
    changed = [a != b for a, b in pairwise(as_sets)]
    assert changed == [False, True, False, True, False, False]


def test_probabilities_are_the_shares_of_the_pool() -> None:
    strategy = nao(**SMALL)(planted.Planted(), 1)
    strategy.begin(None)  # type: ignore[arg-type]
    pool = strategy.state_dict()["pool"]
    for column, row in zip(pool.unbind(dim=1), strategy.probabilities()):
        assert [float((column == k).float().mean()) for k in range(3)] == pytest.approx(row)


def test_resume_bit_for_bit(tmp_path: Path) -> None:
    planted.check_resumes(nao(**SMALL), tmp_path, 2)


def test_it_searches_cells() -> None:
    planted.check_classification(nao(**SMALL))


def test_wrong_spaces_and_options() -> None:
    planted.check_wants_categories(nao())
    with pytest.raises(ValueError, match="seeds must be less than pool, 20, got 20"):
        Nao.Options(pool=20, seeds=20)
