"""The command line: ``asng demo``, ``search``, ``resume``, ``retrain``, ``evaluate``, ``toy``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, get_type_hints

from asng_ext import __version__
from asng_ext._checks import check_one_process
from asng_ext.config import (
    RetrainConfig,
    SearchConfig,
    load_toml,
    section_from,
    section_to_dict,
)
from asng_ext.experiment import Experiment
from asng_ext.tasks import KINDS, toy_study
from asng_ext.tasks.protocol import TaskKind

__all__ = ["main"]

_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    FloatingPointError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        check_one_process()
        with _plain_warnings():
            return int(args.run(args) or 0)
    except _ERRORS as error:
        print(f"asng: error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        words = str(error).partition("\n")[0] or "out of memory"
        # PyTorch has no class of its own for what the CPU lacks.
        if "out of memory" not in words and "can't allocate memory" not in words:
            raise
        print(f"asng: error: {words}; a smaller batch_size needs less", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nasng: interrupted; what is finished is kept", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings say what is to be known, and not where in the code."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        print(f"asng: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="asng", description=__doc__)
    parser.add_argument("--version", action="version", version=f"asng-ext {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="search, retrain and test on bundled data, in minutes")
    demo.add_argument("task", nargs="?", choices=tuple(KINDS), default="classification")
    _add_common(demo)
    demo.set_defaults(run=_demo)

    search = commands.add_parser("search", help="search an architecture")
    tasks = search.add_subparsers(required=True, metavar="TASK", dest="task")
    for kind in KINDS.values():
        task = tasks.add_parser(kind.name, help=kind.help)
        _add_common(task)
        task.add_argument(
            "--preset",
            choices=sorted(kind.presets),
            default=None,
            help="settings to start from; by default those of the data set",
        )
        task.add_argument("--config", metavar="FILE", help="settings as a TOML file")
        _add_section(task, "task", kind.config, title=kind.name)
        _add_section(task, "search", SearchConfig)
        _add_section(task, "retrain", RetrainConfig, prefix="retrain-")
        task.set_defaults(run=_search)

    resume = commands.add_parser("resume", help="continue an interrupted search")
    resume.add_argument("folder", metavar="RUN", help="run folder")
    resume.set_defaults(run=_resume)

    retrain = commands.add_parser(
        "retrain", help="train the architecture of a run from scratch, or continue doing so"
    )
    retrain.add_argument("folder", metavar="RUN", help="run folder")
    retrain.add_argument("--device", default=argparse.SUPPRESS, help="cpu or cuda")
    _add_section(retrain, "retrain", RetrainConfig)
    for kind in KINDS.values():
        _add_section(retrain, "task", kind.config, title=f"{kind.name}: network", final=True)
    retrain.set_defaults(run=_retrain)

    evaluate = commands.add_parser("evaluate", help="test the retrained network of a run")
    evaluate.add_argument("folder", metavar="RUN", help="run folder")
    evaluate.add_argument("--device", default=argparse.SUPPRESS, help="cpu or cuda")
    evaluate.add_argument(
        "--data", dest="task.data", default=argparse.SUPPRESS, help="data set, if it moved"
    )
    evaluate.set_defaults(run=_evaluate)

    toy_study.add_parser(commands)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="RUN", default=None, help="run folder; must not exist yet")
    parser.add_argument(
        "--seed", type=int, default=argparse.SUPPRESS, help="decides everything that is random (0)"
    )
    parser.add_argument("--device", default=argparse.SUPPRESS, help="cpu or cuda (cpu)")


def _add_section(
    parser: argparse.ArgumentParser,
    name: str,
    kind: type[Any],
    *,
    prefix: str = "",
    title: str | None = None,
    final: bool = False,
) -> None:
    """An option for every setting of a section, or every final one; its destination is
    "section.setting". Tasks may have settings of the same name: the option is there once."""
    group = parser.add_argument_group(f"{title or name} settings")
    types = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        flag = f"--{prefix}{item.name.replace('_', '-')}"
        if (final and not item.metadata["final"]) or flag in parser._option_string_actions:
            continue
        options: dict[str, Any] = {
            "dest": f"{name}.{item.name}",
            "default": argparse.SUPPRESS,
            "help": f"{item.metadata['help']} ({item.default!r})".replace("%", "%%"),
        }
        if types[item.name] is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(
                flag,
                type=types[item.name],
                metavar=item.name.split("_")[-1].upper(),
                choices=item.metadata["choices"],
                **options,
            )


def _given(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What was given on the command line, by section."""
    given: dict[str, dict[str, Any]] = {}
    for key, value in vars(args).items():
        section, dot, name = key.partition(".")
        if dot:
            given.setdefault(section, {})[name] = value
    return given


def _config(
    kind: TaskKind, args: argparse.Namespace, preset: str | None, from_file: Mapping[str, Any]
) -> dict[str, Any]:
    """All settings: what was given, before what a file says, before the preset."""
    given = _given(args)
    if preset is None:
        of_task = {**from_file.get(kind.name, {}), **given.get("task", {})}
        preset = kind.preset_for(str(of_task.get("data", "")))
    # What a file holds beside the sections is checked with everything else.
    config = {"task": kind.name, "seed": 0, "device": "cpu", **from_file}
    config |= {"version": __version__}
    config |= {name: getattr(args, name) for name in ("seed", "device") if hasattr(args, name)}
    sections = (("search", "search"), ("retrain", "retrain"), (kind.name, "task"))
    for (name, option), base in zip(sections, kind.presets[preset]):
        merged = {**from_file.get(name, {}), **given.get(option, {})}
        config[name] = section_to_dict(section_from(type(base), merged, base))
    return config


def _search(args: argparse.Namespace) -> int:
    from_file: Mapping[str, Any] = {}
    if args.config:
        path = Path(args.config)
        from_file = load_toml(path.read_text(encoding="utf-8"), str(path))
    config = _config(KINDS[args.task], args, args.preset, from_file)
    experiment = _create(args, args.task, config)
    experiment.search()
    print(f"architecture: {experiment.run.file('architecture.json')}")
    print(f"retrain it:   asng retrain {experiment.run.path}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    kind = KINDS[args.task]
    experiment = _create(args, f"demo-{kind.name}", _config(kind, args, kind.demo, {}))
    experiment.search()
    _report(experiment, experiment.retrain())
    return 0


def _resume(args: argparse.Namespace) -> int:
    experiment = Experiment.open(args.folder)
    experiment.search()
    print(f"architecture: {experiment.run.file('architecture.json')}")
    return 0


def _open(args: argparse.Namespace) -> Experiment:
    """The run of ``args.folder`` with what was given instead of what its config.toml says."""
    given = _given(args)
    return Experiment.open(
        args.folder,
        loops={name: given[name] for name in ("search", "retrain") if name in given},
        task=given.get("task"),
        device=getattr(args, "device", None),
    )


def _retrain(args: argparse.Namespace) -> int:
    experiment = _open(args)
    _report(experiment, experiment.retrain())
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    for name, value in _open(args).evaluate().items():
        print(f"test {name}: {value:.4f}")
    return 0


def _report(experiment: Experiment, tested: Mapping[str, float]) -> None:
    for name, value in tested.items():
        print(f"test {name}: {value:.4f}")
    print(f"run folder: {experiment.run.path}")
    for path in sorted(experiment.run.path.iterdir()):
        print(f"  {path.name}")


def _create(args: argparse.Namespace, name: str, config: Mapping[str, Any]) -> Experiment:
    """A new run in the folder that was asked for, or in one named after the time."""
    path = args.out or Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    return Experiment.create(path, config, another_name=args.out is None)


if __name__ == "__main__":
    sys.exit(main())
