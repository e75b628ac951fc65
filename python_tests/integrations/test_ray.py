"""Workers on Ray: clusters of nodes that come and go, actors that die."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slow_evaluations as slow

pytest.importorskip("ray")
import ray
from ray.cluster_utils import Cluster

import asng_ext as asng
from asng_ext.driver import Evaluation
from asng_ext.integrations.ray import RayWorkers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Of one node with two CPUs."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_one_worker_is_the_plain_loop(cluster: Any) -> None:
    expected, optimizer = slow.make(), slow.make()
    slow.plain(expected)
    found = asng.drive(optimizer, lambda s: slow.loss(s), workers=1, executor=RayWorkers())
    assert len(found) == 40
    assert optimizer.state_dict() == expected.state_dict()


def test_what_fails_dies_or_hangs_ranks_last(cluster: Any, tmp_path: Path) -> None:
    folder = slow.InFolder(tmp_path)

    def evaluate(sample: dict[str, Any]) -> float:
        attempt = folder.begin(sample)
        if sample["op"] == "a":
            time.sleep(60)
        if sample["op"] == "c" and (attempt == 1 or sample["width"] > 4):
            os.kill(os.getpid(), signal.SIGKILL)
        if sample["width"] < 3:
            raise ValueError("narrow")
        return slow.loss(sample)

    with pytest.warns(RuntimeWarning):
        found = asng.drive(
            slow.make(evaluation_limit=12), evaluate, executor=RayWorkers(), timeout=1.0
        )
    assert {each.sample["op"] for each in found} == {"a", "b", "c"}
    for each in found:
        op, width = each.sample["op"], each.sample["width"]
        assert folder.attempts(each.sample) == (2 if op == "c" else 1)
        words = {"a": "longer than 1 seconds", "b": "narrow", "c": "has died"}[op]
        if op == "a" or (op == "c" and width > 4) or (op == "b" and width < 3):
            assert words in str(each.failure)
            assert math.isnan(each.loss)
        elif width >= 3:
            assert each.failure is None


def test_nodes_come_and_go(cluster: Any, tmp_path: Path) -> None:
    """Evaluations of a node that is gone begin anew on another; none is lost."""
    workers = RayWorkers()
    assert workers.capacity() == 2
    over: list[Evaluation] = []
    capacities: list[int] = []
    nodes: list[Any] = []

    def report(evaluation: Evaluation) -> None:
        over.append(evaluation)
        capacities.append(workers.capacity())
        if len(over) == 8:
            nodes.append(cluster.add_node(num_cpus=2))
        if len(over) == 60:
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    def evaluate(sample: dict[str, Any]) -> float:
        time.sleep(0.1)
        return slow.loss(sample)

    with pytest.warns(RuntimeWarning, match="has died, and the evaluation begins anew"):
        found = asng.drive(
            slow.make(evaluation_limit=100),
            evaluate,
            executor=workers,
            report=report,
            journal=tmp_path / "journal",
        )
    assert len({slow.name(each.sample) for each in found}) == len(found) == 100
    assert not [each for each in found if each.failure]
    assert set(capacities) == {2, 4}
    assert capacities[0] == 2
    while workers.capacity() > 2:  # the cluster takes seconds to see that
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_cpus": -1}, "num_cpus must be finite and at least 0, got -1"),
        ({"num_gpus": "1"}, "num_gpus must be a number, got '1'"),
        ({"num_cpus": 0}, "must be above 0, got none"),
        ({"resources": ["tpu"]}, r"resources must map names to amounts, got \['tpu'\]"),
        ({"resources": {"tpu": None}}, r"resources\['tpu'\] must be a number, got None"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        RayWorkers(**arguments)
