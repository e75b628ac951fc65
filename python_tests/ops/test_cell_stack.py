"""The operators that run whole cells."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cell_supernets import draw, gradients, pair

from asng_ext import ops

pytestmark = pytest.mark.skipif(not ops.available(), reason="the operators are not built")


def cell_arguments(dtype: torch.dtype) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A small supernet, images for its cells, and indices of two architectures."""
    _, fused = pair(dtype, channels=4, cells=3)
    inputs, operations = fused._index_tensors(draw(2), torch.device("cpu"))
    images = fused._run_stem(torch.randn(2, 3, 6, 5, dtype=dtype)).detach().requires_grad_()
    return fused, images, inputs, operations


# `saved` holds places that no sampled operation fills, which differ from call to call.
WITHOUT_GRAPHS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("save", [True, False])
def test_opcheck_of_cells(save: bool) -> None:
    fused, images, inputs, operations = cell_arguments(torch.float32)
    weights = [w if save else w.detach() for cell in fused.cells for w in cell.weights()]
    images = images if save else images.detach()
    torch.library.opcheck(
        torch.ops.asng.cells,
        (images, inputs, operations, weights, save),
        test_utils=WITHOUT_GRAPHS,
    )
    weights = [w if save else w.detach() for w in fused.cells[0].weights()]
    torch.library.opcheck(
        torch.ops.asng.cell,
        (images, images, inputs[0], operations[0], weights, False, save, False),
        test_utils=WITHOUT_GRAPHS,
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_is_its_cells_one_after_the_other(seed: int) -> None:
    fused, images, _, _ = cell_arguments(torch.float64)
    architectures = draw(3, seed)
    # No node of any normal cell of the first reads prev, none of the second prev_prev.
    architectures[0].reshape(2, -1, 2, 2)[0, :, 0] = 0
    architectures[1].reshape(2, -1, 2, 2)[0, :, 0] = 1
    inputs, operations = fused._index_tensors(architectures, torch.device("cpu"))
    weights = [w for cell in fused.cells for w in cell.weights()]
    got, _ = torch.ops.asng.cells(images, inputs, operations, weights, True)
    expected, _ = fused._run_cells(images, inputs, operations)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    leaves = [images, *fused.cells.parameters()]
    probe = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad(got, leaves, probe),
        torch.autograd.grad(expected, leaves, probe),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_operator_of_cells_refuses_what_it_cannot_run() -> None:
    fused, images, inputs, operations = cell_arguments(torch.float32)
    weights = [w for cell in fused.cells for w in cell.weights()]
    cells = torch.ops.asng.cells
    with pytest.raises(RuntimeError, match="weights must be 8 for each cell, got 7"):
        cells(images, inputs, operations, weights[:7], False)
    with pytest.raises(RuntimeError, match="inputs must have shape"):
        cells(images, inputs[:1], operations, weights, False)
    with pytest.raises(RuntimeError, match="operations must have dtype Int"):
        cells(images, inputs, operations.long(), weights, False)
    with pytest.raises(ValueError, match="from 0 to 4, got 9"):
        cells(images, inputs, torch.full_like(operations, 9), weights, False)
    with pytest.raises(RuntimeError, match="prev_weight must have shape"):
        cells(images, inputs, operations, [*weights[:9], weights[1], *weights[10:]], False)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("size", "batch"), [((9, 8), 1), ((12, 5), 4), ((7, 13), 10)])
def test_random_populations(count: int, size: tuple[int, int], batch: int) -> None:
    plain, fused = pair(channels=5, cells=5)
    probe = torch.randn(count, batch, plain.classifier.out_features, dtype=torch.float64)
    for seed in range(4):
        architectures = draw(count, seed)
        x = torch.randn(batch, 3, *size, dtype=torch.float64)
        outputs = []
        for model in (plain, fused):
            model.zero_grad()
            outputs.append(model.forward_population(x, architectures))
            (outputs[-1] * probe).sum().backward()
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-10)
        have, want = gradients(fused), gradients(plain)
        assert have.keys() == want.keys()
        for name, grad in want.items():
            torch.testing.assert_close(have[name], grad, rtol=1e-10, atol=1e-10)
        # Without a backward pass memory serves again within a cell.
        with torch.no_grad():
            again = fused.forward_population(x, architectures)
        assert torch.equal(again, outputs[1])
