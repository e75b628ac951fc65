"""The random numbers of a run come from generators of its own."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DrawsFrom", "GlobalGenerators", "drawn", "draws_of", "seeded_generator"]

Batch = TypeVar("Batch")


def seeded_generator(seed: int, purpose: str, device: torch.device) -> torch.Generator:
    """A generator on ``device`` whose draws are a function of (seed, purpose) alone."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    # Only the low 32 bits seed PyTorch's generator on the CPU.
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:4], "little"))


class DrawsFrom(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In this context, PyTorch's random operations draw as a function of (seed, purpose).

    The modules of PyTorch initialize their weights from the global generators, and take no other.
    Here every random operation that is given no generator gets one of this context, on its device.
    Global generators are neither read nor set, and other threads see nothing of it.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self._purpose = purpose
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            tensors = (value.device for value in args if isinstance(value, Tensor))
            device = torch.device(kwargs.get("device") or next(tensors, "cpu"))
            taking = _taking_generator(func)
            if taking is not None and device.type != "meta":  # nothing is drawn there
                return taking(*args, **kwargs | {"generator": self._generator(device)})
        return func(*args, **kwargs)

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = seeded_generator(self._seed, self._purpose, device)
        return self._generators[device]


def _taking_generator(operator: Any) -> Any:
    """The overload of a random operator that also takes a generator; None if it has none."""
    wanted = {argument.name for argument in operator._schema.arguments} | {"generator"}
    packet = operator.overloadpacket
    # Most take one themselves.
    for overload in (operator, *(getattr(packet, name) for name in packet.overloads())):
        if {argument.name for argument in overload._schema.arguments} == wanted:
            return overload
    return None


class GlobalGenerators:
    """PyTorch's global generators, borrowed for the steps of an epoch.

    For code that can draw from no others, such as dropout. In each ``with`` block they go on from
    where the last one left them, the first one from (seed, purpose), and afterwards they are as
    before. Blocks of several threads exclude each other, so that none draws the numbers of another.
    """

    _turn = threading.RLock()

    def __init__(self, seed: int, purpose: str, device: torch.device) -> None:
        self._devices = [torch.device("cpu")] + [device] * (device.type == "cuda")
        self._own = [seeded_generator(seed, purpose, each).get_state() for each in self._devices]
        self._before: list[Tensor] = []

    def __enter__(self) -> None:
        self._turn.acquire()
        self._before = self._exchange(self._own)

    def __exit__(self, *exception: object) -> None:
        self._own = self._exchange(self._before)
        self._turn.release()

    def _exchange(self, states: list[Tensor]) -> list[Tensor]:
        """Sets the states; returns what they were."""
        before = []
        for device, state in zip(self._devices, states, strict=True):
            if device.type == "cuda":
                before.append(torch.cuda.get_rng_state(device))
                torch.cuda.set_rng_state(state, device)
            else:
                before.append(torch.get_rng_state())
                torch.set_rng_state(state)
        return before


def draws_of(
    seed: int, purpose: str, device: torch.device, *, own_generators: bool
) -> contextlib.AbstractContextManager[None]:
    """What each step of an epoch runs in, so that its draws are a function of (seed, purpose).

    That makes an epoch the same whatever ran before it: a resumed run is the run. A task that has
    ``own_generators`` needs nothing; for any other, PyTorch's global generators are borrowed:
    dropout and most of what users write draw from them.
    """
    return contextlib.nullcontext() if own_generators else GlobalGenerators(seed, purpose, device)


def drawn(
    draws: contextlib.AbstractContextManager[None], batches_of: Callable[[], Iterable[Batch]]
) -> Iterator[Batch]:
    """The batches of an epoch, made within ``draws``; what is done with them is not."""
    with draws:
        batches = iter(batches_of())
    while True:
        with draws:
            try:
                batch = next(batches)
            except StopIteration:
                return
        yield batch
