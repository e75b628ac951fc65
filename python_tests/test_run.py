"""Run folders, metrics and settings."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import torch
from recording import RecordingGraphs

from asng_ext.config import (
    RetrainConfig,
    SearchConfig,
    dump_toml,
    lasting,
    load_toml,
    section_from,
    section_to_dict,
)
from asng_ext.progress import Progress
from asng_ext.run import Metrics, RunFolder, write_atomically
from asng_ext.training import Means, cosine, cpu_threads, in_steps


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


def test_metrics_keep_rows_up_to_a_checkpoint(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.add({"epoch": 1, "loss": 0.1})
    metrics.add({"epoch": 2, "loss": 1 / 3, "test": math.nan})
    metrics.add({"epoch": 3, "loss": 0.25})
    again = Metrics(tmp_path / "metrics.csv", keep=2)
    assert [row["epoch"] for row in again.rows] == [1, 2]
    assert again.rows[1]["loss"] == 1 / 3
    assert "test" not in again.rows[0]
    again.add({"epoch": 3, "loss": 0.5})
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,test"
    assert lines[3] == "3,0.5,"
    assert Metrics(tmp_path / "metrics.csv").rows == []


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
    with pytest.raises(FileNotFoundError):
        run.read_json("nothing.json")
    run.file("list.json").write_text("[]")
    with pytest.raises(ValueError, match="JSON object"):
        run.read_json("list.json")
    run.file("config.toml").write_text("seed = [")
    with pytest.raises(ValueError, match=r"config\.toml is not valid TOML"):
        run.read_config()


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
    text = dump_toml({"search": section_to_dict(config)})
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
    rates = [in_steps(1.0, done, 10) for done in (0, 3, 4, 7, 8, 9)]
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
    assert set(section_to_dict(config)) - set(lasting(config)) == {"graphs"}
    assert lasting(replace(config, graphs=False)) == lasting(config)
    assert lasting(replace(config, epochs=7)) != lasting(config)


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
