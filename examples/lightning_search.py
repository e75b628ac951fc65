"""A search inside of Lightning's training loop, by a callback: digits of 8×8 pixels.

The callback works with any LightningModule that has `Choice` modules and a method `loss`. It is
saved in Lightning's checkpoints, so a search that was interrupted goes on. Needs lightning and
scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import asng_ext as asng
from asng_ext.nn import Choice, derive, search_space, set_architecture


class ArchitectureSearch(Callback):
    """ASNG of the choices of a module, and the training of its weights, in turns.

    Each training batch trains the weights of an architecture that is drawn for it; Lightning's
    `accumulate_grad_batches` makes a step of several. After it, the distribution takes a step by
    the losses of λ more on a batch which trained no weight. Validation and tests are of the most
    likely architecture.

    Args:
        batches: For the distribution.
        settings: Arguments of `asng_ext.ASNG`.
    """

    def __init__(self, batches: DataLoader[Any], **settings: Any) -> None:
        self.batches = batches
        self.settings = settings
        self._saved: dict[str, Any] | None = None
        self._drawn: Iterator[dict[str, Any]] = iter(())
        self._left: Iterator[Any] = iter(())

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.optimizer = asng.ASNG(search_space(module), **self.settings)
        if self._saved is not None:  # checkpoints are read before
            self.optimizer.load_state_dict(self._saved)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any
    ) -> None:
        sample = next(self._drawn, None)
        if sample is None:
            self._drawn = iter(self.optimizer.ask())
            sample = next(self._drawn)
        set_architecture(module, sample)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any
    ) -> None:
        batch = next(self._left, None)
        if batch is None:
            self._left = iter(self.batches)
            batch = next(self._left)
        batch = trainer.strategy.batch_to_device(batch)
        samples = self.optimizer.ask()
        losses = []
        with torch.no_grad():
            for sample in samples:
                set_architecture(module, sample)
                losses.append(module.loss(batch))  # type: ignore[operator]
        self.optimizer.tell(samples, losses)

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        module.log("convergence", self.optimizer.convergence)

    def on_validation_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule
    ) -> None:
        set_architecture(module, self.optimizer.recommend())

    on_test_start = on_validation_start

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._saved = dict(state_dict)


def convolution(kernel: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, kernel, padding=kernel // 2), nn.BatchNorm2d(8))


class Classifier(lightning.LightningModule):
    """What one would write without a search, but for the choices."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            Choice("first", {"conv3": convolution(3), "conv1": convolution(1)}),
            Choice("activation", {"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()}),
            Choice("second", {"conv5": convolution(5), "pool": nn.AvgPool2d(3, 1, 1)}),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def loss(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return cross_entropy(self.network(x), y)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.loss(batch)

    def test_step(self, batch: list[Tensor], index: int) -> None:
        x, y = batch
        self.log("accuracy", (self.network(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(epochs: int = 20) -> None:
    lightning.seed_everything(0, verbose=False)
    digits = load_digits()
    x = torch.from_numpy(digits.images).float()[:, None] / 16
    data = TensorDataset(x, torch.from_numpy(digits.target))
    for_weights, for_theta, for_test = random_split(data, [700, 700, 397])

    search = ArchitectureSearch(
        DataLoader(for_theta, batch_size=64, shuffle=True, drop_last=True),
        population_size=2,
        delta_init=0.2,
        seed=0,
    )
    module = Classifier()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=2,
        callbacks=[search],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(for_weights, batch_size=64, shuffle=True, drop_last=True))
    tested = trainer.test(module, DataLoader(for_test, batch_size=397), verbose=False)
    found = search.optimizer.recommend()
    print(f"found {found}, convergence {search.optimizer.convergence:.2f}")
    print(f"test accuracy {tested[0]['accuracy']:.3f}")
    network = derive(module.network, found)  # a plain network, without any Choice
    print(network)


if __name__ == "__main__":
    main()
