"""What may be done from several threads of a process at a time."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import asng_ext as asng
from asng_ext import Categorical, Integer, Real, SearchSpace

KINDS = (asng.ASNG, asng.SNG, asng.NaturalAdam)
SPACE = SearchSpace(
    {
        "op": Categorical(range(50)),
        "act": Categorical(["relu", "tanh"]),
        "depth": Integer(1, 9),
        "rate": Real(0.0, 1.0),
    },
    active_if={"depth": {"act": "relu"}},
)


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    """Python changes from one thread to another as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def losses_of(generation: int) -> list[float]:
    return np.random.default_rng(generation).random(4).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_threads_ask_and_tell_beside_each_other(kind: type[asng.ASNG]) -> None:
    optimizer = kind(SPACE, population_size=4, seed=0)
    drawn: list[np.ndarray] = []

    def work(thread: int) -> None:
        for i in range(60):
            samples = optimizer.ask()
            drawn.append(samples.numerical)
            optimizer.tell(samples, losses_of(1000 * thread + i))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (optimizer.generation, optimizer.evaluations) == (240, 960)
    assert len(np.unique(np.concatenate(drawn)[:, 1])) == 960  # no population was drawn twice
    kind(SPACE, population_size=4).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_taken_beside_a_tell_is_of_one_moment(kind: type[asng.ASNG]) -> None:
    def told(optimizer: asng.ASNG) -> None:
        samples = optimizer.ask()
        optimizer.tell(samples, losses_of(optimizer.generation))

    optimizer = kind(SPACE, population_size=4, seed=0)
    expected = [optimizer.state_dict()]
    for _ in range(400):
        told(optimizer)
        expected.append(optimizer.state_dict())

    optimizer = kind(SPACE, population_size=4, seed=0)
    thread = threading.Thread(target=lambda: [told(optimizer) for _ in range(400)])
    thread.start()
    taken = []
    while thread.is_alive():
        taken.append(optimizer.state_dict())
    thread.join()
    for state in taken:
        wanted = expected[state["generation"]]
        assert state["asked"] - wanted["asked"] in (0, 1)  # between ask and tell
        assert {**state, "asked": 0} == {**wanted, "asked": 0}
    assert optimizer.state_dict() == expected[-1]


def test_other_threads_run_while_a_large_population_is_drawn_and_evaluated() -> None:
    space = SearchSpace({f"op{i}": Categorical(range(50)) for i in range(20_000)})
    optimizer = asng.ASNG(space, population_size=32, seed=0)
    optimizer.ask()
    calls: list[tuple[float, float]] = []

    def work() -> None:
        for _ in range(3):
            begin = time.perf_counter()
            samples = optimizer.ask()
            optimizer.tell(samples, list(range(32)))
            calls.append((begin, time.perf_counter()))

    moments = []
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        moments.append(time.perf_counter())
    thread.join()
    shares = []
    for begin, end in calls:
        inside = [begin, *(moment for moment in moments if begin < moment < end), end]
        longest = max(after - before for before, after in itertools.pairwise(inside))
        shares.append(longest / (end - begin))
    # About a half where only one of both holds the GIL. Other processes may hold up a call or two.
    assert min(shares) < 0.4


def test_a_long_tell_is_seen_whole() -> None:
    """What is read beside it is of before or after, though other threads run meanwhile."""
    space = SearchSpace({f"op{i}": Categorical(range(20)) for i in range(3000)})
    optimizer = asng.ASNG(space, population_size=8, seed=0)
    states = [optimizer.state_dict()]
    copy = asng.ASNG(space, population_size=8, seed=0)
    for _ in range(12):
        copy.tell(copy.ask(), list(range(8)))
        states.append(copy.state_dict())

    def work() -> None:
        for _ in range(12):
            optimizer.tell(optimizer.ask(), list(range(8)))

    thread = threading.Thread(target=work)
    thread.start()
    taken = []
    while thread.is_alive():
        taken.append(optimizer.state_dict())
    thread.join()
    drawn = {state["generation"]: state for state in states}
    for state in taken:
        known = drawn[state["generation"]]
        assert {**state, "asked": 0} == {**known, "asked": 0}
    assert optimizer.state_dict() == states[-1]
