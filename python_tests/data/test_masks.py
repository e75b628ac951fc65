"""Which pixels the masks take away."""

from __future__ import annotations

import pytest
import torch

from asng_ext.data import MASKS, draw_masks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_center() -> None:
    mask = draw_masks("center", 2, 64, 32, generator=seeded())
    expected = torch.ones(2, 1, 64, 32)
    expected[:, :, 16:48, 8:24] = 0
    assert torch.equal(mask, expected)


def test_pixel() -> None:
    mask = draw_masks("pixel", 50, 64, 64, generator=seeded())
    assert mask.unique().tolist() == [0, 1]
    # 204,800 pixels: four standard deviations are 0.0036.
    assert float(mask.mean()) == pytest.approx(0.2, abs=0.0036)
    assert not torch.equal(mask[0], mask[1])


def test_half() -> None:
    mask = draw_masks("half", 400, 6, 4, generator=seeded())[:, 0]
    found = {tuple(image.flatten().tolist()) for image in mask}
    halves = [torch.ones(6, 4) for _ in range(4)]
    halves[0][:, :2], halves[1][:, 2:], halves[2][:3], halves[3][3:] = 0, 0, 0, 0
    assert found == {tuple(half.flatten().tolist()) for half in halves}
    for half in halves:
        assert 60 < sum(torch.equal(image, half) for image in mask) < 140


@pytest.mark.parametrize("kind", MASKS)
def test_shape_and_source(kind: str) -> None:
    """Odd sizes and single pixels work, and the global generator is left alone."""
    before = torch.get_rng_state()
    for size in [(1, 1), (7, 5), (1, 8)]:
        mask = draw_masks(kind, 3, *size, generator=seeded(1))
        assert mask.shape == (3, 1, *size)
        assert mask.dtype == torch.float32
        assert torch.equal(mask, draw_masks(kind, 3, *size, generator=seeded(1)))
    assert torch.equal(before, torch.get_rng_state())
    if kind != "pixel":
        mask = draw_masks(kind, 100, 7, 5, generator=seeded(2))
        assert (mask.flatten(1).mean(1) >= 0.5).all()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="mask must be one of center, pixel, half, got 'left'"):
        draw_masks("left", 1, 8, 8, generator=seeded())
    with pytest.raises(ValueError, match="height=0"):
        draw_masks("half", 1, 0, 8, generator=seeded())
