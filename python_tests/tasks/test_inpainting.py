"""The inpainting task: batches, losses, metrics, search, retraining and pictures."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_classification as small
import torch
import torch.nn.functional as F
from interrupted_steps import check_first_steps
from recording_graphs import Recorder, RecordingGraphs

import asng_ext as asng
from asng_ext import tasks
from asng_ext.data import draw_masks, unlabeled
from asng_ext.engine.experiment import Experiment
from asng_ext.engine.retrain import retrain
from asng_ext.engine.search import search
from asng_ext.nn import CaeLayer, parameter_count
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.strategies.ask_tell import AskTell
from asng_ext.strategies.protocol import Parts
from asng_ext.tasks.inpainting import InpaintingConfig, InpaintingTask, load_data
from asng_ext.training.metrics import Means, psnr, ssim
from asng_ext.training.weight_optimizers import make_weight_optimizer

CONFIG = InpaintingConfig(
    data="photos", image_size=12, layers=3, channels="2,4", levels_back=3, steps_per_epoch=3
)
SEARCH = SearchConfig(epochs=2, batch_size=4, weight_decay=0.0)
RETRAIN = RetrainConfig(
    epochs=2,
    batch_size=4,
    optimizer="adam",
    schedule="steps",
    learning_rate=1e-3,
    weight_decay=0.0,
)


def task(seed: int = 0, channels: int = 3, device: str = "cpu", **changes: Any) -> InpaintingTask:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (31, 12, 12, channels), generator=generator).to(torch.uint8)
    return InpaintingTask(
        unlabeled(images[:21], images[21:]),
        replace(CONFIG, **changes),
        search_batch_size=4,
        retrain_batch_size=5,
        seed=seed,
        device=device,
    )


def values_of(task: InpaintingTask, *layers: CaeLayer) -> dict[str, Any]:
    return task.cae_space.encode(layers)


# -------------------------------------------------------------------------------------- devices


def iterations(some: InpaintingTask, optimizer: Any) -> Iterator[Callable[[], None]]:
    """Those of an epoch, as the search makes them; their batches are made on the way."""
    supernet = some.supernet()
    sgd = make_weight_optimizer(supernet, SEARCH)
    strategy = AskTell(optimizer)
    strategy.begin(Parts(some, supernet, sgd, Means()))
    for pair in zip(some.weight_batches(1), some.theta_batches(1), strict=True):
        yield lambda pair=pair: strategy.step(pair)  # type: ignore[misc]


@pytest.mark.parametrize("mask", ["center", "pixel", "half"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_but_the_losses_is_read_from_the_device(mask: str, precision: str) -> None:
    class Deaf(asng.ASNG):
        told = 0

        def tell(self, samples: Any, losses: Any) -> bool:
            self.told += 1
            return False

    some = task(mask=mask, precision=precision)
    optimizer = Deaf(some.space, seed=0)
    made = iterations(some, optimizer)
    next(made)()  # what is made once, such as the counts of metrics and an epoch's order
    recorder = Recorder()
    with recorder:
        for iteration in made:
            iteration()
    assert optimizer.told == 3
    assert len(recorder.calls) > 100
    assert recorder.reads == []


@pytest.mark.cuda
@pytest.mark.parametrize("mask", ["center", "pixel", "half"])
def test_a_search_waits_once_per_iteration(mask: str) -> None:
    some = task(mask=mask, device="cuda")
    made = iterations(some, asng.ASNG(some.space, population_size=2, seed=0))
    next(made)()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            count = sum(1 for iteration in made if iteration() is None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    assert count == some.search_steps - 1
    assert len(waits) == count, [f"{w.filename}:{w.lineno}" for w in waits]


def test_steps_are_not_captured_and_it_says_why() -> None:
    graphs, stream = RecordingGraphs(), io.StringIO()
    some = task()
    optimizer = asng.ASNG(some.space, population_size=2, seed=0)
    search(some, optimizer, SEARCH, seed=0, stream=stream, graphs=graphs)
    assert graphs.ran == 0
    lines = [line for line in stream.getvalue().splitlines() if "CUDA graphs" in line]
    assert len(lines) == 1
    assert "without CUDA graphs: the task, InpaintingTask, has layers whose number" in lines[0]


# -------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("mask", ["center", "pixel", "half"])
def test_batches(mask: str) -> None:
    some = task(mask=mask)
    for batches in (some.weight_batches, some.theta_batches, some.train_batches):
        first = list(batches(1))
        assert len(first) == 3
        for corrupted, target in first:
            assert corrupted.is_contiguous(memory_format=torch.channels_last)
            assert 0 <= float(target.min()) <= float(target.max()) <= 1
            kept = corrupted != 0
            assert torch.equal(corrupted[kept], target[kept])
            missing = ((corrupted == 0) & (target > 0)).float().mean()
            assert float(missing) == pytest.approx(
                {"center": 0.25, "pixel": 0.8, "half": 0.5}[mask], abs=0.1
            )
        again = list(batches(1))
        assert all(small.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0][1], next(iter(batches(0)))[1])


def test_epochs_go_through_the_data() -> None:
    """With a fixed number of steps, every image of a half comes up before one comes up again."""
    some = task(steps_per_epoch=1)
    seen = [target for epoch in range(2) for _, target in some.weight_batches(epoch)]
    means = torch.cat(seen).mean(dim=(1, 2, 3))
    assert len(means.unique()) == 8
    whole = task(steps_per_epoch=0)
    assert (whole.search_steps, whole.retrain_steps) == (2, 4)
    assert len(list(whole.weight_batches(0))) == 2
    assert len(list(whole.train_batches(0))) == 4


def test_other_seeds_give_other_masks() -> None:
    first, second = (next(iter(task(seed, mask="pixel").train_batches(0)))[0] for seed in (0, 1))
    assert not torch.equal(first == 0, second == 0)


# ------------------------------------------------------------------------------ losses, metrics


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_losses(precision: str) -> None:
    some = task(precision=precision)
    supernet = some.supernet()
    samples = asng.ASNG(some.space, population_size=2, seed=0).ask()
    corrupted, target = next(iter(some.weight_batches(0)))
    losses, metrics = some.losses(supernet, (corrupted, target), samples)
    losses.mean().backward()
    assert losses.dtype == torch.float32
    tolerance = 1e-6 if precision == "float32" else 0.05
    decibels = []
    for loss, values in zip(losses, samples, strict=True):
        out = supernet(corrupted, some.cae_space.decode(values))
        assert loss.item() == pytest.approx(F.mse_loss(out, target).item(), rel=tolerance)
        decibels.append(psnr(out.clamp(0, 1), target).mean())
    assert metrics["psnr"].item() == pytest.approx(
        torch.stack(decibels).mean().item(), rel=tolerance
    )


def test_test_metrics() -> None:
    some = task()
    network = some.network(values_of(some, CaeLayer(2, 3, 4, True)))
    tested = some.test(network)
    assert tested == some.test(network)
    target = some.data.test.images.permute(0, 3, 1, 2).float() / 255
    masks = draw_masks("center", 10, 12, 12, generator=torch.Generator())
    with torch.no_grad():
        out = network(target * masks)
    expected = {
        "loss": F.mse_loss(out, target),
        "psnr": psnr(out.clamp(0, 1), target).mean(),
        "ssim": ssim(out.clamp(0, 1), target).mean(),
        "psnr_corrupted": psnr(target * masks, target).mean(),
        "ssim_corrupted": ssim(target * masks, target).mean(),
    }
    assert tested == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-5)
    limited = task(test_images=3)
    assert limited.test(network)["psnr"] != tested["psnr"]


def test_black_images_have_finite_metrics() -> None:
    black = torch.zeros(4, 12, 12, 3, dtype=torch.uint8)
    some = InpaintingTask(
        unlabeled(black, black), CONFIG, search_batch_size=2, retrain_batch_size=2, seed=0
    )
    tested = some.test(some.network(values_of(some, CaeLayer(2, 3, 4, True))))
    assert tested["psnr_corrupted"] == 100
    assert tested["ssim_corrupted"] == 1


# ------------------------------------------------------------------------------------- networks


def test_networks() -> None:
    some = task()
    values = values_of(some, CaeLayer(1, 5, 2, False), CaeLayer(2, 3, 4, True))
    state = torch.get_rng_state()
    summary = some.summary(values)
    assert torch.equal(torch.get_rng_state(), state)
    assert summary["layers"] == ["5×5, 2", "3×3, 4, skip"]
    assert summary["parameters"] == parameter_count(some.network(values))
    base = task(network="base").network(values)
    assert summary["parameters_base"] == parameter_count(base)
    assert [str(layer) for layer in base.layers] == ["3×3, 64, skip"] * 2
    narrow = task(network="base", base_channels=5)
    assert [str(layer) for layer in narrow.network(values).layers] == ["3×3, 5, skip"] * 2
    narrow_parameters = narrow.summary(values)["parameters_base"]
    assert narrow_parameters == parameter_count(narrow.network(values))
    # The output may read the image itself; BASE then has a layer all the same.
    near = {"levels_back": 9}
    assert len(task(**near).network(values_of(task(**near))).layers) == 0
    assert len(task(network="base", **near).network(values_of(task(**near))).layers) == 1


def test_gray_images() -> None:
    some = task(channels=1)
    result = search(
        some, asng.ASNG(some.space, population_size=2, seed=0), SEARCH, seed=0, stream=None
    )
    _, tested = retrain(some, result.architecture, RETRAIN, seed=0, stream=None)
    assert tested["psnr"] > 0


# ------------------------------------------------------------------------------- search, retrain


@pytest.mark.parametrize("space", ["cat", "int"])
def test_interrupted_searches_are_the_same(space: str, tmp_path: Path) -> None:
    class InterruptedError(Exception):
        pass

    class Interrupted(InpaintingTask):
        """Stops in the second epoch."""

        def weight_batches(self, epoch: int) -> Any:
            if epoch == 1:
                raise InterruptedError
            return super().weight_batches(epoch)

    def run(some: InpaintingTask, folder: RunFolder) -> Any:
        optimizer = asng.ASNG(some.space, population_size=2, seed=0)
        return search(some, optimizer, SEARCH, seed=0, run=folder, stream=None)

    through = run(task(space=space), RunFolder.create(tmp_path / "through"))
    folder = RunFolder.create(tmp_path / "interrupted")
    some = task(space=space)
    some.__class__ = Interrupted
    with pytest.raises(InterruptedError):
        run(some, folder)
    resumed = run(task(space=space), folder)
    assert resumed.architecture == through.architecture
    assert small.equal(resumed.supernet.state_dict(), through.supernet.state_dict())
    assert resumed.rows == through.rows


@pytest.mark.parametrize("loop", ["search", "retrain"])
def test_what_a_signal_ended_within_an_epoch_is_the_same(loop: str, tmp_path: Path) -> None:
    """Masks go on, and writing makes no step of idle weights earlier, which would be rounded
    otherwise."""

    def run(some: InpaintingTask, folder: RunFolder, minutes: float = 0.0) -> Any:
        optimizer = asng.ASNG(some.space, population_size=2, seed=0)
        if loop == "search":
            result = search(
                some,
                optimizer,
                replace(SEARCH, checkpoint_minutes=minutes),
                seed=0,
                run=folder,
                stream=None,
            )
            return dict(result.supernet.state_dict()), result.rows
        values = dict(optimizer.ask()[0])
        network, tested = retrain(
            some,
            values,
            replace(RETRAIN, checkpoint_minutes=minutes),
            seed=0,
            run=folder,
            stream=None,
        )
        return dict(network.state_dict()), tested

    through = run(task(steps_per_epoch=3), RunFolder.create(tmp_path / "through"))
    often = run(task(steps_per_epoch=3), RunFolder.create(tmp_path / "often"), minutes=1e-9)
    assert small.equal(often, through)
    folder = RunFolder.create(tmp_path / "interrupted")
    some = task(steps_per_epoch=3)
    name = "losses" if loop == "search" else "training_loss"
    check_first_steps(run, some, name, folder, loop)
    assert small.equal(run(task(steps_per_epoch=3), folder), through)


def test_the_supernet_learns(tmp_path: Path) -> None:
    some = task(steps_per_epoch=40)
    config = replace(SEARCH, epochs=3, learning_rate=0.1)
    rows = search(
        some, asng.ASNG(some.space, population_size=2, seed=0), config, seed=0, stream=None
    ).rows
    assert rows[-1]["train_loss"] < 0.7 * rows[0]["train_loss"]
    assert {"train_psnr", "theta_psnr", "test_psnr", "test_ssim"} <= set(rows[-1])


def test_weight_decay_is_refused() -> None:
    some = task()
    config = replace(SEARCH, weight_decay=1e-4)
    with pytest.raises(ValueError, match="weight_decay must be 0"):
        search(some, asng.ASNG(some.space, population_size=2, seed=0), config, seed=0, stream=None)


@pytest.mark.pictures
def test_a_whole_experiment(tmp_path: Path) -> None:
    loops = {"search": SEARCH, "retrain": RETRAIN, "inpainting": replace(CONFIG, test_images=9)}
    config = {name: vars(section) for name, section in loops.items()}
    experiment = Experiment.create(
        tmp_path / "run", {"task": "inpainting", "seed": 0, **config}, stream=None
    )
    experiment.search()
    tested = experiment.retrain()
    assert experiment.evaluate() == pytest.approx(tested)
    found = json.loads((tmp_path / "run" / "architecture.json").read_text())
    assert found["network"]["parameters"] > 0
    for name in ("architecture.png", "restored.png", "theta.png", "search.png", "retrain.png"):
        assert (tmp_path / "run" / name).stat().st_size > 1000


@pytest.mark.cuda
def test_everything_runs_on_a_gpu(tmp_path: Path) -> None:
    images = torch.randint(256, (31, 12, 12, 3)).to(torch.uint8)
    some = InpaintingTask(
        unlabeled(images[:21], images[21:]),
        replace(CONFIG, mask="half"),
        search_batch_size=4,
        retrain_batch_size=4,
        seed=0,
        device="cuda",
    )
    result = search(
        some, asng.ASNG(some.space, population_size=2, seed=0), SEARCH, seed=0, stream=None
    )
    network, tested = retrain(some, result.architecture, RETRAIN, seed=0, stream=None)
    assert next(network.parameters()).is_cuda
    assert tested["psnr"] > 0
    some.draw_results(network, tmp_path)
    assert (tmp_path / "restored.png").exists()


# ------------------------------------------------------------------------------------- settings


def test_presets_are_those_of_the_paper() -> None:
    preset = tasks.get("inpainting").presets["celeba"]
    searching = SearchConfig(**preset["search"])
    retraining = RetrainConfig(**preset["retrain"])
    config = InpaintingConfig(**preset["inpainting"])
    assert searching.epochs * config.steps_per_epoch == 50_000
    assert retraining.epochs * config.steps_per_epoch == 500_000
    assert searching.batch_size == retraining.batch_size == 16
    assert (searching.learning_rate, searching.weight_decay) == (0.025, 0)
    assert config.make_space().n_theta == 214
    assert replace(config, space="int").make_space().n_theta == 174


def test_wrong_settings() -> None:
    for changes, message in [
        ({"mask": "left"}, "mask must be one of center, pixel, half"),
        ({"kernels": "1,x"}, "kernels must be integers separated by commas"),
        ({"kernels": "1,2"}, "kernels must be different odd"),
        ({"channels": "0"}, "channels must be a positive integer"),
        ({"image_size": 10}, "image_size must be at least 11"),
        ({"space": "both"}, "space must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **changes)
    with pytest.raises(ValueError, match='data must be "photos" or a folder'):
        load_data(InpaintingConfig())
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_data(InpaintingConfig(data="/nowhere"))
    assert load_data(CONFIG).image_size == (12, 12)
    tiny = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="at least 11×11 pixels, got"):
        InpaintingTask(
            unlabeled(tiny, tiny), CONFIG, search_batch_size=2, retrain_batch_size=2, seed=0
        )
