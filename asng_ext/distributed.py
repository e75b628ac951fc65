"""Several processes that search or train together, as torchrun starts them: ranks.

Every rank has the whole state, of the distribution and of the weights, and makes the same steps;
what they exchange in between are losses and gradients. So whatever is not exchanged must be the
same everywhere by itself, and :class:`Ranks` finds out where it is not.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from asng_ext._checks import brief, listed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "ALONE",
    "Ranks",
    "RanksDifferError",
    "SameSamples",
    "fingerprint",
    "joined",
    "same_samples",
]

Result = TypeVar("Result")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher says by the environment. LOCAL_RANK, too, where there are GPUs."""
_BEAT = 1.0
"""Seconds between the signs of life of a rank."""
_SILENCE = 5.0
"""Seconds without any after which a rank counts as gone, once an exchange has failed."""
_TIMEOUT = 600.0
"""Seconds that a rank waits for others; ASNG_RANK_TIMEOUT says otherwise."""


class RanksDifferError(ValueError):
    """What must be the same on all ranks is not."""


class Ranks:
    """The processes that work together, seen from one of them.

    Without arguments there is but this one: then nothing is exchanged, and every method does what
    it says right here.

    Args:
        rank: The number of this one, from 0.
        size: How many there are.
        watch: Knows which of them are gone.

    Attributes:
        rank, size: The same.
        first: Whether this is rank 0, which alone writes and prints.
    """

    def __init__(self, rank: int = 0, size: int = 1, watch: _Watch | None = None) -> None:
        self.rank = rank
        self.size = size
        self.first = rank == 0
        self._watch = watch

    def from_first(self, what: Callable[[], Result]) -> Result:
        """What ``what`` returns on rank 0, where alone it is called, on all ranks; or the exception
        that it raises there, which then has an attribute ``of_first``."""
        if self.size == 1:
            return what()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = what()
            except Exception as error:
                outcome[1] = error
            sent = outcome if outcome[1] is None else [None, _plain(outcome[1])]
            self._broadcast(sent)
        else:
            self._broadcast(outcome)
            if outcome[1] is not None:
                outcome[1].of_first = True
        if outcome[1] is not None:
            raise outcome[1]
        result: Result = outcome[0]
        return result

    @contextlib.contextmanager
    def held_by_first(
        self, make: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> Iterator[None]:
        """In this context rank 0 is in the one that ``make`` makes there."""
        with contextlib.ExitStack() as stack:

            def enter() -> None:
                stack.enter_context(make())

            self.from_first(enter)
            yield

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their sums over the ranks, which are the same bits on each.

        Tensors of one type and device travel together, and are added up in an order that depends on
        their number and that of the ranks alone. With NCCL, nothing synchronizes with the device.
        """
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        groups: dict[Any, list[Tensor]] = {}
        for tensor in tensors:
            groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for group in groups.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
            with self._exchanging():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts):
                tensor.detach().copy_(part.view(tensor.shape))

    def largest(self, numbers: Sequence[int] | Tensor) -> Tensor:
        """The largest of each integer over the ranks, int64 on the CPU."""
        import torch

        found = torch.as_tensor(numbers, dtype=torch.int64).clone()
        if self.size > 1:
            import torch.distributed as dist

            with self._exchanging():
                dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    def agree(self, signal: int, due: bool, state: int = 0, of: str = "theta") -> tuple[int, bool]:
        """What all ranks are to do after a step.

        Args:
            signal: The number of the one that has come to this process; 0 for none.
            due: Whether a checkpoint is due; that of rank 0 counts.
            state: The fingerprint of what must be the same.
            of: What that is.

        Returns:
            The largest signal that came to any, and whether a checkpoint is due.

        Raises:
            RanksDifferError: If a fingerprint is another one.
        """
        if self.size == 1:
            return signal, due
        most, asked, high, low = self.largest([signal, due and self.first, state, -state]).tolist()
        if high != -low:
            self.check_same({of: state})
        return most, bool(asked)

    def check_same(self, values: Mapping[str, Any]) -> None:
        """RanksDifferError that names the ranks if one of the values, which are plain or the
        fingerprints of others, is not the same on all."""
        if self.size == 1:
            return
        import torch.distributed as dist

        gathered: list[Any] = [None] * self.size
        with self._exchanging():
            dist.all_gather_object(gathered, dict(values))
        names = {name: None for one in gathered for name in one}
        for name in names:
            ranks: dict[str, list[int]] = {}
            for rank, one in enumerate(gathered):
                ranks.setdefault(repr(one.get(name)), []).append(rank)
            if len(ranks) > 1:
                said = " and ".join(
                    f"{brief(gathered[where[0]].get(name))} on rank{'s' * (len(where) > 1)} "
                    + ", ".join(map(str, where))
                    for where in ranks.values()
                )
                raise RanksDifferError(f"{name} must be the same on all ranks, got {said}")

    def exchange_is_capturable(self, device: torch.device) -> bool:
        """Whether exchanges between such devices can be part of a CUDA graph: NCCL's can."""
        if self.size == 1:
            return True
        import torch.distributed as dist

        # Of the form "cpu:gloo,cuda:nccl", or "nccl" for all.
        configured = str(dist.get_backend_config()).split(",")
        return f"{device.type}:nccl" in configured or "nccl" in configured

    def _broadcast(self, values: list[Any]) -> None:
        import torch
        import torch.distributed as dist

        with self._exchanging():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))

    @contextlib.contextmanager
    def _exchanging(self) -> Iterator[None]:
        """What fails in here fails since another rank is gone."""
        try:
            yield
        except RuntimeError as error:
            # Its frames hold the process group, whose end is what other ranks notice.
            traceback.clear_frames(error.__traceback__)
            words = str(error).strip().partition("\n")[0][:300]
            missing = self._watch.missing() if self._watch else ""
            missing = missing or "the exchange with the other ranks failed"
            raise ConnectionError(
                f"{missing} (rank {self.rank} noticed by: {words}); continue from the last "
                "checkpoint"
            ) from error


ALONE = Ranks()
"""A process by itself."""


def _plain(error: Exception) -> Exception:
    """The error, or where that cannot be sent, one of its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Watch:
    """Signs of life of all ranks, in the store by which they have found each other.

    Args:
        store: Of torch.distributed.
        rank, size: Of :class:`Ranks`.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        # A launcher that starts ranks again keeps its store.
        self._prefix = f"asng/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self._store = store
        self._rank = rank
        self._size = size
        self._ended = threading.Event()
        self._own = store.clone()  # calls of one store wait for each other
        self._beat(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _beat(self, count: int) -> None:
        self._own.set(f"{self._prefix}/beat/{self._rank}", str(count))

    def _run(self) -> None:
        count = 0
        while not self._ended.wait(_BEAT):
            count += 1
            try:
                self._beat(count)
            except RuntimeError:  # the store is gone
                return

    def end(self, words: str = "") -> None:
        """No more signs of life; the words say why, if something is wrong."""
        self._ended.set()
        self._thread.join(_SILENCE)  # longer only where the store does not answer
        with contextlib.suppress(RuntimeError):
            if words:
                self._store.set(f"{self._prefix}/words/{self._rank}", words)
            self._store.set(f"{self._prefix}/ended/{self._rank}", "")

    def wait_for_others(self) -> None:
        """The store may end with rank 0, and others find out from it what is wrong."""
        others = [f"{self._prefix}/ended/{rank}" for rank in range(1, self._size)]
        deadline = time.monotonic() + _SILENCE + 2
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < deadline and not self._store.check(others):
                time.sleep(0.1)

    def missing(self) -> str:
        """Which ranks are gone, in words; "" if all are there."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        try:
            before = {rank: self._read("beat", rank) for rank in others}
            for _ in range(int(_SILENCE / 0.25)):
                said = {rank: self._read("words", rank) for rank in others}
                if any(said.values()):
                    return "; ".join(f"rank {rank} failed: {w}" for rank, w in said.items() if w)
                time.sleep(0.25)
            silent = [rank for rank in others if self._read("beat", rank) == before[rank]]
        except RuntimeError:
            return "the process that keeps the list of ranks, rank 0 or the launcher, is gone"
        if not silent:
            return ""
        many = len(silent) > 1
        return (
            f"rank{'s' * many} {', '.join(map(str, silent))} {'do' if many else 'does'} not answer"
        )

    def _read(self, what: str, rank: int) -> str:
        key = f"{self._prefix}/{what}/{rank}"
        return str(self._store.get(key).decode()) if self._store.check([key]) else ""


class SameSamples:
    """An optimizer that asks the same samples on all ranks, and is told the same losses.

    All else is the optimizer's own. See :func:`same_samples`.
    """

    def __init__(self, optimizer: Any, ranks: Ranks) -> None:
        self._optimizer = optimizer
        self._ranks = ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)

    def tell(self, samples: Any, losses: Any) -> Any:
        """Tells the means over the ranks of the losses that each has found with its data.

        Raises:
            RanksDifferError: If the samples are not the same on all ranks.
            ConnectionError: If another rank is gone.
            ValueError, TypeError: As the optimizer does.
        """
        if self._ranks.size == 1:
            return self._optimizer.tell(samples, losses)
        import torch

        try:
            numbers = [float(loss) for loss in listed("losses", losses, "numbers")]
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"losses must be numbers, got {brief(losses)}") from None
        given = torch.tensor(numbers, dtype=torch.float64)
        values = getattr(samples, "categorical", samples), getattr(samples, "numerical", None)
        self._ranks.agree(0, False, fingerprint((values, len(given))), "samples of tell")
        self._ranks.sum([given])
        return self._optimizer.tell(samples, (given / self._ranks.size).tolist())


def same_samples(optimizer: Any, ranks: Ranks | None = None) -> SameSamples:
    """The optimizer for a training loop of one's own on several ranks, such as one with
    DistributedDataParallel: all train the same architectures, each on its part of the data.

    On every rank it takes over the state of that on rank 0, and so the seed. From then on ``ask``
    gives the same samples everywhere, and ``tell`` takes the losses that each rank has found, of
    which it tells the means. All ranks must ask and tell equally often.

    Args:
        optimizer: Such as :class:`asng_ext.ASNG`; made in the same way on all ranks, but for the
            seed.
        ranks: Of :func:`joined`; by default the default process group of torch.distributed, or
            this process alone where there is none.

    Raises:
        TypeError: If the optimizer lacks a method.
        ValueError: If it is of another space or other settings than that on rank 0.
    """
    for name in ("ask", "tell", "state_dict", "load_state_dict"):
        if not callable(getattr(optimizer, name, None)):
            raise TypeError(f"optimizer must have a method {name}, got {brief(optimizer)}")
    ranks = _ranks_of_group() if ranks is None else ranks
    optimizer.load_state_dict(ranks.from_first(optimizer.state_dict))
    return SameSamples(optimizer, ranks)


def _ranks_of_group() -> Ranks:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """In this context the processes that a launcher such as torchrun has started are ranks.

    The process group is the one that there is already, or one of gloo for the CPU and of NCCL for
    CUDA devices, which ends with the context. ASNG_RANK_TIMEOUT is the number of seconds that ranks
    then wait for each other (600).

    Raises:
        ValueError: If the launcher's environment variables are incomplete or wrong.
        ConnectionError: If the other ranks do not come.
    """
    size = _launched()
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    begun = not dist.is_initialized()
    if begun:
        timeout = datetime.timedelta(seconds=_timeout())
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            store, rank, size = next(rendezvous("env://", timeout=timeout))
            store.set_timeout(timeout)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpus else "gloo",
                store=store,
                rank=rank,
                world_size=size,
                timeout=timeout,
            )
        except RuntimeError as error:
            words = str(error).strip().partition("\n")[0][:300]
            raise ConnectionError(f"the {size} ranks could not find each other: {words}") from error
    else:
        store = dist.distributed_c10d._get_default_store()
    watch = _Watch(store, dist.get_rank(), dist.get_world_size())
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), watch)
    words = ""
    try:
        ranks.largest([0])  # from here on the others' signs of life are there
        yield ranks
    except BaseException as error:
        words = f"{type(error).__name__}: {error}"
        raise
    finally:
        watch.end(words)
        if begun:
            dist.destroy_process_group()  # from which the others see that this one ends
        if words and ranks.first:
            watch.wait_for_others()


def _launched() -> int:
    """How many processes the launcher says that there are."""
    said = {name: os.environ.get(name, "") for name in (*_VARIABLES, "LOCAL_RANK")}
    if said["WORLD_SIZE"] in ("", "1"):
        if said["WORLD_SIZE"] == "" and said["RANK"] and said["MASTER_ADDR"]:
            raise ValueError("WORLD_SIZE must be set where RANK and MASTER_ADDR are")
        return 1
    missing = [name for name in _VARIABLES if not said[name]]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} must be set where WORLD_SIZE is {said['WORLD_SIZE']}: torchrun "
            "sets them all; without WORLD_SIZE there is one process"
        )
    numbers = {}
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK"):
        if not said[name].isdecimal() and (said[name] or name != "LOCAL_RANK"):
            raise ValueError(f"{name} must be an integer of 0 or more, got {said[name]!r}")
        numbers[name] = int(said[name] or 0)
    if not numbers["RANK"] < numbers["WORLD_SIZE"]:
        raise ValueError(f"RANK must be below WORLD_SIZE, {said['WORLD_SIZE']}, got {said['RANK']}")
    return numbers["WORLD_SIZE"]


def _timeout() -> float:
    text = os.environ.get("ASNG_RANK_TIMEOUT", "") or str(_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e6:
        raise ValueError(f"ASNG_RANK_TIMEOUT must be from 1 to 1e6 seconds, got {text!r}")
    return seconds


def fingerprint(value: Any) -> int:
    """32 bits of a value: tensors, arrays, plain values, and lists, tuples and dicts of them. Equal
    values have the same, others hardly ever."""
    return _added(value, 0)


def _added(value: Any, before: int) -> int:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            before = _added(inner, zlib.crc32(repr(key).encode(), before))
        return before
    if isinstance(value, (list, tuple)):
        for inner in value:
            before = _added(inner, before)
        return zlib.crc32(f"{type(value).__name__} {len(value)}".encode(), before)
    if hasattr(value, "detach"):
        import torch

        plain = value.detach().cpu().contiguous()
        value = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else str(plain.dtype)
    if hasattr(value, "tobytes"):
        return zlib.crc32(value.tobytes(), before)
    return zlib.crc32(repr(value).encode(), before)
