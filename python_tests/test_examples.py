"""The scripts in examples/ run, and find what they say."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import small_classification as small
import torch

import asng_ext as asng
from asng_ext import cli
from asng_ext.nn import CellNetwork, CellSpace, parameter_count, widest_channels

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[1] / "examples"
LEAST = {
    "lightning_search": (r"test accuracy ([\d.]+)", 0.8),
    "ddp_search": (r"test accuracy ([\d.]+)", 0.8),
    "moved_from_2019": (r"(\d+)% of the variables", 90.0),
    "own_optimizer": (r"PBIL: .*test accuracy ([\d.]+)", 0.6),
    "own_search_space": (r"test accuracy ([\d.]+)", 0.8),
    "own_task": (r"test accuracy ([\d.]+)", 0.9),
    "parallel_evaluations": (r"test accuracy ([\d.]+)", 0.9),
    "photo_patches": (r"(\d+) patches", 1000),
    "sklearn_hyperparameters": (r"test accuracy ([\d.]+)", 0.9),
}
"""What each prints in the end, and how large that number must be."""
NOTEBOOK = FOLDER / "first_search.ipynb"


NEEDED = {"lightning_search": "lightning", "dask": "distributed", "ray": "ray"}
"""Packages that the tests do without, by example or argument."""


def check(name: str, printed: str) -> None:
    pattern, least = LEAST[name]
    found = re.findall(pattern, printed)
    assert len(found) == 1
    assert float(found[0]) >= least


@pytest.mark.slow
def test_a_job_that_is_queued_again_goes_on(tmp_path: Path) -> None:
    """The script for SLURM, with an srun that tells the first step that its time is nearly over."""
    programs = {
        "asng": f'exec {sys.executable} -c "from asng_ext.cli import main; exit(main())" "$@"',
        "scontrol": f'echo "$@" >> {tmp_path / "queued"}',
        "srun": f"""
            [ -e {tmp_path / "queued"} ] && exec "$@"
            "$@" &
            while [ ! -e {tmp_path / "run" / "search.pt"} ]; do sleep 0.05; done
            kill -USR1 $!
            wait $!
        """,
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "matplotlib.py").write_text("raise ImportError")  # no pictures
    for name, body in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path / 'bin'}:{os.environ.get('PYTHONPATH', '')}",
        "SLURM_JOB_ID": "7",
    }
    command = ["bash", FOLDER / "slurm_search.sh", "digits", tmp_path / "run", *small.OPTIONS[1:]]
    for status in (138, 0):
        job = subprocess.run(
            [*command, "--checkpoint-minutes=1e-9"], env=environment, capture_output=True, text=True
        )
        assert job.returncode == status, job.stderr
        assert (tmp_path / "queued").read_text() == "requeue 7\n"
    assert (tmp_path / "run" / "results.json").exists()


def test_every_example_is_run() -> None:
    assert sorted(LEAST) == sorted(path.stem for path in FOLDER.glob("*.py"))
    assert list(FOLDER.glob("*.ipynb")) == [NOTEBOOK]


@pytest.mark.parametrize("name", sorted(LEAST.keys() - {"parallel_evaluations"}))
def test_examples(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    generators = torch.random.get_rng_state()
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    torch.random.set_rng_state(generators)
    check(name, capsys.readouterr().out)


@pytest.mark.parametrize("backend", ["processes", "joblib", "dask", "ray"])
def test_parallel_evaluations(backend: str, tmp_path: Path) -> None:
    """In a process of its own, as workers start from its main module."""
    if backend in NEEDED:
        pytest.importorskip(NEEDED[backend])
    script = str(FOLDER / "parallel_evaluations.py")
    result = subprocess.run(
        [sys.executable, script, backend],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    check("parallel_evaluations", result.stdout)
    failed, evaluated = re.findall(r"(\d+) of (\d+) evaluations failed", result.stdout)[0]
    assert 0 < int(failed) < int(evaluated) // 2


def test_the_notebook(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace: dict[str, object] = {}
    for number, source in enumerate(code):
        source = re.sub(r"^%.*$", "", source, flags=re.M)  # what only a notebook knows
        exec(compile(source, f"cell {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "'op': 'conv5'" in printed
    assert float(re.findall(r"test accuracy ([\d.]+)", printed)[0]) >= 0.9


def test_the_notebook_in_a_kernel() -> None:
    pytest.importorskip("ipykernel")
    client = pytest.importorskip("nbclient")
    notebook = pytest.importorskip("nbformat").read(NOTEBOOK, as_version=4)
    client.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    kinds = [out.output_type for cell in notebook.cells for out in cell.get("outputs", ())]
    assert kinds.count("display_data") == 2
    assert "error" not in kinds


def test_a_search_in_lightning_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    example = runpy.run_path(str(FOLDER / "lightning_search.py"))
    data = torch.utils.data.TensorDataset(torch.rand(64, 1, 8, 8), torch.randint(10, (64,)))
    batches = torch.utils.data.DataLoader(data, batch_size=16)

    def fit(epochs: int, seed: int, checkpoint: Path | None = None) -> object:
        search = example["ArchitectureSearch"](batches, population_size=2, seed=seed)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            callbacks=[search],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(example["Classifier"](), batches, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return search.optimizer

    first = fit(epochs=1, seed=3)
    assert (first.generation, first.seed) == (4, 3)
    again = fit(epochs=2, seed=0, checkpoint=tmp_path / "1.ckpt")
    assert (again.generation, again.seed) == (8, 3)


ENAS_OPERATIONS = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "identity")
ENAS_ARCS = {
    "normal": "0 2 0 0  0 4 0 1  0 4 1 1  1 0 0 1  0 2 1 1",
    "reduction": "1 0 1 0  0 3 0 2  1 1 3 1  1 0 0 4  0 3 1 1",
}
"""As its authors write them: of each node the number of an input and of an operation, twice."""


def test_the_cells_of_enas_are_the_published_ones() -> None:
    found = asng.load_architecture(FOLDER / "enas.json")
    inputs = ("older", "newer", *(f"node{i}" for i in range(5)))
    expected = {}
    for kind, arc in ENAS_ARCS.items():
        numbers = list(map(int, arc.split()))
        for node in range(5):
            for j in range(2):
                read, operation = numbers[4 * node + 2 * j : 4 * node + 2 * j + 2]
                expected[f"{kind}/node{node}/input{j}"] = inputs[read]
                expected[f"{kind}/node{node}/operation{j}"] = ENAS_OPERATIONS[operation]
    assert found == expected


def test_the_cells_of_enas_are_as_wide_as_published_within_the_limit_of_the_paper() -> None:
    space = CellSpace(5)
    indices = space.to_indices(asng.load_architecture(FOLDER / "enas.json"))
    assert widest_channels(space, indices, 4_000_000, cells=20) == 36
    with torch.device("meta"):
        network = CellNetwork(space, indices, cells=17, channels=36, auxiliary=False)
    assert 3.2e6 < parameter_count(network) < 3.6e6  # 4.6 million with wider outputs of cells


def test_the_cells_of_enas_are_retrained_in_a_run_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "enas"
    arguments = ["retrain", str(out), "--architecture", str(FOLDER / "enas.json"), "--data=digits"]
    settings = ["--epochs=1", "--batch-size=512", "--final-cells=3", "--final-channels=2"]
    assert cli.main([*arguments, *settings]) == 0
    content = json.loads((out / "architecture.json").read_text())
    assert content["given"]
    assert content["architecture"] == asng.load_architecture(FOLDER / "enas.json")
    with torch.no_grad():
        assert asng.load_network(out)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
