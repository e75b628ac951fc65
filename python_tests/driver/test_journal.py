"""What a journal is for: drivers that are killed go on, and it repeats what they did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_evaluations as slow

import asng_ext as asng
from asng_ext.driver import Evaluation
from asng_ext.driver.journal import Journal
from asng_ext.driver.loop import _Record


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def results(journal: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    return [line for line in lines if "loss" in line]


def start(journal: Path, workers: int) -> subprocess.Popen[bytes]:
    """In a session of its own, as from a terminal."""
    command = [sys.executable, slow.__file__, str(journal), str(workers)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 6), (2, 4)])
def test_a_driver_that_is_killed_goes_on(workers: int, kills: int, tmp_path: Path) -> None:
    """At random moments, each after something was done."""
    rng = np.random.default_rng(workers)
    journal = tmp_path / "journal.jsonl"
    attempts = tmp_path / "attempts"
    for _ in range(kills):
        size = journal.stat().st_size if journal.exists() else 0
        driver = start(journal, workers)
        for _ in range(2000):
            if journal.exists() and journal.stat().st_size > size:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.06))
        driver.kill()
        driver.communicate()
        begun = journal.read_bytes()
        assert begun.startswith(b'{"asng_ext journal": 1, ')
    evaluate = slow.InFolder(attempts)
    assert all(map(slow.ended, evaluate.processes()))  # evaluations end with their driver
    assert start(journal, workers).wait(60) == 0
    done = results(journal)
    assert len({(line["population"], line["index"]) for line in done}) == len(done) == 40
    # No more than what was under way was done again.
    extra = sum(evaluate.attempts(line["sample"]) - 1 for line in done)
    assert extra <= 10
    resumed, again, expected = slow.make(seed=8), slow.make(seed=9), slow.make()
    found = asng.drive(resumed, slow.loss, workers=1, journal=journal)
    assert [each.sample for each in found] == [line["sample"] for line in done]
    assert asng.drive(again, slow.loss, workers=1, journal=journal) == found
    assert again.state_dict() == resumed.state_dict()
    if workers == 1:
        assert [each.sample for each in found] == slow.plain(expected)
        assert resumed.state_dict() == expected.state_dict()


@pytest.mark.parametrize("synchronous", [False, True])
def test_each_line_repeats_a_state(
    synchronous: bool, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    states: list[tuple[int, dict[str, Any]]] = []
    optimizer = slow.make()
    rng = np.random.default_rng(0)

    def evaluate(sample: dict[str, Any]) -> float:
        time.sleep(rng.uniform(0.0, 0.004))
        if sample["op"] == "c":
            raise ValueError("c")
        return slow.loss(sample)

    def report(evaluation: Evaluation) -> None:
        states.append((path.stat().st_size, optimizer.state_dict()))

    with pytest.warns(RuntimeWarning, match="ValueError: c"):
        told = asng.drive(
            optimizer,
            evaluate,
            workers=3,
            executor=threads,
            journal=path,
            synchronous=synchronous,
            failure_limit=None,
            report=report,
        )
    content = path.read_bytes()
    assert len(states) == 40
    for size, state in states:
        for torn in (b"", b'{"population": 3, "ind'):
            part = tmp_path / "part"
            part.write_bytes(content[:size] + torn)
            other = slow.make(seed=None)
            record = _Record(other, synchronous)
            with Journal(part) as journal:
                record.keep(journal)
            assert other.state_dict() == state
            assert str(record.evaluations) == str(told[: len(record.evaluations)])
            assert part.read_bytes() == content[:size] + torn


def test_ctrl_c_ends_all_and_fails_none(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    driver = start(journal, 2)
    while not journal.exists() or b"loss" not in journal.read_bytes():
        time.sleep(0.01)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    _, errors = driver.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    assert b"RuntimeWarning" not in errors
    assert all(map(slow.ended, slow.InFolder(tmp_path / "attempts").processes()))
    assert all(line["failure"] is None for line in results(journal))


def test_a_torn_line_is_written_over(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    expected = slow.make()
    slow.plain(expected)
    asng.drive(slow.make(), slow.loss, workers=1, executor=threads, journal=journal)
    content = journal.read_bytes()
    for size in (0, 5, 100, content.index(b"\n") + 1, len(content) // 2, len(content) - 1):
        journal.write_bytes(content[:size])
        optimizer = slow.make()
        asng.drive(optimizer, slow.loss, workers=1, executor=threads, journal=journal)
        assert optimizer.state_dict() == expected.state_dict()
        lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
        same = [json.loads(line) for line in content.splitlines()]
        for line in (*lines, *same):
            line.pop("seconds", None)
        assert lines == same


def test_a_search_goes_on_with_another_limit(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    """And where it begins anywhere."""
    optimizers = [slow.make(evaluation_limit=limit) for limit in (24, 60, 60)]
    for optimizer in optimizers[::2]:
        optimizer.tell(optimizer.ask(), [1.0, 2.0, 3.0, 4.0])
    for optimizer in optimizers[:2]:
        found = asng.drive(
            optimizer, slow.loss, workers=1, executor=threads, journal=tmp_path / "journal"
        )
    assert len(found) == 56
    slow.plain(optimizers[2])
    assert optimizers[1].state_dict() == optimizers[2].state_dict()


def test_a_journal_is_for_one_search_at_a_time(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    driver = start(path, 1)
    while not path.exists() or b"loss" not in path.read_bytes():
        time.sleep(0.01)
    with pytest.raises(BlockingIOError, match="in use by another process"):
        asng.drive(slow.make(), slow.loss, workers=1, journal=path)
    assert driver.wait(60) == 0

    def report(evaluation: Evaluation) -> None:
        with pytest.raises(BlockingIOError, match="another search of this process"):
            asng.drive(slow.make(), slow.loss, workers=1, executor=threads, journal=path)

    other = slow.make(evaluation_limit=44)
    asng.drive(other, slow.loss, workers=1, executor=threads, journal=path, report=report)
    assert other.evaluations == 44


def damaged(content: bytes, line: int, **changes: Any) -> bytes:
    lines = content.split(b"\n")
    lines[line] = json.dumps(json.loads(lines[line]) | changes).encode()
    return b"\n".join(lines)


def test_what_is_no_journal_of_the_search_is_refused(
    threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    asng.drive(slow.make(), slow.loss, workers=1, executor=threads, journal=path)
    content = path.read_bytes()
    header = content.split(b"\n")[0]
    cases: list[tuple[bytes, str]] = [
        (b"a,b\n1,2\n", "journal must be a file that a driver .* begins with 'a,b'"),
        (b"precious", "journal must be a file that a driver .* 'precious'"),
        (b"\n", "journal must be a file"),
        (header.replace(b": 1,", b": 2,", 1) + b"\n", "journal must be a file"),
        (header[:50] + b"\n", "must hold an object of JSON .* in line 1"),
        (content + b"[1]\n", "must hold an object of JSON in each line, got '\\[1\\]'"),
        (content + b"{}\n", "is damaged in line 52, {}: KeyError"),
        (damaged(content, 1, draws=[[[0]], [[0.5]]]), "is damaged in line 2, .* shapes"),
        (damaged(content, 1, draws=[0]), "is damaged in line 2"),
        (damaged(content, 1, draws=[[["a"] * 1] * 4, 0]), "is damaged in line 2"),
        (damaged(content, 2, index=9), "is damaged in line 3, .*KeyError"),
        (damaged(content, 3, index=0), "is damaged in line 4"),
        (damaged(content, 2, loss="low"), "is damaged in line 3, .*'low'"),
        (damaged(content, 2, loss=-np.inf), "is damaged in line 6"),
        (damaged(content, 0, optimizer={}), "journal .* is of another search: state lacks"),
        (damaged(content, 0, optimizer=None), "journal .* is of another search: state must"),
        (damaged(content, 0, synchronous=True), "synchronous must be as in journal .* got False"),
    ]
    for text, words in cases:
        path.write_bytes(text)
        optimizer = slow.make()
        optimizer.tell(optimizer.ask(), [1.0, 2.0, 3.0, 4.0])
        before = optimizer.state_dict()
        with pytest.raises(ValueError, match=words):
            asng.drive(optimizer, slow.loss, workers=1, executor=threads, journal=path)
        assert optimizer.state_dict() == before
        assert path.read_bytes() == text
    path.write_bytes(content)
    for other, words in (
        (slow.make(population_size=6), "population_size=4, this optimizer has 6"),
        (asng.ASNG(asng.SearchSpace({"x": asng.Real(0, 1)}), population_size=4), "variable 0"),
        (asng.SNG(slow.SPACE, delta=1.0, population_size=4), "'ASNG'"),
    ):
        with pytest.raises(ValueError, match=f"of another search: .*{words}"):
            asng.drive(other, slow.loss, workers=1, executor=threads, journal=path)
    assert path.read_bytes() == content


def test_a_full_disk_loses_nothing(
    threads: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line is written, and the next driver goes on before it."""
    path = tmp_path / "journal"
    append = Journal.append

    def full(self: Journal, event: dict[str, Any], *, durable: bool = False) -> None:
        if event.get("population") == 5 and durable:
            self._file.write(b'{"population": 5')
            raise OSError(28, "No space left on device")
        append(self, event, durable=durable)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", full)
        with pytest.raises(OSError, match="No space"):
            asng.drive(slow.make(), slow.loss, workers=1, executor=threads, journal=path)
    optimizer, expected = slow.make(), slow.make()
    asng.drive(optimizer, slow.loss, workers=1, executor=threads, journal=path)
    slow.plain(expected)
    assert optimizer.state_dict() == expected.state_dict()
