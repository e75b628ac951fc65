"""Experiments: data, supernet, loss, metrics and retraining recipe, one file for each."""

from asng_ext.tasks import classification, inpainting
from asng_ext.tasks.protocol import TaskKind

__all__ = ["KINDS"]

KINDS: dict[str, TaskKind] = {kind.name: kind for kind in (classification.KIND, inpainting.KIND)}
"""The tasks of the command line by name."""
