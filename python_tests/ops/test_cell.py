"""The operators of a cell and, on the CPU, of a stack of cells.

With ASNG_CUDA_ON_CPU set (see conftest.py) the CPU's operators are those for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cell_supernets import draw, gradients, pair
from devices import CUDA_DEVICES, DEVICES, GRID
from torch import Tensor

from asng_ext import _host, ops
from asng_ext.nn.operations import OPERATIONS
from asng_ext.ops import _libraries

pytestmark = pytest.mark.operators

# `saved` holds places that no sampled operation fills, which differ from call to call.
WITHOUT_GRAPHS = ("test_schema", "test_autograd_registration", "test_faketensor")


def sample(
    dtype: torch.dtype, device: str = "cpu", size: tuple[int, int] = (6, 5)
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A small supernet, feature maps for its cells, and indices of two architectures."""
    _, fused = pair(dtype, channels=4, cells=3)
    fused = fused.to(device)
    inputs, operations = fused._index_tensors(draw(2), torch.device(device))
    x = torch.randn(2, 3, *size, dtype=dtype).to(device)
    return fused, fused._run_stem(x).detach().requires_grad_(), inputs, operations


def assert_threads_do_not_matter(function: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            out = function()
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.grid
@pytest.mark.parametrize("device", DEVICES)
class TestCell:
    @pytest.mark.parametrize("count", [1, 2, 3])
    @pytest.mark.parametrize(("size", "batch"), [((9, 8), 1), ((12, 5), 4), ((7, 13), 10)])
    def test_reference(self, count: int, size: tuple[int, int], batch: int, device: str) -> None:
        """Supernets of either implementation, with random populations."""
        plain, fused = (model.to(device) for model in pair(channels=5, cells=5))
        classes = plain.classifier.out_features
        probe = torch.randn(count, batch, classes, dtype=torch.float64).to(device)
        # On the grid other cases draw as many cells, and each takes seconds.
        for seed in range(2 if GRID else 4):
            architectures = draw(count, seed)
            x = torch.randn(batch, 3, *size, dtype=torch.float64).to(device)
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

    def test_gradcheck(self, device: str) -> None:
        fused, x, inputs, operations = sample(torch.float64, device)
        channels = 4
        weights = [w.detach().requires_grad_() for w in fused.cells[0].weights()]
        leaf = x[..., : 3 * channels].detach().requires_grad_()

        def cell(leaf: Tensor, *weights: Tensor) -> Tensor:
            padded = F.pad(leaf, (0, x.shape[-1] - leaf.shape[-1]))
            out: Tensor = torch.ops.asng.cell(
                padded, padded, inputs[0], operations[0], list(weights), False, True, False
            )[0]
            return out

        assert torch.autograd.gradcheck(cell, (leaf, *weights), fast_mode=True, atol=1e-4)

    @pytest.mark.parametrize("save", [True, False])
    def test_opcheck(self, save: bool, device: str) -> None:
        fused, x, inputs, operations = sample(torch.float32, device)
        x = x if save else x.detach()
        weights = [w if save else w.detach() for w in fused.cells[0].weights()]
        torch.library.opcheck(
            torch.ops.asng.cell,
            (x, x, inputs[0], operations[0], weights, False, save, False),
            test_utils=WITHOUT_GRAPHS,
        )

    def test_results_do_not_depend_on_threads(self, device: str) -> None:
        fused, x, inputs, operations = sample(torch.float32, device)
        weights = list(fused.cells[0].weights())
        arguments = (x, x, inputs[0], operations[0], weights, False, True, False)
        leaves = [x, *(w for w in weights if w.requires_grad)]
        assert_threads_do_not_matter(lambda: torch.ops.asng.cell(*arguments)[0], leaves)


@pytest.mark.grid
@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestPassingOn:
    """The gradient that prev has from its other reader is added to, on CUDA devices alone."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("index", [0, 1, 2])
    def test_it_is_the_sum_of_both(self, index: int, dtype: torch.dtype, device: str) -> None:
        """Of a normal cell, the reduction cell and one whose prev_prev is larger."""
        weights_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        fused, x, inputs, operations = sample(weights_dtype, device)
        states = [x.detach().to(dtype)] * 2
        for i in range(index + 1):
            cell, kind = fused.cells[i], int(fused.is_reduction[i])
            weights = [w.detach() for w in cell.weights()]
            given = (*states[-2:], inputs[kind], operations[kind], weights)
            out, saved = torch.ops.asng.cell(*given, cell.prev_prev_is_larger, True, False)
            states.append(out)
        prev_prev, prev, *rest = given
        args = (torch.randn_like(out), prev_prev, prev, out, saved, *rest)
        larger = cell.prev_prev_is_larger
        alone = torch.ops.asng._cell_backward(*args, larger, True, True, False)
        other = torch.randn_like(prev)
        both = other.clone()
        got = torch.ops.asng._cell_backward_onto(*args, larger, True, True, both, None, False)
        assert torch.equal(got[0], alone[0])
        assert got[1].numel() == 0
        assert all(torch.equal(a, b) for a, b in zip(got[2], alone[2], strict=True))
        near = 0.01 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(both, other + alone[1], rtol=near, atol=near)

    def test_what_no_edge_reads_stays_as_it_is(self, device: str) -> None:
        fused, x, inputs, operations = sample(torch.float32, device)
        weights, of_prev_prev = fused.cells[0].weights(), torch.zeros_like(inputs[0])
        given = (x, x, of_prev_prev, operations[0], weights)
        out, saved = torch.ops.asng.cell(*given, False, True, False)
        kept = torch.randn_like(x)
        both = kept.clone()
        args = (torch.ones_like(out), x, x, out, saved, *given[2:], False, True, True)
        with torch.no_grad():
            torch.ops.asng._cell_backward_onto(*args, both, None, False)
        assert torch.equal(both, kept)

    def test_opcheck(self, device: str) -> None:
        fused, x, inputs, operations = sample(torch.float32, device)
        given = (x.detach(), x.detach(), inputs[0], operations[0])
        weights = [w.detach() for w in fused.cells[0].weights()]
        out, saved = torch.ops.asng.cell(*given, weights, False, True, False)
        args = (out, *given[:2], out, saved, *given[2:], weights, False, True, True)
        onto = torch.ops.asng._cell_backward_onto
        for grad_prev in (torch.zeros_like(x), None):
            rest = (grad_prev, None, False)
            torch.library.opcheck(onto, (*args, *rest), test_utils=WITHOUT_GRAPHS)

    @pytest.mark.parametrize("autocast", [False, True])
    def test_gradients_of_a_stack(self, autocast: bool, device: str) -> None:
        """The same as where PyTorch adds them; the second backward pass, too."""
        fused, x, inputs, operations = sample(torch.float32, device)
        leaves = [x, *fused.cells.parameters()]
        runs = []
        for apart in (True, False):
            prev_prev = prev = x
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                for i, cell in enumerate(fused.cells):
                    kind = int(fused.is_reduction[i])
                    given = (prev_prev, prev, inputs[kind], operations[kind], cell.weights())
                    if apart:
                        out = ops.cell.cell(*given, cell.prev_prev_is_larger)
                        prev_prev, prev = prev, out
                    else:
                        prev, prev_prev = ops.cell.cell_passing_on(*given, cell.prev_prev_is_larger)
            probe = torch.linspace(-1, 1, prev.numel()).view(prev.shape).to(prev)
            for _ in range(2):
                runs.append(torch.autograd.grad(prev, leaves, probe, retain_graph=True))
        assert all(torch.equal(a, b) for a, b in zip(runs[2], runs[3], strict=True))
        for a, b in zip(runs[0], runs[2], strict=True):
            assert a.dtype == b.dtype
            error = float((a - b).norm() / (1e-6 + a.norm()))
            assert error < (0.02 if autocast else 1e-6)

    def test_a_second_derivative_is_an_error(self, device: str) -> None:
        fused, x, inputs, operations = sample(torch.float32, device)
        out, _ = fused.cells[0](x, x, inputs[0], operations[0])
        (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


@pytest.mark.grid
@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestPlans:
    """What cells look up and pack, for all of them at once, on CUDA devices alone."""

    @pytest.mark.parametrize("autocast", [False, True])
    @pytest.mark.parametrize("size", [(8, 8), (6, 5)])
    def test_planned_cells_give_the_same_bits(
        self, size: tuple[int, int], autocast: bool, device: str
    ) -> None:
        """In one launch and in many; a second backward pass, and a pass without one, too."""
        fused, x, inputs, operations = sample(torch.float32, device, size)
        weights = [cell.weights() for cell in fused.cells]
        leaves = [x, *fused.cells.parameters()]

        def run(planned: bool) -> Tensor:
            prev_prev = prev = x
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                plans = ops.cell.plans(x, inputs, operations, weights)
                for i, (cell, plan) in enumerate(zip(fused.cells, plans, strict=True)):
                    assert plan is not None
                    assert (plan.backward is None) != torch.is_grad_enabled()
                    kind = int(fused.is_reduction[i])
                    given = (prev_prev, prev, inputs[kind], operations[kind])
                    prev, prev_prev = cell(*given, plan if planned else None)
            return prev

        with torch.no_grad():
            forward = [run(planned) for planned in (False, True)]
        runs = []
        for planned in (False, True):
            out = run(planned)
            probe = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)
            runs.append([out, *torch.autograd.grad(out, leaves, probe, retain_graph=True)])
            runs.append([out, *torch.autograd.grad(out, leaves, probe)])
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
        assert torch.equal(forward[0], forward[1])
        assert torch.equal(forward[0], runs[0][0])

    def test_a_plan_of_another_size_is_refused(self, device: str) -> None:
        fused, x, inputs, operations = sample(torch.float32, device)
        weights = [cell.weights() for cell in fused.cells]
        with torch.no_grad():
            plans = ops.cell.plans(x, inputs, operations, weights)
            assert plans[0] is not None
            part = plans[0]._replace(forward=plans[0].forward[:-1])
            with pytest.raises(RuntimeError, match="plan must have shape"):
                fused.cells[0](x, x, inputs[0], operations[0], part)

    def test_without_kernels_there_are_none(
        self, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fused, x, inputs, operations = sample(torch.float32, device)
        weights = [cell.weights() for cell in fused.cells]
        monkeypatch.setattr(_libraries, "has_cuda_kernels", lambda device: False)
        assert ops.cell.plans(x, inputs, operations, weights) == [None] * 3


class TestCells:
    """The operator of a stack, which the CPU alone has."""

    @pytest.mark.parametrize("seed", range(3))
    def test_it_is_its_cells_one_after_the_other(self, seed: int) -> None:
        fused, x, _, _ = sample(torch.float64)
        architectures = draw(3, seed)
        # No node of any normal cell of the first reads prev, none of the second prev_prev.
        architectures[0].reshape(2, -1, 2, 2)[0, :, 0] = 0
        architectures[1].reshape(2, -1, 2, 2)[0, :, 0] = 1
        inputs, operations = fused._index_tensors(architectures, torch.device("cpu"))
        weights = [w for cell in fused.cells for w in cell.weights()]
        got, _ = torch.ops.asng.cells(x, inputs, operations, weights, True)
        expected, _ = fused._run_cells(x, inputs, operations)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        leaves = [x, *fused.cells.parameters()]
        probe = torch.randn_like(got)
        for a, b in zip(
            torch.autograd.grad(got, leaves, probe),
            torch.autograd.grad(expected, leaves, probe),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("save", [True, False])
    def test_opcheck(self, save: bool) -> None:
        fused, x, inputs, operations = sample(torch.float32)
        weights = [w if save else w.detach() for cell in fused.cells for w in cell.weights()]
        torch.library.opcheck(
            torch.ops.asng.cells,
            (x if save else x.detach(), inputs, operations, weights, save),
            test_utils=WITHOUT_GRAPHS,
        )

    def test_results_do_not_depend_on_threads(self) -> None:
        fused, x, inputs, operations = sample(torch.float32)
        weights = [w for cell in fused.cells for w in cell.weights()]
        leaves = [x, *(w for w in weights if w.requires_grad)]
        assert_threads_do_not_matter(
            lambda: torch.ops.asng.cells(x, inputs, operations, weights, True)[0], leaves
        )

    def test_it_refuses_what_it_cannot_run(self) -> None:
        fused, x, inputs, operations = sample(torch.float32)
        weights = [w for cell in fused.cells for w in cell.weights()]
        cells = torch.ops.asng.cells
        each = len(_host.CELL_WEIGHTS)
        wrong = f"weights must be {each} for each cell, got {each - 1}"
        with pytest.raises(RuntimeError, match=wrong):
            cells(x, inputs, operations, weights[: each - 1], False)
        with pytest.raises(RuntimeError, match="inputs must have shape"):
            cells(x, inputs[:1], operations, weights, False)
        with pytest.raises(RuntimeError, match="operations must have dtype Int"):
            cells(x, inputs, operations.long(), weights, False)
        with pytest.raises(ValueError, match=rf"from 0 to {len(OPERATIONS) - 1}, got 9"):
            cells(x, inputs, torch.full_like(operations, 9), weights, False)
        swapped = [*weights[: each + 1], weights[1], *weights[each + 2 :]]
        with pytest.raises(RuntimeError, match="prev_weight must have shape"):
            cells(x, inputs, operations, swapped, False)
        nothing = [torch.empty(0) if w.dim() == 6 else w for w in weights]
        with pytest.raises(RuntimeError, match="both weights or none must be empty, got sizes 0"):
            cells(x, inputs, operations, nothing, False)
        nothing = [torch.empty(0) if w.dim() in (4, 6) else w for w in weights]
        separable = OPERATIONS.index("sep_conv_5x5")
        with pytest.raises(ValueError, match="operation that has weights, got sep_conv_5x5"):
            cells(x, inputs, torch.full_like(operations, separable), nothing, False)
