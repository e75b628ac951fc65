"""Settings, architectures and checkpoints of any content: read, or refused by a clean error.

ASNG_FUZZ_EXAMPLES is how many of each are tried.
"""

from __future__ import annotations

import copy
import io
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import small_runs
import tomli_w
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asng_ext.engine.experiment import Experiment
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
