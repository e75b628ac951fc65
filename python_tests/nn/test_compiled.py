"""Training steps compiled by inductor give the numbers of eager ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext.nn import (
    CaeCatSpace,
    CaeLayer,
    CaeSupernet,
    CellSpace,
    FusedCellSupernet,
)

if TYPE_CHECKING:  # seconds to import, for this file alone
    from torch._dynamo.testing import CompileCounterWithBackend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.operators,
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler"),
]

STEPS = 3


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is found there that an earlier run has compiled."""
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    torch.compiler.reset()


def cells() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A supernet of cells and its loss: two architectures on the same images."""
    supernet = FusedCellSupernet(CellSpace(1), cells=3, channels=4)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2, 1, 2])
    # Inputs and operations in the normal and in the reduction cell.
    rows = [[0, 1, 0, 3, 1, 0, 2, 4], [1, 0, 4, 3, 0, 1, 0, 1]]
    architectures = torch.from_numpy(np.array(rows))

    def loss() -> Tensor:
        logits = supernet.forward_population(x, architectures)
        return F.cross_entropy(logits.flatten(0, 1), labels)

    return supernet, loss


def autoencoder() -> tuple[nn.Module, Callable[[], Tensor]]:
    """A supernet of autoencoders and its loss: a layer with a skip, and the output."""
    space = CaeCatSpace(layers=1, kernels=(5,), channels=(5,))
    chain = space.decode(space.encode((CaeLayer(0, 5, 5, True),)))
    assert len(chain) == 1
    supernet = CaeSupernet(space)
    x = torch.rand(2, 3, 9, 8)
    return supernet, lambda: F.mse_loss(supernet(x, chain), x)


def train(
    make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]],
    backend: CompileCounterWithBackend | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of some steps, and the weights after them."""
    torch.manual_seed(0)
    supernet, loss_of = make()
    sgd = torch.optim.SGD(supernet.parameters(), lr=0.1)

    def step() -> Tensor:
        sgd.zero_grad()
        loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        return loss.detach()

    run = step if backend is None else torch.compile(step, backend=backend)
    return [run() for _ in range(STEPS)], [weight.detach() for weight in supernet.parameters()]


@pytest.mark.parametrize(("make", "operator"), [(cells, "asng.cells"), (autoencoder, "asng.cae")])
def test_steps_compiled_with_inductor(
    make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]], operator: str
) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    backend = CompileCounterWithBackend("inductor")
    losses, weights = train(make, backend)
    expected = train(make)
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, expected[1], rtol=1e-4, atol=1e-5)
    assert losses[-1] < losses[0]
    names = [str(node.target) for graph in backend.graphs for node in graph.graph.nodes]
    assert any(operator in name for name in names)
