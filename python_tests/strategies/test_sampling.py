"""Random search draws uniformly; evolution changes one choice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import small_classification as small
from toy_supernet import CHOICES, ToyTask, begun


def chi2(counts: Any, expected: float) -> float:
    return float(((np.array(counts) - expected) ** 2 / expected).sum())


def test_random_search_draws_all_architectures_equally_often() -> None:
    strategy = begun("random", ToyTask((0, 0)))
    rows = strategy.uniform(8000).categorical
    counts = Counter(map(tuple, rows.tolist()))
    assert len(counts) == CHOICES**2
    # 15 degrees of freedom; beyond 37.7 once in a thousand.
    assert chi2(list(counts.values()), 8000 / CHOICES**2) < 37.7


def test_random_search_compares_the_best_of_one_batch_on_all(monkeypatch: Any) -> None:
    strategy = begun("random", ToyTask((0, 0)), samples=40, finalists=3, rounds=2)
    asked: list[tuple[str, tuple[int, ...]]] = []
    on_one = {(1, 2): 3.0, (0, 1): 2.0, (3, 3): 1.0}

    def reward(batch: Any, indices: Any) -> float:
        asked.append((batch, tuple(indices)))
        if tuple(indices) == (0, 1):  # second on one batch, best on all
            return 2.0
        return on_one.get(tuple(indices), 0.0) if batch == "first" else 0.0

    monkeypatch.setattr(strategy, "reward", reward)
    assert strategy.choose(["first", "second", "third"]) == [0, 1]
    assert sum(batch == "first" for batch, _ in asked[:40]) == 40
    assert [batch for batch, _ in asked[40:49]] == 3 * ["first", "second", "third"]
    assert [batch for batch, _ in asked[49:89]] == 40 * ["second"]
    assert len(asked) == 2 * (40 + 9)


def test_a_mutation_gives_one_variable_another_choice() -> None:
    task = ToyTask((0, 0, 0))
    strategy = begun("evolution", task)
    parent = [1, 3, 0]
    changes: Counter[tuple[int, int]] = Counter()
    for _ in range(2700):
        child = strategy.mutated(parent)
        ((variable, choice),) = [(i, c) for i, c in enumerate(child) if c != parent[i]]
        changes[variable, choice] += 1
    assert len(changes) == 3 * (CHOICES - 1)
    # 8 degrees of freedom; beyond 26.1 once in a thousand.
    assert chi2(list(changes.values()), 300) < 26.1


def test_the_oldest_dies_and_the_best_that_lived_is_chosen(monkeypatch: Any) -> None:
    strategy = begun("evolution", ToyTask(), population=3, tournament=3, cycles=40)
    scores: list[float] = []

    def score(batches: Any, indices: Any) -> float:
        # The first is by far the best; its children are bad.
        scores.append(100.0 if not scores else -float(len(scores)))
        return scores[-1]

    parents: list[list[int]] = []
    mutated = strategy.mutated
    monkeypatch.setattr(strategy, "mean_reward", score)
    monkeypatch.setattr(strategy, "mutated", lambda p: (parents.append(list(p)), mutated(p))[1])
    best = strategy.choose([None])
    assert len(scores) == 43
    # It has all children while it lives, which is one cycle, and none afterwards.
    assert parents[0] == best
    assert best not in parents[3:]


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [("random", {}, 9), ("evolution", {"batches": 2}, 2), ("evolution", {"batches": 0}, 9),
     ("smash", {"batches": 2}, 2), ("smash", {"batches": 0}, 9)],
)  # fmt: skip
def test_on_how_many_batches_it_is_chosen(
    name: str, options: dict[str, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small.task()
    monkeypatch.setattr(task, "theta_batches", lambda epoch: iter(range(9)))
    strategy = begun(name, task, epochs=2, **options)
    seen: list[list[Any]] = []
    monkeypatch.setattr(strategy, "choose", lambda batches: seen.append(batches))
    for epoch in range(2):
        strategy.end_epoch(epoch)
    assert seen == [list(range(count))]  # after the last epoch


@pytest.mark.parametrize("name", ["random", "evolution"])
def test_it_recommends_the_same_until_the_end(name: str) -> None:
    task = ToyTask((0, 0))
    options = {"samples": 4} if name == "random" else {"cycles": 2}
    strategy = begun(name, task, epochs=2, **options)
    first = strategy.recommend()
    strategy.end_epoch(0)
    assert strategy.recommend() == first
