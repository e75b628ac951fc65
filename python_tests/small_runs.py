"""Whole runs of the package's tasks that take a second or two."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import small_classification as small

from asng_ext.engine.experiment import Experiment
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.tasks.settings import InpaintingConfig

INPAINTING = InpaintingConfig(
    data="photos", image_size=12, layers=3, channels="2,4", levels_back=3, steps_per_epoch=2,
    test_images=9,
)  # fmt: skip


def classification(path: Path, **settings: Any) -> Experiment:
    """A new run; settings are those of the task."""
    config = {
        "task": "classification",
        "seed": 0,
        "search": asdict(replace(small.SEARCH, epochs=1, batch_size=256)),
        "retrain": asdict(replace(small.RETRAIN, epochs=2, batch_size=256)),
        "classification": asdict(replace(small.TASK, **settings)),
    }
    return Experiment.create(path, config, stream=None)


def inpainting(path: Path) -> Experiment:
    """A new run."""
    config = {
        "task": "inpainting",
        "seed": 0,
        "search": asdict(SearchConfig(epochs=1, batch_size=4, weight_decay=0.0)),
        "retrain": asdict(RetrainConfig(epochs=1, batch_size=4, weight_decay=0.0)),
        "inpainting": asdict(INPAINTING),
    }
    return Experiment.create(path, config, stream=None)


def finished(experiment: Experiment) -> Path:
    """The folder of a run that has been searched and retrained."""
    experiment.search()
    experiment.retrain()
    return experiment.run.path
