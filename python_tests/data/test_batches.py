"""Training and evaluation batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_graphs import RecordingGraphs
from torch import Tensor

from asng_ext.data import (
    NO_AUGMENTATION,
    Augmentation,
    BatchPlan,
    BatchStream,
    ImageSet,
    evaluation_batches,
    normalize,
)

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
N = 23
AUGMENTATION = Augmentation(crop_padding=2, flip=True, cutout=3)


def numbered_set(n: int = N) -> ImageSet:
    """Image i is made of pixels of value i and has the label i."""
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].repeat(1, 6, 5, 3)
    return ImageSet(images, torch.arange(n), tuple(str(i) for i in range(n)))


def stream(**changes: Any) -> BatchStream:
    arguments: dict[str, Any] = {
        "image_set": numbered_set(),
        "indices": None,
        "batch_size": 4,
        "seed": 0,
        "name": "x",
        "augmentation": AUGMENTATION,
        "mean": MEAN,
        "std": STD,
    }
    return BatchStream(**(arguments | changes))


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def labels(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return torch.cat([y for _, y in batches]).tolist()


def test_batches_of_an_epoch() -> None:
    batches = list(stream().epoch(0))
    assert len(batches) == len(stream()) == 5
    for x, y in batches:
        assert (x.shape, x.dtype) == ((4, 3, 6, 5), torch.float32)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert (y.shape, y.dtype) == ((4,), torch.int64)
    seen = labels(batches)
    assert len(set(seen)) == 20
    assert seen != sorted(seen)


@pytest.mark.parametrize("augmentation", [None, NO_AUGMENTATION])
def test_images_keep_their_labels(augmentation: Augmentation | None) -> None:
    images = numbered_set().images.permute(0, 3, 1, 2)
    batches = list(stream(augmentation=augmentation).epoch(3))
    assert len(batches) == 5
    for x, y in batches:
        torch.testing.assert_close(x, normalize(images[y], MEAN, STD))


def test_what_is_left_over_comes_up_in_other_epochs() -> None:
    seen: set[int] = set()
    for epoch in range(6):
        seen |= set(labels(list(stream().epoch(epoch))))
    assert seen == set(range(N))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 20),
    batch_size=st.integers(1, 25),
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 1000),
    data=st.data(),
)
def test_resumes_bit_for_bit(
    n: int, batch_size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    indices = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:n]
    settings_of_stream = {"indices": indices, "batch_size": batch_size, "seed": seed}
    full = list(stream(**settings_of_stream).epoch(epoch))
    start = data.draw(st.integers(0, len(full)))
    assert equal(full[start:], list(stream(**settings_of_stream).epoch(epoch, start=start)))
    assert set(labels(full)) <= set(indices.tolist())


def test_steps_are_epochs_in_a_row() -> None:
    in_a_row = [batch for epoch in range(3) for batch in stream().epoch(epoch)]
    assert equal(in_a_row, list(islice(stream().steps(), 15)))
    assert equal(in_a_row[7:], list(islice(stream().steps(start=7), 8)))


def test_epochs_seeds_and_names_differ() -> None:
    orders = [
        labels(list(stream(seed=seed, name=name).epoch(epoch)))
        for seed in (0, 1)
        for name in ("x", "theta")
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_interleaved_streams_do_not_disturb_each_other() -> None:
    alone = list(stream(name="x").epoch(0)), list(stream(name="theta").epoch(0))
    together = list(zip(stream(name="x").epoch(0), stream(name="theta").epoch(0), strict=True))
    assert equal(alone[0], [x for x, _ in together])
    assert equal(alone[1], [theta for _, theta in together])


def test_a_small_set_is_one_batch() -> None:
    batches = list(stream(indices=torch.tensor([3, 9, 4]), batch_size=64).epoch(0))
    assert len(batches) == 1
    assert sorted(labels(batches)) == [3, 4, 9]


def test_global_generators_are_left_alone(
    global_generators_unchanged: Callable[[], AbstractContextManager[None]],
) -> None:
    torch.manual_seed(7)
    first = list(stream().epoch(0))
    torch.manual_seed(8)
    with global_generators_unchanged():
        assert equal(first, list(stream().epoch(0)))


def test_evaluation_is_complete_and_in_order() -> None:
    batches = list(evaluation_batches(numbered_set(), 10, mean=MEAN, std=STD))
    assert [len(y) for _, y in batches] == [10, 10, 3]
    assert labels(batches) == list(range(N))
    images = numbered_set().images.permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([x for x, _ in batches]), normalize(images, MEAN, STD))

    part = list(
        evaluation_batches(numbered_set(), 2, mean=MEAN, std=STD, indices=torch.tensor([7, 2, 5]))
    )
    assert labels(part) == [7, 2, 5]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int, got 2.0"),
        ({"indices": [1, 2]}, TypeError, "indices must be an int64 tensor or None, got list"),
        ({"indices": torch.tensor([1.0])}, TypeError, "got torch.float32"),
        ({"indices": torch.tensor([], dtype=torch.int64)}, ValueError, r"n > 0, got \(0,\)"),
        ({"indices": torch.tensor([[1]])}, ValueError, r"got \(1, 1\)"),
        ({"indices": torch.tensor([0, 23])}, ValueError, r"0\.\.22, got 0\.\.23"),
        ({"indices": torch.tensor([-1, 3])}, ValueError, r"got -1\.\.3"),
        ({"seed": "0"}, TypeError, "seed must be an integer, got '0'"),
    ],
)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stream(**changes)


def test_bad_positions() -> None:
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        stream().epoch(-1)
    with pytest.raises(ValueError, match=r"start must be in 0\.\.5, the batches done, got 6"):
        stream().epoch(0, start=6)
    with pytest.raises(ValueError, match="start must be 0 or more, got -1"):
        stream().steps(-1)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        evaluation_batches(numbered_set(), 0, mean=MEAN, std=STD)


@pytest.mark.parametrize("augmentation", [None, AUGMENTATION, Augmentation(0, True, 0)])
def test_making_batches_is_capturable(augmentation: Augmentation | None) -> None:
    """It reads no number, and all that differs from batch to batch is in the plan."""
    some = stream(augmentation=augmentation)
    plans = list(some.plans(0))
    assert all(len(plan.indices) == 4 for plan in plans)
    indices = torch.empty_like(plans[0].indices)
    draws = None if plans[0].draws is None else torch.empty_like(plans[0].draws)
    made: list[tuple[Tensor, Tensor]] = []

    def step() -> None:
        made[:] = [some.make(BatchPlan(indices, draws))]

    indices.copy_(plans[0].indices)
    if draws is not None:
        draws.copy_(plans[0].draws)
    graphs = RecordingGraphs()
    assert graphs.probe(step) is None
    replay = graphs.capture(step)
    for plan, batch in zip(plans, some.epoch(0), strict=True):
        indices.copy_(plan.indices)
        if draws is not None:
            draws.copy_(plan.draws)
        replay()
        assert equal(made, [batch])
    assert graphs.launches <= 19  # many small ones would fill the graph


@pytest.mark.cuda
def test_cuda_gives_the_batches_of_the_cpu_without_waiting() -> None:
    on_device = stream(image_set=numbered_set().to("cuda"))
    list(on_device.epoch(1))  # the first use of a kernel may wait while it is loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(on_device.epoch(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (x, y), (expected_x, expected_y) in zip(batches, stream().epoch(0), strict=True):
        torch.testing.assert_close(x.cpu(), expected_x)
        assert torch.equal(y.cpu(), expected_y)
