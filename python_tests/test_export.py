"""Files of networks compute what the networks do, for any number of images."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import small_runs
import torch

import asng_ext as asng
from asng_ext import cli, export
from asng_ext._files import remove_leftovers
from asng_ext.cli.parser import make_parser
from asng_ext.export import FORMATS, export_network
from asng_ext.retrained import ImageClassifier, ImageRestorer
from asng_ext.runs.folder import RunFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "classifier": small_runs.finished(small_runs.classification(folder / "classifier")),
        "restorer": small_runs.finished(small_runs.inpainting(folder / "restorer")),
    }


def images_for(network: ImageClassifier | ImageRestorer, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, network.in_channels, *network.image_size, generator=generator)


def compare(network: ImageClassifier | ImageRestorer, run: Callable[..., Any]) -> None:
    for count in (1, 2, 7):
        images = images_for(network, count)
        with torch.no_grad():
            torch.testing.assert_close(run(images), network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["classifier", "restorer"])
def test_a_program_computes_the_same_without_this_package(
    runs: dict[str, Path], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "it.pt2"
    before = torch.get_rng_state()
    assert cli.main(["export", str(runs[kind]), "--out", str(out)]) == 0
    assert torch.equal(torch.get_rng_state(), before)
    printed = capsys.readouterr().out
    assert f"written:   {out}, whose results differ" in printed
    assert f"loaded by: torch.export.load({str(out)!r}).module()" in printed
    network = asng.load_network(runs[kind])
    images = images_for(network, 5)
    with torch.no_grad():
        torch.save((images, network(images)), tmp_path / "expected.pt")
    code = f"""
import sys, torch
images, expected = torch.load("expected.pt")
described = {{"blueprint.json": ""}}
program = torch.export.load({str(out)!r}, extra_files=described)
with torch.no_grad():
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)
assert not any(name.startswith("asng_ext") for name in sys.modules)
print(described["blueprint.json"])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True
    )
    assert json.loads(ran.stdout)["blueprint"] == json.loads(json.dumps(network.blueprint()))


@pytest.mark.parametrize("kind", ["classifier", "restorer"])
def test_tensors_make_the_network_again(runs: dict[str, Path], kind: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    network = asng.load_network(runs[kind])
    out = tmp_path / "it.safetensors"
    assert export_network(network, out, "safetensors") < 1e-5
    again = asng.load_network(out)
    compare(network, again)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert again.blueprint() == network.blueprint()
    out.write_bytes(out.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        asng.load_network(out)
    with pytest.raises(FileNotFoundError, match="is missing"):
        asng.load_network(tmp_path / "no.safetensors")


def test_tensors_of_other_programs_are_refused(tmp_path: Path) -> None:
    torch_tensors = pytest.importorskip("safetensors.torch")
    torch_tensors.save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="lacks the metadata asng_ext"):
        asng.load_network(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["classifier", "restorer"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnx.reference"])
def test_onnx_computes_the_same(
    runs: dict[str, Path],
    kind: str,
    runtime: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    onnx = pytest.importorskip("onnx")
    for module in ("onnxscript", runtime):
        pytest.importorskip(module)
    if runtime == "onnx.reference":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    network = asng.load_network(runs[kind])
    out = tmp_path / "it.onnx"
    assert export_network(network, out, "onnx") < 1e-4
    compare(network, export._read_onnx(out))
    model = onnx.load(out)
    onnx.checker.check_model(model)
    assert [each.name for each in model.graph.input] == ["images"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert not shape[0].HasField("dim_value")  # any number of images
    assert [each.dim_value for each in shape[1:]] == [network.in_channels, *network.image_size]
    metadata = {each.key: each.value for each in model.metadata_props}
    assert json.loads(metadata["asng_ext"])["blueprint"] == json.loads(
        json.dumps(network.blueprint())
    )


class Wrong(torch.nn.Module):
    """A network whose results change after it has been written."""

    def __init__(self, network: ImageClassifier) -> None:
        super().__init__()
        self.network = network
        self.in_channels, self.image_size = network.in_channels, network.image_size
        self.by = 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits + self.by

    def blueprint(self) -> dict[str, Any]:
        return self.network.blueprint()


@pytest.mark.parametrize("by", [0.25, float("nan")])
def test_a_file_of_other_results_is_not_there(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    network = Wrong(cast(ImageClassifier, asng.load_network(runs["classifier"])))
    out = tmp_path / "it.pt2"
    out.write_text("what was there")
    program = export._program

    def change(network: Any) -> Any:
        made = program(network)
        network.by = by
        return made

    monkeypatch.setattr(export, "_program", change)
    with pytest.raises(
        ValueError, match=rf"differ from the network's by up to {by:.3g}, more than"
    ):
        export_network(cast(Any, network), out)
    assert [path.name for path in tmp_path.iterdir()] == ["it.pt2"]
    assert out.read_text() == "what was there"


@pytest.mark.parametrize("where", ["run", "elsewhere"])
@pytest.mark.parametrize("suffix", [each.suffix for each in FORMATS.values()])
def test_what_was_killed_is_removed_by_the_next(
    runs: dict[str, Path], tmp_path: Path, where: str, suffix: str
) -> None:
    folder = tmp_path / where
    if where == "run":
        shutil.copytree(runs["classifier"], folder)
    else:
        folder.mkdir()
    out = folder / f"it{suffix}"
    code = f"""
import os, signal, sys
from pathlib import Path
from asng_ext._files import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path({str(out)!r}), write)
"""
    killed = subprocess.run([sys.executable, "-c", code])
    assert killed.returncode < 0
    left = [path for path in folder.iterdir() if path.name.startswith(f".{out.name}.")]
    assert [path.read_bytes() for path in left] == [b"half"]
    # One that a process is writing, another file's, and what only looks like one.
    others = {f".{out.name}.{os.getpid()}.tmp", f".other{suffix}.{left[0].name.split('.')[-2]}.tmp"}
    others |= {f".{out.name}.x.tmp", f".{out.name}.{10**30}.tmp"}
    for name in others:
        (folder / name).write_text("mine")
    if where == "run":
        with RunFolder.open(folder).lock():
            pass
    remove_leftovers(out)
    after = {path.name for path in folder.iterdir() if path.name.endswith(".tmp")}
    assert left[0].name not in after
    assert after == (others if where == "elsewhere" else {f".{out.name}.x.tmp"})


def test_a_run_in_use_is_not_written_into(runs: dict[str, Path], tmp_path: Path) -> None:
    network = asng.load_network(runs["classifier"])
    shutil.copytree(runs["classifier"], tmp_path / "run")
    with RunFolder.open(tmp_path / "run").lock():
        with pytest.raises(BlockingIOError, match="is in use by process"):
            export_network(network, tmp_path / "run" / "it.pt2")
        assert not (tmp_path / "run" / "it.pt2").exists()
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        (tmp_path / f".it.pt2.{ended.pid}.tmp").write_text("half")
        export_network(network, tmp_path / "it.pt2")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "it.pt2"}


def test_what_is_wrong_is_named(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = asng.load_network(runs["classifier"])
    with pytest.raises(ValueError, match=r"format must be one of torch-export, .*, got 'tf'"):
        export_network(network, tmp_path / "it.tf", "tf")
    with pytest.raises(ValueError, match=r"torch-export file must end with \.pt2, got .*it\.pt"):
        export_network(network, tmp_path / "it.pt")
    with pytest.raises(FileNotFoundError, match=r"the folder of .* does not exist"):
        export_network(network, tmp_path / "no" / "it.pt2")
    for format, package in (("safetensors", "safetensors"), ("onnx", "onnxscript")):
        monkeypatch.setitem(sys.modules, package, None)
        arguments = ["export", str(runs["classifier"]), f"--format={format}"]
        assert cli.main([*arguments, f"--out={tmp_path / 'it'}{FORMATS[format].suffix}"]) == 2
        error = capsys.readouterr().err
        assert f"the format {format} needs " in error
        assert f"{package} (or asng-ext[export])" in error
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_network_says_how_to_get_one(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs["classifier"], tmp_path / "run")
    (tmp_path / "run" / "network.pt").unlink()
    assert cli.main(["export", str(tmp_path / "run")]) == 2
    assert "has not been retrained; `asng retrain" in capsys.readouterr().err


def test_the_formats_of_the_command_are_those_there_are() -> None:
    parse = make_parser().parse_args
    assert [parse(["export", "run", f"--format={name}"]).format for name in FORMATS] == list(
        FORMATS
    )
