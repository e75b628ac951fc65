"""The options of each command, and what the parser says of wrong ones."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, get_type_hints

from asng_ext import __version__, optimizers, strategies, tasks
from asng_ext.cli import commands
from asng_ext.engine import contestants
from asng_ext.runs.config import RetrainConfig, SearchConfig
from asng_ext.tasks import TaskKind
from asng_ext.toy import study as toy_study

__all__ = ["make_parser"]


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


def make_parser() -> argparse.ArgumentParser:
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
    demo.set_defaults(run=commands.run_demo)


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
    search.set_defaults(run=commands.run_search)


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
    compare.set_defaults(run=commands.run_compare)


def _fill_resume(resume: _Parser) -> None:
    _add_run(resume)
    _add_resume_from(resume)
    _add_device_of_run(resume)
    _add_section(resume, "search", SearchConfig, for_resuming=True)
    _add_moved_data(resume)
    resume.set_defaults(run=commands.run_resume)


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
    retrain.set_defaults(run=commands.run_retrain)


def _fill_evaluate(evaluate: _Parser) -> None:
    _add_run(evaluate)
    _add_device_of_run(evaluate)
    _add_moved_data(evaluate)
    evaluate.set_defaults(run=commands.run_evaluate)


def _fill_show(show: _Parser) -> None:
    _add_run(show)
    show.set_defaults(run=commands.run_show)


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
    predict.set_defaults(run=commands.run_predict)


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
    export.set_defaults(run=commands.run_export)


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
