"""The classes of 2019, Optuna's sampler, files of networks and runs, predictions and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asng_ext import compat, load_architecture, load_network, plots
from asng_ext.data import ImageData, load_cifar10, load_folder
from asng_ext.export import export_network
from asng_ext.nn import CellNetwork, CellSpace
from asng_ext.predict import image_files, predict, read_image
from asng_ext.retrained import ImageClassifier
from asng_ext.runs.folder import RunFolder
from wrong_inputs.table import Given, Wrong, refused
from wrong_inputs.values import NOT_FINITE, NOT_INTEGERS, NOT_NUMBERS

SIZES = [3, 2]
SPACE = CellSpace(2)
POSITIVE: list[Any] = [*NOT_NUMBERS, *NOT_FINITE, 0, 0.0, -1.5]
KINDS: dict[str, Any] = {
    "AdaptiveSNG": lambda **s: compat.AdaptiveSNG(SIZES, **s),
    "CategoricalASNG": lambda **s: compat.CategoricalASNG(SIZES, **s),
    "MixedAdaptiveSNG": lambda **s: compat.MixedAdaptiveSNG(SIZES, [(1, 5)], **s),
}
MIXED = KINDS["MixedAdaptiveSNG"]()
_CATEGORIES: list[Any] = [
    None, 3, "32", 2.5, [2.5, 3], [[2, 3]], [0, 2], [-1], ["3"], [True], [2**62], [None], [[2], [2, 3]], np.zeros(0, int),
]  # fmt: skip
_THETAS: list[Any] = [
    3, "theta", [[0.5, 0.5]], np.zeros((2, 2)), [["a"] * 3] * 2, np.full((2, 3), np.nan),
]  # fmt: skip
_LOSSES: list[Any] = [None, 3.0, "12", ["1", "2"], [[1.0, 2.0]], [1.0, None], [1j, 2.0],
    np.array([1j, 2.0]), np.array(["1", "2"]), np.array([[1.0, 2.0]]), [torch.zeros(2), 1.0],
    [10**400, 1.0], Given([1.0], "(2, 2, 3)"), Given([], "(2, 2, 3)"),
]  # fmt: skip


def _samples(count: int = 2) -> np.ndarray:
    one = np.zeros((count, 2, 3), bool)
    one[:, :, 0] = True
    one[0, 0] = [False, True, False]
    return one


def _updated(kind: str, **changes: Any) -> None:
    optimizer = KINDS[kind]() if kind in KINDS else getattr(compat, kind)(SIZES)
    given = {"samples": _samples(), "losses": [1.0, 2.0], "range_restriction": True, **changes}
    if kind == "MixedAdaptiveSNG":
        given["samples"] = (given["samples"], np.full((2, 1), 2.0))
    optimizer.update(*given.values())


COMPAT_ROWS: list[Wrong] = [
    *refused("AdaptiveSNG", lambda _, v: compat.AdaptiveSNG(v), "categories", _CATEGORIES),
    *refused("Categorical", lambda _, v: compat.Categorical(v), "categories", _CATEGORIES),
    *refused("CategoricalASNG", lambda _, v: compat.CategoricalASNG(v), "categories", _CATEGORIES),
    *refused(
        "MixedAdaptiveSNG", lambda _, v: compat.MixedAdaptiveSNG(v, [(1, 5)]), "categories",
        _CATEGORIES,
    ),
    *refused(
        "MixedAdaptiveSNG", lambda _, v: compat.MixedAdaptiveSNG(SIZES, [(1, 5)], init_theta=v),
        "init_theta", [3, [1], [[3], [[2], [5]]], [np.full((2, 3), 0.5), [[2, 5]]], ["a", "b"]],
    ),
    *refused(
        "MixedAdaptiveSNG", lambda _, v: MIXED.update(v, [1.0, 2.0]), "",
        [None, 3, (_samples(), np.full((2, 1), "a")), (_samples(), np.zeros((3, 1)))],
    ),
    *refused("Categorical", lambda _, v: compat.Categorical(SIZES).load_theta_from_log(v),
             "theta", [None, 3, "12345", [0.5] * 4, ["a"] * 5, [None] * 5]),
    *refused("MixedAdaptiveSNG", lambda _, v: MIXED.load_theta_from_log(v), "theta_log",
             [None, 3, [0.5] * 6, ["a"] * 7]),
    *refused(
        "MixedAdaptiveSNG", lambda _, v: compat.MixedAdaptiveSNG(SIZES, v), "integers",
        [None, 3, "ab", [1, 5], [(5, 1)], [(1, 1)], [(1, 2, 3)], [("a", "b")], [(None, 2)],
         [(np.nan, 2)], [(0, np.inf)]],
    ),
    *refused("SNG", lambda _, v: compat.SNG(SIZES, v), "delta_init", POSITIVE),
    *refused("Adam", lambda _, v: compat.Adam(SIZES, alpha=v), "alpha", POSITIVE),
]  # fmt: skip
for _kind, _make in KINDS.items():
    for _name in ("alpha", "init_delta" if _kind == "CategoricalASNG" else "delta_init"):
        COMPAT_ROWS += refused(_kind, lambda _, v, m=_make, n=_name: m(**{n: v}), _name, POSITIVE)
    COMPAT_ROWS += refused(
        _kind, lambda _, v, m=_make: m(Delta_max=v), "Delta_max",
        [*NOT_NUMBERS, float("nan"), 0, -1.0],
    )  # fmt: skip
    if _kind != "MixedAdaptiveSNG":
        COMPAT_ROWS += refused(_kind, lambda _, v, m=_make: m(init_theta=v), "init_theta", _THETAS)
for _kind in ("SNG", "Adam", *KINDS):
    COMPAT_ROWS += refused(_kind, lambda _, v, k=_kind: _updated(k, losses=v), "losses", _LOSSES)
    COMPAT_ROWS += refused(
        _kind, lambda _, v, k=_kind: _updated(k, range_restriction=v), "range_restriction",
        ["yes", [], np.array([True, False])],
    )  # fmt: skip
    COMPAT_ROWS += refused(
        _kind, lambda _, v, k=_kind: _updated(k, samples=v), "samples",
        [None, "ab", 3, np.zeros((2, 2, 2)), np.zeros((3, 2, 3)), np.full((2, 2, 3), "a")],
    )  # fmt: skip


def _sampler_rows() -> list[Wrong]:
    try:
        import optuna

        from asng_ext.integrations.optuna import ASNGSampler
    except ImportError:
        return []
    integers = optuna.distributions.IntDistribution(1, 3)
    return [
        *refused(
            "ASNGSampler", lambda _, v: ASNGSampler(v), "search_space",
            [3, "x", ["x"], [("x", integers)], {1: integers}, {"x": 3}, {"x": (1, 3)}],
        ),
        *refused(
            "ASNGSampler", lambda _, v: ASNGSampler(seed=v), "seed", [*NOT_INTEGERS, -1, 2**64]
        ),
        *refused(
            "ASNGSampler", lambda _, v: ASNGSampler(population_size=v), "population_size",
            [*NOT_INTEGERS, None, 0, 1, -2, 2**40],
        ),
        *refused("ASNGSampler", lambda _, v: ASNGSampler(alpha=v), "alpha", POSITIVE),
        *refused("ASNGSampler", lambda _, v: ASNGSampler(delta_init=v), "delta_init", POSITIVE),
        *refused(
            "ASNGSampler", lambda _, v: ASNGSampler(independent_sampler=v), "independent_sampler",
            [3, "random", optuna.samplers.RandomSampler],
        ),
    ]  # fmt: skip


def _classifier() -> ImageClassifier:
    torch.manual_seed(0)
    network = CellNetwork(
        SPACE, [0] * len(SPACE.categories), cells=3, channels=2, classes=3, in_channels=1
    )
    return ImageClassifier(
        network.eval(), mean=[0.5], std=[0.5], class_names=["a", "b", "c"], image_size=(8, 8)
    )


def _folder(folder: Path) -> Path:
    (folder / "text.png").write_text("no image")
    (folder / "empty").mkdir()
    (folder / "list.json").write_text("[1]")
    (folder / "other.json").write_text('{"architecture": 3}')
    (folder / "broken.pt").write_bytes(b"no network")
    (folder / "config.toml").write_text("= 3")
    return folder


NETWORK = _classifier()
_PATHS: list[Any] = [None, 3, 2.5, ["a"], b"a"]
_MISSING: list[Any] = ["missing", Path("missing.pt"), "", "a\0b"]

FILE_ROWS: list[Wrong] = [
    *refused("load_network", lambda _, v: load_network(v), "run_or_file", _PATHS),
    *refused("load_network", lambda _, v: load_network(v), "", _MISSING),
    *refused(
        "load_network", lambda f, v: load_network(f / v), "",
        ["empty", "broken.pt", "list.json", "text.png"], _folder,
    ),
    *refused("load_architecture", lambda _, v: load_architecture(v), "run_or_file", _PATHS),
    *refused("load_architecture", lambda _, v: load_architecture(v), "", _MISSING),
    *refused(
        "load_architecture", lambda f, v: load_architecture(f / v), "",
        ["empty", "broken.pt", "list.json", "other.json", "text.png"], _folder,
    ),
    *refused("from_npz", lambda _, v: ImageData.from_npz(v), "path", _PATHS),
    *refused("from_folder", lambda _, v: ImageData.from_folder(v), "folder", _PATHS),
    *refused("load_folder", lambda _, v: load_folder(v), "folder", _PATHS),
    *refused("load_folder", lambda f, v: load_folder(f, cache=v), "cache", _PATHS[1:], _folder),
    *refused("load_cifar10", lambda _, v: load_cifar10(v), "folder", _PATHS),
    *refused(
        "ImageClassifier", lambda _, v: NETWORK(v), "images",
        [None, 3, "a", np.zeros((1, 1, 8, 8)), torch.zeros(8, 8), torch.zeros(1, 3, 8, 8),
         torch.zeros(1, 1, 8, 8, dtype=torch.complex64)],
    ),
    *refused("image_files", lambda _, v: image_files(v), "paths", [None, 3, "a.png", [3], [None]]),
    *refused("image_files", lambda f, v: image_files([f / v]), "", ["missing", "empty"], _folder),
    *refused(
        "predict", lambda _, v: list(predict(v, [Path("a.png")])), "network",
        [None, 3, "network.pt", ImageClassifier, torch.nn.Linear(2, 2)],
    ),
    *refused("predict", lambda _, v: list(predict(NETWORK, v)), "files", [None, 3, "a.png", [3]]),
    *refused(
        "predict", lambda _, v: list(predict(NETWORK, [], batch_size=v)), "batch_size",
        [*NOT_INTEGERS, None, 0, -1],
    ),
    *refused("read_image", lambda f, v: read_image(f / v, (8, 8), 1), "", ["text.png"], _folder),
    *refused(
        "read_image", lambda f, v: read_image(f / "text.png", v, 1), "image_size",
        [None, 3, (8,), (8, 0), (8, -1), (8.5, 8), ("8", "8"), (8, 8, 8)], _folder,
    ),
    *refused(
        "read_image", lambda f, v: read_image(f / "text.png", (8, 8), v), "channels",
        [None, "1", 0, 2, 4, 1.5], _folder,
    ),
    *refused(
        "export_network", lambda f, v: export_network(v, f / "n.pt2"), "network",
        [None, 3, "network.pt", torch.nn.Linear(2, 2)], _folder,
    ),
    *refused("export_network", lambda _, v: export_network(NETWORK, v), "path", [None, 3, b"a"]),
    *refused(
        "export_network", lambda f, v: export_network(NETWORK, f / v), "",
        ["n.onnx", "n", "missing/n.pt2"], _folder,
    ),
    *refused(
        "export_network", lambda f, v: export_network(NETWORK, f / "n.pt2", v), "format",
        [None, 3, "", "pt", "ONNX", ["onnx"]], _folder,
    ),
    *refused("RunFolder", lambda _, v: RunFolder.open(v), "path", _PATHS),
    *refused("RunFolder", lambda _, v: RunFolder.create(v), "path", _PATHS),
    *refused("RunFolder", lambda f, v: RunFolder.open(f / v), "", ["missing", "empty"], _folder),
    *refused("RunFolder", lambda f, v: RunFolder(f).read_json(v), "", ["list.json", "none"], _folder),
    *refused(
        "RunFolder", lambda f, v: RunFolder(f).read_config(), "",
        [Given(None, "config.toml")], _folder,
    ),
]  # fmt: skip

_IMAGES = torch.zeros(2, 1, 4, 4)
_ENDINGS: list[Any] = [None, 3, b"a.png", "a", "a.jpg", Path("missing/a.png")]
_NO_ROWS: list[Any] = [None, 3, "a", [], [3], [{}], [{"epoch": "1"}], [{"epoch": float("nan")}]]
_NO_IMAGES: list[Any] = [
    None, "a", np.zeros((2, 1, 4, 4)), torch.zeros(4, 4), torch.zeros(2, 2, 4, 4),
]  # fmt: skip
_DRAWN: list[Callable[[Any], object]] = [
    lambda path: plots.draw_cells(SPACE, [0] * len(SPACE.categories), path),
    lambda path: plots.draw_autoencoder([], path),
    lambda path: plots.draw_confusion([[1]], ["a"], path),
    lambda path: plots.draw_mistakes(_IMAGES, "ab", [("a", 0.5)] * 2, path),
    lambda path: plots.draw_restored(_IMAGES, _IMAGES, _IMAGES, path),
    lambda path: plots.plot_search([{"epoch": 1, "train_loss": 1.0}], path),
    lambda path: plots.plot_retrain([{"epoch": 1, "train_loss": 1.0}], path),
    lambda path: plots.plot_elapsed({"": {"a": [([1.0], [2.0])]}}, path, "error"),
    lambda path: plots.plot_theta([[0.5, 0.5]], ["x"], {"x": "ab"}, path),
]

PICTURE_ROWS: list[Wrong] = [
    *refused("draw_cells", lambda f, v: plots.draw_cells(v, [0], f / "a.png"), "space",
             [None, 3, "cell"], _folder),
    *refused("draw_cells", lambda f, v: plots.draw_cells(SPACE, v, f / "a.png"), "architecture",
             [None, 3, Given("a", "length 1"), Given([0, 0], "length 2")], _folder),
    *refused("draw_autoencoder", lambda f, v: plots.draw_autoencoder(v, f / "a.png"), "layers",
             [None, 3, "a", [3]], _folder),
    *refused("draw_autoencoder", lambda f, v: plots.draw_autoencoder([], f / "a.png", v),
             "image_size", [None, 3, (8,), (8, 0), ("8", "8")], _folder),
    *refused("draw_confusion", lambda f, v: plots.draw_confusion(v, ["a", "b"], f / "a.png"),
             "counts", [Given(None, "got ()"), Given(3, "got ()"), Given("ab", "got ()"), [[1]], [[1.5, 2], [3, 4]], [[1, 2], [3]], [[-1, 0], [0, 0]]],
             _folder),
    *refused("draw_confusion", lambda f, v: plots.draw_confusion([[1]], v, f / "a.png"),
             "class_names", [None, 3, [3], ["a", "b"]], _folder),
    *refused("draw_mistakes", lambda f, v: plots.draw_mistakes(v, "ab", [("a", 0.5)] * 2, f / "a.png"),
             "images", _NO_IMAGES, _folder),
    *refused("draw_mistakes", lambda f, v: plots.draw_mistakes(_IMAGES, v, [("a", 0.5)] * 2, f / "a.png"),
             "classes", [None, 3, ["a"], [3, 4]], _folder),
    *refused("draw_mistakes", lambda f, v: plots.draw_mistakes(_IMAGES, "ab", v, f / "a.png"),
             "predicted", [None, 3, [("a", 0.5)], [3, 4], ["ab", "cd"]], _folder),
    *refused("draw_restored", lambda f, v: plots.draw_restored(v, _IMAGES, _IMAGES, f / "a.png"),
             "original", _NO_IMAGES, _folder),
    *refused("draw_restored", lambda f, v: plots.draw_restored(_IMAGES, v, _IMAGES, f / "a.png"),
             "corrupted", _NO_IMAGES, _folder),
    *refused("plot_search", lambda f, v: plots.plot_search(v, f / "a.png"), "rows", _NO_ROWS, _folder),
    *refused("plot_retrain", lambda f, v: plots.plot_retrain(v, f / "a.png"), "rows", _NO_ROWS, _folder),
    *refused("plot_sweep", lambda f, v: plots.plot_sweep(v, f / "a.png"), "rows",
             [None, 3, "a", [], [3], [{}]], _folder),
    *refused("plot_elapsed", lambda f, v: plots.plot_elapsed(v, f / "a.png", "error"), "panels",
             [None, 3, "a", {}, [3], {"a": 3}, {"a": {}}, {"a": {"b": []}}, {"a": {"b": 3}}, {"a": {"b": [3]}}], _folder),
    *refused("plot_theta", lambda f, v: plots.plot_theta(v, ["x"], {"x": "ab"}, f / "a.png"), "theta",
             [Given(None, "shape ()"), Given(3, "shape ()"), "a", [["a", "b"]], [[0.5, 2.0]], [[0.5], [0.5, 0.5]]], _folder),
    *refused("plot_theta", lambda f, v: plots.plot_theta([[0.5, 0.5]], v, {"x": "ab"}, f / "a.png"),
             "names", [None, 3, Given(["x", "y"], "(1, 2)"), [["x"]]], _folder),
    *refused("plot_theta", lambda f, v: plots.plot_theta([[0.5, 0.5]], ["x"], v, f / "a.png"),
             "labels", [None, 3, "x", Given({}, "none"), {"x": 3}], _folder),
    *(row for draw in _DRAWN for row in refused("picture", lambda _, v, d=draw: d(v), "", _ENDINGS)),
]  # fmt: skip

TABLES = {
    "compat": COMPAT_ROWS,
    "optuna": _sampler_rows(),
    "files": FILE_ROWS,
    "pictures": PICTURE_ROWS,
}
