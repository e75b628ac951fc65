"""What tasks over choices between layers have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import asng_ext as asng
from asng_ext.nn import set_architecture
from asng_ext.tasks.protocol import TaskDefaults


class ChoiceTask(TaskDefaults):
    """A user's task with a supernet of choices: the losses of samples are those of their networks,
    one by one."""

    def supernet(self) -> nn.Module:
        raise NotImplementedError

    def loss(self, network: nn.Module, batch: Tensor) -> Tensor:
        raise NotImplementedError

    def losses(
        self, supernet: nn.Module, batch: Tensor, samples: asng.Samples
    ) -> tuple[Tensor, dict[str, Tensor]]:
        losses = []
        for sample in samples:
            set_architecture(supernet, sample)
            losses.append(self.loss(supernet, batch))
        return torch.stack(losses), {}

    def network(self, values: Any) -> nn.Module:
        network = self.supernet()
        set_architecture(network, values)
        return network

    def training_loss(self, network: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(network, batch), {}

    def test(self, network: nn.Module) -> dict[str, float]:
        return {}
