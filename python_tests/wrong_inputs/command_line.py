"""The command line: options, files of settings, run folders and files of runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asng_ext import cli
from wrong_inputs.table import Given, Wrong, refused


class RefusedError(ValueError):
    """What the command line has said of it."""


def asng(folder: Path, *arguments: str) -> None:
    """Runs a command in a folder; what it refuses with status 2 and one line is an error."""
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status: Any = cli.main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    finally:
        os.chdir(before)
    said = err.getvalue()
    if status == 2 and not out.getvalue() and said.count("\n") == 1 and said.endswith("\n"):
        raise RefusedError(said)
    if status != 0:
        raise AssertionError(f"status {status}, printed {out.getvalue()!r}, said {said!r}")


def _folder(folder: Path) -> Path:
    return folder


def _option(option: str, values: list[Any], *command: str) -> list[Wrong]:
    return refused(
        " ".join(command[:2]),
        lambda folder, value: asng(folder, *command, f"{option}={value}"),
        option.removeprefix("--").split("-")[-1].replace("_", " "),
        values,
        _folder,
    )


SEARCH = ("search", "classification", "--data=digits", "--out=run")
COMPARE = ("compare", "classification", "--data=digits", "--out=run", "--strategies=asng")
INPAINTING = ("search", "inpainting", "--data=photos", "--out=run")
_COUNTS = ["0", "-1", "1.5", "two", "nan", "", "1e3", "9" * 400, "٣x"]
_SHORT_COUNTS = [count for count in _COUNTS if len(count) < 100]
_RATES: list[Any] = ["0", "-1", "nan", "inf", "fast", "", Given("1e400", "inf")]

OPTIONS: list[Wrong] = [
    *refused(
        "command", lambda folder, v: asng(folder, *v), "error",
        [Given([], "COMMAND"), ["no"], Given(["search"], "TASK"), ["search", "no"], ["demo", "no"],
         Given(["resume"], "RUN"), Given(["retrain"], "RUN"), Given(["evaluate"], "RUN"),
         Given(["compare"], "TASK"), ["compare", "no"], Given(["show"], "RUN"), Given(["predict", "run"], "IMAGE"), Given(["export"], "RUN"),
         Given(["--no"], "COMMAND"),
         [*SEARCH, "--no-such-option"], [*SEARCH, "extra"], Given([*SEARCH, "--epochs"], "--epochs"),
         [*SEARCH, "--c=1"]],
        _folder,
    ),
    *_option("--epochs", [*_COUNTS, "2000000"], *SEARCH),
    *_option("--batch-size", _COUNTS, *SEARCH),
    *_option("--learning-rate", [*_RATES, Given("1e4", "10000.0")], *SEARCH),
    *_option("--momentum", ["-1", "2", "nan", "inf", "fast", ""], *SEARCH),
    *_option("--weight-decay", ["-1", "nan", "inf", "x", ""], *SEARCH),
    *_option("--gradient-clip", _RATES, *SEARCH),
    *_option("--population-size", [*_COUNTS, "1", "1025"], *SEARCH),
    *_option("--alpha", _RATES, *SEARCH),
    *_option("--threads", ["-1", "1.5", "x", "", "100000"], *SEARCH),
    *_option("--search-optimizer", ["asng", "", "Adam"], *SEARCH),
    *_option("--margin", ["", "no", "0.1"], *SEARCH),
    *_option("--seed", ["-1", "1.5", "x", "", "9" * 30, "nan"], *SEARCH),
    *_option("--device", ["gpu", "", "tpu:0", "meta", "cuda:x"], *SEARCH),
    *_option("--preset", ["", "no", "Paper"], *SEARCH),
    *_option("--nodes", [*_COUNTS, "33"], *SEARCH),
    *_option("--cells", [*_COUNTS, "2", "101"], *SEARCH),
    *_option("--channels", _COUNTS, *SEARCH),
    *_option("--operations", ["", "no", Given("identity,identity", "'identity', 'identity'"), ","], *SEARCH),
    *_option("--fixed", ["x", "=", "a=", "=b", Given("a=b,a=c", "'a=c'")], *SEARCH),
    *_option("--penalty", ["x", "parameters", "parameters=", *(Given(f"parameters={n}", f"'{n}'")
                           for n in ("x", "0", "-1", "nan", "inf", "1e400"))], *SEARCH),
    *_option("--retrain-epochs", _COUNTS, *SEARCH),
    *_option("--budget", [*(f"steps={n}" for n in _COUNTS), *(f"minutes={n}" for n in _RATES),
                          "steps", "minutes=1,steps=2", "hours=1", "1"], *COMPARE),
    *_option("--seeds", [*_SHORT_COUNTS, "2000000"], *COMPARE),
    *_option("--processes", [*_SHORT_COUNTS, "2000"], *COMPARE),
    *_option("--strategies", ["", "no", "ASNG"], *COMPARE),
    *_option("--epochs", [Given("3", "--epochs")], *COMPARE),
    *_option("--strategy", ["", "best", "DARTS"], *SEARCH),
    *_option("--strategy-options", [Given("rate=1", "'rate'"), Given("learning_rate=fast", "'fast'"), Given("learning_rate=0", "got 0.0"), "beta1"],
             *SEARCH, "--strategy=darts"),
    *_option("--strategy-options", ["delta=1"], *SEARCH),
    *_option("--population-size", ["4"], *SEARCH, "--strategy=enas"),
    *_option("--masks", ["", "no", "Half"], "compare", "inpainting", "--data=photos", "--out=run"),
    *_option("--data", ["", "no-such-data", "no/such/folder"], "search", "classification", "--out=run"),
    *_option("--data", ["no-such-data"], "search", "inpainting", "--out=run"),
    *refused("search", lambda folder, v: asng(folder, "search", "inpainting", "--data", v), "folder",
             ["no/such/folder"], _folder),
    *_option("--image-size", ["0", "10", "-1", "x", "5000"], *INPAINTING),
    *_option("--layers", [*_COUNTS, "201"], *INPAINTING),
    *_option("--kernels", ["", "2", Given("1,1", "(1, 1)"), "x", "0", Given("1,,x", "x")], *INPAINTING),
    *_option("--mask", ["", "no", "Half"], *INPAINTING),
    *refused("search", lambda folder, v: asng(folder, *SEARCH, "--config", v), "error",
             ["missing.toml", "."], _folder),
]  # fmt: skip

_COMMANDS = [("resume",), ("retrain",), ("evaluate",), ("show",), ("export",), ("predict",)]


def _with(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "run").mkdir()
        (folder / "run" / name).write_bytes(content)
        (folder / "image.png").write_bytes(b"none")
        return folder

    return make


def _command(command: tuple[str, ...], folder: Path, run: str) -> None:
    asng(folder, *command, run, *(["image.png"] if command[0] == "predict" else []))


FOLDERS: list[Wrong] = [
    *[
        row
        for command in _COMMANDS
        for row in refused(
            command[0], lambda folder, v, c=command: _command(c, folder, v), "", ["missing", "run", "image.png", ""],
            _with("notes.txt", b"no run"),
        )
    ],
    *[
        row
        for command in ("resume", "retrain", "evaluate")
        for content in (b"", b"seed", b"\xff\xfe", b'task = "no"', b"task = 3", b'task = ["classification"]',
                        b'task = "classification"\nseed = "0"', b'task = "classification"\nseed = true',
                        b'task = "classification"\nseed = 0\nno = 1', b'task = "classification"\nseed = 0\nsearch = 3',
                        b'task = "classification"\nseed = 0\n[search]\nepoch = 3',
                        b'task = "classification"\nseed = 0\n[search]\nepochs = 1.5',
                        b'task = "classification"\nseed = 0\n[search]\nepochs = true',
                        b'task = "classification"\nseed = 0\n[search]\nalpha = nan',
                        b'task = "classification"\nseed = 0\n[classification]\ndata = 3')
        for row in refused(
            command, lambda folder, v, c=command: asng(folder, c, v), "error", [Given("run", "")],
            _with("config.toml", content),
        )
    ],
    *[
        row
        for content in (b"", b"{", b"[]", b"3", b"null", b"\xff", b'{"architecture": 3}', b'{"architecture": []}',
                        b'{"architecture": {}}', b'{"architecture": {}, "task": "no"}', b"[" * 100_000,
                        json.dumps({"task": "classification", "architecture": {"a": 1}}).encode(),
                        json.dumps({"task": "inpainting", "architecture": {"a": None}}).encode(),
                        json.dumps({"task": ["classification"], "architecture": {}}).encode())
        for row in refused(
            "architecture",
            lambda folder, v: asng(folder, "retrain", "new", "--architecture", v),
            "error", [Given("run/architecture.json", "")], _with("architecture.json", content),
        )
    ],
    *[
        row
        for name, command in (("network.pt", "export"), ("network.pt", "predict"))
        for content in (b"", b"PK", b"PK\x03\x04" + b"\0" * 60, b"\x80\x02}q\x00.", b"no weights")
        for row in refused(
            f"{command}-damaged", lambda folder, v, c=command: _command((c,), folder, v), "network.pt",
            ["run/network.pt"], _with(name, content),
        )
    ],
]  # fmt: skip

TABLES = {"options": OPTIONS, "folders": FOLDERS}
