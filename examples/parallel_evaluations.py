"""Evaluations at the same time, by concurrent.futures, joblib, Dask or Ray; some of them fail.

`python parallel_evaluations.py futures`, the default, or another of `BACKENDS`. A loss of NaN ranks
behind all others, so an evaluation that fails needs no more than that. Needs scikit-learn, and
`dask[distributed]` or `ray` for those.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC

import asng_ext as asng

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
    """Error of a model; NaN if it cannot be fitted. Runs in a worker."""
    fit, valid, _ = splits()
    try:
        return 1 - float(make_model(sample).fit(*fit).score(*valid))
    except ValueError:
        return math.nan


# ----------------------------------------------------------------- all at once, population by one


def with_joblib(samples: Sequence[dict[str, Any]]) -> list[float]:
    from joblib import Parallel, delayed

    return list(Parallel(n_jobs=WORKERS)(delayed(evaluate)(sample) for sample in samples))


def with_ray(samples: Sequence[dict[str, Any]]) -> list[float]:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(evaluate)
    return list(ray.get([remote.remote(sample) for sample in samples]))


def search(optimizer: asng.ASNG, losses_of: Callable[[asng.Samples], list[float]]) -> int:
    """Returns how many evaluations failed."""
    failed = 0
    while not optimizer.should_stop():
        samples = optimizer.ask()
        losses = losses_of(samples)
        failed += sum(map(math.isnan, losses))
        optimizer.tell(samples, losses)
    return failed


# ------------------------------------------- as workers are free, none waiting for a slow one


def search_without_waiting(optimizer: asng.ASNG, executor: Executor) -> int:
    """λ results, or one more, make a step, whichever samples they are of: which ones those are is a
    matter of time, so no two searches are the same. Returns how many evaluations failed."""
    failed = 0
    drawn: list[asng.Samples] = []
    running: dict[Future[float], asng.Samples] = {}
    finished: list[tuple[asng.Samples, float]] = []
    while not optimizer.should_stop():
        while len(running) < WORKERS:
            if not drawn:
                samples = optimizer.ask()
                drawn = [samples[[i]] for i in range(len(samples))]
            sample = drawn.pop(0)
            running[executor.submit(evaluate, sample[0])] = sample
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            finished.append((running.pop(future), future.result()))
        if len(finished) >= optimizer.population_size:
            losses = [loss for _, loss in finished]
            failed += sum(map(math.isnan, losses))
            optimizer.tell(joined([sample for sample, _ in finished]), losses)
            finished = []
    for future in running:
        future.cancel()
    return failed


def joined(parts: Sequence[asng.Samples]) -> asng.Samples:
    categorical = np.concatenate([part.categorical for part in parts])
    return asng.Samples(SPACE, categorical, np.concatenate([part.numerical for part in parts]))


def with_futures(optimizer: asng.ASNG) -> int:
    with ProcessPoolExecutor(WORKERS) as executor:
        return search_without_waiting(optimizer, executor)


def with_dask(optimizer: asng.ASNG) -> int:
    from distributed import Client

    # The address of a scheduler in place of these options makes it a cluster.
    with Client(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as client:
        return search_without_waiting(optimizer, client.get_executor())


BACKENDS: dict[str, Callable[[asng.ASNG], int]] = {
    "futures": with_futures,
    "dask": with_dask,
    "joblib": lambda optimizer: search(optimizer, with_joblib),
    "ray": lambda optimizer: search(optimizer, with_ray),
}


def main(backend: str = "futures", evaluations: int = 64) -> None:
    optimizer = asng.ASNG(SPACE, seed=0, evaluation_limit=evaluations)
    failed = BACKENDS[backend](optimizer)
    best = optimizer.best
    assert best is not None
    print(f"{backend}: {failed} of {optimizer.evaluations} evaluations failed")
    print("best", {k: f"{v:.3g}" for k, v in best.sample.items()})
    fit, _, test = splits()
    score = make_model(best.sample).fit(*fit).score(*test)
    print(f"validation accuracy {1 - best.loss:.3f}, test accuracy {score:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
