"""The settings of a run, from options, a file and a preset."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asng_ext import __version__, strategies, tasks
from asng_ext._terminal import STDERR, say
from asng_ext.runs.config import load_toml
from asng_ext.tasks import TaskKind

__all__ = ["given_settings", "make_config", "settings_of_file", "table_of"]


def given_settings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What was given on the command line, by section."""
    given: dict[str, dict[str, Any]] = {}
    for key, value in vars(args).items():
        section, dot, name = key.partition(".")
        if dot:
            given.setdefault(section, {})[name] = value
    return given


def make_config(
    kind: TaskKind, args: argparse.Namespace, preset: str | None, from_file: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that are not defaults, unchecked: what was given comes before what a file says,
    and that before the preset."""
    given = given_settings(args)
    of_task = {**table_of(from_file, kind.name), **given.get("task", {})}
    preset = preset or kind.preset_for(str(of_task.get("data", "")))
    if preset == tasks.AUTOMATIC and kind.automatic is not None:
        base, like = kind.automatic(of_task)
    else:
        base, like = kind.presets[preset], ""
    strategy = {**table_of(from_file, "search"), **given.get("search", {})}.get("strategy", "asng")
    published = strategies.get(strategy).published
    # What a file holds beside the sections is checked with everything else.
    config = {"task": kind.name, "seed": 0, "device": "cpu", **from_file}
    config |= {"version": __version__}
    config |= {name: getattr(args, name) for name in ("seed", "device") if hasattr(args, name)}
    picked = []
    for name, option in (("search", "search"), ("retrain", "retrain"), (kind.name, "task")):
        own = {**table_of(from_file, name), **given.get(option, {})}
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


def table_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a file; an empty one if it is not there."""
    table = config.get(name, {})
    if not isinstance(table, Mapping):
        raise TypeError(f"[{name}] must be a table of settings, got {table!r}")
    return table


def settings_of_file(args: argparse.Namespace) -> Mapping[str, Any]:
    """The settings in the file of --config."""
    if not args.config:
        return {}
    path = Path(args.config)
    return load_toml(path.read_bytes(), str(path))
