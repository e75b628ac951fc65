"""A search and a retraining that take a second or two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import asng_ext as asng
from asng_ext.data import DIGITS_AUGMENTATION, ImageData, ImageSet, load_digits
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.tasks.classification import ClassificationConfig, ClassificationTask

SEARCH = SearchConfig(epochs=3, batch_size=20, learning_rate=0.05)
RETRAIN = RetrainConfig(epochs=3, batch_size=32, learning_rate=0.05)
TASK = ClassificationConfig(
    data="digits", nodes=2, cells=3, channels=4, final_cells=3, parameter_limit=4000, drop_path=0.2
)
OPTIONS = [
    "--data=digits", "--nodes=2", "--cells=3", "--channels=4", "--final-cells=3",
    "--parameter-limit=4000", "--epochs=2", "--batch-size=256", "--retrain-epochs=2",
    "--retrain-batch-size=256",
]  # fmt: skip


def few(images: ImageSet, count: int) -> ImageSet:
    return replace(images, images=images.images[:count], labels=images.labels[:count])


def data() -> ImageData:
    digits = load_digits(0)
    return replace(digits, train=few(digits.train, 121), test=few(digits.test, 50))


def noise(train: int = 121, test: int = 50) -> ImageData:
    """So many images, by itself as many, that nothing can be learned from, for machines without
    scikit-learn."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> ImageSet:
        pixels = torch.randint(0, 256, (count, 8, 8, 1), generator=generator).to(torch.uint8)
        return ImageSet(pixels, torch.arange(count) % 10, tuple("0123456789"))

    return ImageData.of(images(train), images(test), DIGITS_AUGMENTATION)


def task(
    seed: int = 0,
    device: str = "cpu",
    *,
    images: ImageData | None = None,
    search_batch_size: int = SEARCH.batch_size,
    retrain_batch_size: int = RETRAIN.batch_size,
    **changes: Any,
) -> ClassificationTask:
    return ClassificationTask(
        data() if images is None else images,
        replace(TASK, **changes),
        search_batch_size=search_batch_size,
        retrain_batch_size=retrain_batch_size,
        seed=seed,
        device=device,
    )


def optimizer(task: ClassificationTask, seed: int = 0) -> asng.ASNG:
    return asng.ASNG(task.space, population_size=2, seed=seed)


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b))
    return bool(a == b)
