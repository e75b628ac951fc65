"""The command line: ``asng demo``, ``search``, ``compare``, ``resume``, ``retrain``, ``evaluate``,
``show``, ``predict``, ``export``, ``toy``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import difflib
import importlib.util
import json
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_type_hints

from asng_ext import __version__, optimizers, strategies, tasks
from asng_ext._checks import check_one_process, check_positive
from asng_ext._signals import Interrupted, interrupted_by_signals
from asng_ext._terminal import STDERR, say, tell
from asng_ext._threads import spin_briefly
from asng_ext.distributed import ALONE, Ranks, RanksDifferError, joined
from asng_ext.engine import contestants
from asng_ext.runs.config import RetrainConfig, SearchConfig, load_toml
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.report import report, retrain_command
from asng_ext.tasks import TaskKind
from asng_ext.toy import study as toy_study

# What needs torch, which takes seconds to import, is imported by the commands that need it.
if TYPE_CHECKING:
    from asng_ext.engine.experiment import Experiment

__all__ = ["main"]

_RENAMED = {
    ("search", "--precision"): "--search-precision",
    ("retrain", "--precision"): "--retrain-precision",
    ("toy", "--output"): "--out",
}
"""Options of earlier versions, by command."""

_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    A command continues when what it prints is not read. A search, a retraining and a comparison end
    by signals, and by closing the terminal, after their step; other commands continue without a
    terminal.
    """
    spin_briefly()  # before torch is imported
    arguments = _with_new_names(list(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # not a text file, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    args = argparse.Namespace(arguments=arguments)
    try:
        try:
            _parser().parse_args(arguments, args)
        except SystemExit:
            tell("", end="")  # raises if what --help printed cannot be written
            raise
        has_ranks = args.run in (_demo, _search, _resume, _retrain)
        if not has_ranks:
            check_one_process()
        with (
            interrupted_by_signals() if has_ranks or args.run is _compare else _without_hangup(),
            joined() if has_ranks else contextlib.nullcontext(ALONE) as args.ranks,
            _spoken_by_first(args.ranks),
            _plain_warnings(),
        ):
            args.run(args)
        return 0
    except _ERRORS as error:
        ranks = getattr(args, "ranks", ALONE)
        if ranks.first or not (isinstance(error, RanksDifferError) or hasattr(error, "of_first")):
            who = "" if ranks.first else f"rank {ranks.rank}: "
            say(STDERR, f"asng: error: {who}{' '.join(str(error).split())}\n")
        return 2
    except (MemoryError, RuntimeError) as error:
        words = str(error).partition("\n")[0] or "out of memory"
        # PyTorch has no class of its own for what the CPU lacks.
        if "out of memory" not in words and "can't allocate memory" not in words:
            raise
        say(STDERR, f"asng: error: {words}; a smaller batch_size needs less\n")
        return 2
    except KeyboardInterrupt as error:
        ranks = getattr(args, "ranks", ALONE)
        if ranks.first:
            command = [*_program(ranks), *getattr(args, "resume", arguments)]
            say(STDERR, f"\nasng: interrupted; to continue: {shlex.join(command)}\n")
        return 128 + (error.number if isinstance(error, Interrupted) else signal.SIGINT)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _discard_unwritten(stream)


@contextlib.contextmanager
def _spoken_by_first(ranks: Ranks) -> Iterator[None]:
    """What ranks say is said once, by the first."""
    if ranks.first:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _program(ranks: Ranks) -> list[str]:
    """What starts the command line again, on as many ranks."""
    if ranks.size == 1:
        return ["asng"]
    of_machine = os.environ.get("LOCAL_WORLD_SIZE", str(ranks.size))
    return ["torchrun", "--nproc-per-node", of_machine, "-m", "asng_ext"]


def _with_new_names(arguments: list[str]) -> list[str]:
    """The arguments with options of earlier versions called as they are now, and a note of it."""
    renamed = []
    for argument in arguments:
        old, equals, value = argument.partition("=")
        new = _RENAMED.get((arguments[0], old), old)
        if new != old:
            say(STDERR, f"asng: note: {old} of `asng {arguments[0]}` is now {new}\n")
        renamed.append(new + equals + value)
    return renamed


@contextlib.contextmanager
def _without_hangup() -> Iterator[None]:
    """Closing the terminal does not end the process."""
    if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before or signal.SIG_DFL)


def _discard_unwritten(stream: TextIO | None) -> None:
    """What cannot be written goes nowhere, so that Python does not stumble over it at exit."""
    if stream is None or stream.closed:
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings are shown without the place in the code."""

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *place, **more: say(
            STDERR, f"asng: warning: {message}\n"
        )
        yield


class _Parser(argparse.ArgumentParser):
    """It says in one line what is wrong, and does not mind that nobody reads its help; some
    versions of Python raise an error. Options are not abbreviated: one command's may begin as
    another's do.

    Args:
        fill: Adds its arguments. It is called when the parser is used: there are hundreds of
            options in all.
        other_options: Where options are that it does not have, in words.
        named: Arguments of an :class:`argparse.ArgumentParser`.
    """

    def __init__(
        self,
        *,
        fill: Callable[[_Parser], object] | None = None,
        other_options: str = "",
        **named: Any,
    ) -> None:
        super().__init__(allow_abbrev=False, **named)
        self._fill = fill
        self._other_options = other_options

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        fill, self._fill = self._fill, None
        if fill is not None:
            fill(self)
        arguments = list(sys.argv[1:] if args is None else args)
        # Found out first: what follows one may be taken for something else.
        if options := list(self._unknown_options(arguments)):
            words = f"unrecognized arguments: {' '.join(map(self._with_hint, options))}"
            self.error("; ".join(filter(None, [words, self._other_options])))
        parsed, unknown = super().parse_known_args(arguments, namespace)
        if unknown:  # a command says so itself, and how to get its own help
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def _unknown_options(self, arguments: Sequence[str]) -> Iterator[str]:
        """Those that are no options of this parser. What follows a command is for it to know."""
        for argument in arguments:
            if argument == "--" or (self._subparsers and not argument.startswith("-")):
                return
            # Not a negative number, nor a text with spaces.
            name = re.fullmatch(r"(-[a-zA-Z]|--[^\s=]+)(=.*)?", argument, re.DOTALL)
            if name and name[1] not in self._option_string_actions:
                yield argument

    def _with_hint(self, option: str) -> str:
        """An unknown option with those that may be meant."""
        known = {name.lstrip("-"): name for name in self._option_string_actions}
        given = option.partition("=")[0].lstrip("-")
        meant = [name for name in known if name.startswith(given)]
        meant = meant or difflib.get_close_matches(given, known, cutoff=0.75)
        if not meant:
            return option
        return f"{option} (did you mean {' or '.join(known[name] for name in meant[:3])}?)"

    def error(self, message: str) -> Any:
        words = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {words}; `{self.prog} --help` says more\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        with contextlib.suppress(BrokenPipeError):
            super()._print_message(message, file)


class _Joined(argparse.Action):
    """Puts the parts of a setting together."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        setattr(namespace, self.dest, ",".join(values))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="asng",
        description="Neural architecture search by adaptive stochastic natural gradient (ASNG).",
        epilog="Ctrl-C, closing the terminal, SIGTERM and SIGUSR1 end a search or retraining after "
        "its iteration, and it says how to continue; nohup keeps it from ending with the terminal.",
        other_options="options come after COMMAND",
    )
    parser.add_argument("--version", action="version", version=f"asng-ext {__version__}")
    commands: Any = parser.add_subparsers(required=True, metavar="COMMAND")

    commands.add_parser(
        "demo",
        help="search, retrain and test on bundled data, in minutes",
        description="Searches, retrains and tests with the settings of a preset: "
        + ", ".join(f"{tasks.get(name).demo} for {name}" for name in tasks.names())
        + ". `asng search TASK --help` shows them.",
        fill=_fill_demo,
        other_options="a demo has the settings of its preset, and `asng search TASK` takes others",
    )
    commands.add_parser(
        "search",
        help="search an architecture",
        fill=partial(_fill_tasks, _fill_search, _SEARCH),
        other_options="options come after TASK",
    )
    commands.add_parser(
        "compare",
        help="search by several strategies under the same budget, and compare what they find",
        fill=partial(_fill_tasks, _fill_compare, _COMPARE),
        other_options="options come after TASK",
    )
    commands.add_parser(
        "resume",
        help="continue an interrupted search",
        description="Settings that are not given are those in the run's config.toml.",
        fill=_fill_resume,
    )
    commands.add_parser(
        "retrain",
        help="train the architecture of a run from scratch, or continue to",
        description="Settings that are not given are those in the run's config.toml. With "
        "--architecture, RUN is a new run, and they are those of --config or of the data's preset, "
        "which `asng search TASK --help` shows.",
        fill=_fill_retrain,
    )
    commands.add_parser("evaluate", help="test the retrained network of a run", fill=_fill_evaluate)
    commands.add_parser(
        "show",
        help="say what a run has found, how good it is, and what to type next",
        description="Works in every state of a run, and changes nothing.",
        fill=_fill_show,
    )
    commands.add_parser(
        "predict",
        help="classify images by the retrained network of a run, or restore them",
        description="An image of another size or shape is prepared as a folder of training images "
        "is: its central part is scaled. For a network that restores images missing pixels are "
        "black, and the restored ones are written as PNG files.",
        fill=_fill_predict,
    )
    commands.add_parser(
        "export",
        help="write the retrained network of a run for other programs",
        description="With the normalization of its images, for any number of them. It is read "
        "again and compared with the network before the file is there.",
        fill=_fill_export,
    )
    toy_study.add_parser(commands)
    return parser


_SEARCH = "Options come before the file of settings, and the file before the preset."
_COMPARE = (
    "Each strategy and seed is a run in a folder of its own, and searched, retrained and tested. "
    "The same command again continues what was interrupted and adds what is missing. Settings are "
    "those of `asng search`, the same for all."
)


def _fill_tasks(
    fill: Callable[[TaskKind, _Parser], object], description: str, parser: _Parser
) -> None:
    """A command of each task."""
    of_tasks: Any = parser.add_subparsers(required=True, metavar="TASK", dest="task")
    for kind in map(tasks.get, tasks.names()):
        of_tasks.add_parser(
            kind.name, help=kind.help, description=description, fill=partial(fill, kind)
        )


def _fill_demo(demo: _Parser) -> None:
    demo.add_argument("task", nargs="?", choices=tasks.names(), default="classification")
    _add_common(demo)
    demo.add_argument(
        "--threads",
        type=int,
        default=argparse.SUPPRESS,
        help="of PyTorch on the CPU, in search and retraining (what the preset says); "
        "1 is best where other processes need the processors",
    )
    demo.set_defaults(run=_demo)


def _fill_search(kind: TaskKind, search: _Parser) -> None:
    _add_common(search)
    _add_preset(search, kind)
    search.add_argument(
        "--penalty-sweep",
        metavar="FACTOR",
        type=float,
        nargs="+",
        help="a search for each multiple of the limits of --penalty, inf for none, in a folder "
        "of its own in RUN, and a table of them all",
    )
    search.add_argument(
        "--resume-if-exists",
        action="store_true",
        help="continue the search that is in the folder of --out, if there is one",
    )
    search.add_argument(
        "--sweep-retrain", action="store_true", help="retrain each network of the sweep"
    )
    _add_section(search, "task", kind.config, title=kind.name, kind=kind)
    _add_section(search, "search", SearchConfig, kind=kind)
    _add_section(search, "retrain", RetrainConfig, prefix="retrain-", kind=kind)
    search.set_defaults(run=_search)


def _fill_compare(kind: TaskKind, compare: _Parser) -> None:
    names = contestants.names(kind.name)
    compare.add_argument(
        "--strategies",
        nargs="+",
        choices=names,
        metavar="NAME",
        default=None,
        help=f"what is compared, of {', '.join(names)} (default: "
        f"{' '.join(contestants.default_names(kind.name))})",
    )
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1 (3)")
    if any(item.name == "mask" for item in dataclasses.fields(kind.config)):
        masks = kind.config.__dataclass_fields__["mask"].metadata["choices"]
        compare.add_argument(
            "--masks", nargs="+", choices=masks, default=list(masks),
            help="what is missing, each a comparison of its own (default: all)",
        )  # fmt: skip
    budgets = [f"{p}: {b}" for p, b in contestants.BUDGETS.items() if p in kind.presets]
    compare.add_argument(
        "--budget",
        default=None,
        metavar="minutes=M|steps=N",
        help=f"of each search, without tests ({'; '.join(budgets)})",
    )
    compare.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="how many runs at a time; several have one thread each (1)",
    )
    compare.add_argument(
        "--out", metavar="FOLDER", default=None, help="of all runs, new or of a comparison"
    )
    compare.add_argument("--device", default=argparse.SUPPRESS, help="cpu or cuda (cpu)")
    _add_preset(compare, kind)
    without = contestants.DECIDED
    _add_section(compare, "task", kind.config, title=kind.name, kind=kind, without=without)
    _add_section(compare, "search", SearchConfig, kind=kind, without=without)
    _add_section(compare, "retrain", RetrainConfig, prefix="retrain-", kind=kind)
    compare.set_defaults(run=_compare)


def _fill_resume(resume: _Parser) -> None:
    _add_run(resume)
    _add_resume_from(resume)
    _add_device_of_run(resume)
    _add_section(resume, "search", SearchConfig, for_resuming=True)
    _add_moved_data(resume)
    resume.set_defaults(run=_resume)


def _fill_retrain(retrain: _Parser) -> None:
    retrain.add_argument(
        "--architecture",
        metavar="FILE",
        default=None,
        help="train this one, of an architecture.json or of the run folder that holds one",
    )
    retrain.add_argument("--config", metavar="FILE", help="settings of the new run as a TOML file")
    retrain.add_argument("--seed", type=int, default=argparse.SUPPRESS, help="of the new run (0)")
    _add_run(retrain)
    _add_resume_from(retrain)
    retrain.add_argument(
        "--restart",
        action="store_true",
        help="begin anew, such as with other settings, or with the architecture of a search that "
        "went on; what there is of a retraining before stays until the new one takes its place",
    )
    _add_device_of_run(retrain)
    _add_section(retrain, "retrain", RetrainConfig, hidden_prefix="retrain-")
    for kind in map(tasks.get, tasks.names()):
        _add_section(
            retrain, "task", kind.config, title=f"{kind.name}: network", for_retraining=True
        )
    retrain.set_defaults(run=_retrain)


def _fill_evaluate(evaluate: _Parser) -> None:
    _add_run(evaluate)
    _add_device_of_run(evaluate)
    _add_moved_data(evaluate)
    evaluate.set_defaults(run=_evaluate)


def _fill_show(show: _Parser) -> None:
    _add_run(show)
    show.set_defaults(run=_show)


def _fill_predict(predict: _Parser) -> None:
    predict.add_argument("folder", metavar="RUN", help="run folder, or a network.pt alone")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="a file, or a folder of them")
    predict.add_argument(
        "--top", type=int, metavar="K", default=None, help="the most likely classes to show (3)"
    )
    predict.add_argument(
        "--out", metavar="FOLDER", default=None, help="of the restored images (restored)"
    )
    predict.add_argument("--json", action="store_true", help="an object of JSON per image and line")
    predict.set_defaults(run=_predict)


def _fill_export(export: _Parser) -> None:
    export.add_argument(
        "--format",
        choices=("torch-export", "safetensors", "onnx"),
        default="torch-export",
        help="a program for PyTorch, weights for this package, or a program for ONNX Runtime and "
        "others (default: torch-export)",
    )
    export.add_argument(
        "--out",
        metavar="FILE",
        default=None,
        help="(default: network.pt2, .safetensors or .onnx in the run folder)",
    )
    _add_run(export)
    export.set_defaults(run=_export)


def _add_run(parser: _Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help="run folder")


def _add_resume_from(parser: _Parser) -> None:
    parser.add_argument(
        "--resume-from",
        metavar="FILE",
        default=None,
        help="checkpoint to continue from, such as RUN/search.prev.pt (the newest)",
    )


def _add_device_of_run(parser: _Parser) -> None:
    parser.add_argument(
        "--device", default=argparse.SUPPRESS, help="cpu or cuda (default: the run's)"
    )


def _add_moved_data(parser: _Parser) -> None:
    parser.add_argument(
        "--data", dest="task.data", default=argparse.SUPPRESS, help="data set, if it moved"
    )


def _add_preset(parser: argparse.ArgumentParser, kind: TaskKind) -> None:
    presets, what = sorted(kind.presets), "settings to start from; by default those of the data"
    if kind.automatic is not None:
        presets.append(tasks.AUTOMATIC)
        what += ", and auto for your own: by the number and size of the images"
    parser.add_argument("--preset", choices=presets, default=None, help=what)
    parser.add_argument("--config", metavar="FILE", help="settings as a TOML file")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="RUN", default=None, help="run folder; must not exist yet")
    parser.add_argument(
        "--seed", type=int, default=argparse.SUPPRESS, help="decides everything that is random (0)"
    )
    parser.add_argument("--device", default=argparse.SUPPRESS, help="cpu or cuda (cpu)")


def _add_section(
    parser: argparse.ArgumentParser,
    name: str,
    section: type[Any],
    *,
    prefix: str = "",
    hidden_prefix: str = "",
    title: str | None = None,
    for_retraining: bool = False,
    for_resuming: bool = False,
    kind: TaskKind | None = None,
    without: Collection[str] = (),
) -> None:
    """An option for every setting of a section, or every one for retraining or that may change on
    resume; its destination is
    "section.setting". Tasks may have settings of the same name: the option is there once.
    The help says what the presets of ``kind`` have, and nothing of names with ``hidden_prefix``.
    Settings ``without`` an option are left out."""
    group = parser.add_argument_group(f"{title or name} settings")
    types = get_type_hints(section)
    for item in dataclasses.fields(section):
        flag = f"--{item.metadata['option'] or prefix + item.name.replace('_', '-')}"
        if item.name in without:
            continue
        if for_retraining and not item.metadata["for_retraining"]:
            continue
        if for_resuming and not (item.metadata["runtime_only"] or item.metadata["may_grow"]):
            continue
        if flag in parser._option_string_actions:
            continue
        help = item.metadata["help"]
        if kind is not None and item.name != "data":
            help += f" ({_of_presets(kind, title or name, item)})"
        choices = item.metadata["choices"]
        if name == "search" and item.name in ("optimizer", "strategy"):
            choices = {"optimizer": optimizers, "strategy": strategies}[item.name].names()
        options: dict[str, Any] = {"dest": f"{name}.{item.name}", "default": argparse.SUPPRESS}
        if types[item.name] is bool:
            options |= {"action": argparse.BooleanOptionalAction}
        elif item.metadata["several"]:
            options |= {"nargs": "+", "action": _Joined, "metavar": "NAME=VALUE"}
        elif choices:
            options |= {"choices": choices}
        else:
            options |= {"type": types[item.name], "metavar": item.name.split("_")[-1].upper()}
        group.add_argument(flag, help=help.replace("%", "%%"), **options)
        if hidden_prefix and not item.metadata["option"]:
            group.add_argument(f"--{hidden_prefix}{flag[2:]}", help=argparse.SUPPRESS, **options)


def _of_presets(kind: TaskKind, section: str, item: dataclasses.Field[Any]) -> str:
    """What a setting is without the option: one value, or one for each preset."""
    values = {
        preset: sections.get(section, {}).get(item.name, item.default)
        for preset, sections in kind.presets.items()
    }
    if isinstance(item.default, bool):
        values = {preset: "on" if value else "off" for preset, value in values.items()}
    if len(set(values.values())) == 1:
        return f"default: {_or_none(values.popitem()[1])}"
    return "; ".join(f"{preset}: {_or_none(value)}" for preset, value in values.items())


def _or_none(value: Any) -> Any:
    return "none" if value == "" else value


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
    """The settings that are not defaults, unchecked: what was given comes before what a file says,
    and that before the preset."""
    given = _given(args)
    of_task = {**_table(from_file, kind.name), **given.get("task", {})}
    preset = preset or kind.preset_for(str(of_task.get("data", "")))
    if preset == tasks.AUTOMATIC and kind.automatic is not None:
        base, like = kind.automatic(of_task)
    else:
        base, like = kind.presets[preset], ""
    strategy = {**_table(from_file, "search"), **given.get("search", {})}.get("strategy", "asng")
    published = strategies.get(strategy).published
    # What a file holds beside the sections is checked with everything else.
    config = {"task": kind.name, "seed": 0, "device": "cpu", **from_file}
    config |= {"version": __version__}
    config |= {name: getattr(args, name) for name in ("seed", "device") if hasattr(args, name)}
    picked = []
    for name, option in (("search", "search"), ("retrain", "retrain"), (kind.name, "task")):
        own = {**_table(from_file, name), **given.get(option, {})}
        chosen = {**base.get(name, {}), **own}
        more = dict(published) if name == "search" else {}
        rate = chosen.get("learning_rate")
        if isinstance(rate, float) and rate < more.get("learning_rate_min", 0):
            more.pop("learning_rate_min", None)
        config[name] = {**more, **chosen}
        new = [f"{key} {value}" for key, value in base.get(name, {}).items() if key not in own]
        picked += [f"\n  {name}: {', '.join(new)}"] if new else []
    if like and picked:
        say(STDERR, f"preset auto, for {like}:{''.join(picked)}\n")
    return config


def _table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a file; an empty one if it is not there."""
    table = config.get(name, {})
    if not isinstance(table, Mapping):
        raise TypeError(f"[{name}] must be a table of settings, got {table!r}")
    return table


def _create(args: argparse.Namespace, name: str, config: Mapping[str, Any]) -> Experiment:
    """A run in a new folder, which is what an interrupted command continues with."""
    from asng_ext.engine.experiment import Experiment

    if importlib.util.find_spec("tensorboard") is None:
        say(STDERR, "no events/ for TensorBoard: tensorboard is not installed\n")
    path = args.out or _dated(name)
    experiment = Experiment.create(path, config, another_name=args.out is None, ranks=args.ranks)
    args.resume = ["resume", str(experiment.run.path)]
    return experiment


def _dated(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _from_file(args: argparse.Namespace) -> Mapping[str, Any]:
    """The settings in the file of --config."""
    if not args.config:
        return {}
    path = Path(args.config)
    return load_toml(path.read_bytes(), str(path))


def _search(args: argparse.Namespace) -> None:
    if args.sweep_retrain and not args.penalty_sweep:
        raise ValueError("--sweep-retrain is for a sweep, and needs --penalty-sweep")
    if args.resume_if_exists and not args.out:
        raise ValueError("--resume-if-exists needs --out, the folder of the run")
    if args.penalty_sweep and args.ranks.size > 1:
        raise ValueError(
            f"--penalty-sweep is for one process, got {args.ranks.size} ranks; start a search for "
            "each limit instead"
        )

    def check_folder() -> bool:
        """Whether there is a run to continue."""
        if args.resume_if_exists and (Path(args.out) / "config.toml").is_file():
            return True
        if args.out and not args.penalty_sweep:
            RunFolder.check_unused(args.out)  # before the data are measured
        return False

    exists = args.ranks.from_first(check_folder)
    config = _config(tasks.get(args.task), args, args.preset, _from_file(args))
    if args.penalty_sweep:  # it continues what there is
        _sweep(args, config)
    elif exists:
        _finish_search(_again(args, config))
    else:
        _finish_search(_create(args, args.task, config))


def _again(args: argparse.Namespace, config: Mapping[str, Any]) -> Experiment:
    """The run that is in the folder, with the settings given for the search."""
    from asng_ext.engine.experiment import Experiment

    run = RunFolder(args.out)
    args.resume = ["resume", str(run.path)]
    before = args.ranks.from_first(run.read_config)
    return Experiment(run, {**config, "retrain": before.get("retrain", {})}, ranks=args.ranks)


def _sweep(args: argparse.Namespace, config: Mapping[str, Any]) -> None:
    from asng_ext.engine.sweep import format_sweep, sweep

    path = Path(args.out) if args.out else _dated(f"sweep-{args.task}")
    args.resume = args.arguments if args.out else [*args.arguments, "--out", str(path)]
    tell(format_sweep(sweep(path, config, args.penalty_sweep, retrain=args.sweep_retrain)))
    tell(f"run folders: {path}")


def _compare(args: argparse.Namespace) -> None:
    from asng_ext.engine.compare import compare

    kind = tasks.get(args.task)
    config = _config(kind, args, args.preset, _from_file(args))
    preset = args.preset or kind.preset_for(str(config[kind.name].get("data", "")))
    budget = args.budget or contestants.BUDGETS.get(preset)
    if budget is None:
        raise ValueError(f"--budget must be given with the preset {preset}: minutes=M or steps=N")
    path = Path(args.out) if args.out else _dated(f"compare-{args.task}")
    args.resume = args.arguments if args.out else [*args.arguments, "--out", str(path)]
    result = compare(
        path,
        config,
        args.strategies or contestants.default_names(kind.name),
        contestants.Budget.parse(budget),
        seeds=args.seeds,
        masks=getattr(args, "masks", ()),
        processes=args.processes,
    )
    tell(result.table, end="")
    tell(f"run folders: {path}")
    if result.failed:
        raise ValueError(
            f"{len(result.failed)} runs have failed; to try them again: "
            f"{shlex.join(['asng', *args.resume])}"
        )


def _demo(args: argparse.Namespace) -> None:
    kind = tasks.get(args.task)
    if hasattr(args, "threads"):
        for section in ("search", "retrain"):
            setattr(args, f"{section}.threads", args.threads)
    experiment = _create(args, f"demo-{kind.name}", _config(kind, args, kind.demo, {}))
    experiment.search()
    args.resume = ["retrain", str(experiment.run.path)]
    _report(experiment, experiment.retrain())


def _resume(args: argparse.Namespace) -> None:
    experiment = _open(args)
    # An interrupted one continues from the checkpoint that it writes.
    args.resume = _without("--resume-from", args.arguments)
    _finish_search(experiment, args.resume_from)


def _without(option: str, arguments: Sequence[str]) -> list[str]:
    """The arguments without an option and its value."""
    kept, values = [], iter(arguments)
    for argument in values:
        name, equals, _ = argument.partition("=")
        if name != option:
            kept.append(argument)
        elif not equals:
            next(values, None)
    return kept


def _finish_search(experiment: Experiment, resume_from: str | None = None) -> None:
    experiment.search(*filter(None, [resume_from]))
    tell(f"architecture: {experiment.run.file('architecture.json')}")
    tell(f"retrain it:   {retrain_command(experiment.run)}")


def _open(args: argparse.Namespace) -> Experiment:
    """The run of ``args.folder`` with what was given instead of what its config.toml says."""
    from asng_ext.engine.experiment import Experiment

    given = _given(args)
    return Experiment.open(
        args.folder,
        loops={name: given[name] for name in ("search", "retrain") if name in given},
        task=given.get("task"),
        device=getattr(args, "device", None),
        ranks=args.ranks,
    )


def _begin_with_architecture(args: argparse.Namespace) -> Experiment:
    """A new run in ``args.folder`` with the architecture of a file, and nothing to search."""
    from asng_ext.engine.experiment import Experiment
    from asng_ext.retrained import read_architecture

    path, content = read_architecture(args.architecture)
    architecture, task = content["architecture"], content.get("task")
    if task not in tasks.names():
        raise ValueError(
            f'{path} must have one of {", ".join(tasks.names())} as "task", got {task!r}'
        )
    kind, from_file = tasks.get(task), _from_file(args)
    if from_file.get("task", task) != task:
        raise ValueError(f"{args.config} must be of a {task} task, got {from_file['task']!r}")
    config = _config(kind, args, None, from_file)
    own = _table(from_file, task)
    config[task] |= {k: v for k, v in kind.settings_for(architecture).items() if k not in own}
    experiment = Experiment.create(args.folder, config, architecture=architecture, ranks=args.ranks)
    args.resume = ["retrain", str(experiment.run.path)]
    return experiment


def _retrain(args: argparse.Namespace) -> None:
    if args.restart and (args.architecture or args.resume_from):
        option = "--architecture" if args.architecture else "--resume-from"
        raise ValueError(f"--restart is for a run that was retrained before, and not for {option}")
    if args.architecture is not None:
        experiment = _begin_with_architecture(args)
    elif args.config or hasattr(args, "seed"):
        raise ValueError("--config and --seed are for a new run, and need --architecture")
    else:
        experiment = _open(args)
        # An interrupted one continues from the checkpoint that it writes.
        arguments = _without("--resume-from", args.arguments)
        args.resume = [each for each in arguments if each != "--restart"]
    _report(experiment, experiment.retrain(args.resume_from, restart=args.restart))


def _evaluate(args: argparse.Namespace) -> None:
    _tell_tested(_open(args).evaluate())


def _show(args: argparse.Namespace) -> None:
    tell(report(RunFolder.open(args.folder)))


def _predict(args: argparse.Namespace) -> None:
    from asng_ext.predict import UnreadableImageError, image_files, predict, write_image
    from asng_ext.retrained import ImageClassifier, load_network

    files = image_files(args.images)
    network = load_network(args.folder)
    classifies = isinstance(network, ImageClassifier)
    names = network.class_names if isinstance(network, ImageClassifier) else ()
    outputs: dict[Path, Path] = {}
    if classifies and args.out is not None:
        raise ValueError("--out is for networks that restore images; this one classifies them")
    if not classifies:
        if args.top is not None:
            raise ValueError("--top is for networks that classify images; this one restores them")
        outputs = _outputs(files, Path(args.out or "restored"))
    count = 3 if args.top is None else args.top
    check_positive("--top", count)
    unreadable = []
    for path, result in predict(network, files):
        shown: dict[str, Any] = {"image": str(path)}
        if isinstance(result, UnreadableImageError):
            unreadable.append(result)
            shown["error"] = text = str(result)
        elif classifies:
            likely = result.sort(descending=True, stable=True)
            pairs = list(zip(likely.indices.tolist(), likely.values.tolist()))[:count]
            shown["probabilities"] = {names[index]: value for index, value in pairs}
            text = ", ".join(f"{names[index]} {value:.3f}" for index, value in pairs)
            text = f"{path}: {text}"
        else:
            outputs[path].parent.mkdir(parents=True, exist_ok=True)
            write_image(result, outputs[path])
            shown["restored"] = str(outputs[path])
            text = f"{path}: restored as {outputs[path]}"
        if args.json:
            tell(json.dumps(shown, ensure_ascii=False))
        elif "error" not in shown:
            tell(text)
        elif len(files) > 1:
            say(STDERR, f"asng: {text}\n")
    if len(files) == 1 and unreadable:
        raise unreadable[0]
    if unreadable:
        raise ValueError(f"{len(unreadable)} of {len(files)} images cannot be read")


def _outputs(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where the image that is made of each file goes: by its name, as PNG, into the folder. No file
    is read and written, or written twice."""
    inputs = {path.resolve() for path in files}
    made_of: dict[Path, Path] = {}
    for path in files:
        output = folder / f"{path.stem}.png"
        if output.resolve() in inputs:
            raise ValueError(
                f"--out must be a folder without the images that are read, got {folder}"
            )
        if (other := made_of.setdefault(output, path)) != path:
            raise ValueError(
                f"images must have different names: {output} would be {other} and {path}"
            )
    return {path: output for output, path in made_of.items()}


def _export(args: argparse.Namespace) -> None:
    from asng_ext.export import FORMATS, export_network
    from asng_ext.retrained import load_network

    network, format = load_network(args.folder), FORMATS[args.format]
    folder = Path(args.folder) if Path(args.folder).is_dir() else Path(args.folder).parent
    out = args.out or folder / f"network{format.suffix}"
    difference = export_network(network, out, args.format)
    tell(f"written:   {out}, whose results differ from the network's by {difference:.1g} at most")
    tell(f"loaded by: {format.usage.format(path=str(out))}")


def _tell_tested(tested: Mapping[str, float]) -> None:
    for name, value in tested.items():
        tell(f"test {name}: {value:.4f}")


def _report(experiment: Experiment, tested: Mapping[str, float]) -> None:
    if not experiment.ranks.first:
        return
    _tell_tested(tested)
    tell(f"run folder: {experiment.run.path}")
    for path in sorted(experiment.run.path.iterdir()):
        tell(f"  {path.name}")


if __name__ == "__main__":
    sys.exit(main())
