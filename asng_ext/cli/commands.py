"""What each command does with its arguments."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asng_ext import tasks
from asng_ext._checks import check_positive
from asng_ext._terminal import STDERR, say, tell
from asng_ext.cli.settings import given_settings, make_config, settings_of_file, table_of
from asng_ext.engine import contestants
from asng_ext.runs.folder import RunFolder
from asng_ext.runs.report import report, retrain_command

# What needs torch, which takes seconds to import, is imported by the commands that need it.
if TYPE_CHECKING:
    from asng_ext.engine.experiment import Experiment

__all__ = [
    "run_compare",
    "run_demo",
    "run_evaluate",
    "run_export",
    "run_predict",
    "run_resume",
    "run_retrain",
    "run_search",
    "run_show",
]


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


def run_search(args: argparse.Namespace) -> None:
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
    config = make_config(tasks.get(args.task), args, args.preset, settings_of_file(args))
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


def run_compare(args: argparse.Namespace) -> None:
    from asng_ext.engine.compare import compare

    kind = tasks.get(args.task)
    config = make_config(kind, args, args.preset, settings_of_file(args))
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


def run_demo(args: argparse.Namespace) -> None:
    kind = tasks.get(args.task)
    if hasattr(args, "threads"):
        for section in ("search", "retrain"):
            setattr(args, f"{section}.threads", args.threads)
    experiment = _create(args, f"demo-{kind.name}", make_config(kind, args, kind.demo, {}))
    experiment.search()
    args.resume = ["retrain", str(experiment.run.path)]
    _report(experiment, experiment.retrain())


def run_resume(args: argparse.Namespace) -> None:
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

    given = given_settings(args)
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
    kind, from_file = tasks.get(task), settings_of_file(args)
    if from_file.get("task", task) != task:
        raise ValueError(f"{args.config} must be of a {task} task, got {from_file['task']!r}")
    config = make_config(kind, args, None, from_file)
    own = table_of(from_file, task)
    config[task] |= {k: v for k, v in kind.settings_for(architecture).items() if k not in own}
    experiment = Experiment.create(args.folder, config, architecture=architecture, ranks=args.ranks)
    args.resume = ["retrain", str(experiment.run.path)]
    return experiment


def run_retrain(args: argparse.Namespace) -> None:
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


def run_evaluate(args: argparse.Namespace) -> None:
    _tell_tested(_open(args).evaluate())


def run_show(args: argparse.Namespace) -> None:
    tell(report(RunFolder.open(args.folder)))


def run_predict(args: argparse.Namespace) -> None:
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


def run_export(args: argparse.Namespace) -> None:
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
