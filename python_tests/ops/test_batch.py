"""Making batches by one operator, for CUDA devices alone, against the preparation in PyTorch."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from devices import CUDA_DEVICES
from torch import Tensor

from asng_ext.data import Augmentation, BatchPlan, BatchStream, ImageSet, draw_augmentations
from asng_ext.data.augment import Augmenter
from asng_ext.ops import _libraries
from asng_ext.ops.batch import batch

pytestmark = [pytest.mark.operators, pytest.mark.grid]

MEAN = torch.tensor([0.49, 0.48, 0.45, 0.2])
STD = torch.tensor([0.2, 0.24, 0.26, 0.7])


def image_set(count: int, height: int, width: int, channels: int, device: str) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, height, width, channels), generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return ImageSet(pixels.to(torch.uint8), labels, tuple("0123456789")).to(device)


@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestBatch:
    @pytest.mark.parametrize(
        "augmentation",
        [
            Augmentation(4, True, 16),
            Augmentation(2, False, 3),
            Augmentation(0, True, 0),
            Augmentation(1, False, 0),
            Augmentation(0, False, 4),
            None,
        ],
    )
    @pytest.mark.parametrize(
        ("count", "height", "width", "channels"),
        [(1, 17, 19, 1), (5, 32, 32, 3), (64, 18, 17, 4)],
    )
    def test_the_same_bits(
        self,
        augmentation: Augmentation | None,
        count: int,
        height: int,
        width: int,
        channels: int,
        device: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        images = image_set(70, height, width, channels, device)
        mean, std = MEAN[:channels], STD[:channels]
        stream = BatchStream(
            images, None, count, seed=1, name="x", augmentation=augmentation, mean=mean, std=std
        )
        got = next(stream.epoch(0))
        monkeypatch.setattr(_libraries, "has_cuda_kernels", lambda device: False)
        # On the CPU: CUDA may contract multiplication and addition.
        same = BatchStream(
            images.to("cpu"), None, count, seed=1, name="x", augmentation=augmentation,
            mean=mean, std=std,
        )  # fmt: skip
        for a, b in zip(got, next(same.epoch(0)), strict=True):
            assert a.stride() == b.stride()
            assert torch.equal(a.cpu(), b)
        assert got[0].is_contiguous(memory_format=torch.channels_last)

    def test_an_index_of_no_image(self, device: str) -> None:
        images = image_set(4, 5, 6, 3, device)
        plan = BatchPlan(torch.tensor([3, 4, -1, 0]).to(device), None)
        scaling = torch.ones(3, device=device), torch.zeros(3, device=device)
        x, _ = batch(
            images.images, images.labels, *plan, *scaling, crop_padding=0, flip=False, cutout=0
        )
        assert x.isnan().flatten(1).all(1).tolist() == [False, True, True, False]
        assert torch.equal(x[3].permute(1, 2, 0), images.images[0].float())

    def test_bfloat16(self, device: str) -> None:
        images = image_set(70, 13, 12, 3, device)
        stream = BatchStream(
            images, None, 5, seed=1, name="x", augmentation=Augmentation(1, True, 2),
            mean=MEAN[:3], std=STD[:3],
        )  # fmt: skip
        plan = next(stream.plans(0))
        (exact, labels), (rounded, same) = stream.make(plan), stream.make(plan, torch.bfloat16)
        assert torch.equal(rounded, exact.bfloat16())
        assert torch.equal(same, labels)
        with pytest.raises(ValueError, match=r"float32 or bfloat16, got torch\.float16"):
            stream.make(plan, torch.float16)

    def test_a_part_of_larger_images(self, device: str) -> None:
        whole = image_set(70, 13, 12, 3, device)
        part = replace(whole, images=whole.images[::2, 1:, :-3], labels=whole.labels[::2])
        settings = {"seed": 1, "name": "x", "augmentation": None, "mean": MEAN[:3], "std": STD[:3]}
        got = next(BatchStream(part, None, 5, **settings).epoch(0))
        copy = replace(part, images=part.images.clone(), labels=part.labels.clone())
        for a, b in zip(got, next(BatchStream(copy, None, 5, **settings).epoch(0)), strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("augmented", [True, False])
    @pytest.mark.parametrize("bfloat16", [True, False])
    def test_opcheck(self, augmented: bool, bfloat16: bool, device: str) -> None:
        arguments = (*self.arguments(augmented, device)[:-1], bfloat16)
        torch.library.opcheck(torch.ops.asng._batch, arguments)

    def arguments(self, augmented: bool, device: str) -> tuple[object, ...]:
        images = image_set(4, 5, 6, 3, device)
        augmentation = Augmentation(1, True, 2)
        generator = torch.Generator().manual_seed(0)
        draws = draw_augmentations(2, 5, 6, augmentation, generator=generator).to(device)
        prepare = Augmenter(
            augmentation, (2, 3, 5, 6), torch.uint8, torch.device(device), mean=MEAN[:3].to(device),
            std=STD[:3].to(device),
        )  # fmt: skip
        scaling = prepare.scale_and_shift
        assert scaling is not None
        indices = torch.tensor([3, 1]).to(device)
        chosen = draws if augmented else None
        settings = asdict(augmentation).values()
        return (images.images, images.labels, indices, chosen, *scaling, *settings, False)

    def test_wrong_arguments(self, device: str) -> None:
        good = self.arguments(True, device)

        def changed(i: int, value: object) -> tuple[object, ...]:
            return (*good[:i], value, *good[i + 1 :])

        images, draws = good[0], good[3]
        assert isinstance(images, Tensor)
        assert isinstance(draws, Tensor)
        for wrong, message in (
            (changed(0, images.float()), "images must have dtype Byte"),
            (changed(2, torch.zeros(0, dtype=torch.int64).to(device)), "indices must be from 1"),
            (changed(3, draws[:1]), r"draws must have shape \(2, 5\)"),
            (changed(4, MEAN.to(device)), r"scale must have shape \(3\)"),
            (changed(6, -1), "crop_padding and cutout must be from 0"),
        ):
            with pytest.raises(RuntimeError, match=message):
                torch.ops.asng._batch(*wrong)
