"""The compiled layers of autoencoders against PyTorch's convolutions.

They are computed in two ways: on the CPU, and as on CUDA devices. The twin is the second way on
tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from autoencoder_samples import (
    Case,
    assert_same,
    chain_sample,
    fused_chain,
    in_dtype,
    plain_chain,
    plain_decode,
    plain_encode,
    random_layers,
    run,
    run_chain,
    sample,
)
from devices import CUDA, CUDA_DEVICES, GRID
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from asng_ext.nn import CaeCatSpace, CaeIntSpace, CaeLayer, CaeSpace, CaeSupernet
from asng_ext.nn import autoencoder as layers
from asng_ext.ops import autoencoder as cae_ops
from asng_ext.training.active_sgd import ActiveSGD

pytestmark = pytest.mark.operators

TWIN = pytest.param("twin", marks=pytest.mark.grid)
SIZES = [(1, 1), (1, 9), (2, 3), (8, 8), (13, 10), (33, 18)]
HALF = [torch.bfloat16, torch.float16]

Wrong = list[tuple[Callable[[], Any], type[Exception], str]]


@pytest.fixture(params=["cpu", "cpu with two threads", TWIN, CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where tensors are. Everywhere else than on CUDA devices that is the CPU."""
    if request.param == "twin":
        request.getfixturevalue("twins")
    before = torch.get_num_threads()
    torch.set_num_threads(2 if "two" in request.param else before)
    yield "cuda" if request.param == "cuda" else "cpu"
    torch.set_num_threads(before)


@pytest.fixture(params=[TWIN, CUDA])
def cuda_way(request: pytest.FixtureRequest) -> str:
    """The device, where layers are computed as on CUDA devices only."""
    if request.param == "twin":
        request.getfixturevalue("twins")
    return "cuda" if request.param == "cuda" else "cpu"


@pytest.fixture(params=["cpu", TWIN])
def way(request: pytest.FixtureRequest) -> str:
    """Either way, on the CPU."""
    if request.param == "twin":
        request.getfixturevalue("twins")
    return str(request.param)


def to(device: str, case: Case) -> Any:
    return [t.to(device) if isinstance(t, Tensor) else t for t in case]


def on_cpu(tensors: list[Tensor]) -> list[Tensor]:
    return [t.cpu() for t in tensors]


def channels_last(*tensors: Tensor) -> list[Tensor]:
    """(N, H, W, C), as the operators take them."""
    return [t.detach().permute(0, 2, 3, 1).contiguous() for t in tensors]


def raise_all(wrong: Wrong) -> None:
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()


class Layer:
    """What holds for both layers: an operator, and the same in plain PyTorch."""

    operator: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    name: str

    @staticmethod
    def tensors(case: Any) -> list[Tensor]:
        """The feature map, the weight, and what is skipped, if anything."""
        raise NotImplementedError

    @staticmethod
    def options(case: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def run(self, case: Any, *more: Any) -> list[Tensor]:
        """Output and gradients."""
        return run(type(self).operator, self.tensors(case), *self.options(case), *more)

    def run_plain(self, case: Any, *more: Any) -> list[Tensor]:
        return run(type(self).plain, self.tensors(case), *self.options(case), *more)

    @pytest.mark.parametrize("channels", [(1, 1), (3, 16), (16, 3), (17, 33), (32, 64), (65, 40)])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_channels_and_precision(
        self, channels: tuple[int, int], stride: int, dtype: torch.dtype
    ) -> None:
        exact = sample((9, 8), channels, 5, stride)
        given = [t.to(dtype) if isinstance(t, Tensor) else t for t in exact]
        # Without ReLU, where there is a choice: it decides otherwise where a number is close to 0.
        linear = (False,) if self.name == "decode" else ()
        for a, b in zip(self.run(given, *linear), self.run_plain(exact, *linear), strict=True):
            assert a.dtype == dtype
            error = (a.double() - b).norm() / (b.norm() + 1e-6)
            assert error < (1e-12 if dtype == torch.float64 else 1e-4)

    def test_more_tiles_than_one_task_takes(self) -> None:
        """Several blocks of tiles, the last of them not full."""
        case = sample((50, 43), (4, 6), 5, 1, batch=3)
        assert_same(self.run(case), self.run_plain(case))

    def test_results_do_not_depend_on_threads(self) -> None:
        case = sample((40, 37), (20, 24), 5, 2, torch.float32)
        before = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(self.run(case))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    def test_any_strides(self) -> None:
        x, low, weight, *rest = sample()
        expected = self.run((x, low, weight, *rest))
        spread = torch.zeros(2, 3, 14, 12, dtype=torch.float64)[:, :, ::2, ::2].copy_(x)
        turned = weight.transpose(2, 3).contiguous().transpose(2, 3)
        assert turned.stride() != weight.stride()
        for images, small in (
            (x.contiguous(), low.contiguous(memory_format=torch.channels_last)),
            (spread, low.contiguous()),
        ):
            assert_same(self.run((images, small, turned, *rest)), expected, 0.0)

    def test_the_feature_map_needs_no_gradient(self) -> None:
        x, weight, *_ = self.tensors(sample())
        without, with_it = weight.detach().requires_grad_(), weight.detach().requires_grad_()
        operator = type(self).operator
        operator(x, without).sum().backward()
        operator(x.detach().requires_grad_(), with_it).sum().backward()
        assert without.grad is not None
        assert with_it.grad is not None
        assert torch.equal(without.grad, with_it.grad)

    @pytest.mark.parametrize("kernel", [3, 5])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_gradcheck(self, kernel: int, stride: int, way: str) -> None:
        case = sample((5, 4), (2, 3), kernel, stride, batch=1)
        leaves = [t.detach().clone().requires_grad_() for t in self.tensors(case)]
        assert torch.autograd.gradcheck(
            lambda *leaves: type(self).operator(*leaves, *self.options(case)), leaves
        )

    def test_autocast_computes_in_float32(self) -> None:
        """On the CPU."""
        x, weight, *_ = self.tensors(sample(dtype=torch.float32))
        operator = type(self).operator
        with torch.autocast("cpu", torch.bfloat16):
            half = x.bfloat16()
            assert torch.equal(operator(half, weight), operator(half.float(), weight))
            assert operator(x, weight).dtype == torch.float32

    @pytest.mark.parametrize("dtype", HALF)
    def test_autocast_on_cuda(self, dtype: torch.dtype, cuda_way: str) -> None:
        """Feature maps and convolutions in half precision, weights and their gradients not."""
        case = sample((12, 9), (16, 24), 3, 1, torch.float32)
        given = to(cuda_way, case)
        x, weight, *skipped = self.tensors(given)
        operator, options = type(self).operator, self.options(given)
        with torch.autocast(cuda_way, dtype):
            got = self.run(given)
            inner = operator(x.to(dtype), weight, *(t.to(dtype) for t in skipped), *options)
            exact = operator(x.double(), weight.double())
        assert got[0].dtype == dtype
        for a, b in zip(got[1:], self.run_plain(case)[1:], strict=True):
            assert a.dtype == torch.float32  # these are leaves that autocast converts
            assert (a.cpu() - b).norm() < 0.05 * b.norm()
        assert torch.equal(inner, got[0])
        assert exact.dtype == torch.float64
        assert operator(x, weight).dtype == torch.float32

    @pytest.mark.usefixtures("finish")
    @pytest.mark.grid
    @pytest.mark.parametrize("kernel", [3, 5])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_the_kernels_for_cuda_give_what_those_of_the_cpu_give(
        self, kernel: int, stride: int
    ) -> None:
        """Also in memory, without the operators in between."""
        x, low, weight, _, size = sample((9, 6), (6, 4), kernel, stride)
        high, small = channels_last(x, low)
        for name, arguments in self.kernel_arguments(high, small, weight, stride, size):
            expected = getattr(torch.ops.asng, f"_cae_{name}" if "back" in name else f"cae_{name}")
            want, got = expected(*arguments), getattr(cae_ops, f"_{name}_cuda")(*arguments)
            pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
            for a, b in pairs:
                assert a.shape == b.shape
                assert a.stride() == b.stride()
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    @staticmethod
    def kernel_arguments(
        high: Tensor, small: Tensor, weight: Tensor, stride: int, size: tuple[int, int]
    ) -> list[tuple[str, tuple[Any, ...]]]:
        """Names of kernels, and what to call them with."""
        raise NotImplementedError

    @pytest.mark.cuda
    @pytest.mark.parametrize("stride", [1, 2])
    def test_a_gpu_agrees_with_the_cpu_in_single_precision(self, stride: int) -> None:
        case = sample((17, 14), (40, 24), 5, stride, torch.float32)
        linear = (False,) if self.name == "decode" else ()
        got, expected = self.run(to("cuda", case), *linear), self.run(case, *linear)
        for a, b in zip(got, expected, strict=True):
            assert (a.cpu() - b).norm() < 1e-3 * b.norm()


class TestEncode(Layer):
    operator = cae_ops.encode
    plain = plain_encode
    name = "encode"

    @staticmethod
    def tensors(case: Any) -> list[Tensor]:
        return [case[0], case[2]]

    @staticmethod
    def options(case: Any) -> tuple[Any, ...]:
        return (case[3],)

    @staticmethod
    def kernel_arguments(
        high: Tensor, small: Tensor, weight: Tensor, stride: int, size: tuple[int, int]
    ) -> list[tuple[str, tuple[Any, ...]]]:
        return [
            ("encode", (high, weight, stride)),
            ("encode_backward", (small, small, high, weight, stride, True)),
        ]

    @pytest.mark.parametrize("kernel", [3, 5])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("size", SIZES)
    def test_reference(self, kernel: int, stride: int, size: tuple[int, int], device: str) -> None:
        case = sample(size, (3, 5), kernel, stride)
        got = self.run(to(device, case))
        assert got[0].is_contiguous(memory_format=torch.channels_last)
        assert got[2].is_contiguous()
        assert_same(on_cpu(got), self.run_plain(case))

    def test_nan_passes_relu_as_in_pytorch(self) -> None:
        x, _, weight, _, _ = sample((20, 20))
        x[0, 0, 10, 10] = torch.nan
        got, expected = cae_ops.encode(x, weight), plain_encode(x, weight, 1)
        # A tile of outputs mixes its inputs: more values may be lost than those around the pixel.
        assert got.isnan()[expected.isnan()].all()
        assert not got[1].isnan().any()

    def test_gradients_of_any_strides(self) -> None:
        """A compiled graph may hand over others than it was traced with."""
        x, low, weight, stride, _ = sample()
        high, small = channels_last(x, low)
        check_backward(torch.ops.asng._cae_encode_backward, small, small, high, weight, stride)

    @pytest.mark.parametrize("stride", [1, 2])
    def test_opcheck(self, stride: int, way: str) -> None:
        x, low, weight, _, _ = sample((6, 5), (2, 3), 3, stride)
        high, small = channels_last(x, low)
        for needs_grad in (True, False):
            arguments = (small, small, high, weight, stride, needs_grad)
            torch.library.opcheck(torch.ops.asng._cae_encode_backward, arguments)
        leaves = high.requires_grad_(), weight.detach().requires_grad_()
        torch.library.opcheck(torch.ops.asng.cae_encode, (*leaves, stride))

    @pytest.mark.usefixtures("twins")
    @pytest.mark.grid
    @pytest.mark.parametrize("stride", [1, 2])
    def test_opcheck_as_under_autocast(self, stride: int) -> None:
        """On CUDA devices: feature maps have another dtype than the weight."""
        x, low, weight, _, _ = sample((6, 5), (2, 3), 3, stride)
        high, small = (t.bfloat16() for t in channels_last(x, low))
        ops = torch.ops.asng
        check_without_autograd(ops.cae_encode, high, weight, stride)
        for needs_grad in (True, False):
            check_without_autograd(
                ops._cae_encode_backward, small, small, high, weight, stride, needs_grad
            )

    def test_errors(self) -> None:
        x, _, weight, _, _ = sample()
        encode = cae_ops.encode
        wrong: Wrong = [
            (lambda: encode(x[0], weight), ValueError, "x must have 4 dimensions"),
            (lambda: encode([1], weight), TypeError, "x must be a tensor, got list"),  # type: ignore[arg-type]
            (lambda: encode(x.half(), weight.half()), TypeError, "x must be float32 or"),
            (lambda: encode(x.float(), weight), TypeError, "weight must be torch.float32"),
            (lambda: encode(x, weight, 3), ValueError, "stride must be 1 or 2, got 3"),
            (lambda: encode(x, weight[:, :2]), ValueError, "weight must have 3 channels in"),
            (lambda: encode(x, weight[:, :, :1, :1]), ValueError, "kernels of side 3 or 5"),
            (lambda: encode(x[:0], weight), ValueError, "none of them 0"),
        ]
        raise_all(wrong)

    def test_the_operator_checks_shapes_itself(self) -> None:
        x, low, weight, _, _ = sample()
        high, small = channels_last(x, low)
        encode = torch.ops.asng.cae_encode
        wrong: Wrong = [
            (lambda: encode(high[0], weight, 1), RuntimeError, "4 dimensions"),
            (lambda: encode(high, weight, 3), RuntimeError, "stride must be 1 or 2"),
            (lambda: encode(high.permute(0, 2, 1, 3), weight, 1), RuntimeError, "contiguous"),
            (
                lambda: encode(high, weight.transpose(2, 3), 1),
                RuntimeError,
                "each kernel of weight",
            ),
            (lambda: encode(small, weight, 1), RuntimeError, "feature maps must have shape"),
        ]
        raise_all(wrong)

    @pytest.mark.cuda
    def test_errors_on_a_gpu(self) -> None:
        x, _, weight, _, _ = to("cuda", sample(dtype=torch.float32))
        encode = cae_ops.encode
        wrong: Wrong = [
            (lambda: encode(x, weight.cpu()), ValueError, "weight must be on cuda"),
            (
                lambda: encode(x.int(), weight),
                TypeError,
                "x must be float32, float64, bfloat16 or float16",
            ),
            (lambda: encode(x.bfloat16(), weight), TypeError, r"weight must be torch\.bfloat16"),
        ]
        raise_all(wrong)


class TestDecode(Layer):
    operator = cae_ops.decode
    plain = plain_decode
    name = "decode"

    @staticmethod
    def tensors(case: Any) -> list[Tensor]:
        return [case[1], case[2], case[0]]

    @staticmethod
    def options(case: Any) -> tuple[Any, ...]:
        return case[3], case[4]

    @staticmethod
    def kernel_arguments(
        high: Tensor, small: Tensor, weight: Tensor, stride: int, size: tuple[int, int]
    ) -> list[tuple[str, tuple[Any, ...]]]:
        return [
            ("decode", (small, weight, high, stride, *size, False)),
            ("decode_backward", (high, high, small, weight, stride, True)),
            ("decode_backward", (high, None, small, weight, stride, False)),
        ]

    @pytest.mark.parametrize("kernel", [3, 5])
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("skip", [True, False])
    @pytest.mark.parametrize("relu", [True, False])
    def test_reference(
        self, kernel: int, stride: int, size: tuple[int, int], skip: bool, relu: bool, device: str
    ) -> None:
        case = sample(size, (3, 5), kernel, stride)
        skipped, x, weight, _, _ = to(device, case)
        got = run(cae_ops.decode, [x, weight, skipped if skip else None], stride, size, relu)
        assert got[0].is_contiguous(memory_format=torch.channels_last)
        given = [case[1], case[2], case[0] if skip else None]
        assert_same(on_cpu(got), run(plain_decode, given, stride, size, relu))

    def test_gradients_of_any_strides(self) -> None:
        """A compiled graph may hand over others than it was traced with."""
        x, low, weight, stride, _ = sample()
        high, small = channels_last(x, low)
        check_backward(torch.ops.asng._cae_decode_backward, high, None, small, weight, stride)

    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("skip", [True, False])
    def test_opcheck(self, stride: int, skip: bool, way: str) -> None:
        x, low, weight, _, size = sample((6, 5), (2, 3), 3, stride)
        high, small = channels_last(x, low)
        for needs_grad in (True, False):
            output = high if skip else None
            arguments = (high, output, small, weight, stride, needs_grad)
            torch.library.opcheck(torch.ops.asng._cae_decode_backward, arguments)
        leaves = small.requires_grad_(), weight.detach().requires_grad_()
        skipped = high.requires_grad_() if skip else None
        for relu in (True, False):
            arguments = (*leaves, skipped, stride, *size, relu)
            torch.library.opcheck(torch.ops.asng.cae_decode, arguments)

    @pytest.mark.usefixtures("twins")
    @pytest.mark.grid
    @pytest.mark.parametrize("stride", [1, 2])
    def test_opcheck_as_under_autocast(self, stride: int) -> None:
        """On CUDA devices: feature maps have another dtype than the weight."""
        x, low, weight, _, size = sample((6, 5), (2, 3), 3, stride)
        high, small = (t.bfloat16() for t in channels_last(x, low))
        ops = torch.ops.asng
        for relu, skipped in ((True, high), (False, None)):
            check_without_autograd(ops.cae_decode, small, weight, skipped, stride, *size, relu)
        for needs_grad in (True, False):
            check_without_autograd(
                ops._cae_decode_backward, high, high, small, weight, stride, needs_grad
            )

    def test_errors(self) -> None:
        x, low, weight, _, _ = sample()
        decode = cae_ops.decode
        wrong: Wrong = [
            (lambda: decode(x, weight), ValueError, "weight must have 3 channels in dim"),
            (lambda: decode(low, weight, x[:1]), ValueError, "skipped must have shape"),
            (lambda: decode(low, weight, size=(3, 3)), ValueError, "size must be halved by"),
        ]
        raise_all(wrong)

    def test_the_operator_checks_shapes_itself(self) -> None:
        x, low, weight, _, _ = sample()
        high, small = channels_last(x, low)
        decode, other = torch.ops.asng.cae_decode, high[:1].contiguous()
        wrong: Wrong = [
            (lambda: decode(small, weight, other, 1, 7, 6, True), RuntimeError, "skipped must"),
            (
                lambda: decode(small, weight, None, 2, 7, 6, True),
                RuntimeError,
                "feature maps must have shape",
            ),
        ]
        raise_all(wrong)


def check_backward(
    backward: Any, grad: Tensor, output: Tensor | None, x: Tensor, weight: Tensor, stride: int
) -> None:
    """An operator takes gradients of any strides."""
    expected = backward(grad, output, x, weight, stride, True)
    other = grad.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not other.is_contiguous()
    got = backward(other, output, x, weight, stride, True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def check_without_autograd(operator: Any, *arguments: Any) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, arguments, test_utils=checks)


@pytest.mark.grid
class TestFinish:
    """The kernel that adds what is skipped and applies ReLU, for CUDA devices."""

    @pytest.mark.parametrize("device", CUDA_DEVICES)
    def test_reference(self, device: str) -> None:
        for dtype in (torch.float32, torch.float64, *HALF):
            for count in (1, 7, 8, 33, 3 * 5 * 7 * 11):
                for offset in (0, 1):
                    memory = torch.randn(2, count + offset, device=device).to(dtype)
                    memory[0, offset] = torch.nan
                    for skip in (True, False):
                        for relu in (True, False):
                            y, skipped = memory[0, offset:].clone(), memory[1, offset:]
                            expected = y + skipped if skip else y.clone()
                            expected = expected.relu() if relu else expected
                            torch.ops.asng._cae_finish(y, skipped if skip else None, relu)
                            torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.grid(only=True)
    def test_opcheck_and_errors(self) -> None:
        finish = torch.ops.asng._cae_finish
        y = torch.ones(2, 3)
        wrong: Wrong = [
            (lambda: finish(y.t(), None, True), RuntimeError, "y must be contiguous"),
            (
                lambda: finish(y.int(), None, True),
                RuntimeError,
                "y must be float32, float64, bfloat16 or float16",
            ),
            (lambda: finish(y, y[:1], True), RuntimeError, r"skipped must have shape \(2, 3\)"),
            (lambda: finish(y, y.half(), True), RuntimeError, "skipped must have dtype"),
            (
                lambda: finish(y, y.view(3, 2).t(), True),
                RuntimeError,
                "skipped must be contiguous",
            ),
        ]
        raise_all(wrong)
        assert torch.equal(y, torch.ones(2, 3))
        empty = torch.empty(0, 3)
        finish(empty, empty.clone(), True)
        torch.library.opcheck(finish, (y, y.clone(), True))
        torch.library.opcheck(finish, (y, None, True))


@pytest.mark.grid
@pytest.mark.parametrize("device", CUDA_DEVICES)
class TestChain:
    """A whole autoencoder as one operator, against convolutions of PyTorch on the CPU."""

    @pytest.fixture(autouse=True)
    def _deterministic(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not all of cuDNN's algorithms give the same bits again."""
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)

    @pytest.mark.parametrize(
        ("channels", "kernels", "strides"),
        [
            ([], [], []),
            ([5], [3], [1]),
            ([33], [5], [2]),
            ([3, 40, 7], [1, 5, 3], [1, 2, 1]),
            ([4, 5, 6, 7], [3, 1, 5, 1], [2, 2, 1, 2]),
            ([9, 8, 31, 32], [5, 3, 3, 1], [1, 1, 1, 1]),
        ],
    )
    @pytest.mark.parametrize(("size", "batch"), [((7, 6), 2), ((1, 9), 1), ((13, 10), 3)])
    def test_reference(
        self,
        channels: list[int],
        kernels: list[int],
        strides: list[int],
        size: tuple[int, int],
        batch: int,
        device: str,
    ) -> None:
        case = chain_sample(channels, kernels, strides, size, batch)
        got = run_chain(fused_chain, case, device)
        assert got[0].is_contiguous(memory_format=torch.channels_last)
        assert all(grad.is_contiguous() for grad in got[2:])
        assert_same(on_cpu(got), run_chain(plain_chain, case))
        again = run_chain(fused_chain, case, device)
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))

    @pytest.mark.parametrize("images", [1, 8, 9])
    def test_images_of_any_number_of_channels(self, images: int, device: str) -> None:
        case = chain_sample([6, 5], [3, 3], [1, 2], images=images)
        assert_same(on_cpu(run_chain(fused_chain, case, device)), run_chain(plain_chain, case))

    def test_weights_of_any_strides(self, device: str) -> None:
        case = chain_sample([6, 5], [3, 1], [2, 1])
        x, encoder, decoder, output, strides = case
        turned = [w.contiguous(memory_format=torch.channels_last) for w in (*encoder, *decoder)]
        other = x.contiguous(), turned[:2], turned[2:], output.mT.contiguous().mT, strides
        expected = run_chain(fused_chain, case, device)
        assert_same(run_chain(fused_chain, other, device), expected, 0.0)

    def test_images_that_need_no_gradient(self, device: str) -> None:
        x, encoder, decoder, output, strides = chain_sample([6, 5], [3, 3], [1, 2])
        results = []
        for needs_grad in (True, False):
            weights = [w.to(device).requires_grad_() for w in (*encoder, *decoder, output)]
            images = x.to(device).requires_grad_(needs_grad)
            fused_chain(images, *weights, strides=strides).square().sum().backward()
            results.append([w.grad for w in weights])
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, *HALF])
    def test_precision(self, dtype: torch.dtype, device: str) -> None:
        """In half precision under autocast, where weights and their gradients are float32."""
        case = chain_sample([40, 24, 33], [3, 1, 5], [1, 2, 1], (12, 9))
        x, encoder, decoder, output, strides = case
        expected = run_chain(plain_chain, case)
        single = (x.float(), *([w.float() for w in part] for part in (encoder, decoder)))
        given = (*single, output.float(), strides)
        with torch.autocast(device, dtype, enabled=dtype in HALF):
            # The rule for CUDA is not the CPU's, which computes in float32.
            half = (given[0].to(dtype), *given[1:])
            got = run_chain(fused_chain, half if device == "cuda" else given, device)
        assert got[0].dtype == (dtype if device == "cuda" else torch.float32)
        for a, b in zip(got[2:], expected[2:], strict=True):
            assert a.dtype == torch.float32
            assert (a.cpu() - b).norm() < 0.25 * b.norm()

    @pytest.mark.parametrize("dtype", HALF)
    @pytest.mark.parametrize("weight_dtype", ["float32", "half"])
    def test_half_precision_of_the_operator(
        self, dtype: torch.dtype, weight_dtype: str, device: str
    ) -> None:
        x, encoder, decoder, output, strides = chain_sample([40, 24, 33], [3, 1, 5], [1, 2, 1])
        kind = torch.float32 if weight_dtype == "float32" else dtype
        weights = [w.to(device, kind) for w in (*encoder, *reversed(decoder), output)]
        images = x.to(device, dtype).permute(0, 2, 3, 1).contiguous()
        (out,), saved = torch.ops.asng.cae_chains(images, weights, strides, [3], True, False)
        plain = [w.to(dtype).double().cpu() for w in weights]
        order = (*plain[:3], *plain[5:2:-1], plain[6])
        rounded = images.cpu().permute(0, 3, 1, 2).double()
        leaves = [t.requires_grad_() for t in (rounded, *order)]
        expected = plain_chain(*leaves, strides=strides)
        error = (out.cpu().permute(0, 3, 1, 2) - expected).norm() / expected.norm()
        assert all(t.dtype == dtype for t in (out, *saved))
        assert error < 0.05
        grad_x, grads = torch.ops.asng._cae_chains_backward(
            [out], saved, weights, strides, [3], True, False
        )
        probe = out.cpu().permute(0, 3, 1, 2).double()
        want = torch.autograd.grad((expected * probe).sum(), leaves)
        got = [grad_x.permute(0, 3, 1, 2), *grads[:3], *grads[5:2:-1], grads[6]]
        for a, b in zip(got, want, strict=True):
            assert (a.cpu().double() - b).norm() < 0.25 * b.norm()  # signs of ReLU turn
        assert all(grad.dtype == kind for grad in grads)

    def test_gradcheck(self, device: str) -> None:
        case = chain_sample([2, 1], [3, 1], [1, 2], (3, 2), 1, images=1)
        x, encoder, decoder, output, strides = case
        leaves = [t.to(device).clone().requires_grad_() for t in (x, *encoder, *decoder, output)]
        assert torch.autograd.gradcheck(partial(fused_chain, strides=strides), leaves)

    def test_compiled(self, device: str) -> None:
        case = chain_sample([6, 5], [3, 1], [1, 2])
        compiled = torch.compile(fused_chain, backend="aot_eager", fullgraph=True)
        expected = run_chain(fused_chain, case, device)
        assert_same(run_chain(compiled, case, device), expected, 0.0)

    def test_differentiable_once(self, device: str) -> None:
        x, encoder, decoder, output, strides = chain_sample([6], [3], [1])
        weights = [w.to(device).requires_grad_() for w in (*encoder, *decoder, output)]
        out = fused_chain(x.to(device), *weights, strides=strides)
        (grad,) = torch.autograd.grad(out.square().sum(), weights[0], create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()

    def test_nothing_is_kept_without_gradients(self, device: str) -> None:
        x, encoder, decoder, output, strides = chain_sample([6, 5], [3, 3], [1, 2])
        weights = [w.to(device) for w in (*encoder, *decoder, output)]
        with torch.no_grad():
            out = fused_chain(x.to(device), *weights, strides=strides)
        again = fused_chain(x.to(device), *weights, strides=strides)
        assert torch.equal(out, again)
        images = x.to(device).permute(0, 2, 3, 1).contiguous()
        order = [*weights[:2], weights[3], weights[2], weights[4]]
        assert torch.ops.asng.cae_chains(images, order, strides, [2], False, False)[1] == []

    def test_errors(self, device: str) -> None:
        x, encoder, decoder, output, strides = chain_sample([6, 5], [3, 3], [1, 2])
        weights = [w.to(device) for w in (*encoder, *decoder, output)]
        images = x.to(device)

        def call(given: list[Tensor], steps: list[int], x: Tensor = images) -> Any:
            return lambda: fused_chain(x, *given, strides=steps)

        wide = torch.zeros(6, 6, 33, 33, dtype=torch.float64, device=device)
        wrong: Wrong = [
            (call(weights, [1, 3]), RuntimeError, "strides must be 1 or 2, got 3"),
            (call(weights, [1]), RuntimeError, "must be 3 weights for 1 layers of 1 auto.*, got 5"),
            (call(weights, strides, images[:, :2]), RuntimeError, "weight 0 must have 2 columns"),
            (call(weights, strides, images[:0]), RuntimeError, "must have 4 dimensions and not be"),
            (call(weights, strides, images.float()), RuntimeError, "must have the dtype of x"),
            (
                call([*weights[:3], weights[3][:, :4], weights[4]], strides),
                RuntimeError,
                "weight 2 must have 5 columns, got 4",
            ),
            (
                call([*weights[:2], wide, *weights[3:]], strides),
                RuntimeError,
                "kernels of an odd side of at most 31",
            ),
        ]
        raise_all(wrong)


class _Rounded(torch.autograd.Function):
    """Rounds numbers in float64 to another precision, and their gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, forward: bool, backward: bool) -> Tensor:
        ctx.dtype, ctx.backward = dtype, backward
        return rounded(x, dtype) if forward else x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return rounded(grad, ctx.dtype) if ctx.backward else grad, None, None, None


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """To TF32, if that is float32."""
    if dtype != torch.float32:
        return x.to(dtype).double()
    bits = x.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


def rounded_chain(x: Tensor, *weights: Tensor, strides: list[int], dtype: torch.dtype) -> Tensor:
    """In float64, but for what is rounded: weights, and maps and their gradients as they are
    stored."""
    count = len(strides)
    near = [_Rounded.apply(weight, dtype, True, False) for weight in weights]  # type: ignore[no-untyped-call]
    encoder, decoder, output = near[:count], near[count:-1], near[-1]

    def store(y: Tensor) -> Tensor:
        return _Rounded.apply(y, dtype, True, True)  # type: ignore[no-any-return, no-untyped-call]

    maps = [_Rounded.apply(x, dtype, True, False)]  # type: ignore[no-untyped-call]
    for weight, stride in zip(encoder, strides):
        maps.append(store(plain_encode(maps[-1], weight, stride)))
    y = maps[-1]
    for i in reversed(range(count)):
        skipped = maps[i + 1] if strides[i] == 1 else None
        y = store(plain_decode(y, decoder[i], skipped, strides[i], tuple(maps[i].shape[2:])))
    out = plain_decode(y, output, None, 1, tuple(x.shape[2:]), relu=False)
    return _Rounded.apply(out, dtype, False, True)  # type: ignore[no-any-return, no-untyped-call]


def error(got: Tensor, expected: Tensor) -> float:
    return float((got.cpu().double() - expected).norm() / (expected.norm() + 1e-30))


@pytest.mark.grid
@pytest.mark.parametrize("device", CUDA_DEVICES)
@pytest.mark.usefixtures("tf32")
class TestTensorCores:
    """Chains whose convolutions are kernels of our own."""

    @pytest.fixture(autouse=True)
    def _own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", "own")

    @pytest.fixture(params=["mma", "wgmma"])
    def products(
        self, request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if device != "cpu" and torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("products by warpgroups are for compute capability 9.0")
        monkeypatch.setenv("ASNG_CUDA_TENSOR_CORES", request.param)

    @pytest.mark.usefixtures("products")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        "space",
        [
            CaeCatSpace(layers=6, channels=(8, 40, 64)),
            CaeIntSpace(layers=6, low=2, high=100),
            CaeCatSpace(layers=2, kernels=(1, 7), channels=(72,)),
        ],
        ids=["cat", "int", "wide"],
    )
    def test_random_architectures(self, space: CaeSpace, dtype: torch.dtype, device: str) -> None:
        for seed in range(5 if space.layers > 2 else 2):
            chain = random_layers(space, seed)
            generator = torch.Generator().manual_seed(seed)
            size = torch.randint(1, 10, (2,), generator=generator).tolist()
            case = chain_sample(
                [layer.channels for layer in chain],
                [layer.kernel for layer in chain],
                [layer.stride for layer in chain],
                (size[0], size[1]),
                1 + seed % 3,
                1 + seed % 4,
            )
            given = in_dtype(case, dtype)
            expected = run_chain(partial(rounded_chain, dtype=dtype), case)
            results = [run_chain(fused_chain, given, device) for _ in range(2)]
            assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
            for got, want in zip(results[0], expected, strict=True):
                # Where a sum is halfway between two numbers it may be rounded to either, and where
                # it is next to nothing ReLU may take it for either.
                assert error(got, want) < (2e-3 if dtype == torch.float32 else 2e-2)

    @pytest.mark.usefixtures("products")
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_persistent_layers(
        self, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same bits, in one launch instead of one or two for each layer; also where there are
        more layers than a launch takes."""
        space = CaeIntSpace(layers=4, low=2, high=70)
        deep = [CaeLayer(i, 1, 8, skip=i % 7 != 0) for i in range(20)]
        for chain in (random_layers(space, 1), random_layers(space, 2), deep):
            case = chain_sample(
                [layer.channels for layer in chain],
                [layer.kernel for layer in chain],
                [layer.stride for layer in chain],
                (6, 5),
                1,
            )
            given = in_dtype(case, dtype)
            results = []
            for way in ("each", "persistent"):
                monkeypatch.setenv("ASNG_CUDA_LAYERS", way)
                found = run_chain(fused_chain, given, device)
                with torch.no_grad():
                    weights = [w.to(device) for w in (*given[1], *given[2], given[3])]
                    found.append(fused_chain(given[0].to(device), *weights, strides=given[4]))
                results.append(found)
            assert torch.equal(results[1][0], results[1][-1])
            assert all(torch.equal(*pair) for pair in zip(*results, strict=True))

    def test_both_ways(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        case = chain_sample([40, 24, 33], [3, 1, 5], [1, 2, 1], (12, 9))
        expected = run_chain(plain_chain, case)
        outputs = []
        for way in ("own", "cudnn", "auto"):
            monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", way)
            got = run_chain(fused_chain, in_dtype(case, torch.float32), device)
            outputs.append(got[0])
            # The grid stands in for cuDNN with what does not round; signs of ReLU do not turn.
            exact = way == "cudnn" and device == "cpu"
            assert error(got[0], expected[0]) < (1e-5 if exact else 3e-3)
            for a, b in zip(got[1:], expected[1:], strict=True):
                assert error(a, b) < (1e-4 if exact else 0.25)
        assert not torch.equal(outputs[0], outputs[1])

    def test_which_they_are_in_words(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("ASNG_CUDA_LAYERS", raising=False)
        assert cae_ops.convolutions(torch.float32).endswith("of our own, in TF32")
        assert cae_ops.convolutions(torch.bfloat16).endswith("of our own, in bfloat16")
        assert "are cuDNN's: those" in cae_ops.convolutions(torch.float64)
        with monkeypatch.context() as patch:
            patch.setenv("ASNG_CUDA_LAYERS", "persistent")
            assert "of our own, persistent ones, in TF32" in cae_ops.convolutions(torch.float32)
            patch.setenv("ASNG_CUDA_TENSOR_CORES", "wgmma")
            assert "persistent ones, with products of warpgroups, in TF32" in (
                cae_ops.convolutions(torch.float32)
            )
        torch.backends.cudnn.allow_tf32 = False
        assert "are cuDNN's: those" in cae_ops.convolutions(torch.float32)
        monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", "cudnn")
        assert "as ASNG_CUDA_CONVOLUTIONS says" in cae_ops.convolutions(torch.bfloat16)

    def test_what_they_are_not_for(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        case = chain_sample([4], [3], [1])
        with pytest.raises(RuntimeError, match="own, which is not for other precisions"):
            run_chain(fused_chain, case, device)
        torch.backends.cudnn.allow_tf32 = False
        with pytest.raises(RuntimeError, match="own, which is not for other precisions"):
            run_chain(fused_chain, in_dtype(case, torch.float32), device)
        monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", "fast")
        with pytest.raises(RuntimeError, match="must be cudnn, own or auto, got fast"):
            run_chain(fused_chain, case, device)
        monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", "auto")
        monkeypatch.setenv("ASNG_CUDA_LAYERS", "all")
        with pytest.raises(RuntimeError, match="must be each or persistent, got all"):
            run_chain(fused_chain, case, device)
        monkeypatch.delenv("ASNG_CUDA_LAYERS")
        monkeypatch.setenv("ASNG_CUDA_CONVOLUTIONS", "own")
        monkeypatch.setenv("ASNG_CUDA_TENSOR_CORES", "all")
        with pytest.raises(RuntimeError, match="must be mma or wgmma, got all"):
            run_chain(fused_chain, in_dtype(case, torch.bfloat16), device)


class TestSupernet:
    """Where and how supernets call the layers."""

    @pytest.mark.parametrize(
        "space",
        [CaeCatSpace(layers=6, channels=(3, 5, 8)), CaeIntSpace(layers=6, low=2, high=8)],
        ids=["cat", "int"],
    )
    def test_like_the_plain_one(
        self, space: CaeSpace, cuda_way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Layer by layer, all but those with 1×1 kernels, and, where there are its kernels, as one
        operator."""
        torch.manual_seed(0)
        supernet = CaeSupernet(space).double()
        fused = [False, True] if GRID or cuda_way == "cuda" else [False]
        for seed in range(20):
            chain = random_layers(space, seed)
            size = torch.randint(1, 20, (2,), generator=torch.Generator().manual_seed(seed))
            x = torch.rand(1 + seed % 3, 3, *size.tolist(), dtype=torch.float64)
            results = []
            for layerwise, whole, device in (
                (_never, _never, "cpu"),
                *((_any_kernel, _always if fuses else _never, cuda_way) for fuses in fused),
            ):
                monkeypatch.setattr(layers, "_fuses", layerwise)
                monkeypatch.setattr(layers, "_fuses_chain", whole)
                supernet.to(device).zero_grad()
                out = supernet(x.to(device), chain)
                out.square().mean().backward()
                grads = [p.grad.cpu().clone() for p in supernet.parameters() if p.grad is not None]
                results.append([out.detach().cpu(), *grads])
            for got in results[1:]:
                torch.testing.assert_close(got, results[0], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("device", CUDA_DEVICES)
    @pytest.mark.grid
    def test_a_search_with_whole_autoencoders(
        self, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SGD on the slices in use gives the weights that it gives layer by layer."""
        space = CaeIntSpace(layers=5, low=2, high=40)
        x = torch.rand(2, 3, 9, 8, dtype=torch.float64, device=device)
        weights = []
        for whole in (_never, _always):
            monkeypatch.setattr(layers, "_fuses_chain", whole)
            monkeypatch.setattr(layers, "_fuses", _never)
            torch.manual_seed(0)
            supernet = CaeSupernet(space).double().to(device)
            sgd = ActiveSGD(supernet, 0.05, 0.9, 0.5)
            for step in range(8):
                both = [random_layers(space, 2 * step + i) for i in range(2)]
                outs = supernet.restore(x, both)
                torch.stack([(out - x).square().mean() for out in outs]).mean().backward()
                sgd.step()
                with torch.no_grad():
                    supernet(x, random_layers(space, 50 + step))
            weights.append([w.clone() for w in supernet.state_dict().values()])
        torch.testing.assert_close(weights[1], weights[0], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("available", [True, False])
    def test_where_it_takes_this_way(
        self, available: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On CUDA devices everywhere, but for 1×1 kernels and where the operators are not built."""
        monkeypatch.setattr(cae_ops, "cuda_available", lambda: available)
        with FakeTensorMode():
            for dtype in (torch.float32, torch.float64, *HALF):
                x = torch.empty(2, 3, 6, 6, device="cuda", dtype=dtype)
                for kernel in (1, 3, 5):
                    weight = torch.empty(4, 3, kernel, kernel, device="cuda", dtype=dtype)
                    for stride in (1, 2):
                        fuses = layers._fuses(x, weight, stride, x.shape[2:])
                        assert fuses == (available and kernel != 1)
                assert layers._fuses_chain(x) == available
            assert not layers._fuses_chain(x.cpu())

    @pytest.mark.usefixtures("twins")
    @pytest.mark.grid
    def test_the_weight_is_kept_and_no_copy_of_it(self) -> None:
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        whole = torch.randn(8, 8, 3, 3, requires_grad=True)
        x = torch.rand(1, 4, 6, 6)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
                out = cae_ops.encode(x, whole[:5, :4])
                cae_ops.decode(out, whole[:5, :4], x)
            out.float().sum().backward()
        slices = [t for t in kept if t.shape == (5, 4, 3, 3)]
        assert len(slices) == 2
        for t in slices:
            assert t.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        # Beside it, input and output of each layer.
        assert len(kept) == 6
        assert whole.grad is not None
        assert not whole.grad[5:].any()

    @pytest.mark.cuda
    def test_no_synchronization_with_the_device(self) -> None:
        x, low, weight, stride, size = to("cuda", sample((12, 9), (16, 24), 3, 2, torch.float32))
        for mode in ("default", "error"):  # libraries set themselves up in the first round
            torch.cuda.set_sync_debug_mode(mode)
            try:
                leaves = [t.detach().requires_grad_() for t in (x, low, weight)]
                with torch.autocast("cuda", torch.bfloat16):
                    out = cae_ops.encode(leaves[0], leaves[2], stride)
                    back = cae_ops.decode(leaves[1] + out, leaves[2], leaves[0], stride, size)
                torch.autograd.grad(back.float().sum(), leaves)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_no_synchronization_in_a_search(self, dtype: torch.dtype) -> None:
        space = CaeIntSpace(layers=4, low=2, high=40)
        supernet = CaeSupernet(space).cuda()
        sgd = ActiveSGD(supernet, 0.05, 0.9, 0.5)
        x = torch.rand(2, 3, 9, 8, device="cuda")
        for seed in range(6):
            torch.cuda.set_sync_debug_mode("default" if seed < 2 else "error")
            try:
                with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                    out = supernet(x, random_layers(space, seed % 2))
                (out.float() - x).square().mean().backward()
                sgd.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def _never(*_: Any) -> bool:
    return False


def _always(*_: Any) -> bool:
    return True


def _any_kernel(x: Tensor, weight: Tensor, *_: Any) -> bool:
    return weight.shape[2] in cae_ops.KERNELS
