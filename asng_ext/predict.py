"""What a retrained network makes of image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from asng_ext._checks import brief, check_positive, check_size, is_integer, listed
from asng_ext._files import as_path, write_atomically
from asng_ext.data._optional import require
from asng_ext.data.image_files import (
    FORMATS,
    fitted,
    image_paths,
    no_images,
    reduced,
    unreadable_errors,
)
from asng_ext.retrained import ImageClassifier, ImageRestorer, check_network

__all__ = ["UnreadableImageError", "image_files", "predict", "read_image", "write_image"]


class UnreadableImageError(ValueError):
    """A file is no image that can be read. Names it and says why."""


def image_files(paths: Sequence[Path | str]) -> list[Path]:
    """The files among the paths, and the images in and below the folders among them, by name.

    Raises:
        TypeError: If these are no paths.
        FileNotFoundError: If there is no such file or folder, or a folder holds no images.
    """
    files: list[Path] = []
    for path in _as_paths("paths", paths):
        if path.is_dir():
            found = image_paths(path)
            if not found:
                raise no_images(path)
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"the image {path} is missing")
    return files


def _as_paths(name: str, paths: Sequence[Path | str]) -> list[Path]:
    return [as_path(name, path) for path in listed(name, paths, "paths")]


def predict(
    network: ImageClassifier | ImageRestorer,
    files: Sequence[Path],
    *,
    batch_size: int = 64,
) -> Iterator[tuple[Path, Tensor | UnreadableImageError]]:
    """What a network makes of image files, one after the other.

    An image of another size or shape is prepared as the images of a training folder are: its
    central part of the right shape is scaled to the ``image_size`` of the network.

    Args:
        network: What :func:`asng_ext.load_network` gives.
        files: The images.
        batch_size: How many go through the network at once.

    Yields:
        The file, and of a classifier the probabilities of the classes, (classes,) float32, of an
        autoencoder the restored image, (C, H, W) float32 in [0, 1]; or why it cannot be read.

    Raises:
        ImportError: If Pillow is missing.
        TypeError: If these are no network and no paths.
        ValueError: If ``batch_size`` is not positive.
    """
    check_network(network)
    files = _as_paths("files", files)
    check_positive("batch_size", batch_size)
    for first in range(0, len(files), batch_size):
        batch = files[first : first + batch_size]
        read = [_read_or_error(path, network) for path in batch]
        images = [image for image in read if isinstance(image, Tensor)]
        results: Iterator[Tensor] = iter(())
        if images:
            with torch.inference_mode():
                out = network(torch.stack(images))
                results = iter(out.softmax(dim=1) if isinstance(network, ImageClassifier) else out)
        for path, image in zip(batch, read):
            yield path, next(results) if isinstance(image, Tensor) else image


def _read_or_error(
    path: Path, network: ImageClassifier | ImageRestorer
) -> Tensor | UnreadableImageError:
    height, width = network.image_size
    try:
        return read_image(path, (height, width), network.in_channels)
    except UnreadableImageError as error:
        return error


def read_image(path: Path | str, image_size: tuple[int, int], channels: int) -> Tensor:
    """An image file, its central part of the right shape scaled to a size.

    Args:
        path: The file, of any format that Pillow reads without the help of other programs.
        image_size: (height, width) in pixels.
        channels: 1 for gray, 3 for color.

    Returns:
        (channels, height, width) uint8.

    Raises:
        UnreadableImageError: If it is no image.
        ImportError: If Pillow is missing.
        TypeError, ValueError: If ``image_size`` is no size, or ``channels`` neither 1 nor 3.
    """
    check_size("image_size", image_size)
    if not is_integer(channels) or channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {brief(channels)}")
    pillow = require("PIL.Image", "Pillow", "reading images needs")
    path = as_path("path", path)
    try:
        if not path.is_file():  # opening a pipe would block until something is written into it
            raise OSError("it is no file")
        with pillow.open(path, formats=FORMATS) as image:
            reduced(image, image_size, channels)
            pixels = fitted(image, image_size, channels)
    except unreadable_errors() as error:
        words = "it is not of a known format" if _unidentified(error) else str(error)
        raise UnreadableImageError(f"{path} cannot be read as an image: {words}") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def _unidentified(error: BaseException) -> bool:
    return type(error).__name__ == "UnidentifiedImageError"  # names the file, or its handle


def write_image(image: Tensor, path: Path) -> None:
    """Writes an image as PNG.

    Args:
        image: (C, H, W), one channel or three, in [0, 1].
        path: The file, which is replaced at once if it is there.

    Raises:
        OSError: If it cannot be written.
    """
    pillow = require("PIL.Image", "Pillow", "writing images needs")
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = pillow.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    write_atomically(path, lambda file: picture.save(file, format="PNG"))
