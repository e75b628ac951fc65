"""The modes of a supernet: it trains, or is evaluated without a trace in batch normalization."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Modes"]


class Modes:
    """Sets the mode of a model before each step.

    Its modules are looked up once: to walk through the thousands of a supernet takes the host as
    long as whole steps take a GPU.

    Args:
        model: It keeps its modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = list(model.modules())
        self._norms = [module for module in self._modules if isinstance(module, _BatchNorm)]

    def train(self) -> None:
        """Calls the model's ``train`` unless all of it is in that mode."""
        if not all(module.training for module in self._modules):
            self._model.train()

    @contextlib.contextmanager
    def frozen_batch_norm(self) -> Iterator[None]:
        """In this context batch normalization normalizes by the batch, as in training, without
        touching its running statistics: evaluating an architecture leaves no trace in the model."""
        tracking = [norm for norm in self._norms if norm.track_running_stats]
        for norm in tracking:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in tracking:
                norm.track_running_stats = True
