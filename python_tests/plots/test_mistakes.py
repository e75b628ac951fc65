"""Pictures of what a classifier gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_classification as small
import torch
from pictures import count, pixels
from torch import Tensor, nn

from asng_ext import plots
from asng_ext.tasks import classification


def test_counts_and_shares_are_written(tmp_path: Path, texts: list[str]) -> None:
    counts = np.array([[17, 3, 0], [0, 1234, 1], [0, 0, 0]])
    names = ["cat", "$dog$", "a name that is much too long"]
    plots.draw_confusion(counts, names, tmp_path / "a.png")
    assert {"17", "3", "1234", "1", "cat", "$dog$", "a name that is mu…"} <= set(texts)
    assert "0" not in texts
    assert {"85.0 %", "99.9 %", "–", "1,251 of 1,255 test images correct"} <= set(texts)


def test_the_color_is_the_share_of_the_row(tmp_path: Path) -> None:
    right = pixels(plots.draw_confusion(np.diag([5, 50]), ["a", "b"], tmp_path / "a.png"))
    wrong = pixels(plots.draw_confusion(np.diag([5, 50])[::-1], ["a", "b"], tmp_path / "b.png"))
    rows, columns = np.nonzero((right == (0x12, 0x3A, 0x6B)).all(axis=2))
    assert len(rows) > 2000
    # From the upper left to the lower right.
    assert np.corrcoef(rows, columns)[0, 1] > 0.5
    rows, columns = np.nonzero((wrong == (0x12, 0x3A, 0x6B)).all(axis=2))
    assert np.corrcoef(rows, columns)[0, 1] < -0.5
    few = pixels(plots.draw_confusion([[1, 99], [0, 1]], ["a", "b"], tmp_path / "c.png"))
    assert 500 < count(few, "#123a6b") < len(rows)


@pytest.mark.parametrize("classes", [1, 2, 100, 300])
def test_any_number_of_classes_fits(classes: int, tmp_path: Path, texts: list[str]) -> None:
    names = [f"class {number}" for number in range(classes)]
    counts = np.eye(classes, dtype=np.int64) * 10
    image = pixels(plots.draw_confusion(counts, names, tmp_path / "a.png"))
    assert max(image.shape) < 3000
    assert texts.count("10") == (classes if classes <= 20 else 0)
    assert "class 0" in texts


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([[1, 2]], r"counts must be \(2, 2\), for as many class_names, got \(1, 2\)"),
        ([[1, -2], [1, 1]], "counts must be numbers of images"),
        ([[1.0, 2.0], [1.0, 1.0]], "counts must be numbers of images, integers from 0, got float"),
    ],
)
def test_wrong_counts(counts: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        plots.draw_confusion(counts, ["a", "b"], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [0, 1, 6, 7, 18])
def test_mistakes_have_captions(number: int, tmp_path: Path, texts: list[str]) -> None:
    images = torch.zeros(number, 3, 4, 6)
    taken = [("a name that is too long", 0.987)] * number
    image = pixels(plots.draw_mistakes(images, ["$x$"] * number, taken, tmp_path / "a.png"))
    assert texts == ["Worst mistakes", *["$x$, predicted\na name that… (99 %)"] * number]
    assert count(image, "black") >= number * 20_000


def test_wrong_mistakes(tmp_path: Path) -> None:
    for images, classes, words in (
        (torch.zeros(2, 2, 4, 4), "ab", r"images must be \(N, 1 or 3, H, W\), got \(2, 2, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), "abc", "classes must be 2, one per image, got 3"),
    ):
        with pytest.raises(ValueError, match=words):
            plots.draw_mistakes(images, list(classes), [("z", 0.5)] * 2, tmp_path / "a.png")
    with pytest.raises(ValueError, match="predicted must be 2, one per image, got 1"):
        plots.draw_mistakes(torch.zeros(2, 3, 4, 4), "ab", [("z", 0.5)], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


class Shifted(nn.Module):
    """Knows every label, but takes three images for the next class, the more surely the later."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        self.labels = labels
        self.first = 0

    def forward(self, x: Tensor) -> Tensor:
        labels = self.labels[self.first : self.first + len(x)]
        logits = nn.functional.one_hot(labels, 10) * 3.0
        for number in range(3):
            logits[number, (labels[number] + 1) % 10] = 4.0 + number
        self.first += len(x)
        return logits


def test_the_task_draws_what_its_network_gets_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    task = small.task()
    labels, given = task.data.test.labels, []
    draw = plots.draw_mistakes
    monkeypatch.setattr(
        plots, "draw_mistakes", lambda images, *more, **named: given.append(images)
        or draw(images, *more, **named)
    )  # fmt: skip
    task.draw_results(Shifted(labels), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"confusion.png", "mistakes.png"}
    assert "47 of 50 test images correct" in texts
    assert "Mistakes: 3 of 50 test images" in texts
    captions = [text for text in texts if "predicted\n" in text]
    shares = [torch.tensor([3.0, 4.0 + n, *[0.0] * 8]).softmax(0)[1] for n in (2, 1, 0)]
    assert captions == [
        f"{labels[n]}, predicted\n{(int(labels[n]) + 1) % 10} ({100 * share:.0f} %)"
        for n, share in zip((2, 1, 0), shares)
    ]
    images = task.data.test.images[:3].flip(0).permute(0, 3, 1, 2)
    assert torch.equal((given[0] * 255).round(), images.float())
    monkeypatch.setattr(classification, "_SHOWN", 2)
    task.draw_results(Shifted(labels), tmp_path)
    assert "Mistakes: 3 of 50 test images, the worst of them" in texts
    assert torch.equal(given[1], given[0][:2])
