"""PSNR and SSIM against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import metrics as reference

from asng_ext.training.metrics import psnr, ssim


@pytest.mark.parametrize("shape", [(3, 3, 64, 64), (2, 1, 11, 30), (2, 3, 17, 12)])
@pytest.mark.parametrize("noise", [0.0005, 0.1, 1.0])
def test_equal_to_scikit_image(shape: tuple[int, ...], noise: float) -> None:
    generator = np.random.default_rng(0)
    targets = generator.random(shape).astype(np.float32)
    images = np.clip(targets + noise * generator.normal(size=shape), 0, 1).astype(np.float32)
    got_psnr = psnr(torch.from_numpy(images), torch.from_numpy(targets))
    got_ssim = ssim(torch.from_numpy(images), torch.from_numpy(targets))
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        wanted = reference.peak_signal_noise_ratio(target, image, data_range=1)
        assert got_psnr[i].item() == pytest.approx(wanted, rel=1e-5)
        wanted = reference.structural_similarity(
            target.astype(np.float64),
            image.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=0,
        )
        assert got_ssim[i].item() == pytest.approx(wanted, abs=1e-5)


def test_equal_images() -> None:
    flat = torch.full((2, 3, 16, 16), 0.25)
    assert psnr(flat, flat).tolist() == [float("inf")] * 2
    assert ssim(flat, flat).tolist() == [1.0, 1.0]


def test_wrong_images() -> None:
    small = torch.zeros(1, 1, 10, 64)
    with pytest.raises(ValueError, match=r"at least 11×11 pixels for SSIM, got \(10, 64\)"):
        ssim(small, small)
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="of the same shape"):
            metric(small, torch.zeros(2, 1, 10, 64))
        with pytest.raises(ValueError, match="of the same shape"):
            metric(small[0], small[0])
