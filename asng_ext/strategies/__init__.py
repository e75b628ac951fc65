"""Methods of one-shot search by name, to compare with ASNG and with each other."""

from asng_ext.strategies.registry import StrategyKind, check, get, make, names, register

__all__ = ["StrategyKind", "check", "get", "make", "names", "register"]
