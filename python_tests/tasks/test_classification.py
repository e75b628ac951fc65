"""The task of classification."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import small_classification as small
import torch

from asng_ext.data import ImageData
from asng_ext.tasks.classification import load_data


@pytest.mark.grid
@pytest.mark.parametrize(
    "implementation", ["plain", pytest.param("fused", marks=pytest.mark.operators)]
)
def test_bfloat16_is_close_to_float32(implementation: str) -> None:
    losses, tested = [], []
    for precision in ("float32", "bfloat16"):
        task = small.task(implementation=implementation, precision=precision)
        torch.manual_seed(0)
        supernet = task.supernet()
        optimizer = small.optimizer(task)
        batch = next(iter(task.weight_batches(0)))
        values, metrics = task.losses(supernet, batch, optimizer.ask())
        assert values.dtype == torch.float32
        values.sum().backward()
        assert all(p.grad is None or p.grad.dtype == p.dtype for p in supernet.parameters())
        assert 0 <= float(metrics["accuracy"]) <= 1
        losses.append(values.detach())
        tested.append(task.test_supernet(supernet, optimizer.recommend())["loss"])
    assert not torch.equal(*losses)
    torch.testing.assert_close(*losses, rtol=0.03, atol=0)
    assert tested[1] == pytest.approx(tested[0], rel=0.03)


def test_halves_of_which_one_is_an_image_larger() -> None:
    """121 images: 61 for the weights and 60 for θ; batches for both are made alike."""
    task = small.task(search_batch_size=61)
    supernet, samples = task.supernet(), small.optimizer(task).ask()
    assert task.search_steps == 1
    for batch in (*task.weight_batches(0), *task.theta_batches(0)):
        assert len(batch.indices) == 60
        assert task.losses(supernet, batch, samples)[0].isfinite().all()


def test_batches_of_one_image() -> None:
    """Where batch normalization would see one value per channel, it is refused before a search."""
    with pytest.raises(ValueError, match=r"batch_size of retraining must be at least 2.*8×8"):
        small.task(retrain_batch_size=1)
    task = small.task(retrain_batch_size=1, search_batch_size=1, auxiliary_weight=0.0)
    network = task.network(small.optimizer(task).recommend())
    task.training_loss(network, next(iter(task.train_batches(0))))[0].backward()

    tiny = small.data()
    tiny = replace(
        tiny,
        train=replace(tiny.train, images=tiny.train.images[:, :4, :4]),
        test=replace(tiny.test, images=tiny.test.images[:, :4, :4]),
    )
    with pytest.raises(ValueError, match=r"batch_size must be at least 2 for images of 4×4"):
        small.task(images=tiny, search_batch_size=1)


def test_making_a_task_draws_nothing() -> None:
    images, before = small.data(), torch.get_rng_state()
    small.task(images=images)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_operations() -> None:
    task = small.task(operations="max_pool_3x3, identity")
    samples = small.optimizer(task).ask()
    choices = task.space.variables
    assert choices["normal/node0/operation0"].values == ("max_pool_3x3", "identity")
    loss, _ = task.losses(task.supernet(), next(iter(task.weight_batches(0))), samples)
    assert loss.isfinite().all()
    # Identities have weights where they halve feature maps; sep_conv_5x5 more than others.
    assert set(task._largest().values()) >= {"identity"}
    task = small.task(operations="sep_conv_5x5,sep_conv_3x3")
    assert "sep_conv_3x3" not in task._largest().values()
    with pytest.raises(ValueError, match=r"operations must be different ones of .*got 'conv'"):
        small.task(operations="conv")


@pytest.mark.parametrize("name", ["cutout", "crop_padding"])
def test_an_augmentation_that_blanks_images(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be below 8, the smaller side.*got 8"):
        small.task(images=load_data(replace(small.TASK, **{name: 8}), 0))
    small.task(images=load_data(replace(small.TASK, **{name: 7}), 0))


def uneven() -> ImageData:
    """Digits of which some classes have far fewer images than others."""
    digits = small.data()
    labels = digits.train.labels
    number = torch.nn.functional.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0]
    kept = (labels >= 5) | (number <= 4)
    train = replace(
        digits.train, images=digits.train.images[kept], labels=digits.train.labels[kept]
    )
    return replace(digits, train=train)


@pytest.mark.parametrize(
    "implementation", ["plain", pytest.param("fused", marks=pytest.mark.operators)]
)
def test_balanced_class_weights(implementation: str) -> None:
    """Those of PyTorch's cross-entropy, by which each class weighs the same in the training set."""
    data = uneven()
    options = {"images": data, "implementation": implementation, "class_weights": "balanced"}
    task = small.task(**options)
    weights = data.class_weights()
    counts = torch.tensor(data.train.counts())
    torch.testing.assert_close(weights * counts, torch.full((10,), len(data.train) / 10))
    torch.manual_seed(0)
    supernet = task.supernet()
    samples = small.optimizer(task).ask()
    plan = next(iter(task.weight_batches(0)))
    losses, _ = task.losses(supernet, plan, samples)
    x, y = task._weight_stream.make(plan)
    logits = supernet.forward_population(x, samples.categorical)
    assert isinstance(logits, torch.Tensor)
    expected = torch.stack([torch.nn.functional.cross_entropy(each, y, weights) for each in logits])
    torch.testing.assert_close(losses, expected)
    plain, _ = small.task(**{**options, "class_weights": "none"}).losses(supernet, plan, samples)
    assert (losses - plain).abs().min() > 1e-4

    network = task.network(small.optimizer(task).recommend()).eval()
    batch = next(iter(task.train_batches(0)))
    loss, _ = task.training_loss(network, batch)
    expected = torch.nn.functional.cross_entropy(network(batch[0]), batch[1], weights)
    torch.testing.assert_close(loss, expected)


def test_uneven_classes_are_tested_alike() -> None:
    data = uneven()
    assert data.imbalance > 2
    assert "classes are uneven: " in data.describe()
    task = small.task(images=data)
    network = task.network(small.optimizer(task).recommend())
    tested, details = task.test(network), task.details(network)["classes"]
    shares = [each["accuracy"] for each in details.values()]
    assert tested["balanced_accuracy"] == pytest.approx(sum(shares) / 10)
    assert "balanced_accuracy" not in small.task().test(network)
    assert "uneven" not in small.data().describe()


def test_what_earlier_versions_lacked_is_in_no_identity() -> None:
    for loop in ("search", "retrain"):
        identity = small.task(image_size=0, cache="somewhere").identity(loop)
        assert not identity.keys() & {"image_size", "cache", "class_weights", "flip"}
        assert identity["augmentation"]["flip"] is False
        weighted = small.task(class_weights="balanced").identity(loop)
        assert weighted["class_weights"] == "balanced"


def test_flips_by_setting() -> None:
    for flip, expected in {"auto": False, "yes": True, "no": False}.items():
        assert load_data(replace(small.TASK, flip=flip), 0).augmentation.flip is expected


def test_a_validation_set_moves_the_distribution() -> None:
    task = small.task(images=replace(small.data(), validation=30), search_batch_size=20)
    assert task.search_steps == 4  # of 91 images
    for epoch in range(2):
        weights = [plan.indices for plan in task.weight_batches(epoch)]
        theta = [plan.indices for plan in task.theta_batches(epoch)]
        assert len(weights) == len(theta) == 4
        assert torch.cat(weights).max() < 91
        assert torch.cat(theta).min() >= 91
    assert sum(len(y) for _, y in task.train_batches(0)) == 32 * 3
    assert task.identity("search")["data"].startswith("91 + 30 + 50 images")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search_batch_size": 62}, "search must be at most 61, .* got 62"),
        ({"retrain_batch_size": 122}, "retraining must be at most 121, .* got 122"),
        ({"validation": 15}, "search must be at most 15, .* got 20"),
    ],
)
def test_fewer_images_than_a_batch(changes: dict[str, int], words: str) -> None:
    images = replace(small.data(), validation=changes.pop("validation", 0))
    with pytest.raises(ValueError, match=f"the batch_size of the {words}"):
        small.task(images=images, **changes)


def test_classes_without_images() -> None:
    digits = small.data()
    for names, labels, words in (
        (("0",), digits.train.labels * 0, "images must be of 2 classes or more"),
        (digits.train.class_names, digits.train.labels.clamp(max=8), "got none of 9"),
    ):
        train = replace(digits.train, labels=labels, class_names=names)
        test = replace(digits.test, labels=digits.test.labels * 0, class_names=names)
        with pytest.raises(ValueError, match=words):
            small.task(images=replace(digits, train=train, test=test))


def test_large_images_are_tested_few_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    for size, most in ((32, 12), (256, 8)):
        shape = (60, size, size)
        pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        images = ImageData.from_arrays(pixels, labels)
        task = small.task(images=images, auxiliary_weight=0.0)
        seen: list[int] = []

        def run(x: torch.Tensor, seen: list[int] = seen) -> torch.Tensor:
            seen.append(len(x))
            return torch.zeros(len(x), 2)

        loss, right = task._run_test(run)
        assert (max(seen), sum(seen), right.tolist()) == (most, 12, [6, 0])
        assert float(loss) == pytest.approx(12 * math.log(2))
