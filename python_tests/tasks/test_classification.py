"""The task of classification."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small_classification as small
import torch

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
