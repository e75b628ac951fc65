"""Experiments: data, supernet, loss, metrics and retraining recipe, one file for each."""

from asng_ext.tasks.settings import KINDS, TaskKind

__all__ = ["KINDS", "TaskKind"]
