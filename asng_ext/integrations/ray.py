"""Workers on a Ray cluster, for :func:`asng_ext.drive`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from asng_ext._checks import brief, check_number
from asng_ext.driver.workers import NUMBER, Evaluate, Outcome, attempt

try:
    import ray
except ImportError as error:
    raise ImportError(
        "asng_ext.integrations.ray needs Ray, which is not installed: pip install ray"
    ) from error

__all__ = ["RayWorkers"]


class RayWorkers:
    """An actor for each worker, wherever in the cluster there is room; nodes may come and go.

    The cluster is the one that ``ray.init`` was called for, or the one which it finds by itself.
    There are as many workers as the nodes that it has now have room for. Where it adds nodes for
    what is waiting, give ``drive`` a number of ``workers`` in its place: those without room wait,
    and no sample waits for them.

    Args:
        num_cpus, num_gpus: What a worker takes, 0 or more.
        resources: Other resources that a worker takes, by name.
        options: Others of a Ray actor, such as ``runtime_env`` or ``scheduling_strategy``.

    Raises:
        TypeError, ValueError: If an amount is no number of 0 or more, or all are 0.
    """

    lost: tuple[type[Exception], ...] = (
        ray.exceptions.RayActorError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
    )

    def __init__(
        self,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        if resources is not None and not isinstance(resources, Mapping):
            raise TypeError(f"resources must map names to amounts, got {brief(resources)}")
        other = dict(resources or {})
        for name, amount in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            check_number(name, amount, least=0.0)
        for name, amount in other.items():
            check_number(f"resources[{name!r}]", amount, least=0.0)
        self._needed = {"CPU": num_cpus, "GPU": num_gpus, **other}
        if not any(self._needed.values()):
            raise ValueError("num_cpus, num_gpus or one of resources must be above 0, got none")
        self._options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": other,
            "max_restarts": 0,  # the driver starts another one
            **options,
        }

    def capacity(self) -> int:
        """As many as fit into the nodes that are there, also if others use them now."""
        _connect()
        rooms = [
            min(int(node["Resources"].get(name, 0) / x) for name, x in self._needed.items() if x)
            for node in ray.nodes()
            if node["Alive"]
        ]
        return sum(rooms)

    def start(self, number: int, evaluate: Evaluate) -> _RayWorker:
        _connect()
        return _RayWorker(ray.remote(**self._options)(_Actor).remote(number, evaluate))


def _connect() -> None:
    if not ray.is_initialized():
        ray.init()


class _Actor:
    def __init__(self, number: int, evaluate: Evaluate) -> None:
        os.environ[NUMBER] = str(number)
        self._evaluate = evaluate

    def ready(self) -> None:
        """Returns once there is an actor."""

    def attempt(self, sample: Mapping[str, Any]) -> Outcome:
        return attempt(self._evaluate, sample)


class _RayWorker:
    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.ready: Future[Any] = actor.ready.remote().future()

    def evaluate(self, sample: Mapping[str, Any]) -> Future[Outcome]:
        future: Future[Outcome] = self._actor.attempt.remote(sample).future()
        return future

    def close(self) -> None:
        ray.kill(self._actor, no_restart=True)
