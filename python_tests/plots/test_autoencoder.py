"""Pictures of autoencoders and of restored images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import count, pixels

from asng_ext import plots
from asng_ext.nn import CaeLayer, base_layers


def test_layers_and_sizes_are_named(tmp_path: Path, texts: list[str]) -> None:
    chain = [CaeLayer(0, 3, 64, True), CaeLayer(2, 1, 101, False), CaeLayer(3, 5, 256, True)]
    plots.draw_autoencoder(chain, tmp_path / "a.png", (9, 6))
    assert {"3×3\n64", "1×1 /2\n101", "1×1 ·2\n101", "5×5\n256", "image\n3"} <= set(texts)
    assert {"9×6", "5×3", "3 layers and their mirror images"} <= set(texts)
    assert {"1×1 kernel", "3×3 kernel", "5×5 kernel", "skip: is added"} <= set(texts)
    assert any("/2 halves height and width" in text for text in texts)
    texts.clear()
    # What a single pixel leaves out is not drawn.
    plots.draw_autoencoder(chain[:2], tmp_path / "a.png", (1, 6))
    assert not {"1×1 /2\n101", "1×1 kernel"} & set(texts)
    texts.clear()
    draw = plots.draw_autoencoder
    draw(chain[:1], tmp_path / "a.png", sizes={"parameters": 5000}, near_ties={"x": {"a": 0.5}})
    assert {"parameters 5,000", "    x: a 0.50"} <= set(texts)


@pytest.mark.parametrize("depth", [0, 1, 20])
def test_autoencoders_of_any_depth(depth: int, tmp_path: Path) -> None:
    chain = base_layers(depth) if depth else ()
    image = pixels(plots.draw_autoencoder(chain, tmp_path / "a.png", (8, 8), 1))
    assert image.shape[1] < 5000
    assert count(image, "#d55e00") >= 1000 * depth


def test_restored_images_are_shown_with_their_psnr(tmp_path: Path, texts: list[str]) -> None:
    original = torch.full((2, 1, 4, 6), 0.5)
    plots.draw_restored(original, original * 0, original + 0.1, tmp_path / "a.png")
    assert texts.count("20.0 dB") == 2
    assert {"original", "corrupted", "restored"} <= set(texts)
    for wrong in (torch.zeros(2, 2, 4, 6), torch.zeros(4, 6)):
        with pytest.raises(ValueError, match="original must be"):
            plots.draw_restored(wrong, wrong, wrong, tmp_path / "b.png")
    with pytest.raises(ValueError, match="restored must be"):
        plots.draw_restored(original, original, original[:1], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()
