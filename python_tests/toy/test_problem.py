"""The toy problem: its definition, both ways to run it, and the claims made about it."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import asng_ext as asng
from asng_ext import _host
from asng_ext.toy import problem as toy
from asng_ext.toy.problem import ToyOptimizer, ToyProblem, ToySettings, simulate, solve

SMALL = ToySettings(variables=6, categories=3, iteration_limit=2000)
OPTIMIZERS = [ToyOptimizer(), ToyOptimizer("SNG", 0.1), ToyOptimizer("NaturalAdam", 0.05)]


def test_losses_are_the_definition() -> None:
    settings = ToySettings(variables=4, categories=5)
    problem = ToyProblem(settings, seed=3, run=1)
    samples = np.array([[0, 1, 2, 4], [4, 0, 0, 3]])
    x = problem.x
    expected = [sum(x[i, c] ** 2 + c / 5 for i, c in enumerate(row)) for row in samples]
    np.testing.assert_allclose(problem.true_losses(samples), expected)
    z = 0.2 * _host.toy_noise(_host.toy_key(3, 1), 0, 4)
    noisy = [sum((x[i, c] - z[i]) ** 2 + c / 5 for i, c in enumerate(row)) for row in samples]
    np.testing.assert_allclose(problem.losses(samples), noisy)


def test_ordered_product_is_the_definition() -> None:
    settings = ToySettings("ordered_product", variables=4, categories=3)
    problem = ToyProblem(settings)
    samples = np.array([[0, 1, 0, 1], [0, 2, 0, 0]])
    sigmoid = 1 / (1 + np.exp(-problem.x))
    for row, loss in zip(samples, problem.true_losses(samples), strict=True):
        factors = [(1 - c / 2) * sigmoid[i, c] for i, c in enumerate(row)]
        products = [math.prod(factors[: i + 1]) for i in range(4)]
        assert loss == pytest.approx(4 - sum(products) + 1e-8 * (problem.x**2).sum())
    binary = ToyProblem(replace(settings, categories=2))
    # Left out at once, nothing after it counts: D and the penalty remain.
    left_out = binary.true_losses(np.array([[1, 0, 0, 0]]))
    assert left_out == pytest.approx(4 + 1e-8 * (binary.x**2).sum(), abs=1e-12)


@pytest.mark.parametrize("kind", toy.PROBLEMS)
def test_a_step_follows_the_gradient(kind: str) -> None:
    settings = ToySettings(kind, variables=5, categories=3, learning_rate=0.1)
    problem = ToyProblem(settings, seed=1)
    samples = np.array([[0, 0, 1, 0, 1], [0, 1, 0, 1, 2]])
    z = problem.settings.noise * _host.toy_noise(_host.toy_key(1, 0), 0, 5)
    x = problem.x.copy()

    def mean_loss() -> float:
        return float(problem._losses(samples, z).mean())

    gradient = np.zeros_like(x)
    for i in range(5):
        for j in range(3):
            for sign in (1, -1):
                problem.x = x.copy()
                problem.x[i, j] += sign * 1e-6
                gradient[i, j] += sign * mean_loss() / 2e-6
    problem.x = x.copy()
    problem.step(samples)
    np.testing.assert_allclose(problem.velocity, gradient, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(problem.x, x - 0.1 * problem.velocity)


def test_momentum_and_cosine() -> None:
    problem = ToyProblem(ToySettings(variables=2, categories=2, iteration_limit=4, noise=0.0))
    rates = []
    for _ in range(4):
        before = problem.x.copy()
        problem.step(np.array([[0, 0], [0, 0]]))
        rates.append((before - problem.x)[0, 0] / problem.velocity[0, 0])
    np.testing.assert_allclose(
        rates, [0.05 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    )
    assert problem.velocity[0, 1] == 0
    before = problem.velocity.copy()
    problem.step(np.array([[1, 1], [1, 1]]))
    np.testing.assert_allclose(problem.velocity[:, 0], 0.9 * before[:, 0])


@pytest.mark.parametrize("kind", toy.PROBLEMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
@pytest.mark.parametrize("population_size", [2, 5])
def test_both_ways_agree_step_by_step(
    kind: str, optimizer: ToyOptimizer, population_size: int
) -> None:
    settings = replace(SMALL, problem=kind, population_size=population_size, target=-1.0)
    native = _host.ToyRun(toy.native_settings(settings, optimizer), 8, 2)
    problem, plain = ToyProblem(settings, 8, 2), optimizer.build(settings, 8, 2)
    np.testing.assert_array_equal(native.x, problem.x)
    for _ in range(300):
        native.advance(1)
        problem.step(plain.ask().categorical)
        samples = plain.ask()
        plain.tell(samples, problem.losses(samples.categorical))
        np.testing.assert_allclose(native.x, problem.x, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(native.theta, plain.theta.categorical, rtol=1e-9)
    if optimizer.name == "ASNG":
        assert native.delta == pytest.approx(plain.delta, rel=1e-8)


@pytest.mark.parametrize("kind", toy.PROBLEMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_both_ways_give_the_same_results(kind: str, optimizer: ToyOptimizer) -> None:
    settings = replace(SMALL, problem=kind, target=1 / 3 if kind == "squared_error" else 1.0)
    results = simulate(settings, optimizer, seed=5, first=3, runs=5)
    for run, iterations, succeeded in zip(range(3, 8), *results, strict=True):
        result = solve(ToyProblem(settings, 5, run), optimizer.build(settings, 5, run))
        assert result == (iterations, succeeded)


def test_both_ways_agree_in_distribution() -> None:
    """With random numbers that have nothing to do with each other."""
    from scipy.stats import ks_2samp

    native = simulate(SMALL, ToyOptimizer(), seed=1, runs=100)
    plain = [
        solve(ToyProblem(SMALL, 2, run), asng.ASNG(SMALL.space, population_size=2, seed=1000 + run))
        for run in range(100)
    ]
    assert all(succeeded for _, succeeded in plain)
    assert native.succeeded.all()
    assert ks_2samp(native.iterations, [iterations for iterations, _ in plain]).pvalue > 0.001


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_asng_succeeds_whatever_its_initial_step_size(power: float) -> None:
    settings = ToySettings()
    results = simulate(settings, ToyOptimizer("ASNG", settings.n_theta**-power), seed=0)
    assert results.succeeded.sum() >= 95
    assert 5000 <= np.median(results.iterations) <= 12_000


def test_the_baselines_need_a_tuned_step_size() -> None:
    settings = ToySettings()
    n = settings.n_theta
    few = {"runs": 6, "seed": 0}
    assert simulate(settings, ToyOptimizer("SNG", n**-0.5), **few).succeeded.all()
    assert not simulate(settings, ToyOptimizer("SNG", n**-2.0), **few).succeeded.any()
    assert simulate(settings, ToyOptimizer("NaturalAdam", n**-1.0), **few).succeeded.all()
    assert not simulate(settings, ToyOptimizer("NaturalAdam", 1.0), **few).succeeded.any()


def test_results_depend_on_seed_and_run_only() -> None:
    whole = simulate(SMALL, ToyOptimizer(), seed=4, runs=30, threads=1)
    for threads in (2, 3):
        again = simulate(SMALL, ToyOptimizer(), seed=4, runs=30, threads=threads)
        np.testing.assert_array_equal(again.iterations, whole.iterations)
    part = simulate(SMALL, ToyOptimizer(), seed=4, first=11, runs=7)
    np.testing.assert_array_equal(part.iterations, whole.iterations[11:18])
    other = simulate(SMALL, ToyOptimizer(), seed=5, runs=30)
    assert (other.iterations != whole.iterations).any()
    assert simulate(SMALL, ToyOptimizer(), runs=0).iterations.shape == (0,)


def test_progress_and_what_it_raises() -> None:
    seen: list[tuple[int, int]] = []
    results = simulate(SMALL, ToyOptimizer(), runs=5, progress=lambda *done: seen.append(done))
    assert seen[-1] == (5, results.iterations.sum())

    def stop(runs: int, iterations: int) -> None:
        raise RuntimeError("enough")

    endless = replace(SMALL, target=-1.0, iteration_limit=2**50)
    with pytest.raises(RuntimeError, match="enough"):
        simulate(endless, ToyOptimizer(), progress=stop)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_a_batch(tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "from asng_ext.toy.problem import *\n"
        # A shell's background jobs, which the tests may be, ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('ready', flush=True)\n"
        "try:\n"
        "    simulate(ToySettings(target=-1.0, iteration_limit=2**50), ToyOptimizer())\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert child.stdout.readline() == "stopped\n"
        assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"problem": "other"}, ValueError, "problem must be one of"),
        ({"variables": 0}, ValueError, "variables"),
        ({"variables": 2.0}, TypeError, "variables"),
        ({"categories": 1}, ValueError, "categories"),
        ({"variables": 2**20, "categories": 2**20}, ValueError, "variables times categories"),
        ({"population_size": 1}, ValueError, "population_size"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate"),
        ({"momentum": 1.0}, ValueError, "momentum"),
        ({"noise": -1.0}, ValueError, "noise"),
        ({"noise": "1"}, TypeError, "noise"),
        ({"target": math.inf}, ValueError, "target"),
        ({"iteration_limit": -1}, ValueError, "iteration_limit"),
    ],
)
def test_bad_settings_are_named(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ToySettings(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"seed": -1}, ValueError, "seed"),
        ({"runs": 1.5}, TypeError, "runs"),
        ({"first": -1}, ValueError, "first"),
        ({"threads": 0}, ValueError, "threads"),
        ({"progress": 3}, TypeError, "progress"),
    ],
)
def test_bad_arguments_of_simulate(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        simulate(SMALL, ToyOptimizer(), **arguments)
    with pytest.raises(TypeError, match="optimizer must be a ToyOptimizer"):
        simulate(SMALL, "ASNG")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="settings must be ToySettings"):
        simulate({}, ToyOptimizer())  # type: ignore[arg-type]


def test_bad_optimizers_are_named() -> None:
    for arguments, words in (
        ({"name": "SGD"}, "name must be one of"),
        ({"step_size": 0.0}, "step_size"),
        ({"alpha": -1.0}, "alpha"),
        ({"beta1": 1.0}, "beta1"),
    ):
        with pytest.raises(ValueError, match=words):
            ToyOptimizer(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("variables", [1, 2, 9])
def test_odd_sizes(variables: int) -> None:
    settings = ToySettings(variables=variables, categories=7, iteration_limit=3000)
    results = simulate(settings, ToyOptimizer(), runs=8)
    assert results.succeeded.sum() >= 6
    result = solve(ToyProblem(settings), ToyOptimizer().build(settings))
    assert result == (results.iterations[0], results.succeeded[0])
