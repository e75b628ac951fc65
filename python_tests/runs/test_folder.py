"""Run folders, metrics and settings."""

from __future__ import annotations

import errno
import fcntl
import io
import math
import os
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import IO

import pytest
import small_classification as small
import torch
from recording_graphs import RecordingGraphs

from asng_ext._files import write_atomically
from asng_ext._terminal import Progress
from asng_ext._threads import cpu_threads
from asng_ext.runs.config import (
    RetrainConfig,
    SearchConfig,
    affecting_results,
    dump_toml,
    load_toml,
    section_from,
)
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.metrics import MetricsTable
from asng_ext.training.metrics import Means
from asng_ext.training.schedules import cosine, multi_step_decay


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def _write(text: bytes, file: IO[bytes]) -> None:
    file.write(text)


def test_what_was_there_is_kept_under_another_name(tmp_path: Path) -> None:
    path, previous = tmp_path / "file", tmp_path / "previous"
    for text in (b"one", b"two", b"three"):
        write_atomically(path, partial(_write, text), previous=[previous])
    assert (path.read_text(), previous.read_text()) == ("three", "two")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EROFS, "Read-only file system; make the file system writable"),
        (errno.EACCES, "Permission denied; change its permissions"),
    ],
)
def test_what_cannot_be_written_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(number, os.strerror(number))

    run = RunFolder.create(tmp_path / "run")
    run.save("search.pt", {"n": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match=re.escape(remedy)) as caught:
            run.save("search.pt", {"n": 2}, keep=2)
    assert caught.value.filename == str(run.file("search.pt"))
    assert run.load("search.pt") == {"n": 1}
    assert [entry.name for entry in run.path.iterdir()] == ["search.pt"]


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path: Path) -> None:
    """In a process whose files must not become larger, which PyTorch reports in its own way."""
    code = f"""
import resource, signal, torch
from asng_ext.runs.folder import RunFolder
run = RunFolder({str(tmp_path)!r})
run.save("search.pt", {{"x": torch.zeros(10)}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    run.save("search.pt", {{"x": torch.zeros(100_000)}})
except OSError as error:
    assert error.filename == str(run.file("search.pt")), error
    assert "allow larger files" in str(error), error
    assert run.load("search.pt")["x"].numel() == 10
    assert len(list(run.path.iterdir())) == 1
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_metrics_are_those_that_are_known_or_those_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": 1 / 3, "test": math.nan}]
    metrics = MetricsTable(path, rows=rows)
    metrics.rows.append({"epoch": 3, "loss": 0.5})
    metrics.write()
    lines = path.read_text().splitlines()
    assert (lines[0], lines[3]) == ("epoch,loss,test", "3,0.5,")
    again = MetricsTable(path, keep=2)
    assert [row["epoch"] for row in again.rows] == [1, 2]
    assert again.rows[1]["loss"] == 1 / 3
    assert "test" not in again.rows[0]
    assert MetricsTable(path).rows == []
    for foreign in ("epoch,loss\n1,high\n", "epoch\n1,2,3\n"):
        path.write_text(foreign)
        with pytest.raises(ValueError, match=r"metrics\.csv is not a table of metrics"):
            MetricsTable(path, keep=1)
    assert MetricsTable(path, rows=rows).rows == rows
    assert path.read_text().splitlines()[0] == "epoch,loss,test"


def test_commands_are_for_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "a run"
    run = RunFolder.create(path, {})
    command = f"asng resume '{path}'"
    assert run.command("resume") == command
    assert run.command("retrain", "--restart") == f"asng retrain '{path}' --restart"
    with pytest.raises(FileExistsError, match=re.escape(f"with `{command}`")):
        RunFolder.check_unused(path)


def test_what_is_no_run_cannot_be_continued(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    for path, words in ((tmp_path, "exists and is not empty"), (tmp_path / "notes", "is a file")):
        with pytest.raises(FileExistsError) as caught:
            RunFolder.create(path, {})
        assert str(caught.value) == f"run folder {path} {words}; choose another"


def test_run_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.toml"):
        RunFolder.open(tmp_path)
    run = RunFolder.create(tmp_path / "a" / "b")
    run.write_config({"seed": 1, "search": {"alpha": 1.5}})
    assert RunFolder.open(run.path).read_config() == {"seed": 1, "search": {"alpha": 1.5}}
    with pytest.raises(FileExistsError, match="not empty"):
        RunFolder.create(run.path)
    assert run.load("nothing.pt") is None
    run.save("state.pt", {"x": torch.arange(3), "n": 1})
    state = run.load("state.pt")
    assert state is not None
    assert state["x"].tolist() == [0, 1, 2]
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        run.read_json("nothing.json")
    run.file("list.json").write_text("[]")
    with pytest.raises(ValueError, match="JSON object"):
        run.read_json("list.json")
    run.file("config.toml").write_text("seed = [")
    with pytest.raises(ValueError, match=r"config\.toml is not valid TOML"):
        run.read_config()


def test_a_folder_is_created_by_one(tmp_path: Path) -> None:
    def create(number: int, another_name: bool) -> str:
        barrier.wait()
        try:
            path = tmp_path / ("numbered" if another_name else "run")
            config = {"by": number}
            return RunFolder.create(path, config, another_name=another_name).path.name
        except (FileExistsError, BlockingIOError):
            return ""

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda i: create(i, False), range(8))) == [""] * 7 + ["run"]
        named = sorted(pool.map(lambda i: create(i, True), range(8)))
    assert named == ["numbered", *(f"numbered-{number}" for number in range(2, 9))]
    assert {RunFolder(tmp_path / name).read_config()["by"] for name in named} == set(range(8))


def test_leftovers_of_a_dead_process_do_not_make_a_folder_unusable(tmp_path: Path) -> None:
    (tmp_path / ".config.toml.123.tmp").write_text("seed =")
    (tmp_path / ".lock").write_text("process 123 on nowhere since long ago")
    run = RunFolder.create(tmp_path, {"seed": 1})
    assert [entry.name for entry in run.path.iterdir()] == ["config.toml"]
    (tmp_path / ".search.pt.123.tmp").write_bytes(b"half")
    (tmp_path / ".notes.tmp").write_bytes(b"somebody's own")
    with run.lock():
        assert {entry.name for entry in run.path.iterdir()} == {
            ".lock",
            ".notes.tmp",
            "config.toml",
        }


def test_a_folder_in_use_is_refused_and_a_dead_users_is_not(tmp_path: Path) -> None:
    code = f"""
import sys
from asng_ext.runs.folder import RunFolder
with RunFolder({str(tmp_path)!r}).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""
    run = RunFolder(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        words = f"in use by process {process.pid} on .* since 20.* UTC"
        with pytest.raises(BlockingIOError, match=words), run.lock():
            pass
        process.kill()
    assert (tmp_path / ".lock").exists()
    with run.lock(), run.lock():
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
        with pytest.raises(BlockingIOError, match="in use by"), RunFolder(tmp_path).lock():
            pass
    assert not (tmp_path / ".lock").exists()


def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), RunFolder(tmp_path).lock():
        pass


def test_no_bit_of_a_checkpoint_changes_unnoticed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    content = {"x": torch.arange(8.0), "n": 3, "rows": [{"loss": 0.5}]}
    run.save("search.pt", content)
    good = run.file("search.pt").read_bytes()
    generator, refused = random.Random(0), 0
    places = [generator.randrange(8 * len(good)) for _ in range(300)]
    for place in places:
        broken = bytearray(good)
        broken[place // 8] ^= 1 << place % 8
        run.file("search.pt").write_bytes(broken)
        try:
            assert small.equal(run.load("search.pt"), content)  # a bit that nobody looks at
        except ValueError as error:
            refused += f"{run.file('search.pt')} is not a complete checkpoint" in str(error)
    assert refused > 100
    for length in (0, 1, len(good) // 2, len(good) - 1):
        run.file("search.pt").write_bytes(good[:length])
        with pytest.raises(ValueError, match="not a complete checkpoint"):
            run.load("search.pt")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    for number in (1, 2):
        run.save("search.pt", {"n": number}, keep=2)
    path = run.file("search.pt")
    assert run.load_checkpoint("search.pt", "begin anew") == (path, {"n": 2})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"search\.pt is not .*; continuing from search\.prev\.pt"):
        assert run.load_checkpoint("search.pt", "begin anew") == (path, {"n": 1})
    assert run.load_checkpoint("search.pt", "begin anew") == (path, {"n": 1})
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint before .* could be used: begin anew$"):
        run.load_checkpoint("search.pt", "begin anew")
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="move the folder away"):
        run.load_checkpoint("search.pt", "begin anew")


def test_as_many_checkpoints_are_kept_as_are_wanted(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    for number in range(7):
        run.save("search.pt", {"n": number}, keep=4)
    names = ["search.pt", "search.prev.pt", "search.prev2.pt", "search.prev3.pt"]
    assert sorted(path.name for path in run.path.iterdir()) == sorted(names)
    assert [run.load(name) for name in names] == [{"n": 6 - i} for i in range(4)]
    for name in names[:2]:
        run.file(name).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"search\.pt is not .* from search\.prev2\.pt") as warned:
        assert run.load_checkpoint("search.pt", "begin anew") == (run.file("search.pt"), {"n": 4})
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.json", b"\xff\xfe", "is not a text file in UTF-8"),
        ("config.toml", b"a = " + b"[" * 100_000, "is not valid TOML"),
        ("config.toml", b"\xff", "is not a text file in UTF-8"),
    ],
)
def test_broken_text_files_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    run = RunFolder(tmp_path)
    run.file(name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{run.file(name)} {words}")):
        run.read_config() if name == "config.toml" else run.read_json(name)


def test_checkpoints_hold_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (exec, ("raise SystemExit('executed')",))

    run = RunFolder.create(tmp_path / "run")
    torch.save({"x": Evil()}, run.file("search.pt"))
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        run.load("search.pt")


def test_sections_go_through_toml() -> None:
    config = SearchConfig(epochs=3, alpha=2, margin="catcma")  # an integer will do for a float
    assert config.alpha == 2.0
    assert isinstance(config.alpha, float)
    text = dump_toml({"search": asdict(config)})
    assert section_from(SearchConfig, load_toml(text, "text")["search"]) == config


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1 and at most 1000000, got 0"),
        ({"epochs": True}, TypeError, "epochs must be of type int"),
        ({"epochs": "3"}, TypeError, "epochs"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be above 0"),
        ({"momentum": 1.5}, ValueError, "momentum must be at least 0 and at most 1"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate"),
        ({"precision": "int8"}, ValueError, "precision must be one of float32, bfloat16"),
        ({"compile": 1}, TypeError, "compile must be of type bool"),
        ({"epoch": 1}, ValueError, r"unknown settings \['epoch'\]"),
    ],
)
def test_bad_settings_are_named(
    values: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        section_from(RetrainConfig, values)


def test_the_defaults_are_the_papers() -> None:
    search, final = SearchConfig(), RetrainConfig()
    assert (search.epochs, search.batch_size, search.population_size) == (100, 64, 2)
    assert (search.learning_rate, search.weight_decay, search.gradient_clip) == (0.025, 3e-4, 5)
    assert (search.alpha, search.delta_init) == (1.5, 1.0)
    assert (final.epochs, final.batch_size, final.learning_rate) == (600, 80, 0.025)


def test_cosine() -> None:
    assert cosine(2.0, 0, 10) == 2.0
    assert cosine(2.0, 5, 10) == pytest.approx(1.0)
    assert cosine(2.0, 10, 10) == pytest.approx(0.0)


def test_cpu_threads() -> None:
    before = torch.get_num_threads()
    with cpu_threads(2):
        assert torch.get_num_threads() == 2
        with cpu_threads(0):
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_in_steps() -> None:
    rates = [multi_step_decay(1.0, done, 10) for done in (0, 3, 4, 7, 8, 9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_means() -> None:
    means = Means()
    means.add({"loss": torch.tensor(1.0)}, "train_")
    means.add({"loss": torch.tensor(3.0), "accuracy": torch.tensor(0.5)}, "train_")
    assert means.read() == {"train_loss": 2.0, "train_accuracy": 0.5}
    means.reset()
    assert means.read() == {}
    means.add({"loss": torch.tensor(5.0, requires_grad=True)}, "train_")
    assert means.read() == {"train_loss": 5.0}


def test_means_are_of_as_many_steps_as_are_replayed() -> None:
    means, loss = Means(), torch.zeros(())
    means.add({"loss": loss})  # sums have to be there before
    means.reset()
    replay = RecordingGraphs().capture(lambda: means.add({"loss": loss}))
    for value in (1.0, 2.0, 6.0):
        loss.fill_(value)
        replay()
    assert means.read() == {"loss": 3.0}


def test_neutral_settings_are_not_lasting() -> None:
    config = SearchConfig()
    assert set(asdict(config)) - set(affecting_results(config)) == {
        "autotune",
        "check_every",
        "checkpoint_minutes",
        "graphs",
        "keep",
        "on_divergence",
        "threads",
    }
    assert affecting_results(replace(config, graphs=False, threads=3)) == affecting_results(config)
    assert affecting_results(replace(config, epochs=7)) != affecting_results(config)


def test_time_left() -> None:
    progress = Progress("search", 10, 2, stream=None)
    assert math.isnan(progress.left(2))
    progress.start -= 8
    assert progress.left(4) == pytest.approx(24, rel=0.01)
    progress.line(4, {"loss": 1.0})
    assert not progress.due()


def test_the_live_line_and_notes() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress("search", 10, stream=stream, interval=60)
        assert progress.due() == (stream is terminal)
        if stream is terminal:
            progress.draw(1, {"loss": 1.0})
            assert not progress.due()
            progress.drawn -= 61
            assert progress.due()
        progress.note("something to know")
    assert terminal.getvalue().splitlines()[-1].startswith("search: something to know ")
    assert file.getvalue() == "search: something to know\n"
