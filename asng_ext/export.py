"""Retrained networks as files for other programs, checked against the network before they are
there."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from asng_ext import __version__
from asng_ext._checks import brief
from asng_ext._files import as_path, remove_leftovers, write_atomically
from asng_ext.retrained import ImageClassifier, ImageRestorer, check_network, from_safetensors
from asng_ext.runs.folder import RunFolder

__all__ = ["FORMATS", "Format", "export_network"]

Network = ImageClassifier | ImageRestorer
Run = Callable[[Tensor], Tensor]
"""What a file computes of images."""

_TOLERANCE = 1e-4
"""Largest difference of outputs, in units of the largest output or of 1 if that is less: rounding
to float32 in another order stays far below."""
_CHECKED_BATCHES = (1, 3)


@dataclass(frozen=True)
class Format:
    """A file format of networks.

    Attributes:
        suffix: What its files end with.
        packages: What it needs beside torch.
        usage: How a file of it, {path}, is loaded.
        write: Writes a network.
        read: What a file computes.
    """

    suffix: str
    packages: tuple[str, ...]
    usage: str
    write: Callable[[Network, IO[bytes]], None]
    read: Callable[[Path], Run]


def export_network(network: Network, path: Path | str, format: str = "torch-export") -> float:
    """Writes a network with the normalization of its images.

    torch-export and onnx are programs: of (N, C, H, W) float32 images in [0, 1], of the network's
    ``image_size`` and any N, they make what the network does, without this package. safetensors
    holds the weights, and as metadata what :func:`asng_ext.load_network` builds the network from.
    All hold that, with the names of the classes, as JSON: in blueprint.json of the archive, or as
    the metadata "asng_ext".

    The file is read again and its results are compared with the network's before it gets its name,
    where it replaces what was there.

    Args:
        network: What :func:`asng_ext.load_network` gives, on the CPU.
        path: The file, with the suffix of the format.
        format: One of ``FORMATS``.

    Returns:
        The largest difference of results.

    Raises:
        TypeError: If the network or the path is none.
        ValueError: If there is no such format, the file is not called as its files are, or its
            results differ from the network's by more than rounding.
        ImportError: If the format needs a package that is not installed.
        OSError: If the file cannot be written.
        BlockingIOError: If it is to be in a run folder that another process uses.
    """
    check_network(network)
    if not isinstance(format, str) or format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {brief(format)}")
    path, chosen = as_path("path", path), FORMATS[format]
    if path.suffix != chosen.suffix:
        raise ValueError(f"a {format} file must end with {chosen.suffix}, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist")
    missing = [name for name in chosen.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the format {format} needs {' and '.join(missing)}: "
            f"pip install {' '.join(missing)} (or asng-ext[export])"
        )
    run = RunFolder(path.parent)  # whose next user would remove what is half written
    lock = run.lock() if run.file("config.toml").is_file() else contextlib.nullcontext()
    difference = 0.0

    def write(file: IO[bytes]) -> None:
        nonlocal difference
        with _quiet():
            chosen.write(network, file)
            file.flush()
            difference = _difference(network, chosen.read(Path(file.name)), path)

    with lock:
        remove_leftovers(path)
        write_atomically(path, write)
    return difference


def _difference(network: Network, run: Run, path: Path) -> float:
    """The largest difference of results; ValueError if it is more than rounding."""
    largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for count in _CHECKED_BATCHES:
        shape = (count, network.in_channels, *network.image_size)
        images = torch.rand(shape, generator=generator)
        with torch.no_grad():
            expected, got = network(images), run(images)
        if got.shape != expected.shape:
            raise ValueError(
                f"{path} was not written: of {count} images it would make results of shape "
                f"{tuple(got.shape)}, the network {tuple(expected.shape)}"
            )
        difference = float((got - expected).abs().max())
        allowed = _TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:  # NaN is neither
            raise ValueError(
                f"{path} was not written: its results would differ from the network's by up to "
                f"{difference:.3g}, more than the {allowed:.3g} that rounding explains"
            )
        largest = max(largest, difference)
    return largest


def _described(network: Network) -> str:
    """What the network is built from beside the weights, as JSON."""
    return json.dumps({"version": __version__, "blueprint": network.blueprint()})


# torch.export


def _program(network: Network) -> torch.export.ExportedProgram:
    images = torch.zeros(2, network.in_channels, *network.image_size)
    batch = {"images": {0: torch.export.Dim("batch")}}
    return torch.export.export(network, (images,), dynamic_shapes=batch)


def _write_program(network: Network, file: IO[bytes]) -> None:
    torch.export.save(
        _program(network),
        file,  # type: ignore[arg-type]
        extra_files={"blueprint.json": _described(network)},
    )


def _read_program(path: Path) -> Run:
    with open(path, "rb") as file:
        module: Run = torch.export.load(file).module()  # type: ignore[arg-type]
    return module


# safetensors


def _write_tensors(network: Network, file: IO[bytes]) -> None:
    from safetensors.torch import save

    tensors = {name: each.contiguous() for name, each in network.state_dict().items()}
    file.write(save(tensors, metadata={"format": "pt", "asng_ext": _described(network)}))


# ONNX


def _write_onnx(network: Network, file: IO[bytes]) -> None:
    result = "logits" if isinstance(network, ImageClassifier) else "restored"
    exported = torch.onnx.export(
        _program(network), dynamo=True, verbose=False, input_names=["images"], output_names=[result]
    )
    assert exported is not None
    model = exported.model_proto
    model.metadata_props.add(key="asng_ext", value=_described(network))
    file.write(model.SerializeToString())


def _read_onnx(path: Path) -> Run:
    """By ONNX Runtime if it is installed, or else by the slow evaluator of onnx itself."""
    session: Any
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    else:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters warn of themselves; what they make is checked."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


FORMATS = {
    "torch-export": Format(
        ".pt2", (), "torch.export.load({path!r}).module()", _write_program, _read_program
    ),
    "safetensors": Format(
        ".safetensors",
        ("safetensors",),
        "asng_ext.load_network({path!r})",
        _write_tensors,
        from_safetensors,
    ),
    "onnx": Format(
        ".onnx",
        ("onnx", "onnxscript"),
        "onnxruntime.InferenceSession({path!r})",
        _write_onnx,
        _read_onnx,
    ),
}
"""The formats by name."""
