"""Several ranks retrain as one process does: real processes with gloo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
from float64_digits import cells
from several_ranks import on_ranks

from asng_ext.distributed import ALONE, Ranks
from asng_ext.engine.retrain import retrain
from asng_ext.runs.folder import RunFolder

CONFIG = replace(small.RETRAIN, epochs=2, sync_batch_norm=True)


def retrained(
    ranks: Ranks = ALONE, run: RunFolder | None = None, config: Any = CONFIG
) -> tuple[Any, list[dict[str, float]]]:
    """Weights with running statistics, and the metrics in the folder."""
    task = cells(class_weights="balanced", drop_path=0.5, auxiliary_weight=0.4)
    assert task._class_weights is not None
    task._class_weights = task._class_weights.double()
    values = task.space.decode(*task.space.encode(architecture(task)))
    network, _ = retrain(task, values, config, seed=3, run=run, stream=None, ranks=ranks)
    return {name: value.clone() for name, value in network.state_dict().items()}, network.training


def architecture(task: Any) -> dict[str, Any]:
    """One with separable convolutions."""
    names = task.space.categorical
    return {name: variable.values[-1 if "op" in name else 0] for name, variable in names.items()}


@pytest.mark.parametrize("size", [2, 3])
def test_synced_statistics_make_it_that_of_one_process(size: int, tmp_path: Path) -> None:
    """Batches of 33 images, divided unevenly, with weights of classes, drop-path and an auxiliary
    head; augmentation is that of one process."""
    alone = RunFolder.create(tmp_path / "alone")
    expected, _ = retrained(run=alone)
    run = RunFolder.create(tmp_path / "run")
    results = on_ranks(size, lambda ranks: retrained(ranks, run), tmp_path)
    for state, _ in results:
        assert small.equal(state, results[0][0])
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(state[name], value, rtol=1e-8, atol=1e-8), name
    saved, other = run.load("retrain.pt"), alone.load("retrain.pt")
    assert saved is not None
    assert other is not None
    for row, of_one in zip(saved["rows"], other["rows"], strict=True):
        assert row == pytest.approx(of_one, rel=1e-6)
    assert run.file("network.pt").exists()


def test_statistics_of_each_rank_are_averaged(tmp_path: Path) -> None:
    config = replace(CONFIG, sync_batch_norm=False, epochs=1)
    one, other = on_ranks(2, lambda ranks: retrained(ranks, None, config), tmp_path)
    assert small.equal(one, other)
    assert not small.equal(one[0], retrained(config=config)[0])
