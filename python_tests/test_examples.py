"""The scripts in examples/ run, and find what they say."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import torch

import asng_ext as asng
from asng_ext import cli
from asng_ext.nn import CellNetwork, CellSpace, parameter_count, widest_channels

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[1] / "examples"
LEAST = {
    "moved_from_2019": (r"(\d+)% of the variables", 90.0),
    "own_optimizer": (r"PBIL: .*test accuracy ([\d.]+)", 0.6),
    "own_search_space": (r"test accuracy ([\d.]+)", 0.8),
    "own_task": (r"test accuracy ([\d.]+)", 0.9),
    "photo_patches": (r"(\d+) patches", 1000),
    "sklearn_hyperparameters": (r"test accuracy ([\d.]+)", 0.9),
}
"""What each prints in the end, and how large that number must be."""


def test_every_example_is_run() -> None:
    assert sorted(LEAST) == sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", LEAST)
def test_examples(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    pattern, least = LEAST[name]
    found = re.findall(pattern, capsys.readouterr().out)
    assert len(found) == 1
    assert float(found[0]) >= least


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
