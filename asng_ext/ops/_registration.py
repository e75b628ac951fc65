"""What all compiled operators have in common: results without values are for tensors of one device,
derivatives can be taken once, and under autocast arguments are cast by one rule on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import Library

from asng_ext.ops._libraries import require_cuda

LIBRARY = Library("asng", "IMPL")  # type: ignore[no-untyped-call]
"""Holds the kernels that are written in Python; they end with it."""

Cast: TypeAlias = Callable[[str, torch.dtype], torch.dtype | None]
"""From the type of device and autocast's dtype to the dtype of an argument; None: as it is."""


def register_operator(
    name: str,
    fake: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    gradients: Mapping[str, str | None] | Callable[..., Any],
    casts: Mapping[int, Cast],
) -> None:
    """Registers an operator's fake, derivative and autocast rule and `_<name>_backward`'s fake.

    The second operator returns contiguous `gradients` of those of its arguments, in order; where an
    argument is named with one, it says whether that gradient is needed, which otherwise is empty;
    so is the list of those of a list. Instead of names it may be the second operator's fake.

    `backward(ctx, grad)` uses that second operator by `call_backward`, and gives gradients of the
    first arguments, which are dropped where none are needed; the others have none. `grad`, of the
    first result, is contiguous; of a list it is a list, with None where there is no gradient. An
    operator that keeps nothing where `ctx.save` is false has no derivative then.

    The second operator has no derivative: with `create_graph=True` gradients can be computed, and
    raise RuntimeError when differentiated.
    """

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)

    def all_gradients(ctx: Any, grad: Any, *_: Any) -> tuple[Any, ...]:
        if not getattr(ctx, "save", True):
            raise RuntimeError(
                "the operator was called with save=False, so it has no backward pass"
            )
        needed = ctx.needs_input_grad
        given = backward(ctx, _contiguous(grad)) if _tensors((grad,)) else ()
        grads = [*given, *[None] * (len(needed) - len(given))]
        return tuple(
            (g or [None] * len(need)) if isinstance(need, list) else g if need else None
            for g, need in zip(grads, needed)
        )

    def raise_error(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"asng::{name} has no second derivative: it can be differentiated only once. "
            "Layers of plain PyTorch can be differentiated more often"
        )

    arguments = getattr(torch.ops.asng, f"_{name}_backward").default._schema.arguments

    def named_fake(*args: Any) -> tuple[Any, ...]:
        assert not callable(gradients)
        given = {argument.name: arg for argument, arg in zip(arguments, args, strict=True)}
        return tuple(
            [w.new_empty(w.shape) for w in given[of] if flag is None or given[flag]]
            if isinstance(given[of], list)
            else given[of].new_empty(given[of].shape if flag is None or given[flag] else (0,))
            for of, flag in gradients.items()
        )

    register_fake(name, fake)
    register_fake(f"_{name}_backward", gradients if callable(gradients) else named_fake)
    torch.library.register_autograd(f"asng::{name}", all_gradients, setup_context=setup)
    torch.library.register_autograd(f"asng::_{name}_backward", raise_error)
    register_autocast(name, casts)


def _contiguous(grad: Any) -> Any:
    """A tensor, or each one of a list."""
    if isinstance(grad, Tensor):
        return grad.contiguous()
    return [None if g is None else g.contiguous() for g in grad]


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    flat = [value for arg in args for value in (arg if isinstance(arg, list) else [arg])]
    return [value for value in flat if isinstance(value, Tensor)]


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Registers the function that gives results without values, for meta tensors and tracing.

    PyTorch calls it if any argument is a meta tensor; unless all are, it raises RuntimeError.
    """

    def checked(*args: Any) -> Any:
        devices = {str(t.device) for t in _tensors(args)}
        if len(devices) > 1:
            raise RuntimeError(
                f"tensors given to asng::{name} must be on one device, got {sorted(devices)}"
            )
        return fake(*args)

    torch.library.register_fake(f"asng::{name}", checked)


def as_under_autocast(x: Tensor, rule: Cast) -> Tensor:
    """What an argument becomes under autocast, where that is enabled: for what is called without
    the dispatcher."""
    device_type = x.device.type
    if not torch.is_autocast_enabled(device_type):
        return x
    cast: Tensor = _cast(x, rule(device_type, torch.get_autocast_dtype(device_type)))
    return cast


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    if dtype is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value if value.dtype == torch.float64 else value.to(dtype)


def register_autocast(
    name: str,
    casts: Mapping[int, Cast],
    device_types: Sequence[str] = ("cpu", "cuda"),
    library: Library = LIBRARY,
) -> None:
    """Registers what the arguments of an operator, by their positions, become under autocast.

    Tensors in lists are cast one by one. What is not floating point stays as it is, and so does
    float64: as for PyTorch's own operators, double precision is meant.
    """
    operator = getattr(torch.ops.asng, name).default

    def register(device_type: str) -> None:
        key = f"Autocast{device_type.upper()}"
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args: Any) -> Any:
            dtype = torch.get_autocast_dtype(device_type)
            given = list(args)
            for i, rule in casts.items():
                given[i] = _cast(given[i], rule(device_type, dtype))
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return operator(*given)

        library.impl(name, kernel, key)  # type: ignore[no-untyped-call]

    for device_type in device_types:
        register(device_type)


def check_tensor(name: str, x: Any, dimensions: int) -> None:
    """TypeError unless a tensor, ValueError unless it has so many dimensions and a known device.

    Raises RuntimeError as well, if the operators for its device cannot be used.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dim() != dimensions or 0 in x.shape:
        raise ValueError(
            f"{name} must have {dimensions} dimensions, none of them 0, got shape {tuple(x.shape)}"
        )
    if x.device.type == "cuda":
        require_cuda()
    elif x.device.type not in ("cpu", "meta"):
        raise ValueError(f"{name} must be on the CPU or a CUDA device, got {x.device}")


def call(name: str, *args: Any) -> Any:
    """Calls an operator.

    Raises:
        NotImplementedError: An argument has a tangent; PyTorch would drop it without a word.
    """
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        dual = map(forward_ad.unpack_dual, _tensors(args))
        if any(primal_and_tangent.tangent is not None for primal_and_tangent in dual):
            raise NotImplementedError(f"asng::{name} has no forward-mode derivative")
    return getattr(torch.ops.asng, name)(*args)


def call_backward(name: str, *args: Any) -> Any:
    """Calls the operator `_<name>_backward`."""
    operator = getattr(torch.ops.asng, f"_{name}_backward")
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return operator(*args)
    # Nothing is recorded without create_graph, and passing the derivative by saves 10 µs.
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)
