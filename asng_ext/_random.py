"""The random numbers of a run come from generators of its own."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "DrawsFrom",
    "GlobalGenerators",
    "ModuleGenerators",
    "drawn",
    "draws_of",
    "seeded_generator",
]

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
        # Where they were before those batches whose making drew from them.
        self._of_batches: dict[int, list[Tensor]] = {}
        self._saved: list[Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Where they are, and where they were before those batches whose making drew from them."""
        return {"states": list(self._own), "of_batches": dict(self._of_batches)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """For new ones: :func:`drawn` makes the batches so far once more, and then goes on."""
        self._saved, self._of_batches = list(state["states"]), dict(state["of_batches"])

    def make(self, number: int, batches: Iterator[Batch]) -> Batch:
        """The next batch of an epoch; StopIteration if there is none."""
        before = self._own = self._of_batches.get(number, self._own)
        with self:
            batch = next(batches)
        if not all(map(torch.equal, before, self._own)):
            self._of_batches[number] = before
        return batch

    def go_on(self) -> None:
        """From where the state was read that was loaded, if one was."""
        self._own, self._saved = self._saved or self._own, None

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


class OwnGenerators(contextlib.nullcontext[None]):
    """Instead of :class:`GlobalGenerators`, for what draws from none of them: nothing is borrowed,
    and there is no state."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to load."""

    def make(self, number: int, batches: Iterator[Batch]) -> Batch:
        """The next batch of an epoch; StopIteration if there is none."""
        return next(batches)

    def go_on(self) -> None:
        """Nothing to go on from."""


Draws = GlobalGenerators | OwnGenerators


class ModuleGenerators:
    """The generators that modules of a model have as attributes, such as that of drop-path.

    Args:
        model: Its modules are asked when a state is read or set.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def _all(self) -> dict[str, torch.Generator]:
        return {
            f"{name}.{attribute}": value
            for name, module in self._model.named_modules()
            for attribute, value in vars(module).items()
            if isinstance(value, torch.Generator)
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Where they are, by name."""
        return {name: generator.get_state() for name, generator in self._all().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Sets what :meth:`state_dict` gave; KeyError for another model."""
        generators = self._all()
        for name, value in state.items():
            generators[name].set_state(value)


def draws_of(seed: int, purpose: str, device: torch.device, *, own_generators: bool) -> Draws:
    """What each step of an epoch runs in, so that its draws are a function of (seed, purpose).

    That makes an epoch the same whatever ran before it: a resumed run is the run. A task that has
    ``own_generators`` needs nothing; for any other, PyTorch's global generators are borrowed:
    dropout and most of what users write draw from them.
    """
    return OwnGenerators() if own_generators else GlobalGenerators(seed, purpose, device)


def drawn(
    draws: Draws, batches_of: Callable[[], Iterable[Batch]], done: int = 0
) -> Iterator[Batch]:
    """The batches of an epoch, made within ``draws``; what is done with them is not.

    Args:
        draws: New ones of the epoch, with the state that they had after the steps that are done.
        batches_of: Gives the batches of the whole epoch.
        done: Steps that are done. Their batches are made, since those that follow may depend on
            what they draw, and are not given.

    Raises:
        ValueError: If there are fewer.
    """
    with draws:
        batches = iter(batches_of())
    for number in count():
        if number == done:
            draws.go_on()
        try:
            batch = draws.make(number, batches)
        except StopIteration:
            if number < done:
                raise ValueError(
                    f"batches of the epoch must be as many as before, {done} or more, got {number}"
                ) from None
            return
        if number >= done:
            yield batch
