"""Inpainting by autoencoders (Section 3.3): data, supernet, loss, retraining recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext.costs import Cost
from asng_ext.data import (
    BatchStream,
    ImageData,
    draw_masks,
    load_folder,
    load_photos,
    private_generator,
)
from asng_ext.nn import (
    CaeCost,
    CaeNetwork,
    CaeSupernet,
    Latencies,
    base_layers,
    count_flops,
    parameter_count,
)
from asng_ext.ops import autoencoder as cae_ops
from asng_ext.retrained import ImageRestorer
from asng_ext.space import Samples, SearchSpace
from asng_ext.tasks.images import ImageTask
from asng_ext.tasks.protocol import Metrics
from asng_ext.tasks.settings import InpaintingConfig
from asng_ext.training.metrics import SSIM_WINDOW, psnr, ssim
from asng_ext.training.precision import autocast

__all__ = ["InpaintingConfig", "InpaintingTask", "load_data"]

Pair = tuple[Tensor, Tensor]
"""(corrupted, target)."""
_TEST_BATCH = 32
_SHOWN = 8
"""Test images in the picture of restored images."""


def load_data(config: InpaintingConfig) -> ImageData:
    """The images that the settings name.

    Raises:
        ValueError: If no data are named, or images are smaller than image_size.
        FileNotFoundError: If the folder does not exist or holds no images.
    """
    if not config.data:
        raise ValueError(
            'data must be "photos" or a folder of images, such as CelebA\'s img_align_celeba or '
            "one that holds train and test; got nothing"
        )
    if config.data == "photos":
        return load_photos(config.image_size)
    return load_folder(config.data, config.image_size, cache=config.cache or None)


class InpaintingTask(ImageTask[InpaintingConfig]):
    """Search and retraining of an autoencoder that restores images, for both loops.

    A batch is (corrupted, target), both (B, C, H, W) in [0, 1], channels last; missing pixels are
    0. The mask is part of the batch, so every architecture sees the same.

    Its arguments are those of :class:`ImageTask`; labels are not used, the settings are of the mask
    and the search space, and ``seed`` also decides flips and masks. A search synchronizes with
    ``device`` once per step, to read the losses.

    Raises:
        ValueError: If the images are smaller than SSIM's window.
    """

    name = "inpainting"
    shown_metrics = MappingProxyType({"psnr": "PSNR"})
    capture_blocker = (
        "has layers whose number and shapes depend on the architectures that are sampled"
    )

    def __init__(self, data: ImageData, config: InpaintingConfig, **named: Any) -> None:
        if min(data.image_size) < SSIM_WINDOW:
            raise ValueError(
                f"images must have at least {SSIM_WINDOW}×{SSIM_WINDOW} pixels, "
                f"got {data.image_size}"
            )
        super().__init__(data, config, **named)
        self.steps_per_epoch = config.steps_per_epoch
        self.cae_space = config.make_space()

    def _batches(self, stream: BatchStream, epoch: int, steps: int) -> Iterator[Pair]:
        generator = self._generator(stream.name, "masks", epoch)
        for target, _ in islice(stream.steps(epoch * steps), steps):
            yield self._corrupted(target, generator), target

    def _generator(self, *purpose: str | int) -> torch.Generator:
        """On the training device, so that masks are drawn there."""
        private = private_generator(self.seed, *purpose)
        return torch.Generator(self.device).manual_seed(private.initial_seed())

    def _corrupted(self, target: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = target.shape
        masks = draw_masks(self.config.mask, count, height, width, generator=generator)
        return target * masks

    # Search

    @property
    def space(self) -> SearchSpace:
        """The variables of every layer, and the output's input."""
        return self.cae_space.search_space()

    @property
    def kernels(self) -> str:  # type: ignore[override]
        """Whose convolutions run on a GPU."""
        return cae_ops.convolutions(self._map_dtype) if self._compiled_on_gpu else ""

    @property
    def kernel_candidates(self) -> Mapping[str, Mapping[str, str]]:  # type: ignore[override]
        """Ways to compute convolutions on a GPU."""
        return cae_ops.candidates(self._map_dtype, self.device) if self._compiled_on_gpu else {}

    @property
    def _compiled_on_gpu(self) -> bool:
        return self.device.type == "cuda" and cae_ops.cuda_available()

    @property
    def _map_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32

    def supernet(self) -> CaeSupernet:
        """The supernet; it computes channels last."""
        return CaeSupernet(self.cae_space, self.data.channels).to(self.device)

    def weight_batches(self, epoch: int) -> Iterable[Pair]:
        """(corrupted, target) batches of the half that trains the weights."""
        return self._batches(self._weight_stream, epoch, self.search_steps)

    def theta_batches(self, epoch: int) -> Iterable[Pair]:
        """(corrupted, target) batches of the half that moves the distribution."""
        return self._batches(self._theta_stream, epoch, self.search_steps)

    def losses(self, supernet: nn.Module, batch: Pair, samples: Samples) -> tuple[Tensor, Metrics]:
        """(λ,) mean squared error, and the mean PSNR in dB."""
        corrupted, target = batch
        with autocast(self.config.precision, self.device):
            architectures = [self.cae_space.decode(values) for values in samples]
            outs = cast(CaeSupernet, supernet).restore(corrupted, architectures)
        losses = torch.stack([F.mse_loss(out.float(), target) for out in outs])
        return losses, {"psnr": _psnr(torch.cat(outs), target.repeat(len(outs), 1, 1, 1))}

    def test_supernet(self, supernet: nn.Module, values: Mapping[str, Any]) -> dict[str, float]:
        """Test metrics of one architecture with the supernet's weights."""
        stack = self.cae_space.decode(values)

        def run(x: Tensor) -> Tensor:
            with autocast(self.config.precision, self.device):
                return cast(Tensor, supernet(x, stack))

        return self._test(run, with_corrupted=False)

    # Retraining

    def network(self, values: Mapping[str, Any]) -> CaeNetwork:
        """The network of an architecture with just its sizes, or BASE with as many layers."""
        return self._network(values).to(self.device)

    def _network(self, values: Mapping[str, Any]) -> CaeNetwork:
        stack = self.cae_space.decode(values)
        if self.config.network == "base":
            stack = base_layers(max(1, len(stack)), self.config.base_channels)
        return CaeNetwork(stack, self.data.channels, self.data.image_size)

    def train_batches(self, epoch: int) -> Iterable[Pair]:
        """(corrupted, target) batches of all training images."""
        return self._batches(self._retrain_stream, epoch, self.retrain_steps)

    def training_loss(self, network: nn.Module, batch: Pair) -> tuple[Tensor, Metrics]:
        """Mean squared error, and PSNR in dB."""
        corrupted, target = batch
        out = network(corrupted)
        return F.mse_loss(out.float(), target), {"psnr": _psnr(out, target)}

    def test(self, network: nn.Module) -> dict[str, float]:
        """MSE, PSNR in dB and SSIM on the test images, and the last two of the corrupted ones."""
        network.eval()
        return self._test(network, with_corrupted=True)

    def blueprint(self, network: nn.Module) -> dict[str, Any]:
        """All that the network is built from."""
        return ImageRestorer(cast(CaeNetwork, network)).blueprint()

    def summary(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The layer stack of the network of an architecture, its weights, and FLOPs of one image,
        as :mod:`asng_ext.nn.costs` counts them."""
        with torch.device("meta"):  # shapes without memory and without random weights
            network = self._network(values)
            flops = count_flops(network, torch.empty(1, self.data.channels, *self.data.image_size))
            base = CaeNetwork(
                base_layers(max(1, len(network.layers)), self.config.base_channels),
                self.data.channels,
                self.data.image_size,
            )
        return {
            "layers": [str(layer) for layer in network.layers],
            "parameters": parameter_count(network),
            "parameters_base": parameter_count(base),
            "flops": flops,
        }

    def cost(self, name: str, latencies: Latencies) -> Cost:
        """What networks cost; there are no latencies."""
        if self.config.network != "found":
            raise ValueError(
                f"limits need network=found, as {self.config.network} is retrained whatever is "
                "found"
            )
        return CaeCost(
            self.cae_space,
            name,
            in_channels=self.data.channels,
            image_size=self.data.image_size,
        )

    def draw_architecture(
        self,
        values: Mapping[str, Any],
        path: Path,
        near_ties: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ) -> None:
        """Draws the layer stack, with the sizes of the network."""
        from asng_ext.plots import draw_autoencoder

        draw_autoencoder(
            self.cae_space.decode(values),
            path,
            self.data.image_size,
            self.data.channels,
            sizes=self.summary(values),
            near_ties=near_ties,
        )

    def draw_results(self, network: nn.Module, folder: Path) -> None:
        """Draws test images, corrupted and restored, into restored.png."""
        from asng_ext.plots import draw_restored

        network.eval()
        count = len(self.data.test)
        # Spread over the set, as neighbors may be alike.
        chosen = torch.linspace(0, count - 1, min(_SHOWN, count)).long()
        target, corrupted = self._test_images(chosen)
        with torch.no_grad():
            restored = network(corrupted).float().clamp(0, 1)
        draw_restored(target, corrupted, restored, folder / "restored.png")

    # Testing

    def _test_images(self, indices: Tensor) -> Pair:
        """(target, corrupted) with masks that are the same in every test of these images."""
        images = self.data.test.select(indices.to(self.device))
        target = images.permute(0, 3, 1, 2).float() / 255
        return target, self._corrupted(target, self._generator("test masks", int(indices[0])))

    def _test(self, run: Callable[[Tensor], Tensor], *, with_corrupted: bool) -> dict[str, float]:
        count = len(self.data.test)
        if self.config.test_images:
            count = min(count, self.config.test_images)
        # Spread over the set: neighbors may be patches of the same place.
        chosen = torch.linspace(0, len(self.data.test) - 1, count, dtype=torch.float64).long()
        sums: dict[str, Tensor] = {}
        with torch.no_grad():
            for part in torch.split(chosen, _TEST_BATCH):
                target, corrupted = self._test_images(part)
                restored = run(corrupted).float()
                measured = {"loss": (restored - target).square().mean(dim=(1, 2, 3))}
                compared = {"": restored.clamp(0, 1)}
                if with_corrupted:
                    compared["_corrupted"] = corrupted
                for suffix, images in compared.items():
                    measured[f"psnr{suffix}"] = _limited(psnr(images, target))
                    measured[f"ssim{suffix}"] = ssim(images, target)
                for name, values in measured.items():
                    sums[name] = sums.get(name, 0) + values.double().sum()
        return {name: float(total) / count for name, total in sums.items()}


def _psnr(out: Tensor, target: Tensor) -> Tensor:
    return _limited(psnr(out.detach().float().clamp(0, 1), target)).mean()


def _limited(decibels: Tensor) -> Tensor:
    """An image that is exactly right, such as a black one, must not make a mean infinite."""
    return decibels.clamp(max=100.0)
