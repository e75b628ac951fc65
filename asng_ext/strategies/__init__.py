"""Methods of one-shot search by name, to compare with ASNG and with each other."""

from asng_ext.strategies.registry import (
    OF_OPTIMIZERS,
    StrategyKind,
    check,
    get,
    make,
    names,
    register,
)

__all__ = ["OF_OPTIMIZERS", "StrategyKind", "check", "get", "make", "names", "register"]
