"""Searches whose evaluations are slow, such as a training each, on several workers at a time."""

from asng_ext.driver.loop import Evaluation, drive
from asng_ext.driver.workers import Worker, Workers

__all__ = ["Evaluation", "Worker", "Workers", "drive"]
