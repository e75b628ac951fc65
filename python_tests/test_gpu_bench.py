"""The scripts for a GPU machine: the baseline computes what it should, failing parts hide none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from asng_ext.nn import CellSpace, FusedCellSupernet
from asng_ext.optimizers.reference import ReferenceASNG

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return ROOT / "bench"


@pytest.mark.parametrize("samples", [2, 3, 7])
def test_the_baseline_of_the_optimizer_is_algorithm_1(bench: Path, samples: int) -> None:
    from gpu_optimizer import EagerASNG

    eager = EagerASNG(6, 4, torch.device("cpu"))
    reference = ReferenceASNG([4] * 6)
    generator = np.random.default_rng(0)
    for step in range(25):
        chosen = generator.integers(4, size=(samples, 6))
        losses = generator.integers(3, size=samples).astype(float)  # with ties
        if step == 3:
            chosen[:] = chosen[0]  # samples that do not differ move nothing
        eager.tell(torch.from_numpy(chosen), torch.from_numpy(losses))
        reference.update(chosen, np.zeros((samples, 0)), losses.tolist())
        np.testing.assert_allclose(eager.theta.numpy(), np.stack(reference.theta), atol=1e-12)
        np.testing.assert_allclose(float(eager.Delta), reference.Delta, rtol=1e-12)
    assert float(eager.theta.max()) > 0.3


def test_the_baseline_samples_what_its_distribution_says(bench: Path) -> None:
    from gpu_optimizer import EagerASNG

    torch.manual_seed(0)
    eager = EagerASNG(1, 3, torch.device("cpu"))
    eager.theta.copy_(torch.tensor([[0.2, 0.3, 0.5]]))
    shares = torch.bincount(eager.ask(20_000)[:, 0], minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.3, 0.5]), atol=0.02, rtol=0)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_baselines_of_layers_compute_the_same(
    bench: Path, transposed: bool, stride: int
) -> None:
    from gpu_inpainting import Inputs, Inputs2019, Layer

    layer = Layer(transposed, 3, stride, 6, 4, 7)
    inputs = Inputs(layer, 2, torch.device("cpu"), torch.float32)
    ours, plain = inputs.active(True), inputs.plain(True)
    wide = Inputs2019(inputs).run(True)
    assert len(ours) == len(plain) == len(wide) == 3 + (transposed and stride == 1)
    for a, b, c in zip(ours, plain, wide, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(c[: a.shape[0], : a.shape[1]], b)
    # Channels that are not active have nothing, and give nothing.
    assert not wide[0][:, plain[0].shape[1] :].any()
    assert not wide[2][6:].any()
    assert not wide[2][:, 4:].any()


@pytest.mark.grid(only=True)
def test_it_is_said_which_cells_have_one_launch(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_search_step import paths_of_cells

    supernet = FusedCellSupernet(CellSpace(1), cells=3, channels=4)
    assert paths_of_cells(supernet, torch.rand(2, 3, 16, 16), 2) == (
        "cells in one launch for all nodes: forward 3 of 3, backward 3 of 3"
    )
    line = paths_of_cells(supernet, torch.rand(2, 3, 8, 8), 2)
    assert line.startswith("cells in one launch for all nodes: forward 2 of 3; 1 not because of ")
    assert ", backward 2 of 3; 1 not because of " in line
    monkeypatch.setenv("ASNG_CUDA_PATH", "generic")
    assert "as ASNG_CUDA_PATH says" in paths_of_cells(supernet, torch.rand(2, 3, 8, 8), 2)


STUB = """#!{shell}
case "$*" in
  *gpu_optimizer*) echo broken; exit 3 ;;
  *gpu_search_step*) echo '[{{"name": "n", "case": "c", "ours": 1, "baseline": 2, "unit": "ms",' \\
    '"ratio": 2}}]' > "$OUT/gpu_search_step.json" ;;
  *gpu_ops*) echo '[{{"name": ' > "$OUT/gpu_ops.json"; kill -9 $$ ;;
  *gpu_report*) exec {python} "$@" ;;
esac
"""


def check(tmp_path: Path, *options: str, **environment: str) -> tuple[int, str, dict[str, str]]:
    """Runs the script with an interpreter that plays the parts; how each ended."""
    stub = tmp_path / "python"
    stub.write_text(STUB.format(shell="/bin/sh", python=sys.executable))
    stub.chmod(0o755)
    out = tmp_path / "out"
    command = ["bash", str(ROOT / "bench" / "gpu_check.sh"), "--package", str(ROOT), *options]
    paths = {"PYTHON": str(stub), "OUT": str(out), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command,
        env={**os.environ, **paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads((out / "gpu_check.json").read_text())
    return done.returncode, done.stdout, {p["name"]: p["status"] for p in report["parts"]}


def test_a_part_that_fails_does_not_hide_the_others(tmp_path: Path) -> None:
    status, output, parts = check(tmp_path, "--cpu")
    assert status != 0
    assert parts == {
        "environment": "passed",
        "build": "skipped: --package",
        "tests": "passed",
        "kernels": "skipped: --cpu",
        "memcheck": "skipped: --cpu",
        "racecheck": "skipped: --cpu",
        "optimizer": "failed (3)",
        "search": "passed",
        "ops": "failed (137)",
        "inpainting": "passed",
        "mixture": "passed",
        "retrain": "passed",
    }
    assert "broken" in output
    table = output.partition("columns: ours")[2]
    assert "2x" in table
    assert "optimizer" in table
    last = table.splitlines()[-1].split()
    assert (last[0], last[-1]) == ("retrain", "passed")
    assert list(tmp_path.glob("tmp.*")) == []


def test_without_time_nothing_runs_and_the_table_says_so(tmp_path: Path) -> None:
    status, _, parts = check(tmp_path, "--cpu", BUDGET="0")
    assert status != 0
    assert parts["tests"] == parts["ops"] == "no time left"


def test_without_a_gpu_the_parts_fail_each(tmp_path: Path) -> None:
    status, _, parts = check(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert status != 0
    assert parts["environment"].startswith("failed")
    assert parts["memcheck"].startswith("failed")
    assert parts["search"] == "passed"
