"""Where the parts of an experiment live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch

from asng_ext.engine import experiment
from asng_ext.engine.experiment import Experiment
from asng_ext.nn import CellSupernet
from asng_ext.ops import _libraries
from asng_ext.runs.config import lasting, section_to_dict
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks import KINDS


@pytest.mark.parametrize(
    ("implementation", "device", "expected"),
    [("fused", "cuda:1", "cuda:1"), ("plain", "cuda", "cpu"), ("fused", "cpu", "cpu")],
)
def test_the_optimizer_is_where_the_samples_are_wanted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    implementation: str,
    device: str,
    expected: str,
) -> None:
    task = section_to_dict(small.TASK) | {"implementation": implementation}
    config = {"task": "classification", "seed": 3, "classification": task}
    some = Experiment(RunFolder(tmp_path), config, stream=None)
    some.device = torch.device(device)
    settings: dict[str, Any] = {}
    monkeypatch.setattr(experiment, "ASNG", lambda space, **given: settings.update(given))
    some.optimizer()
    assert settings["device"] == expected
    assert settings["seed"] == 3
    assert settings["population_size"] == some.search_config.population_size


@pytest.mark.parametrize("usable", [True, False])
def test_a_task_is_capturable_on_the_compiled_operators(
    monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    monkeypatch.setattr(_libraries, "cuda_available", lambda: usable)
    for implementation, expected in (("auto", usable), ("fused", True), ("plain", False)):
        task = small.task(implementation=implementation)
        task.device = torch.device("cuda")
        assert task.capturable == expected
    assert not small.task(implementation="plain").capturable
    assert isinstance(small.task(implementation="plain").supernet(), CellSupernet)


def test_compiled_operators_that_cannot_be_used_on_the_gpu_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_libraries, "_cuda_problem", "_C_cuda was not built")
    task = small.task(implementation="fused")
    task.device = torch.device("cuda")
    with pytest.raises(RuntimeError, match="_C_cuda was not built"):
        task.supernet()


@pytest.mark.parametrize(
    ("kind", "search_only", "retrain_only"),
    [
        (
            "classification",
            {"cells", "channels", "implementation", "precision"},
            {"final_cells", "final_channels", "parameter_limit", "drop_path", "auxiliary_weight"},
        ),
        ("inpainting", {"precision"}, {"network", "base_channels"}),
    ],
)
def test_a_loop_depends_on_its_own_settings(
    kind: str, search_only: set[str], retrain_only: set[str]
) -> None:
    section = KINDS[kind].config()
    of_search, of_retrain = lasting(section, "search"), lasting(section, "retrain")
    assert set(of_search) - set(of_retrain) == search_only
    assert set(of_retrain) - set(of_search) == retrain_only
    assert {**of_search, **of_retrain} == section_to_dict(section)


def test_other_data_have_another_fingerprint() -> None:
    data = small.data()
    fingerprint = data.fingerprint()
    assert fingerprint == small.data().fingerprint()
    assert fingerprint.startswith("121 + 50 images 8×8×1, 10 classes, ")
    for tensor in (data.train.labels, data.test.images):
        tensor[-1] += 1
        changed = data.fingerprint()
        tensor[-1] -= 1
        assert changed != fingerprint
