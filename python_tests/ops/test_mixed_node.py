"""The operator of a node against plain PyTorch.

With ASNG_CUDA_ON_CPU set (see conftest.py) the CPU's operators are those for CUDA.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import CUDA_DEVICES, DEVICES, GRID
from mixed_node_samples import run, sample

from asng_ext import ops
from asng_ext.nn.operations import OPERATIONS
from asng_ext.ops import reference as reference_ops

pytestmark = pytest.mark.operators

# `saved` holds places that no sampled operation fills, which differ from call to call.
WITHOUT_GRAPHS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.grid
class TestMixedNode:
    @pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (1, 9), (2, 3), (33, 18)])
    @pytest.mark.parametrize("archs", [1, 2, 3, 8])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("operation", range(ops.OPERATION_COUNT))
    def test_each_operation(
        self, operation: int, stride: int, archs: int, size: tuple[int, int], device: str
    ) -> None:
        bank, weights = sample(5, size, archs, inputs=2, device=device)
        inputs = torch.arange(archs, device=device)[:, None] % 2
        operations = torch.full((archs, 1), operation, device=device)
        args = (inputs, operations, weights, stride)
        for got, expected in zip(
            run(ops.mixed_node, bank, *args),
            run(reference_ops.mixed_node, bank, *args),
            strict=True,
        ):
            # Of a single pixel or two, the variance is nearly nothing, and so is the precision.
            scale = 1 + expected.abs().max()
            torch.testing.assert_close(got / scale, expected / scale, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("channels", [1, 2, 3, 15, 16, 17, 32, 33, 48, 64, 80])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("operations", [(3, 4), (0, 1), (2, 3)])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("device", DEVICES)
    def test_channels_and_precision(
        self,
        channels: int,
        dtype: torch.dtype,
        operations: tuple[int, int],
        stride: int,
        device: str,
    ) -> None:
        if channels == 1 and stride == 2:
            pytest.skip("a factorized reduction needs two channels")
        bank, weights = sample(channels, (9, 8), 2, dtype=torch.float64, device=device)
        args = tuple(
            torch.tensor(rows, device=device)
            for rows in ([[0, 1], [2, 2]], [operations, operations[::-1]])
        )
        expected = run(reference_ops.mixed_node, bank, *args, weights, stride)
        given = [t.detach().to(dtype).requires_grad_() for t in (bank, *weights)]
        got = run(ops.mixed_node, given[0], *args, ops.NodeWeights(*given[1:]), stride)
        # Where a number is close to 0, ReLU and max may decide otherwise in single precision, so
        # there a few gradients may differ: compare as a whole.
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == dtype
            # One channel's normalization makes some gradients vanish, so compare those with 1.
            error = (a.double() - b).norm() / (b.norm() + 1)
            assert error < (1e-10 if dtype == torch.float64 else 2e-3)

    @pytest.mark.parametrize("device", DEVICES)
    def test_an_edge_may_occur_twice(self, device: str) -> None:
        bank, weights = sample(device=device)
        inputs = torch.tensor([[1, 1, 1], [0, 0, 2]], device=device)
        args = (inputs, torch.tensor([[4, 4, 4], [0, 0, 2]], device=device), weights)
        for got, expected in zip(
            run(ops.mixed_node, bank, *args),
            run(reference_ops.mixed_node, bank, *args),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-9)

    @pytest.mark.parametrize("operation", [1, 2])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("device", DEVICES)
    def test_pools_treat_ties_and_nan_as_pytorch_does(
        self, operation: int, stride: int, device: str
    ) -> None:
        bank, weights = sample(16, (7, 9), 1, 1, device=device)
        tied = bank.detach().round()
        index = torch.zeros(1, 1, dtype=torch.int32, device=device)
        args = (index, index + operation, weights, stride)
        for got, expected in zip(
            run(ops.mixed_node, tied.clone().requires_grad_(), *args),
            run(reference_ops.mixed_node, tied.clone().requires_grad_(), *args),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
        tied[0, 0, 1, 3, 4, 5] = torch.nan
        torch.testing.assert_close(
            ops.mixed_node(tied, *args), reference_ops.mixed_node(tied, *args), equal_nan=True
        )

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("device", DEVICES)
    def test_gradcheck(self, stride: int, device: str) -> None:
        bank, weights = sample(2, (4, 3), 2, 2, 2, device=device)
        inputs = torch.tensor([[0, 1], [1, 0]], device=device)
        operations = torch.tensor([[3, 0], [1, 4]], device=device)

        def function(bank: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
            return ops.mixed_node(bank, inputs, operations, ops.NodeWeights(*weights), stride)

        assert torch.autograd.gradcheck(function, (bank, *weights), atol=1e-4)

    @pytest.mark.parametrize("save", [True, False])
    @pytest.mark.parametrize("device", DEVICES)
    def test_opcheck(self, save: bool, device: str) -> None:
        bank, weights = sample(16, (5, 6), dtype=torch.float32, device=device)
        index = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32, device=device)
        if not save:
            bank, weights = bank.detach(), [weight.detach() for weight in weights]
        args = (bank, index, index, list(weights), 2, save, False)
        torch.library.opcheck(
            torch.ops.asng.mixed_node,
            args,
            test_utils=WITHOUT_GRAPHS,
        )

    def test_opcheck_with_a_graph(self) -> None:
        bank, weights = sample(16, (5, 6), dtype=torch.float32)
        index = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32)
        # Separable convolutions alone fill all of `saved`, so that all outputs can be compared.
        kinds = torch.tensor([[3, 4], [4, 3]], dtype=torch.int32)
        torch.library.opcheck(
            torch.ops.asng.mixed_node, (bank, index, kinds, list(weights), 1, True, False)
        )

    @pytest.mark.parametrize("device", DEVICES)
    def test_what_is_not_used_has_a_gradient_of_zeros(self, device: str) -> None:
        bank, weights = sample(inputs=3, device=device)
        index = torch.ones(2, 1, dtype=torch.int32, device=device)
        args = (index, index * 3)
        _, grad_bank, *grads = run(ops.mixed_node, bank, *args, weights)
        used = ops.NodeWeights(*grads[:2])
        assert used.depthwise3[1].abs().min() > 0
        for unused in (grad_bank, used.depthwise3, used.pointwise3):
            assert unused[[0, 2]].abs().max() == 0
        for unused in grads[2:]:
            assert unused.abs().max() == 0

    def test_without_a_backward_pass_nothing_is_kept(self) -> None:
        bank, weights = sample()
        args = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [4, 0]]), weights)
        expected = ops.mixed_node(bank, *args)
        with torch.no_grad():
            out = ops.mixed_node(bank, *args)
            padded = torch.nn.functional.pad(bank, (0, 11))
            index = args[0].int()
            _, saved = torch.ops.asng.mixed_node(
                padded, index, args[1].int(), list(weights), 1, False, False
            )
        assert not out.requires_grad
        assert saved.numel() == 0
        assert torch.equal(out, expected)

    def test_non_contiguous_arguments(self) -> None:
        bank, weights = sample(16, (6, 7))
        args = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [4, 0]]))
        other = bank.detach().transpose(3, 4).contiguous().transpose(3, 4)
        turned = ops.NodeWeights(
            *(t.transpose(0, -1).contiguous().transpose(0, -1) for t in weights)
        )
        assert not other.is_contiguous()
        torch.testing.assert_close(
            ops.mixed_node(other, *(a.t().contiguous().t() for a in args), turned),
            ops.mixed_node(bank, *args, weights),
        )

    def test_compiled(self) -> None:
        bank, weights = sample(16, dtype=torch.float32)
        args = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [4, 0]]), weights)

        def step(bank: torch.Tensor, *args: Any) -> torch.Tensor:
            return torch.relu(ops.mixed_node(torch.tanh(bank), *args)) * 2

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for got, expected in zip(run(compiled, bank, *args), run(step, bank, *args), strict=True):
            torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            (
                {"inputs": torch.zeros(2, 2, dtype=torch.int, device="meta")},
                ValueError,
                "must be on cpu",
            ),
            (
                {"inputs": torch.tensor([[0, 3], [0, 0]])},
                ValueError,
                r"inputs must be from 0 to 2.*3",
            ),
            ({"inputs": torch.tensor([[0, -1], [0, 0]])}, ValueError, "inputs must be from 0"),
            ({"inputs": torch.tensor([0, 1])}, ValueError, r"inputs must have shape \(λ, E\)"),
            ({"inputs": torch.zeros(2, 2)}, TypeError, "inputs must be int32 or int64"),
            (
                {"operations": torch.full((2, 2), ops.OPERATION_COUNT)},
                ValueError,
                f"operations must be from 0 to {ops.OPERATION_COUNT - 1}",
            ),
            (
                {"operations": torch.zeros(3, 2, dtype=torch.int)},
                ValueError,
                "operations must have",
            ),
            ({"stride": 3}, ValueError, "stride must be 1 or 2, got 3"),
            ({"bank": torch.zeros(3, 2, 3, 6, 5)}, ValueError, "bank must have 6 dimensions"),
            ({"bank": torch.zeros(3, 2, 0, 6, 5, 5)}, ValueError, "none of them 0"),
            ({"bank": torch.zeros(3, 2, 3, 6, 5, 5).half()}, TypeError, "bank must be float32"),
            ({"bank": [1.0]}, TypeError, "bank must be a tensor"),
            ({"bank": torch.zeros(3, 2, 3, 6, 5, 5)}, TypeError, "weights.depthwise3 must be"),
            (
                {"bank": torch.zeros(3, 2, 3, 6, 5, 6).double()},
                ValueError,
                "depthwise3 must have sh",
            ),
        ],
    )
    def test_bad_arguments(
        self, change: dict[str, Any], error: type[Exception], match: str
    ) -> None:
        bank, weights = sample()
        index = torch.tensor([[0, 1], [2, 2]])
        arguments = {"bank": bank, "inputs": index, "operations": index, "stride": 1, **change}
        with pytest.raises(error, match=match):
            ops.mixed_node(weights=weights, **arguments)

    @pytest.mark.parametrize("kept", [("depthwise5", "pointwise5"), ()])
    def test_operations_without_weights(self, kept: tuple[str, ...]) -> None:
        bank, weights = sample(dtype=torch.float64)
        some = ops.NodeWeights(**{name: getattr(weights, name) for name in kept})
        usable = OPERATIONS.index("sep_conv_5x5" if kept else "max_pool_3x3")
        index = torch.tensor([[0, 1], [2, 2]])
        kinds = torch.tensor([[1, usable], [usable, 0]])
        expected = ops.mixed_node(bank, index, kinds, weights)
        assert torch.equal(ops.mixed_node(bank, index, kinds, some), expected)
        leaves = [bank, *(w for w in some if w is not None)]
        grads = torch.autograd.grad(ops.mixed_node(bank, index, kinds, some).sum(), leaves)
        for grad, want in zip(grads, torch.autograd.grad(expected.sum(), leaves), strict=True):
            assert torch.equal(grad, want)
        kinds[0, 0] = OPERATIONS.index("sep_conv_3x3")
        if GRID:  # A device does not check it.
            out = ops.mixed_node(bank, index, kinds, some)
            assert out[0].isnan().all()
            assert torch.equal(out[1], expected[1])
            return
        with pytest.raises(ValueError, match=r"operations\[0, 0\] must be.*got sep_conv_3x3"):
            ops.mixed_node(bank, index, kinds, some)

    def test_the_operator_checks_for_itself(self) -> None:
        bank, weights = sample(16)
        good = torch.zeros(2, 1, dtype=torch.int32)
        call = torch.ops.asng.mixed_node
        out_of_range = [
            ((bank, good + 3, good), r"inputs\[0, 0\] must be from 0 to 2, got 3"),
            ((bank, good, good - 1), r"operations\[0, 0\] must be from 0 to \d, got -1"),
        ]
        if GRID:  # A device does not check them.
            for args, _ in out_of_range:
                assert call(*args, list(weights), 1, False, False)[0].isnan().all()
            out_of_range = []
        for args, match in [
            *out_of_range,
            ((bank, good.long(), good), "inputs must have dtype"),
            ((bank[..., :8].contiguous(), good, good), "multiple of 16"),
            ((bank.transpose(3, 4), good, good), "must be contiguous"),
            ((bank[:2].contiguous(), good, good), "depthwise3 must have shape"),
        ]:
            with pytest.raises((RuntimeError, ValueError), match=match):
                call(*args, list(weights), 1, True, False)
        with pytest.raises(RuntimeError, match="reduction is needed"):
            call(bank, good, good, [*weights[:-1], bank.new_empty(0)], 2, True, False)

    @pytest.mark.cuda
    def test_no_synchronization_and_bad_indices_give_nan(self) -> None:
        bank, weights = sample(16, dtype=torch.float32, device="cuda")
        index = torch.tensor([[0, 1], [2, 2]], device="cuda")
        operations = torch.tensor([[3, 4], [1, 0]], device="cuda")
        expected = run(ops.mixed_node, bank, index, operations, weights)
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = ops.mixed_node(bank, index, operations, weights)
            out.sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(out, expected[0])
        operations[0, 1] = len(OPERATIONS)
        out = ops.mixed_node(bank, index, operations, weights)
        assert out[0].isnan().all()
        assert torch.equal(out[1], expected[0][1])
        again = run(ops.mixed_node, bank, index, operations.clamp(max=4), weights)
        for a, b in zip(again, expected, strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("device", CUDA_DEVICES)
    def test_autocast_stores_feature_maps_as_bfloat16(self, device: str) -> None:
        bank, weights = sample(16, dtype=torch.float32, device=device)
        args = tuple(torch.tensor(i, device=device) for i in ([[0, 1], [2, 2]], [[3, 4], [4, 0]]))
        narrow = ops.NodeWeights(*(w.bfloat16() for w in weights))
        single = ops.mixed_node(bank, *args, weights)
        with torch.autocast(device, torch.bfloat16):
            out = ops.mixed_node(bank, *args, weights)
            from_narrow = ops.mixed_node(bank.bfloat16(), *args, narrow)
        assert out.dtype == from_narrow.dtype == torch.bfloat16
        assert torch.equal(out, ops.mixed_node(bank.bfloat16(), *args, weights))
        wide = ops.NodeWeights(*(w.float() for w in narrow))
        assert torch.equal(from_narrow, ops.mixed_node(bank.bfloat16(), *args, wide))
        with torch.autocast(device, torch.float16):
            half = ops.mixed_node(bank.half(), *args, weights)
        assert half.dtype == torch.float32
        assert torch.equal(half, ops.mixed_node(bank.half().float(), *args, weights))
        with torch.autocast(device, torch.bfloat16):
            bank, weights = (bank.double(), ops.NodeWeights(*(w.double() for w in weights)))
            assert ops.mixed_node(bank, *args, weights).dtype == torch.float64
        torch.testing.assert_close(out.float(), single, rtol=0, atol=0.1)

    @pytest.mark.parametrize("device", CUDA_DEVICES)
    def test_bfloat16_feature_maps_have_gradients(self, device: str) -> None:
        bank, weights = sample(20, (9, 8), 3, dtype=torch.float32, device=device)
        bank = bank.detach().bfloat16().requires_grad_()
        args = tuple(
            torch.tensor(rows, device=device)
            for rows in ([[0, 1], [2, 2], [1, 0]], [[3, 4], [1, 2], [0, 3]])
        )
        got = run(ops.mixed_node, bank, *args, weights, 2)
        exact = [t.detach().double().requires_grad_() for t in (bank, *weights)]
        expected = run(reference_ops.mixed_node, exact[0], *args, ops.NodeWeights(*exact[1:]), 2)
        for tensor, a, b in zip((None, bank, *weights), got, expected, strict=True):
            assert a.dtype == (torch.bfloat16 if tensor is None else tensor.dtype)
            # See csrc/tests/ops/cuda.cpp for what three rounded tensors may do.
            assert (a.double() - b).norm() <= (0.007 if tensor is None else 0.11) * b.norm()
        with pytest.raises(TypeError, match=r"depthwise3 must be torch\.float32 with"):
            ops.mixed_node(bank, *args, ops.NodeWeights(*(w.bfloat16() for w in weights)), 2)

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("device", CUDA_DEVICES)
    def test_opcheck_of_bfloat16(self, stride: int, device: str) -> None:
        bank, weights = sample(16, (5, 6), dtype=torch.float32, device=device)
        bank = bank.detach().bfloat16().requires_grad_()
        index = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32, device=device)
        reduction = weights.reduction if stride == 2 else bank.new_empty(0, dtype=torch.float32)
        torch.library.opcheck(
            torch.ops.asng.mixed_node,
            (bank, index, index, [*weights[:-1], reduction], stride, True, False),
            test_utils=WITHOUT_GRAPHS,
        )
        kinds = torch.tensor([[3, 4], [4, 3]], dtype=torch.int32, device=device)
        torch.library.opcheck(
            torch.ops.asng.mixed_node,
            (bank, index, kinds, [*weights[:-1], reduction], stride, True, False),
        )

    @pytest.mark.usefixtures("tf32")
    @pytest.mark.parametrize("device", CUDA_DEVICES)
    def test_tf32_where_pytorch_allows_it(self, device: str) -> None:
        bank, weights = sample(32, (9, 8), 3, batch=12, dtype=torch.float32, device=device)
        every = torch.arange(ops.OPERATION_COUNT, device=device)
        args = (every.expand(3, -1) % 3, torch.stack([every, every.flip(0), every]))
        allowed = run(ops.mixed_node, bank, *args, weights, 2)
        torch.backends.cudnn.allow_tf32 = False
        forbidden = run(ops.mixed_node, bank, *args, weights, 2)
        exact = [t.detach().double().requires_grad_() for t in (bank, *weights)]
        expected = run(reference_ops.mixed_node, exact[0], *args, ops.NodeWeights(*exact[1:]), 2)
        # TF32 has a 10-bit mantissa: rounded to the nearest a factor is off by at most 2⁻¹¹ of
        # itself, a product of two by 2⁻¹⁰. Sums of random terms and normalizations pass relative
        # errors on as they are, and those of two matmuls in a row add up in squares. Gradients are
        # off by as much again; and an error δ of ReLU's argument turns the sign of 2δ/π of those
        # that it lets pass, which changes the norm by the square root of that, in front of either
        # matmul.
        forward = 2**0.5 * 2**-10
        backward = 2 * forward + math.sqrt(2 * 2 * forward / math.pi)
        bounds = (forward, backward, *[backward for _ in weights])
        for a, b, c, bound in zip(allowed, forbidden, expected, bounds, strict=True):
            assert not torch.equal(a, b)
            assert (a.double() - c).norm() <= bound * c.norm()
            assert (b.double() - c).norm() <= 2e-3 * c.norm()
        double = run(ops.mixed_node, exact[0], *args, ops.NodeWeights(*exact[1:]), 2)
        torch.backends.cudnn.allow_tf32 = True
        again = run(ops.mixed_node, exact[0], *args, ops.NodeWeights(*exact[1:]), 2)
        assert all(torch.equal(a, b) for a, b in zip(double, again, strict=True))

    @pytest.mark.usefixtures("tf32")
    @pytest.mark.parametrize("device", CUDA_DEVICES)
    def test_opcheck_with_tf32(self, device: str) -> None:
        bank, weights = sample(16, (5, 6), dtype=torch.float32, device=device)
        index = torch.tensor([[0, 1], [2, 0]], dtype=torch.int32, device=device)
        kinds = torch.tensor([[3, 4], [4, 3]], dtype=torch.int32, device=device)
        torch.library.opcheck(
            torch.ops.asng.mixed_node, (bank, index, kinds, list(weights), 1, True, True)
        )


class TestMixedNodeOnCPU:
    """What the kernels for the CPU have alone."""

    def test_results_do_not_depend_on_threads(self) -> None:
        before = torch.get_num_threads()
        bank, weights = sample(20, (12, 13), 3, batch=11, dtype=torch.float32)
        args = (torch.tensor([[0, 1], [2, 2], [1, 0]]), torch.tensor([[3, 4], [4, 2], [1, 3]]))
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(ops.mixed_node, bank, *args, weights))
        torch.set_num_threads(before)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)

    @pytest.mark.parametrize("capability", ["default", "avx2"])
    def test_lesser_instruction_sets_give_the_same_numbers(self, capability: str) -> None:
        if ops.capability() == "default":
            pytest.skip("there is only one")
        code = (
            "import torch, mixed_node_samples as t; from asng_ext import ops\n"
            "from asng_ext.ops import reference as r\n"
            f"assert ops.capability() == {capability!r}, ops.capability()\n"
            "for c in (16, 64):\n"
            "    b, w = t.sample(c, (9, 10)); w = (w, 2)\n"
            "    a = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [2, 0]]), *w)\n"
            "    for x, y in zip(t.run(ops.mixed_node, b, *a), t.run(r.mixed_node, b, *a)):\n"
            "        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-8)\n"
        )
        environment = {**os.environ, "ASNG_CPU_CAPABILITY": capability}
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr

    def test_released_memory(self) -> None:
        bank, weights = sample(16)
        index = torch.zeros(2, 1, dtype=torch.int32)
        ops.mixed_node(bank, index, index, weights)
        assert ops.release_memory() > 0
        assert ops.release_memory() == 0

    def test_autocast_on_the_cpu_computes_in_single_precision(self) -> None:
        bank, weights = sample(16, dtype=torch.float32)
        args = tuple(torch.tensor(i) for i in ([[0, 1], [2, 2]], [[3, 4], [4, 0]]))
        with torch.autocast("cpu", torch.bfloat16):
            out = ops.mixed_node(bank.bfloat16(), *args, weights)
        assert out.dtype == torch.float32
        torch.testing.assert_close(
            out, ops.mixed_node(bank.bfloat16().float(), *args, weights), rtol=1e-5, atol=1e-5
        )
        with pytest.raises(TypeError, match="bank must be float32 or float64 on cpu"):
            ops.mixed_node(bank.bfloat16(), *args, weights)

    @pytest.mark.usefixtures("tf32")
    def test_tf32_is_nothing_to_a_cpu(self) -> None:
        bank, weights = sample(16, dtype=torch.float32)
        args = (torch.tensor([[0, 1], [2, 2]]), torch.tensor([[3, 4], [4, 0]]), weights)
        allowed = run(ops.mixed_node, bank, *args)
        torch.backends.cudnn.allow_tf32 = False
        for a, b in zip(allowed, run(ops.mixed_node, bank, *args), strict=True):
            assert torch.equal(a, b)
