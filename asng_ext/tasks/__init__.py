"""Experiments: data, supernet, loss, metrics and settings of the retraining, one file for each.

A task of one's own is :func:`register`-ed before the command line or a run folder is used.
"""

import asng_ext.tasks.settings  # noqa: F401 - registers those of this package
from asng_ext.tasks.registry import AUTOMATIC, Preset, TaskKind, get, names, register

__all__ = ["AUTOMATIC", "Preset", "TaskKind", "get", "names", "register"]
