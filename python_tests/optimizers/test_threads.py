"""What may be done from several threads of a process at a time."""

from __future__ import annotations

import sys
import threading
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
