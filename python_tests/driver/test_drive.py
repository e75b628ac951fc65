"""Evaluations on several workers: in which order they are told, what fails, what is given up."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_evaluations as slow

import asng_ext as asng
from asng_ext.driver import Evaluation


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


@pytest.mark.parametrize("maximize", [False, True])
def test_one_worker_is_the_plain_loop(maximize: bool) -> None:
    expected, optimizer = slow.make(maximize=maximize), slow.make(maximize=maximize)
    samples = slow.plain(expected)
    found = asng.drive(optimizer, slow.loss, workers=1)
    assert [each.sample for each in found] == samples
    assert [each.loss for each in found] == [slow.loss(sample) for sample in samples]
    assert optimizer.state_dict() == expected.state_dict()


def test_populations_in_step_are_the_plain_loop(threads: ThreadPoolExecutor) -> None:
    """However long each evaluation takes."""
    rng = np.random.default_rng(0)
    expected, optimizer = slow.make(), slow.make()
    samples = slow.plain(expected)

    def evaluate(sample: dict[str, Any]) -> float:
        time.sleep(rng.uniform(0.0, 0.01))
        return slow.loss(sample)

    found = asng.drive(optimizer, evaluate, workers=3, executor=threads, synchronous=True)
    assert [each.sample for each in found] == samples
    assert optimizer.state_dict() == expected.state_dict()


def test_no_worker_waits_for_a_slow_one(threads: ThreadPoolExecutor) -> None:
    release = threading.Event()
    slow_ones: list[dict[str, Any]] = []

    def evaluate(sample: dict[str, Any]) -> float:
        if not slow_ones:
            slow_ones.append(sample)
            assert release.wait(20)
        return slow.loss(sample)

    over: list[Evaluation] = []

    def report(evaluation: Evaluation) -> None:
        over.append(evaluation)
        if len(over) == 25:
            release.set()

    optimizer = slow.make()
    told = asng.drive(optimizer, evaluate, workers=3, executor=threads, report=report)
    assert told == over
    assert [each.sample for each in told].index(slow_ones[0]) >= 25  # first drawn, told late
    assert len({slow.name(each.sample) for each in told}) == len(told) == 40
    assert optimizer.generation == 10


def test_samples_are_drawn_when_they_are_needed(threads: ThreadPoolExecutor) -> None:
    """Of those which run or wait, fewer than λ are older than the last step."""
    ages: list[int] = []
    optimizer = slow.make(evaluation_limit=80)
    drawn: dict[str, int] = {}
    ask = optimizer.ask

    def asked() -> asng.Samples:
        samples = ask()
        drawn.update(dict.fromkeys(map(slow.name, samples), optimizer.generation))
        return samples

    optimizer.ask = asked  # type: ignore[method-assign]

    def report(evaluation: Evaluation) -> None:
        ages.append(optimizer.generation - drawn[slow.name(evaluation.sample)])

    def evaluate(sample: dict[str, Any]) -> float:
        time.sleep(0.002)
        return slow.loss(sample)

    asng.drive(optimizer, evaluate, workers=2, executor=threads, report=report)
    assert max(ages) <= 2


def test_what_fails_ranks_last() -> None:
    optimizer = slow.make()
    with pytest.warns(RuntimeWarning) as record:
        found = asng.drive(optimizer, slow.failing, workers=1)
    failed = [each for each in found if each.failure is not None]
    reasons = {
        r"NotReadableError: \d is too wide \(slow_evaluations.py:\d+\)": lambda s: s["op"] == "a",
        r"SystemExit: five .*": lambda s: s["op"] != "a" and s["width"] == 5,
        r"evaluate has returned inf": lambda s: s["op"] != "a" and s["width"] == 4,
    }
    for pattern, applies in reasons.items():
        of_kind = [each for each in found if applies(each.sample)]
        assert of_kind
        for each in of_kind:
            assert re.fullmatch(pattern, each.failure or "")
            assert math.isnan(each.loss)
    assert sum(len([e for e in found if a(e.sample)]) for a in reasons.values()) == len(failed)
    assert len(record) == len(failed)
    for warned, each in zip(record, failed):
        assert str(each.sample)[:150] in str(warned.message)
        assert str(each.failure) in str(warned.message)
        assert warned.filename == __file__
    expected = slow.make()
    losses = {slow.name(each.sample): each.loss for each in found}
    slow.plain(expected, lambda sample: losses[slow.name(sample)])
    assert optimizer.state_dict() == expected.state_dict()


def test_failures_in_a_row_end_a_search(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    def evaluate(sample: dict[str, Any]) -> float:
        raise OSError("no data")

    journal = tmp_path / "journal"
    for _ in range(2):  # the second goes on where the first was
        with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError, match=r"6 .*no data"):
            asng.drive(
                slow.make(), evaluate, workers=2, executor=threads, failure_limit=6, journal=journal
            )
    assert journal.read_text().count("no data") == 12


@pytest.mark.parametrize("retries", [0, 1])
def test_a_process_that_dies_takes_no_other_with_it(tmp_path: Path, retries: int) -> None:
    evaluate = slow.Deadly(tmp_path)
    with pytest.warns(RuntimeWarning, match="died"):
        found = asng.drive(
            slow.make(evaluation_limit=8), evaluate, workers=2, retries=retries, failure_limit=None
        )
    assert len(found) == 8
    assert {each.sample["op"] for each in found} == {"a", "b", "c"}
    for each in found:
        op = each.sample["op"]
        attempts = {"a": 1 + retries, "b": 1, "c": 1 + (retries > 0)}[op]
        assert evaluate.attempts(each.sample) == attempts
        failed = op == "a" or (op == "c" and retries == 0)
        assert math.isnan(each.loss) == failed
        assert ("its worker has died" in (each.failure or "")) == failed


def test_workers_that_are_killed_from_outside_are_replaced(tmp_path: Path) -> None:
    """Idle ones and busy ones, all at once, twice."""
    evaluate = slow.InFolder(tmp_path, 0.01)
    killed: set[int] = set()

    def report(evaluation: Evaluation) -> None:
        alive = evaluate.processes() - killed
        if len(killed) < 4 and len(alive) == 2:
            for process in alive:
                os.kill(process, signal.SIGKILL)
            killed.update(alive)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = asng.drive(slow.make(), evaluate, workers=2, retries=2, report=report)
    assert len(killed) == 4
    assert len(found) == 40
    assert not [each for each in found if each.failure]


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    evaluate = slow.Hanging(tmp_path)
    start = time.monotonic()
    with pytest.warns(RuntimeWarning, match=r"longer than 0\.2 seconds"):
        found = asng.drive(slow.make(evaluation_limit=12), evaluate, workers=2, timeout=0.2)
    assert time.monotonic() - start < 20
    for each in found:
        assert math.isnan(each.loss) == (each.sample["op"] == "a")
        assert evaluate.attempts(each.sample) == 1
    assert all(map(slow.ended, evaluate.processes()))


def test_late_results_are_dropped(threads: ThreadPoolExecutor) -> None:
    """Of an executor whose evaluations cannot be ended; the worker works again afterwards."""
    late: list[dict[str, Any]] = []
    running: list[int] = []
    most = [0]

    def evaluate(sample: dict[str, Any]) -> float:
        running.append(1)
        most[0] = max(most[0], len(running))
        if len(late) < 2:
            late.append(sample)
            time.sleep(0.4)
        running.pop()
        time.sleep(0.02)
        return slow.loss(sample)

    with pytest.warns(RuntimeWarning, match="longer than") as record:
        found = asng.drive(slow.make(), evaluate, workers=2, executor=threads, timeout=0.2)
    assert len(record) == len(late) == 2
    assert most[0] == 2
    failed = [each.sample for each in found if each.failure]
    assert failed in (late, late[::-1])
    assert len({slow.name(each.sample) for each in found}) == len(found) == 40


def test_workers_come_and_go(threads: ThreadPoolExecutor) -> None:
    running: list[int] = []
    most: dict[int, int] = {}
    over: list[Evaluation] = []
    looks = [0]

    def workers() -> int:
        looks[0] += 1
        if len(over) < 12:
            return 1
        if len(over) < 24:
            return 4
        if looks[0] < 1000 and not running:
            looks[0] = 1000
            return 0
        return 2

    lock = threading.Lock()

    def evaluate(sample: dict[str, Any]) -> float:
        with lock:
            running.append(1)
            stage = len(over) // 12
            most[stage] = max(most.get(stage, 0), len(running))
        time.sleep(0.01)
        with lock:
            running.pop()
        return slow.loss(sample)

    asng.drive(
        slow.make(evaluation_limit=60),
        evaluate,
        workers=workers,
        executor=threads,
        report=over.append,
    )
    assert most[0] <= 4  # the last of the first twelve runs beside the next
    assert most[1] == 4
    assert most[4] <= 2
    assert len(over) == 60


def test_processes_have_numbers(tmp_path: Path) -> None:
    found = asng.drive(slow.make(), slow.Numbered(tmp_path), workers=2)
    assert {each.loss for each in found} == {0.0, 1.0}


def test_no_evaluation_is_begun_beyond_the_limits(
    threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    for limits in ({"evaluation_limit": 22}, {"evaluation_limit": None, "generation_limit": 5}):
        begun: list[dict[str, Any]] = []

        def evaluate(sample: dict[str, Any], begun: list[dict[str, Any]] = begun) -> float:
            begun.append(sample)
            return slow.loss(sample)

        asng.drive(slow.make(**limits), evaluate, workers=7, executor=threads)
        assert len(begun) == 20


def test_tensors_and_arrays_are_losses(threads: ThreadPoolExecutor) -> None:
    torch = pytest.importorskip("torch")
    kinds: list[Callable[[float], Any]] = [torch.tensor, np.array, np.float32, np.int64]
    for kind in kinds:
        found = asng.drive(
            slow.make(evaluation_limit=4),
            lambda sample, kind=kind: kind(sample["width"]),
            workers=1,
            executor=threads,
        )
        assert [each.loss for each in found] == [each.sample["width"] for each in found]


def test_a_loss_that_is_no_number_ends_a_search(threads: ThreadPoolExecutor) -> None:
    for wrong in (None, "3", [1.0], True, 1j):
        optimizer = slow.make()
        with pytest.raises(TypeError, match="evaluate must return a number, got"):
            asng.drive(optimizer, lambda sample, wrong=wrong: wrong, workers=1, executor=threads)
        assert optimizer.generation == 0


def test_what_processes_cannot_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="evaluate must be a function that other processes can"):
        asng.drive(slow.make(), lambda sample: 0.0, workers=1)
    here = sys.modules[__name__] = type(sys)("only_here")  # a module that no other process has
    try:
        exec("def evaluate(sample): return 0.0", here.__dict__)
        sys.modules["only_here"] = here
        with pytest.raises(TypeError, match="evaluate must be a function that workers can import"):
            asng.drive(slow.make(), here.evaluate, workers=1)
    finally:
        del sys.modules["only_here"]


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asng_ext as asng\n"
        "def evaluate(sample): return 0.0\n"
        "space = asng.SearchSpace({'x': asng.Real(0, 1)})\n"
        "asng.drive(asng.ASNG(space), evaluate, workers=1)\n"
    )
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert 'call drive under `if __name__ == "__main__":`' in result.stderr


def test_an_executor_that_breaks_cannot_be_replaced(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1) as executor, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="executor is broken"):
            asng.drive(slow.make(), slow.Deadly(tmp_path), workers=1, executor=executor)


def test_errors_of_a_report_leave_no_process(tmp_path: Path) -> None:
    evaluate = slow.InFolder(tmp_path)

    def report(evaluation: Evaluation) -> None:
        raise KeyError(evaluation.loss)

    with pytest.raises(KeyError):
        asng.drive(slow.make(), evaluate, workers=2, report=report)
    assert all(map(slow.ended, evaluate.processes()))
