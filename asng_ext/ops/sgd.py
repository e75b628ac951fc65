"""A step of stochastic gradient descent for all weights of a network, on CUDA devices alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asng_ext.ops._libraries import available
from asng_ext.ops._registration import register_fake

__all__ = ["sgd_step"]


def sgd_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    velocities: Sequence[Tensor],
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    max_norm: float,
) -> None:
    """`torch.nn.utils.clip_grad_norm_` and then a step of `torch.optim.SGD`, in two launches.

    The arguments are checked by the operator alone. Gradients are not written, nor is anything read
    on the host.

    Args:
        weights, gradients, velocities: float32 or float64. The three of a weight have the same
            strides, without gaps. Velocities are the momentum buffers, zeros in the beginning.
        learning_rate: () float32.
        momentum: μ.
        weight_decay: What is added of the weights to their gradients.
        max_norm: Largest Euclidean norm of all gradients together; longer ones are shortened.

    Raises:
        RuntimeError: An argument does not fit.
    """
    flat = [list(map(_flat, tensors)) for tensors in (weights, gradients, velocities)]
    torch.ops.asng._sgd_step(*flat, learning_rate, momentum, weight_decay, max_norm)


def _flat(tensor: Tensor) -> Tensor:
    """Elements in the order in which they lie in memory."""
    if tensor.is_contiguous():
        return tensor.detach()
    return tensor.detach().as_strided((tensor.numel(),), (1,))


if available():
    register_fake("_sgd_step", lambda *_: None)
