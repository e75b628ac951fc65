"""ASNG as a sampler of Optuna studies."""

from __future__ import annotations

import hashlib
import math
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asng_ext._checks import brief, check_integer, check_mapping
from asng_ext.optimizers import ASNG
from asng_ext.space import Categorical, Integer, Real, Samples, SearchSpace, Variable

try:
    import optuna
except ImportError as error:
    raise ImportError(
        "asng_ext.integrations.optuna needs Optuna, which is not installed: pip install optuna"
    ) from error
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

__all__ = ["ASNGSampler"]

DRAWS = "asng:draws"
"""System attribute of a trial: its draws by name, before clipping and rounding."""

_logger = optuna.logging.get_logger(f"optuna.{__name__}")


class ASNGSampler(BaseSampler):
    """Samples the parameters of an Optuna study by :class:`asng_ext.ASNG`.

    All that is learned is learned from the trials in the study's storage, in the order in which
    they were finished, λ at a time. So a study goes on where it was: after it is loaded from a
    database, in several processes at a time, and from trials of other samplers or enqueued ones.
    With one process and a seed, trials repeat.

    Categorical parameters, integers and floats, with steps or logarithms, are sampled together.
    Parameters that trials have together are a group, with a distribution and a step size of its
    own: those of a branch of a conditional space learn from the trials which take that branch.

    Pruned trials count as worse than all completed ones; those that were pruned later as better.
    Failed ones, NaN among them, are left out, as by Optuna's own samplers.

    Args:
        search_space: Distributions of parameters that are known beforehand, by name. A parameter
            that is not among them becomes known by the first trial with it that finishes, and is
            sampled independently until then.
        seed: Any integer in [0, 2⁶⁴), or None for one from the operating system.
        population_size: λ, finished trials for each step, see :class:`asng_ext.ASNG`. Evaluations
            that run at the same time should be at most as many.
        alpha: Threshold of the signal-to-noise ratio, see there.
        delta_init: Initial trust-region radius, see there.
        independent_sampler: For what ASNG cannot sample: parameters not known yet, ranges that are
            too narrow or wide for double precision and, with a warning, those that have changed
            so that what was drawn is outside. By default a `RandomSampler` with the same seed.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range. While
            sampling, a ValueError if the study has several objectives.
    """

    def __init__(
        self,
        search_space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
        *,
        population_size: int | str = "auto",
        alpha: float = 1.5,
        delta_init: float | str | None = None,
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        if search_space is not None:
            check_mapping("search_space", search_space)
        for name, distribution in (search_space or {}).items():
            if not isinstance(name, str) or not isinstance(distribution, BaseDistribution):
                raise TypeError(
                    "search_space must map names to distributions of Optuna, got "
                    f"{brief(name)}: {brief(distribution)}"
                )
        if seed is not None:
            check_integer("seed", seed, 0, 2**64)
        if not isinstance(independent_sampler, (BaseSampler, type(None))):
            raise TypeError(
                f"independent_sampler must be a sampler of Optuna, got {brief(independent_sampler)}"
            )
        self._known = dict(search_space or {})
        self._seed = secrets.randbits(64) if seed is None else int(seed)
        self._settings: dict[str, Any] = {
            "population_size": population_size,
            "alpha": alpha,
            "delta_init": delta_init,
        }
        ASNG(SearchSpace.from_sizes([2]), **self._settings)  # errors now rather than in a trial
        self._independent = independent_sampler or RandomSampler(
            seed=None if seed is None else seed % 2**32
        )
        self._warned: set[str] = set()
        self._history: _History | None = None
        self._lock = threading.Lock()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        with self._lock:
            known = self._known | self._read(study).distributions
        return {name: known[name] for name in known if _variable(known[name]) is not None}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._raise_error_if_multi_objective(study)
        values: dict[str, Any] = {}
        draws: dict[str, float] = {}
        with self._lock:
            for learner in self._read(study).learners(search_space, self._seed, self._settings):
                sampled, drawn = learner.sample(trial.number)
                values |= sampled
                draws |= drawn
        if draws:
            study._storage.set_trial_system_attr(trial._trial_id, DRAWS, draws)
        return values

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        self._raise_error_if_multi_objective(study)
        if param_name in trial.system_attrs.get(DRAWS, {}) and param_name not in self._warned:
            self._warned.add(param_name)
            _logger.warning(
                f"The range of {param_name!r} has changed in trial {trial.number}, and what was "
                f"drawn is not in it: {type(self._independent).__name__} samples it instead. Later "
                "such trials are not reported."
            )
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def recommend(self, study: Study) -> dict[str, Any]:
        """The most likely value of each parameter, for a study whose values are noisy: the
        parameters of its best trial may be luck. With conditions, those of all branches."""
        self._raise_error_if_multi_objective(study)
        with self._lock:
            history = self._read(study)
            known = self._known | history.distributions
            values = {name: _only_value(known[name]) for name in known if known[name].single()}
            for learner in history.learners(known, self._seed, self._settings):
                values |= learner.values(learner.optimizer.recommend())
        return values

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._independent.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._independent.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        # Our own draws differ from trial to trial anyway.
        self._independent.reseed_rng()

    def _read(self, study: Study) -> _History:
        """What the study's storage holds now."""
        if self._history is None or not self._history.is_of(study):
            self._history = _History(study)
        self._history.read()
        return self._history

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"], state["_history"]  # the latter is read again
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _history=None, _lock=threading.Lock())


class _History:
    """The finished trials of a study, in the order in which they are learned from."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._trials: list[FrozenTrial] = []
        self._numbers: set[int] = set()
        self._groups: list[set[str]] = []
        self._learners: dict[Any, _Learner] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        """The last ones."""

    def is_of(self, study: Study) -> bool:
        own = self._study
        return own._storage is study._storage and own._study_id == study._study_id

    def read(self) -> None:
        """Adds what was finished meanwhile."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        finished = self._study.get_trials(deepcopy=False, states=states)
        new = [trial for trial in finished if trial.number not in self._numbers]
        for trial in sorted(new, key=lambda trial: (trial.datetime_complete, trial.number)):
            self._trials.append(trial)
            self._numbers.add(trial.number)
            self.distributions |= trial.distributions
            self._groups = _refined(self._groups, set(trial.params))

    def learners(
        self, space: Mapping[str, BaseDistribution], seed: int, settings: dict[str, Any]
    ) -> list[_Learner]:
        """One for each group of parameters in the space."""
        last, self._learners = self._learners, {}
        groups = [[n for n in space if n in group] for group in self._groups]
        groups.append([name for name in space if name not in self.distributions])
        for names in groups:
            distributions = {n: space[n] for n in names if _variable(space[n]) is not None}
            if distributions:
                key = tuple(distributions.items())
                learner = last.get(key) or _Learner(distributions, seed, settings)
                learner.learn(self._trials, self._study.direction)
                self._learners[key] = learner
        return list(self._learners.values())


def _refined(groups: list[set[str]], together: set[str]) -> list[set[str]]:
    """The groups, split into what is in ``together`` and what is not; and what is new in it."""
    parts = [part for group in groups for part in (group & together, group - together)]
    parts.append(together.difference(*groups))
    return [part for part in parts if part]


class _Learner:
    """ASNG of parameters that trials have together."""

    def __init__(
        self, distributions: dict[str, BaseDistribution], seed: int, settings: dict[str, Any]
    ) -> None:
        self._distributions = distributions
        variables = {name: _variable(each) for name, each in distributions.items()}
        self._space = SearchSpace({n: v for n, v in variables.items() if v is not None})
        # Groups must not share their random numbers.
        digest = hashlib.sha256(f"{seed}/{sorted(distributions)}".encode()).digest()
        self.optimizer = ASNG(self._space, seed=int.from_bytes(digest[:8], "little"), **settings)
        self._read = 0
        self._waiting: list[FrozenTrial] = []

    def learn(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> None:
        """Takes a step for every λ of the trials that it has not seen."""
        names = self._distributions.keys()
        self._waiting += [t for t in trials[self._read :] if names <= t.params.keys()]
        self._read = len(trials)
        size = self.optimizer.population_size
        used = len(self._waiting) - len(self._waiting) % size
        for start in range(0, used, size):
            population = self._waiting[start : start + size]
            self.optimizer.tell(self._samples(population), _ranks(population, direction))
        del self._waiting[:used]

    def sample(self, number: int) -> tuple[dict[str, Any], dict[str, float]]:
        """Values and draws for the trial of this number, which no other trial gets."""
        population, index = divmod(number, self.optimizer.population_size)
        self.optimizer._engine.asked = population
        samples = self.optimizer.ask()
        drawn = samples.numerical[index].tolist()
        return self.values(samples[index]), dict(zip(self._space.numerical, drawn))

    def values(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """A sample's values as Optuna's."""
        return {name: _value(each, sample[name]) for name, each in self._distributions.items()}

    def _samples(self, trials: Sequence[FrozenTrial]) -> Samples:
        categorical = [[self._index(trial, n) for n in self._space.categorical] for trial in trials]
        numerical = [[self._draw(trial, n) for n in self._space.numerical] for trial in trials]
        return Samples(
            self._space,
            np.array(categorical, dtype=np.int64).reshape(len(trials), -1),
            np.array(numerical, dtype=np.float64).reshape(len(trials), -1),
        )

    def _index(self, trial: FrozenTrial, name: str) -> int:
        return int(self._distributions[name].to_internal_repr(trial.params[name]))

    def _draw(self, trial: FrozenTrial, name: str) -> float:
        """What was drawn or, where that is not the trial's value, what stands for the latter."""
        distribution, variable = self._distributions[name], self._space.numerical[name]
        value = trial.params[name]
        draw = trial.system_attrs.get(DRAWS, {}).get(name)
        if draw is not None and _value(distribution, variable.decode(draw)) == value:
            return float(draw)
        # Not every range was today's.
        return float(np.clip(_position(distribution, value), *variable.bounds))


def _variable(distribution: BaseDistribution) -> Variable | None:
    """What ASNG searches for a distribution; None if there is nothing or it cannot."""
    if distribution.single():
        return None
    try:
        if isinstance(distribution, CategoricalDistribution):
            return Categorical(range(len(distribution.choices)))
        if isinstance(distribution, IntDistribution):
            low, high, step = distribution.low, distribution.high, distribution.step
            return Integer(low, high, step=step, log=distribution.log)
        if isinstance(distribution, FloatDistribution):
            if distribution.step is None:
                return Real(distribution.low, distribution.high, log=distribution.log)
            return Integer(0, round(_position(distribution, distribution.high)))
    except ValueError:  # narrower or wider than what doubles tell apart
        pass
    return None


def _position(distribution: BaseDistribution, value: Any) -> float:
    """The draw that stands for a value of a number's distribution, in its range or not."""
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return (float(value) - distribution.low) / distribution.step
    return math.log(value) if getattr(distribution, "log", False) else float(value)


def _value(distribution: BaseDistribution, decoded: Any) -> Any:
    """Optuna's value for one of the variable of `_variable`."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[decoded]
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return min(distribution.low + decoded * distribution.step, distribution.high)
    return decoded


def _only_value(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return distribution.low


def _ranks(trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[int]:
    """Losses of which only the order counts, as for ASNG it does."""
    sign = -1 if direction == StudyDirection.MAXIMIZE else 1
    keys: list[tuple[float, ...]] = []
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            assert trial.value is not None
            keys.append((0, 0, sign * trial.value))
        elif trial.last_step is not None:
            value = sign * trial.intermediate_values[trial.last_step]
            keys.append((1, -trial.last_step, math.inf if math.isnan(value) else value))
        else:
            keys.append((2, 0, 0))
    rank = {key: i for i, key in enumerate(sorted(set(keys)))}
    return [rank[key] for key in keys]
