"""Evaluations on several workers: processes of this machine, joblib's, a cluster of Dask or of Ray.

`python parallel_evaluations.py processes`, the default, or another of `BACKENDS`. Some evaluations
fail, which ranks them behind all others, and a warning says why. All that is done is noted in a
journal: run it again after Ctrl-C, and it goes on. Needs scikit-learn, and `dask[distributed]` or
`ray` for those.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC

import asng_ext as asng
from asng_ext.driver import Evaluation

WORKERS = 2
SPACE = asng.SearchSpace(
    {
        "components": asng.Integer(1, 96),  # of 64 pixels: more than those are an error
        "whiten": asng.Categorical([False, True]),
        "C": asng.Real(1e-3, 1e3, log=True),
        "gamma": asng.Real(1e-6, 1.0, log=True),
    }
)


def make_model(sample: dict[str, Any]) -> Pipeline:
    pca = PCA(sample["components"], whiten=sample["whiten"], random_state=0)
    return make_pipeline(pca, SVC(C=sample["C"], gamma=sample["gamma"]))


def splits() -> list[Any]:
    """Images and labels: to fit, to choose by, and to test."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, train_size=600, stratify=y, random_state=0)
    x, x_valid, y, y_valid = train_test_split(x, y, train_size=300, stratify=y, random_state=0)
    return [(x, y), (x_valid, y_valid), (x_test, y_test)]


def evaluate(sample: dict[str, Any]) -> float:
    """Error of a model. Runs in a worker."""
    fit, valid, _ = splits()
    return 1 - float(make_model(sample).fit(*fit).score(*valid))


def with_processes(optimizer: asng.ASNG, **settings: Any) -> list[Evaluation]:
    return asng.drive(optimizer, evaluate, workers=WORKERS, **settings)


def with_joblib(optimizer: asng.ASNG, **settings: Any) -> list[Evaluation]:
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(WORKERS)
    return asng.drive(optimizer, evaluate, workers=WORKERS, executor=executor, **settings)


def with_dask(optimizer: asng.ASNG, **settings: Any) -> list[Evaluation]:
    from distributed import Client

    # The address of a scheduler in place of these options makes it a cluster.
    with Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as client:
        executor = client.get_executor()
        return asng.drive(optimizer, evaluate, workers=WORKERS, executor=executor, **settings)


def with_ray(optimizer: asng.ASNG, **settings: Any) -> list[Evaluation]:
    from asng_ext.integrations.ray import RayWorkers

    # As many as there are CPUs in the cluster; num_gpus=1 makes it one for each GPU.
    return asng.drive(optimizer, evaluate, executor=RayWorkers(num_cpus=1), **settings)


BACKENDS: dict[str, Callable[..., list[Evaluation]]] = {
    "processes": with_processes,
    "joblib": with_joblib,
    "dask": with_dask,
    "ray": with_ray,
}


def main(
    backend: str = "processes", journal: str = "parallel_evaluations.jsonl", evaluations: int = 64
) -> None:
    optimizer = asng.ASNG(SPACE, seed=0, evaluation_limit=evaluations)
    done = BACKENDS[backend](optimizer, journal=journal, timeout=60.0)
    failed = sum(each.failure is not None for each in done)
    best = optimizer.best
    assert best is not None
    print(f"{backend}: {failed} of {len(done)} evaluations failed")
    print("best", {k: f"{v:.3g}" for k, v in best.sample.items()})
    fit, _, test = splits()
    score = make_model(best.sample).fit(*fit).score(*test)
    print(f"validation accuracy {1 - best.loss:.3f}, test accuracy {score:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
