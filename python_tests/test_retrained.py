"""What a run leaves can be used without its task: the same predictions, on images as they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import small_runs
import torch
from small_runs import finished

import asng_ext as asng
from asng_ext.data import load_digits
from asng_ext.engine.experiment import Experiment
from asng_ext.retrained import ImageClassifier, ImageRestorer
from asng_ext.runs.folder import RunFolder
from asng_ext.tasks.classification import ClassificationTask
from asng_ext.tasks.inpainting import InpaintingTask


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(small_runs.classification(tmp_path_factory.mktemp("runs") / "classifier"))


@pytest.fixture(scope="module")
def restorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(small_runs.inpainting(tmp_path_factory.mktemp("runs") / "restorer"))


def digit_images() -> tuple[torch.Tensor, torch.Tensor]:
    """(N, C, H, W) uint8, and labels."""
    digits = load_digits(0).test
    return digits.images.permute(0, 3, 1, 2).contiguous(), digits.labels


@torch.no_grad()
def test_the_accuracy_is_that_of_the_run(classifier: Path) -> None:
    before = torch.get_rng_state()
    network = asng.load_network(classifier)
    assert isinstance(network, ImageClassifier)
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn
    images, labels = digit_images()
    predicted = network(images).argmax(dim=1)
    results = json.loads((classifier / "results.json").read_text())
    assert (predicted == labels).float().mean().item() == pytest.approx(results["accuracy"])
    assert network.class_names == tuple("0123456789")
    assert (network.in_channels, network.image_size) == (1, (8, 8))


@torch.no_grad()
def test_logits_are_those_that_the_run_tested(classifier: Path) -> None:
    tested: list[torch.Tensor] = []
    experiment = Experiment.open(classifier, stream=None)
    task = cast(ClassificationTask, experiment.task)
    test = task._test
    task._test = lambda run: test(lambda x: tested.append(run(x)) or tested[-1])  # type: ignore
    experiment.evaluate()
    network = asng.load_network(str(classifier / "network.pt"))
    assert not network.training
    images, _ = digit_images()
    assert torch.equal(network(images[:500]), tested[0])
    as_floats = network(images[:500].double() / 255)
    assert as_floats.dtype == torch.float32
    torch.testing.assert_close(as_floats, tested[0], rtol=1e-5, atol=1e-5)
    network.train()  # no auxiliary head, whose logits would come beside
    assert network(images[:5]).shape == (5, 10)


def test_the_file_holds_all_that_the_network_is_built_from(classifier: Path) -> None:
    content = torch.load(classifier / "network.pt", weights_only=True)
    data = load_digits(0)
    assert content["version"] == asng.__version__
    blueprint = content["blueprint"]
    assert blueprint["mean"] == data.mean.tolist()
    assert blueprint["std"] == data.std.tolist()
    assert blueprint["class_names"] == list(data.train.class_names)
    assert blueprint["image_size"] == [8, 8]
    assert blueprint["space"]["nodes"] == 2
    assert blueprint["architecture"] == content["architecture"]
    assert blueprint["auxiliary"]
    json.dumps(blueprint)  # plain values
    assert any(name.startswith("auxiliary.") for name in content["network"])


def test_a_file_that_is_alone_is_enough(classifier: Path, tmp_path: Path) -> None:
    """In a process of its own, without the operators, and where no data set can be loaded."""
    shutil.copy(classifier / "network.pt", tmp_path / "mine.pt")
    images, _ = digit_images()
    with torch.no_grad():
        expected = asng.load_network(classifier)(images[:20])
    torch.save((images[:20], expected), tmp_path / "expected.pt")
    code = """
import sys
sys.modules["sklearn"] = None
import torch
def refuse(*arguments): raise OSError("no such library")
torch.ops.load_library = refuse
import asng_ext as asng
assert "asng_ext.nn" not in sys.modules
network = asng.load_network("mine.pt")
from asng_ext import ops
assert not ops.available()
images, expected = torch.load("expected.pt")
with torch.no_grad():
    torch.testing.assert_close(network(images), expected, rtol=1e-5, atol=1e-5)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(asng.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


@torch.no_grad()
def test_the_autoencoder_restores_as_the_run_tested(restorer: Path) -> None:
    network = asng.load_network(restorer)
    assert isinstance(network, ImageRestorer)
    experiment = Experiment.open(restorer, stream=None)
    task = cast(InpaintingTask, experiment.task)
    results = json.loads((restorer / "results.json").read_text())
    tested = task._test(network, with_corrupted=True)
    for name in ("psnr", "ssim", "psnr_corrupted"):
        assert tested[name] == pytest.approx(results[name])
    target, corrupted = task._test_images(torch.arange(3))
    assert network.image_size == tuple(target.shape[2:])
    restored = network((corrupted * 255).round().to(torch.uint8))
    assert 0 <= restored.min() <= restored.max() <= 1
    torch.testing.assert_close(restored, network(corrupted), rtol=1e-5, atol=1e-5)


def test_an_autoencoder_of_base_is_built_too(tmp_path: Path) -> None:
    experiment = small_runs.inpainting(tmp_path / "run")
    experiment.search()
    changed = {"network": "base", "base_channels": 3}
    experiment = Experiment.open(tmp_path / "run", task=changed, stream=None)
    experiment.retrain()
    network = cast(ImageRestorer, asng.load_network(tmp_path / "run"))
    assert {layer.channels for layer in network.network.layers} == {3}


def test_images_of_another_kind_are_refused(classifier: Path) -> None:
    network = asng.load_network(classifier)
    with pytest.raises(ValueError, match=r"images must be \(N, 1, H, W\), got \(2, 3, 8, 8\)"):
        network(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"images must be \(N, 1, H, W\), got \(8, 8\)"):
        network(torch.zeros(8, 8))
    with pytest.raises(TypeError, match=r"uint8 or floating point, got torch\.int64"):
        network(torch.zeros(2, 1, 8, 8, dtype=torch.int64))


def test_the_architecture_by_names(classifier: Path) -> None:
    found = Experiment.open(classifier, stream=None).architecture()
    assert asng.load_architecture(classifier) == found
    assert asng.load_architecture(classifier / "architecture.json") == found


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        asng.load_network(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.pt is missing"):
        asng.load_network(tmp_path / "no.pt")
    with pytest.raises(FileNotFoundError, match=r"no is missing; give a run folder or an arch"):
        asng.load_architecture(tmp_path / "no")
    folder = tmp_path / "a run"
    run = small_runs.classification(folder)
    with pytest.raises(FileNotFoundError, match=r"has not finished; continue it with `asng resume"):
        asng.load_architecture(folder)
    run.search()
    asng.load_architecture(folder)
    for load in (asng.load_network, lambda _: run.evaluate()):
        with pytest.raises(FileNotFoundError, match=rf"`asng retrain '{folder}'`"):
            load(folder)
    run.run.write_json("other.json", {"architecture": 3})
    with pytest.raises(ValueError, match=r"other\.json must hold an architecture by names"):
        asng.load_architecture(folder / "other.json")


@pytest.mark.parametrize("name", ["search.pt", "retrain.pt"])
def test_a_checkpoint_is_no_retrained_network(classifier: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is a checkpoint, to continue from; give the"):
        asng.load_network(classifier / name)


def changed(classifier: Path, path: Path, **entries: Any) -> RunFolder:
    """A copy of the run with other entries of network.pt; None is for none."""
    shutil.copytree(classifier, path)
    run = RunFolder.open(path)
    content: dict[str, Any] = {**(run.load("network.pt") or {}), **entries}
    run.save("network.pt", {name: each for name, each in content.items() if each is not None})
    return run


def test_a_file_of_an_earlier_version_is_tested_and_written_anew(
    classifier: Path, tmp_path: Path
) -> None:
    run = changed(classifier, tmp_path / "run", blueprint=None, version=None)
    words = r"earlier version.*: `asng retrain .*run` writes it anew, without training"
    with pytest.raises(ValueError, match=words):
        asng.load_network(run.path)
    results = run.read_json("results.json")
    experiment = Experiment.open(run.path, stream=None)
    assert experiment.evaluate() == {n: results[n] for n in ("loss", "accuracy")}
    experiment.retrain()
    assert run.read_json("results.json") == results
    images, _ = digit_images()
    with torch.no_grad():
        again, expected = (asng.load_network(path)(images) for path in (run.path, classifier))
    assert torch.equal(again, expected)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"blueprint": {}}, "its task, 'classification', does not say by `blueprint`"),
        ({"blueprint": {"kind": "tree"}, "version": "9.1"}, r"of asng-ext 9\.1 .* know, 'tree'"),
        ({"network": {}}, "Missing key"),
        ({"blueprint": {"kind": "cells"}}, "it lacks 'space'"),
    ],
)
def test_a_file_that_cannot_be_built_from_says_why(
    classifier: Path, tmp_path: Path, entries: dict[str, Any], words: str
) -> None:
    run = changed(classifier, tmp_path / "run", **entries)
    with pytest.raises(ValueError, match=words):
        asng.load_network(run.path)
