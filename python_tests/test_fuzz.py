"""Settings, architectures and checkpoints of any content, and operators of any arguments: read, or
refused by a clean error.

ASNG_FUZZ_EXAMPLES is how many of each are tried.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import random
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixed_node_samples
import pytest
import small_runs
import tomli_w
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from asng_ext import ops
from asng_ext.engine.experiment import Experiment
from asng_ext.nn import CaeCatSpace, CaeLayer, CaeSupernet, CellSpace, cell_supernet
from asng_ext.retrained import load_architecture, load_network
from asng_ext.runs.folder import RunFolder

EXAMPLES = int(os.environ.get("ASNG_FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

KEYS = st.sampled_from(
    ["task", "seed", "device", "version", "search", "retrain", "classification", "inpainting",
     "epochs", "data", "optimizer", "fixed", "penalty", "init", "nodes", "operations", "kernels",
     "architecture", "probabilities", "network"]
) | st.text(max_size=5)  # fmt: skip
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["classification", "inpainting", "cpu", "digits", "photos", "ASNG", "a=b"])
)
CONTENT = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
)
TABLES = st.dictionaries(KEYS, CONTENT, max_size=5)
# What is cut off, and what is put where.
DAMAGE = st.tuples(st.floats(0, 1), st.floats(0, 1), st.binary(max_size=20))


def damaged(content: bytes, damage: tuple[float, float, bytes]) -> bytes:
    place, end, put = damage
    at, length = int(place * len(content)), int(end * len(content))
    return (content[:at] + put + content[at + len(put) :])[: length or None]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused_or_read(read: Any, folder: Path) -> None:
    """Whatever is wrong is said by one of these, and nothing is written."""
    before = files(folder)
    words = "read"
    try:
        read()
    except (ValueError, TypeError, OSError) as error:
        words = str(error).strip()
    assert words
    assert files(folder) == before


@fuzzed
@example(table={"task": "classification", "seed": 0})
@given(table=TABLES)
def test_settings_of_any_content(table: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.toml").write_bytes(tomli_w.dumps(table).encode(errors="replace"))
        refused_or_read(lambda: Experiment.open(path), path)


@fuzzed
@given(damage=DAMAGE)
def test_damaged_settings(damage: tuple[float, float, bytes]) -> None:
    config = {"task": "inpainting", "seed": 0, "device": "cpu", "inpainting": {"data": "nowhere"}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.toml").write_bytes(damaged(tomli_w.dumps(config).encode(), damage))
        refused_or_read(lambda: Experiment.open(path), path)


@fuzzed
@given(table=TABLES, damage=DAMAGE | st.none())
def test_architectures_of_any_content(
    table: dict[str, Any], damage: tuple[float, float, bytes] | None
) -> None:
    text = json.dumps({"architecture": table, **table}).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "architecture.json"
        path.write_bytes(text if damage is None else damaged(text, damage))
        refused_or_read(lambda: load_architecture(path), path.parent)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_runs.finished(small_runs.inpainting(tmp_path_factory.mktemp("fuzz") / "run"))


@fuzzed
@given(damage=DAMAGE, name=st.sampled_from(["network.pt", "search.pt"]))
def test_damaged_checkpoints(finished: Path, damage: tuple[float, float, bytes], name: str) -> None:
    content = (finished / name).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        path.write_bytes(damaged(content, damage))
        refused_or_read(lambda: load_network(path), path.parent)


def _places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values in nested dicts are."""
    if not isinstance(content, dict):
        return [above]
    return [above, *(place for key in content for place in _places(content[key], (*above, key)))]


@fuzzed
@given(data=st.data())
def test_checkpoints_of_other_content(finished: Path, data: st.DataObject) -> None:
    """Complete files, in which a value is another or missing."""
    content = RunFolder(finished).load("network.pt")
    content = copy.deepcopy(content)
    *above, last = data.draw(st.sampled_from(_places(content)[1:]))
    inner: Any = content
    for key in above:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[last] = data.draw(CONTENT | st.just(torch.zeros(2)) | st.just(torch.zeros(2).long()))
    else:
        del inner[last]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        torch.save(content, path)
        refused_or_read(lambda: load_network(path), path.parent)


def test_an_archive_that_is_no_checkpoint(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cos\nsystem\nq\x00.")
    (tmp_path / "network.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"network\.pt is not a complete checkpoint"):
        load_network(tmp_path / "network.pt")


class Recorded(TorchDispatchMode):
    """The calls of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "asng":
            copied = tree_map(lambda a: a.clone() if isinstance(a, torch.Tensor) else a, args)
            self.calls.append((op, (*copied, *(kwargs or {}).values())))
        return op(*args, **(kwargs or {}))


def calls() -> list[tuple[Any, tuple[Any, ...]]]:
    """Calls of all operators of the CPU with arguments that fit."""
    torch.manual_seed(0)
    with Recorded() as recorded:
        space = CellSpace(2)
        supernet = cell_supernet(space, channels=4, cells=3)
        population = torch.zeros(2, len(space.categories), dtype=torch.int32)
        x = torch.rand(3, 3, 8, 8)
        for training in (True, False):
            supernet.train(training)
            out = supernet.forward_population(x, population)
            if training:
                out.sum().backward()
        autoencoder = CaeSupernet(CaeCatSpace(2, channels=(4, 8)))
        layers = [CaeLayer(0, 3, 8, True), CaeLayer(1, 5, 4, False)]
        autoencoder(x, layers).sum().backward()
        bank, weights = mixed_node_samples.sample(inputs=3, archs=2)
        edges = torch.tensor([[0, 2], [1, 1]], dtype=torch.int32)
        ops.mixed_node(bank, edges, edges, weights, 2).sum().backward()
    return recorded.calls


def other_tensor(tensor: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """A tensor that differs in one respect, or in its numbers alone."""
    axis = chance.randrange(max(1, tensor.dim()))
    ways: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.to(chance.choice([torch.float32, torch.float64, torch.int32, torch.int64,
                                         torch.bfloat16, torch.bool, torch.complex64])),
        lambda: tensor.unsqueeze(axis),
        lambda: tensor.flatten(),
        lambda: torch.cat([tensor, tensor], axis if tensor.dim() else 0),
        lambda: tensor.narrow(axis, 0, max(0, tensor.shape[axis] - 1)),
        lambda: tensor.narrow(axis, 0, 0),
        lambda: torch.stack([tensor, tensor], -1)[..., 0],  # with gaps
        lambda: tensor.transpose(axis, -1),
        lambda: tensor.new_zeros(()).expand(tensor.shape),
        lambda: tensor.to("meta"),
        lambda: torch.full_like(tensor, chance.choice([-1, 0, 5, 2**31 - 1, -(2**31)])),
        lambda: tensor.new_empty(0),
        lambda: torch.full_like(tensor, math.nan) if tensor.is_floating_point() else tensor,
    ]  # fmt: skip
    return chance.choice(ways)()


def other(value: Any, chance: random.Random) -> Any:
    """What is passed in place of an argument."""
    if isinstance(value, torch.Tensor):
        try:
            return other_tensor(value, chance)
        except (RuntimeError, IndexError):  # a scalar has no axes
            return value.new_empty(3, 0)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([-1, 0, 1, value + 1, 7, 2**31, 2**62, -(2**63)])
    if isinstance(value, float):
        return chance.choice([-1.0, 0.0, math.inf, math.nan])
    if isinstance(value, (list, tuple)) and value:
        changed, place = list(value), chance.randrange(len(value))
        ways: list[Callable[[], Any]] = [
            lambda: changed.pop(place),
            lambda: changed.append(changed[place]),
            lambda: changed.clear(),
            lambda: changed.__setitem__(place, other(changed[place], chance)),
        ]
        chance.choice([*ways, ways[-1], ways[-1]])()
        return changed
    return value


def test_operators_of_other_arguments() -> None:
    """Refused by an error or computed: what they read and write is theirs."""
    chance, known = random.Random(0), calls()
    assert len({op for op, _ in known}) == 10
    refused = 0
    for _ in range(20 * EXAMPLES):
        op, arguments = chance.choice(known)
        changed = list(arguments)
        for _ in range(chance.choice([1, 1, 1, 2])):
            place = chance.randrange(len(changed))
            changed[place] = other(changed[place], chance)
        try:
            with torch.no_grad():
                op(*changed)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
            refused += 1
    assert refused > 10 * EXAMPLES
