"""The tasks of the command line, by name.

Nothing here or in :mod:`asng_ext.tasks.settings` imports torch before a task is made, so that
``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asng_ext._kinds import add_kind, kind_named
from asng_ext.runs.config import SearchConfig

if TYPE_CHECKING:
    from asng_ext.tasks.protocol import Task

__all__ = ["AUTOMATIC", "Preset", "TaskKind", "get", "names", "register"]

Preset = Mapping[str, Mapping[str, Any]]
"""Settings by section, as in config.toml; what is left out has its default."""
AUTOMATIC = "auto"
"""The name of the preset that is made for the data."""


@dataclass(frozen=True)
class TaskKind:
    """A task of the command line.

    Attributes:
        name: Its name, also that of its section in config.toml.
        help: What it is, in a few words.
        config: The dataclass of its settings; one of them is "data".
        presets: Settings of search, retraining and task by name.
        preset_for: The preset that suits a value of the setting "data".
        demo: The preset of a short run on data that need no download.
        automatic: Makes a preset for the data that the settings of the task name, and says what
            they are like; None if there is no such preset.
        make: Loads the data and makes the task from its settings, and by keyword search_batch_size,
            retrain_batch_size, seed and device.
        check: Raises a ValueError for settings of the search that do not suit the task.
        settings_for: Those settings without which a space would not have an architecture that was
            given by names.
    """

    name: str
    help: str
    config: type[Any]
    presets: Mapping[str, Preset]
    preset_for: Callable[[str], str]
    demo: str
    make: Callable[..., Task]
    check: Callable[[SearchConfig], None] = lambda search: None
    settings_for: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda architecture: {}
    automatic: Callable[[Mapping[str, Any]], tuple[Preset, str]] | None = None


_KINDS: dict[str, TaskKind] = {}


def register(kind: TaskKind) -> None:
    """Makes a task known to the command line and to run folders.

    Raises:
        TypeError: If ``kind`` is no TaskKind.
        ValueError: If there is a task of that name already.
    """
    add_kind("task", _KINDS, kind, TaskKind)


def names() -> tuple[str, ...]:
    """The names of all tasks."""
    return tuple(_KINDS)


def get(name: Any) -> TaskKind:
    """The task of that name.

    Raises:
        ValueError: If there is none.
    """
    return kind_named("task", _KINDS, name)
