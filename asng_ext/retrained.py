"""What a run leaves to use elsewhere: the architecture, and the retrained network as a module that
takes images. Neither needs the data set or the compiled operators."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asng_ext._checks import brief
from asng_ext._files import as_path
from asng_ext.data import normalize
from asng_ext.nn import CaeLayer, CaeNetwork, CellNetwork, CellSpace
from asng_ext.runs.checkpoints import fitting
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.report import retrain_command, warn_of_earlier_network

__all__ = [
    "ImageClassifier",
    "ImageRestorer",
    "check_network",
    "from_safetensors",
    "load_architecture",
    "load_network",
    "read_architecture",
]


class ImageClassifier(nn.Module):
    """A retrained classifier with the normalization of its images.

    Args:
        network: The network, which takes normalized images.
        mean, std: (C,) of the training pixels, in units of [0, 1].
        class_names: The name of each class, in the order of the logits.
        image_size: (height, width) of the images it was trained on, in pixels. It takes others.
    """

    KIND = "cells"

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: CellNetwork,
        *,
        mean: Tensor | Sequence[float],
        std: Tensor | Sequence[float],
        class_names: Sequence[str],
        image_size: Sequence[int],
    ) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))
        self.class_names = tuple(class_names)
        self.image_size = tuple(image_size)

    @property
    def in_channels(self) -> int:
        """Channels of the images, 1 for gray ones and 3 for color."""
        return len(self.mean)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, classes).

        Args:
            images: (N, C, H, W), uint8, or floating point in [0, 1].

        Raises:
            TypeError, ValueError: If they are none.
        """
        _check_images(images, self.in_channels)
        logits: Tensor = self.network(normalize(images, self.mean, self.std))
        return logits

    def blueprint(self) -> dict[str, Any]:
        """All that `build` needs beside the weights, as plain values."""
        space, settings = self.network.space, self.network.settings
        return {
            "kind": self.KIND,
            "architecture": space.to_dict(self.network.architecture),
            "space": {"nodes": space.nodes, "operations": list(space.operations)},
            **{name: settings[name] for name in _CELL_SETTINGS},
            "auxiliary": self.network.auxiliary is not None,
            "image_size": list(self.image_size),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "class_names": list(self.class_names),
        }

    @classmethod
    def build(cls, blueprint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ImageClassifier:
        """The classifier without the auxiliary head, in evaluation mode.

        Args:
            blueprint: What `blueprint` gave.
            weights: The state dict of the network, which then shares its tensors.
        """
        space = CellSpace(blueprint["space"]["nodes"], tuple(blueprint["space"]["operations"]))
        with torch.device("meta"):  # shapes without memory and without random weights
            network = CellNetwork(
                space,
                space.to_indices(blueprint["architecture"]),
                auxiliary=False,
                **{name: blueprint[name] for name in _CELL_SETTINGS},
            )
        own = {n: w for n, w in weights.items() if not n.startswith("auxiliary.")}
        network.load_state_dict(own, assign=True)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        named = {n: blueprint[n] for n in ("mean", "std", "class_names", "image_size")}
        return cls(network, **named).eval()


_CELL_SETTINGS = ("classes", "cells", "channels", "in_channels", "stem_multiplier")
"""Arguments of a CellNetwork that are among its settings."""


class ImageRestorer(nn.Module):
    """A retrained autoencoder.

    Args:
        network: The network, which takes images in [0, 1].
    """

    KIND = "autoencoder"

    def __init__(self, network: CaeNetwork) -> None:
        super().__init__()
        self.network = network
        self.image_size = network.image_size

    @property
    def in_channels(self) -> int:
        """Channels of the images, 1 for gray ones and 3 for color."""
        return self.network.in_channels

    def forward(self, images: Tensor) -> Tensor:
        """Restored images, (N, C, H, W) float32 in [0, 1].

        Args:
            images: (N, C, H, W) of ``image_size``, uint8, or floating point in [0, 1], whose
                missing pixels are 0.

        Raises:
            TypeError, ValueError: If they are none.
        """
        _check_images(images, self.in_channels)
        restored: Tensor = self.network(normalize(images))
        return restored.clamp(0, 1)

    def blueprint(self) -> dict[str, Any]:
        """All that `build` needs beside the weights, as plain values."""
        layers = self.network.layers
        return {
            "kind": self.KIND,
            "layers": [[each.index, each.kernel, each.channels, each.skip] for each in layers],
            "in_channels": self.network.in_channels,
            "image_size": list(self.image_size),
        }

    @classmethod
    def build(cls, blueprint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ImageRestorer:
        """The autoencoder in evaluation mode.

        Args:
            blueprint: What `blueprint` gave.
            weights: The state dict of the network, which then shares its tensors.
        """
        with torch.device("meta"):  # shapes without memory and without random weights
            network = CaeNetwork(
                [CaeLayer(*layer) for layer in blueprint["layers"]],
                blueprint["in_channels"],
                tuple(blueprint["image_size"]),
            )
        network.load_state_dict(weights, assign=True)
        return cls(network).eval()


_KINDS: dict[str, type[ImageClassifier] | type[ImageRestorer]] = {
    kind.KIND: kind for kind in (ImageClassifier, ImageRestorer)
}


def check_network(network: Any) -> None:
    """TypeError unless it is a retrained network, or has what they have."""
    if not (hasattr(network, "blueprint") and hasattr(network, "image_size")):
        raise TypeError(
            f"network must be one that asng_ext.load_network gives, got {brief(network)}"
        )


def load_network(run_or_file: Path | str) -> ImageClassifier | ImageRestorer:
    """The retrained network of a run, on the CPU and in evaluation mode.

    It takes (N, C, H, W) images, uint8 or floating point in [0, 1], and does what else they need
    itself: a classifier gives logits, an autoencoder restored images. It computes in float32, also
    where it was retrained in bfloat16, unless it is called under ``torch.autocast``.

    Args:
        run_or_file: A run folder, or its network.pt, wherever it is now, or a .safetensors file of
            :func:`asng_ext.export.export_network`.

    Raises:
        FileNotFoundError: If the run has not been retrained, or there is no such run or file.
        ValueError: If the file is damaged, of an earlier version, which did not save all that is
            needed, or of a task that does not say how its networks are built.
        ImportError: If safetensors is needed and not installed.

    Warns:
        UserWarning: If the search of the run folder has found another architecture since.
    """
    path = as_path("run_or_file", run_or_file)
    again = "`asng retrain RUN`, with its run folder,"
    run = None
    if path.is_dir():
        run = RunFolder.open(path)
        path, again = run.file("network.pt"), f"`{retrain_command(run)}`"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the run has not been retrained; {again} does that"
            )
    elif path.suffix == ".safetensors":
        return from_safetensors(path)
    content = RunFolder(path.parent).load(path.name)
    if content is None:
        raise FileNotFoundError(f"{path} is missing; give a run folder or its network.pt")
    if "computed_by" in content or "epochs_done" in content:
        raise ValueError(
            f"{path} is a checkpoint, to continue from; give the run folder or its network.pt"
        )
    if "network" in content and "blueprint" not in content:
        raise ValueError(
            f"{path} is of an earlier version, which did not save all that the network is built "
            f"from: {again} writes it anew, without training where retrain.pt is still there"
        )
    with fitting(path, f"{again} writes it anew"):
        if not content["blueprint"]:
            raise ValueError(
                f"its task, {content['identity'].get('task')!r}, does not say by `blueprint` how "
                "its networks are built"
            )
        network = _built(content, content["network"])
    if run is not None:
        warn_of_earlier_network(run, content.get("architecture"))
    return network


def from_safetensors(path: Path) -> ImageClassifier | ImageRestorer:
    """The network in a .safetensors file that :func:`asng_ext.export.export_network` has written.

    Raises:
        FileNotFoundError, ValueError, ImportError: As :func:`load_network` does.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ImportError(f"{path} needs safetensors: pip install safetensors") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    prefix = "network."
    try:
        with safe_open(str(path), "pt") as file:
            described = (file.metadata() or {}).get("asng_ext")
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from None
    if described is None:
        raise ValueError(f"{path} is not of `asng export`: it lacks the metadata asng_ext")
    with fitting(path, "`asng export RUN --format safetensors` writes it anew"):
        return _built(json.loads(described), weights)


def _built(
    content: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> ImageClassifier | ImageRestorer:
    """The network that the blueprint in a file is of."""
    blueprint = content["blueprint"]
    kind = _KINDS.get(blueprint["kind"])
    if kind is None:
        raise ValueError(
            f"it is of asng-ext {content.get('version')} and a kind of network that this version "
            f"does not know, {blueprint['kind']!r}"
        )
    return kind.build(blueprint, weights)


def load_architecture(run_or_file: Path | str) -> dict[str, Any]:
    """The architecture that a run has found, by names.

    Args:
        run_or_file: A run folder, or its architecture.json, wherever it is now.

    Raises:
        FileNotFoundError: If the search has not finished, or there is no such run or file.
        ValueError: If the file is not one of an architecture.
    """
    architecture: dict[str, Any] = read_architecture(run_or_file)[1]["architecture"]
    return architecture


def read_architecture(run_or_file: Path | str) -> tuple[Path, dict[str, Any]]:
    """The file that :func:`load_architecture` reads, and all that it holds."""
    path = as_path("run_or_file", run_or_file)
    if path.is_dir():
        run = RunFolder.open(path)
        path = run.file("architecture.json")
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: the search has not finished; continue it with "
                f"`{run.command('resume')}`"
            )
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; give a run folder or an architecture.json")
    content = RunFolder(path.parent).read_json(path.name)
    if not isinstance(content.get("architecture"), dict):
        raise ValueError(f'{path} must hold an architecture by names as "architecture"')
    return path, content


def _check_images(images: Tensor, channels: int) -> None:
    """ValueError for another number of channels; the rest is checked where they are used."""
    if isinstance(images, Tensor) and (images.ndim != 4 or images.shape[1] != channels):
        raise ValueError(f"images must be (N, {channels}, H, W), got {tuple(images.shape)}")
