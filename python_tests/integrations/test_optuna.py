"""The sampler for Optuna, by Optuna's own tests for samplers and ours."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna")
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.testing import pytest_samplers
from optuna.trial import TrialState

import asng_ext as asng
from asng_ext.integrations import optuna as integration
from asng_ext.integrations.optuna import DRAWS, ASNGSampler

SPACE = {
    "op": CategoricalDistribution(["conv3", "conv5", None]),
    "width": IntDistribution(64, 256, step=8),
    "hidden": IntDistribution(1, 1000, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "momentum": FloatDistribution(0.1, 0.9, step=0.1),
    "rate": FloatDistribution(1e-5, 0.1, log=True),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


class TestOfOptuna(
    pytest_samplers.BasicSamplerTestCase,
    pytest_samplers.RelativeSamplerTestCase,
    pytest_samplers.SingleOnlySamplerTestCase,
):
    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        return ASNGSampler


def loss(values: dict[str, Any]) -> float:
    return float(
        (values["op"] is not None)
        + abs(values["width"] - 128) / 192
        + abs(math.log(values["hidden"] / 30))
        + values["dropout"]
        + abs(values["momentum"] - 0.7)
        + abs(math.log10(values["rate"]) + 3)
    )


def objective(trial: optuna.Trial) -> float:
    return loss({name: trial._suggest(name, each) for name, each in SPACE.items()})


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def learner_of(sampler: ASNGSampler, study: optuna.Study) -> asng.ASNG:
    """The optimizer of a study whose parameters are a single group."""
    space = sampler.infer_relative_search_space(study, study.trials[-1])
    (learner,) = sampler._read(study).learners(space, sampler._seed, sampler._settings)
    return learner.optimizer


@pytest.mark.parametrize("population_size", ["auto", 2])
def test_a_study_is_the_search_of_asng(population_size: int | str) -> None:
    """Draw by draw, where the space is known beforehand and one trial runs at a time."""
    sampler = ASNGSampler(SPACE, seed=3, population_size=population_size)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=96)
    space = asng.SearchSpace(
        {
            "op": asng.Categorical(range(3)),
            "width": asng.Integer(64, 256, step=8),
            "hidden": asng.Integer(1, 1000, log=True),
            "dropout": asng.Real(0.0, 0.5),
            "momentum": asng.Integer(0, 8),
            "rate": asng.Real(1e-5, 0.1, log=True),
        }
    )
    learned = learner_of(sampler, study)
    optimizer = asng.ASNG(space, seed=learned.seed, population_size=population_size)
    found = []
    while len(found) < 96:
        samples = optimizer.ask()
        rows = [
            row
            | {"op": ["conv3", "conv5", None][row["op"]]}
            | {"momentum": min(0.1 + row["momentum"] * 0.1, 0.9)}
            for row in samples
        ]
        optimizer.tell(samples, [loss(row) for row in rows])
        found += rows
    assert params(study) == found
    assert learned.theta.numerical.tolist() == optimizer.theta.numerical.tolist()
    recommended = sampler.recommend(study)
    assert recommended["width"] == optimizer.recommend()["width"]
    assert recommended["rate"] == optimizer.recommend()["rate"]


def test_it_finds_what_random_search_does_not() -> None:
    best = []
    for sampler in (ASNGSampler, optuna.samplers.RandomSampler):
        studies = [optuna.create_study(sampler=sampler(seed=seed)) for seed in range(3)]
        for study in studies:
            study.optimize(objective, n_trials=250)
        best.append(float(np.median([study.best_value for study in studies])))
    assert best[0] < 0.5 * best[1]


def test_directions_mirror_each_other() -> None:
    studies = [
        optuna.create_study(sampler=ASNGSampler(seed=1), direction=direction)
        for direction in ("minimize", "maximize")
    ]
    studies[0].optimize(objective, n_trials=60)
    studies[1].optimize(lambda trial: -objective(trial), n_trials=60)
    assert params(studies[0]) == params(studies[1])


def test_a_stored_study_goes_on_where_it_was(tmp_path: Path) -> None:
    def make(storage: str | None) -> optuna.Study:
        return optuna.create_study(
            storage=storage,
            study_name="study",
            sampler=ASNGSampler(SPACE, seed=5, population_size=4),
            load_if_exists=True,
        )

    whole = make(None)
    whole.optimize(objective, n_trials=10)
    storage = f"sqlite:///{tmp_path}/study.db"
    make(storage).optimize(objective, n_trials=6)
    again = make(storage)
    again.optimize(objective, n_trials=4)
    assert params(again) == params(whole)


def test_a_sampler_is_pickled_within_a_study() -> None:
    study = optuna.create_study(sampler=ASNGSampler(seed=2))
    study.optimize(objective, n_trials=20)
    copied = pickle.loads(pickle.dumps(study))
    for each in (study, copied):
        each.optimize(objective, n_trials=20)
    assert params(copied) == params(study)


def test_a_sampler_serves_one_study_after_the_other() -> None:
    sampler = ASNGSampler(SPACE, seed=2)
    studies = [optuna.create_study(sampler=sampler) for _ in range(2)]
    for _ in range(10):
        for study in studies:
            study.optimize(objective, n_trials=2)
    assert params(studies[0]) == params(studies[1])


def test_threads_share_a_study() -> None:
    study = optuna.create_study(sampler=ASNGSampler(SPACE, seed=0))
    study.optimize(objective, n_trials=200, n_jobs=4)
    draws = [tuple(trial.system_attrs[DRAWS].values()) for trial in study.trials]
    assert len(set(draws)) == len(study.trials) == 200
    late = [trial.value for trial in study.trials[-50:]]
    assert np.median(late) < 0.5 * np.median([trial.value for trial in study.trials[:50]])


def test_workers_share_a_storage(tmp_path: Path) -> None:
    """Samplers of one seed, as processes have them, draw different samples and learn of all."""
    space = {name: SPACE[name] for name in ("op", "rate")}
    storage = f"sqlite:///{tmp_path}/shared.db"
    optuna.create_study(storage=storage, study_name="study")
    samplers = [ASNGSampler(space, seed=0, population_size=4) for _ in range(2)]
    workers = [
        optuna.load_study(storage=storage, study_name="study", sampler=sampler)
        for sampler in samplers
    ]
    for _ in range(5):
        trials = [worker.ask(space) for worker in workers]
        assert trials[0].params["rate"] != trials[1].params["rate"]
        for worker, trial in zip(workers, trials):
            worker.tell(trial, trial.params["rate"])
    recommended = [sampler.recommend(study) for sampler, study in zip(samplers, workers)]
    assert recommended[0] == recommended[1]
    assert [learner_of(each, study).evaluations for each, study in zip(samplers, workers)] == [8, 8]


def test_branches_of_a_conditional_space_are_learned() -> None:
    def branching(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("model", ["tree", "net"]) == "tree":
            return 1 + (trial.suggest_int("depth", 1, 30) - 7) ** 2 / 100
        return abs(math.log10(trial.suggest_float("rate", 1e-6, 1.0, log=True)) + 2)

    sampler = ASNGSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(branching, n_trials=200)
    assert study.best_params["model"] == "net"
    assert study.best_value < 0.1
    recommended = sampler.recommend(study)
    assert recommended["model"] == "net"
    assert abs(math.log10(recommended["rate"]) + 2) < 0.3
    assert {"depth", "model", "rate"} == set(recommended)
    learners = sampler._read(study).learners(
        sampler.infer_relative_search_space(study, study.trials[-1]), 0, sampler._settings
    )
    assert sorted(sorted(learner._distributions) for learner in learners) == [
        ["depth"],
        ["model"],
        ["rate"],
    ]
    # Nothing but the first trial with it, or before it, was sampled independently.
    for name in ("model", "depth", "rate"):
        with_it = [trial for trial in study.trials if name in trial.params]
        assert all(name == "model" or name in trial.system_attrs[DRAWS] for trial in with_it[1:])


def test_a_range_that_changes_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(integration._logger, "warning", warned.append)
    study = optuna.create_study(sampler=ASNGSampler(seed=0))
    ranges = [(0, 10), (20, 30), (5, 40)]
    for low, high in ranges:
        study.optimize(lambda t, of=(low, high): t.suggest_float("x", *of), n_trials=20)
    assert len(warned) == 1
    assert "'x' has changed in trial 20" in warned[0]
    assert "RandomSampler" in warned[0]
    for start, (low, high) in zip((0, 20, 40), ranges):
        assert all(low <= trial.params["x"] <= high for trial in study.trials[start : start + 20])


def test_what_asng_cannot_search_is_sampled_independently() -> None:
    narrow = FloatDistribution(1.0, 1.0 + 1e-12)
    wide = FloatDistribution(-1e300, 1e300)
    sampler = ASNGSampler({"narrow": narrow, "wide": wide, **SPACE}, seed=0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(3):
        trial = study.ask({"narrow": narrow, "wide": wide, **SPACE})
        assert set(trial.params) == {"narrow", "wide", *SPACE}
        study.tell(trial, loss(trial.params))
        assert study.trials[-1].system_attrs[DRAWS].keys() == SPACE.keys() - {"op"}


def test_failed_trials_are_left_out_and_pruned_ones_are_worst() -> None:
    """Those that give no loss are in one half of the space, where the others are best."""

    def troubled(trial: optuna.Trial, trouble: Callable[[optuna.Trial, float], None]) -> float:
        x = trial.suggest_float("x", 0, 1)
        if x < 0.5:
            trouble(trial, x)
        return x

    def fail(trial: optuna.Trial, x: float) -> None:
        raise OSError

    def prune(trial: optuna.Trial, x: float) -> None:
        trial.report(x, step=0)
        raise optuna.TrialPruned

    for trouble, counted in ((fail, 0), (prune, 1)):
        sampler = ASNGSampler({"x": FloatDistribution(0, 1)}, seed=0)
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda t, of=trouble: troubled(t, of), n_trials=80, catch=OSError)
        lost = [t for t in study.trials if t.state != TrialState.COMPLETE]
        assert 10 < len(lost) < 70
        finished = 80 - len(lost) + counted * len(lost)
        assert learner_of(sampler, study).evaluations == finished - finished % 8
        if counted:  # it goes to the best of what completes
            assert 0.45 < sampler.recommend(study)["x"] < 0.75


def test_pruned_trials_rank_by_how_far_they_came() -> None:
    def trial(state: TrialState, value: float | None = None, **steps: float) -> Any:
        return optuna.trial.create_trial(
            state=state,
            value=value,
            intermediate_values={int(step[1:]): each for step, each in steps.items()},
        )

    trials = [
        trial(TrialState.PRUNED),
        trial(TrialState.PRUNED, _1=0.1),
        trial(TrialState.COMPLETE, math.inf),
        trial(TrialState.PRUNED, _1=0.5, _5=0.2),
        trial(TrialState.COMPLETE, 7.0),
        trial(TrialState.PRUNED, _5=0.1),
        trial(TrialState.PRUNED, _5=math.nan),
        trial(TrialState.COMPLETE, -math.inf),
        trial(TrialState.COMPLETE, 7.0),
    ]
    assert integration._ranks(trials, optuna.study.StudyDirection.MINIMIZE) == [
        7,
        6,
        2,
        4,
        1,
        3,
        5,
        0,
        1,
    ]
    assert integration._ranks(trials, optuna.study.StudyDirection.MAXIMIZE) == [
        7,
        6,
        0,
        3,
        1,
        4,
        5,
        2,
        1,
    ]


def test_trials_of_others_are_learned_from() -> None:
    def simple(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0, 1) + (trial.suggest_categorical("op", "ab") == "a")

    sampler = ASNGSampler(seed=0)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(simple, n_trials=80)
    assert sampler.recommend(study)["x"] < 0.25
    assert sampler.recommend(study)["op"] == "b"
    study.sampler = sampler
    study.enqueue_trial({"x": 0.5})
    study.optimize(simple, n_trials=1)
    trial = study.trials[-1]
    assert trial.params["x"] == 0.5
    # What was drawn for it is not what was evaluated.
    assert trial.system_attrs[DRAWS]["x"] != 0.5
    assert learner_of(sampler, study).evaluations == 80
    study.optimize(simple, n_trials=7)
    assert learner_of(sampler, study).evaluations == 88
    (learner,) = sampler._history._learners.values()
    assert learner._draw(trial, "x") == 0.5
    assert learner._draw(study.trials[-1], "x") == study.trials[-1].system_attrs[DRAWS]["x"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"search_space": {"x": 3}}, TypeError, "search_space must map names to distributions"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"population_size": 1}, ValueError, "population_size must be at least 2"),
        ({"alpha": 0.0}, ValueError, "alpha must be finite and above 0"),
        ({"delta_init": "big"}, TypeError, "delta_init must be a number"),
    ],
)
def test_bad_input_is_named(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ASNGSampler(**arguments)


def test_a_study_of_two_objectives_is_refused() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    with pytest.raises(ValueError, match="multi-objective"):
        ASNGSampler(seed=0).recommend(study)
