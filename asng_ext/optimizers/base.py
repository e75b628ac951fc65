"""What the optimizers have in common: the ask/tell protocol, the state and its saving."""

from __future__ import annotations

import math
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar, cast

import numpy as np

from asng_ext import _host
from asng_ext._checks import brief, check_integer, check_number, check_truth_value, listed
from asng_ext.optimizers._distribution import Margin, Theta, margins
from asng_ext.optimizers._evaluations import as_array, check_space, checked_theta, checked_values
from asng_ext.optimizers._fixed import Fixed
from asng_ext.space import (
    BoolArray,
    Categorical,
    FloatArray,
    IntArray,
    Integer,
    Samples,
    SearchSpace,
)

if TYPE_CHECKING:
    import torch

    from asng_ext._host import BestEvaluated
    from asng_ext.optimizers._device import ASNGEngine

__all__ = ["Best", "CommonSettings", "Optimizer"]

STATE_VERSION = 2  # 1 held sizes and ranges instead of the space
TOLERANCE = 1e-6  # for rounding of the numbers in a state, relative to their range
BEST_KEYS = ("loss", "generation", "categorical", "numerical")
OptimizerT = TypeVar("OptimizerT", bound="Optimizer")
EngineT = TypeVar("EngineT", bound="_host.Optimizer | ASNGEngine")


class Best(NamedTuple):
    """The best evaluated sample.

    Attributes:
        sample: Its values by name.
        loss: Its loss as it was given; with ``maximize``, its score.
    """

    sample: dict[str, Any]
    loss: float


class CommonSettings(TypedDict, total=False):
    """Arguments that all optimizers take, see :class:`Optimizer`."""

    margin: Margin
    init: Mapping[str, Any] | Theta | None
    init_probability: float
    fixed: Mapping[str, Any] | None
    seed: int | None
    maximize: bool
    convergence_limit: float
    patience: int
    stall_limit: int | None
    generation_limit: int | None
    evaluation_limit: int | None
    device: str | torch.device


class Optimizer(ABC):
    """Base of the optimizers of categorical, integer and real variables.

    The distribution starts with the highest entropy, uniform probabilities and Gaussians in the
    middle of their range with half of it as standard deviation, or about ``init``. Random numbers
    are a function of ``seed`` and of how many populations were asked for; no global generator is
    read or set.

    A subclass makes an engine from ``self._common``, which ``self._started`` takes to where it
    begins, and says which settings and which numbers of its state are its own. It passes the
    arguments below on.

    Args:
        space: What to search.
        population_size: λ, samples per ``ask``; at least 2.
        margin: Lower bound of probabilities, see :func:`margins`.
        init: Where to start. Values by name, of all variables or some, such as the best sample of
            another search: Gaussians have their mean there; their standard deviation is as without.
            Or a whole distribution, such as :attr:`theta` of another search of this space, which is
            moved to where margins and ranges allow.
        init_probability: In (0, 1], of a choice in ``init``, unless that is a distribution; the
            other choices share the rest. It is taken to be no less than in a uniform distribution
            and no more than margins allow.
        fixed: Values by name of variables that are not searched. Samples, recommended and best one
            have them, and all is as if these variables had a single value; states fit where the
            same values are fixed.
        seed: Any integer in [0, 2⁶⁴), or None for one from the operating system.
        maximize: Losses are scores to maximize instead.
        convergence_limit: ``should_stop`` once :attr:`progress`, in [0, 1], is this far and
            ``patience`` is over.
        patience: Populations in a row without a new :attr:`best` after which the search counts as
            done where it has converged.
        stall_limit: ``should_stop``, with a RuntimeWarning, after this many populations in a row
            of which none moved the distribution; None for never.
        generation_limit: ``should_stop`` after this many ``tell``; None for no limit.
        evaluation_limit: ``should_stop`` where one more population would make more than this many
            evaluated samples; None for no limit.
        device: Where the state lives: "cpu", or a CUDA device for an optimizer that says so, if no
            variable of the space is conditional.

    Raises:
        TypeError, ValueError: If an argument is of the wrong kind or out of its range, or the
            space has nothing to choose.
    """

    _engine: _host.Optimizer | ASNGEngine
    # Names of a subclass's own arguments, which are attributes, too.
    _own_settings: tuple[str, ...] = ()
    # Names of the arrays that the engine of a subclass keeps beside the distribution.
    _own_arrays: tuple[str, ...] = ()

    def __init__(
        self,
        space: SearchSpace,
        *,
        population_size: int = 2,
        margin: Margin = "paper",
        init: Mapping[str, Any] | Theta | None = None,
        init_probability: float = 0.75,
        fixed: Mapping[str, Any] | None = None,
        seed: int | None = None,
        maximize: bool = False,
        convergence_limit: float = 0.95,
        patience: int = 20,
        stall_limit: int | None = 100,
        generation_limit: int | None = None,
        evaluation_limit: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if not isinstance(space, SearchSpace):
            raise TypeError(f"space must be a SearchSpace, got {type(space).__name__}")
        self.fixed = None if fixed is None else checked_values("fixed", fixed, space)
        self._fixed = Fixed(space, self.fixed) if self.fixed else None
        # What the engine knows of. Samples have the columns of the whole space.
        self._reduced = self._fixed.space if self._fixed else space
        if self._reduced.n_theta == 0:
            free = " that is not fixed" if self.fixed else ""
            raise ValueError(f"space must hold a variable with more than one value{free}")
        self.init: dict[str, Any] | Theta | None = None
        if isinstance(init, Theta):
            self.init = checked_theta("init", init, space)
        elif init is not None:
            self.init = checked_values("init", init, space)
        check_number("init_probability", init_probability, 0.0, most=1.0)
        self.init_probability = float(init_probability)
        check_integer("population_size", population_size, 2, _host.MOST_SAMPLES + 1)
        check_truth_value("maximize", maximize)
        check_number("convergence_limit", convergence_limit, least=0.0, most=1.0)
        check_integer("patience", patience, 0, 2**63)
        for name, limit, least in (
            ("stall_limit", stall_limit, 1),
            ("generation_limit", generation_limit, 0),
            ("evaluation_limit", evaluation_limit, population_size),
        ):
            if limit is not None:
                check_integer(name, limit, least, 2**63)
        if seed is None:
            seed = secrets.randbits(64)
        check_integer("seed", seed, 0, 2**64)
        self.device = self._check_device(device)
        if space.active_if and self.device != "cpu":
            raise ValueError(
                'device must be "cpu" for a space with conditional variables (active_if), '
                f"got {self.device!r}"
            )
        self.space = space
        self.population_size = int(population_size)
        self.margin = margin
        self.maximize = bool(maximize)
        self.convergence_limit = float(convergence_limit)
        self.patience = int(patience)
        self.stall_limit = stall_limit
        self.generation_limit = generation_limit
        self.evaluation_limit = evaluation_limit
        numerical = self._reduced.numerical.values()
        self._common: _host.Common = {
            "sizes": self._reduced.sizes,
            "margin": margins(self._reduced.sizes, margin),
            "low": [variable.bounds[0] for variable in numerical],
            "high": [variable.bounds[1] for variable in numerical],
            "std_min": [variable.std_min for variable in numerical],
            "variance_ratio_min": 0.0,
            "population_size": self.population_size,
            "seed": int(seed),
        }

    def _started(self, engine: EngineT) -> EngineT:
        """An engine, newly made, with its distribution where the search begins."""
        if not self.init:
            return engine
        if isinstance(self.init, Theta):
            return self._started_at(self.init, engine)
        probabilities, means = np.array(engine.theta), np.array(engine.mean)
        end = 0
        for name, choices, margin in zip(
            self._reduced.categorical, self._reduced.sizes, engine.margin.tolist(), strict=True
        ):
            end += choices
            if name in self.init and choices > 1:
                most = 1 - (choices - 1) * margin
                likely = min(max(self.init_probability, 1 / choices), most)
                own = probabilities[end - choices : end]
                own[:] = (1 - likely) / (choices - 1)
                own[int(self.space.position(name, self.init[name]))] = likely
        for column, name in enumerate(self._reduced.numerical):
            if name in self.init:
                means[column] = self.space.position(name, self.init[name])
        engine.theta, engine.mean = probabilities, means
        return engine

    def _started_at(self, theta: Theta, engine: EngineT) -> EngineT:
        """An engine with the part of a distribution that is not fixed."""
        rows = dict(zip(self.space.categorical, theta.categorical))
        moments = dict(zip(self.space.numerical, theta.numerical.T))
        parts = [np.zeros(0)]
        for name, choices, margin in zip(
            self._reduced.categorical, self._reduced.sizes, engine.margin.tolist(), strict=True
        ):
            if choices == 1:
                parts.append(np.ones(1))
                continue
            part = np.maximum(rows[name][:choices], margin)
            part -= (part.sum() - 1) * (part - margin) / (part.sum() - choices * margin)
            parts.append(part / part.sum())
        kept = np.array([moments[name] for name in self._reduced.numerical])
        mean, second = kept.reshape(-1, 2).T
        low, high = np.array(self._common["low"]), np.array(self._common["high"])
        half = (high - low) / 2
        # A range may be so narrow that its half is below the smallest standard deviation.
        least = np.minimum(self._common["std_min"], half)
        engine.theta = np.concatenate(parts)
        engine.mean = np.clip(mean, low, high)
        engine.variance = np.clip(second - mean**2, least**2, half**2)
        return engine

    def _check_device(self, device: Any) -> str:
        """The device's name (ValueError if the optimizer cannot live there)."""
        if str(device) != "cpu":
            raise ValueError(f'device must be "cpu", got {brief(device)}')
        return "cpu"

    def _losses(self, losses: Any) -> Any:
        """Losses in the form that the engine takes, with a length."""
        return losses if type(losses) is list else as_array(losses)

    def ask(self) -> Samples:
        """Draws λ samples. Any number of populations may be drawn before one is evaluated.

        Gaussian draws come in antithetic pairs (μ + σz, μ - σz); if λ is odd the last is single.
        """
        categorical, numerical = self._engine.ask()
        if self._fixed:
            categorical, numerical = self._fixed.to_whole(categorical, numerical)
        return Samples(self.space, categorical, numerical)

    def tell(
        self, samples: Samples | Sequence[Mapping[str, Any]], losses: Any
    ) -> bool | torch.Tensor:
        """Updates the distribution from the losses of samples, in any order, of any ``ask``.

        Args:
            samples: At least 2, as ``ask`` gave them, reordered or picked (``samples[[1, 0]]``),
                or as dicts; a dict holds rounded values, so prefer the former.
            losses: (λ,) numbers, smaller is better (larger with ``maximize``): a list, an array or
                a tensor. NaN and +inf rank last and tie; -inf is refused (with ``maximize`` the
                other way round).

        Returns:
            Whether anything moved. Nothing does if all losses are equal, none is finite, or the
            samples do not differ.

        Raises:
            ValueError, TypeError: If samples and losses do not match each other or the space; the
                optimizer is then as it was.
        """
        losses = self._losses(losses)
        if not isinstance(samples, Samples):
            samples = self.space.samples_called("samples", samples)
        categorical, numerical = samples.categorical, samples.numerical
        # The length of a tensor costs several times as much.
        count = len(losses) if type(losses) is list else losses.shape[0]
        if count != categorical.shape[0] or count < 2:
            raise ValueError(
                "losses must hold one number per sample, and at least 2, "
                f"got {count} for {len(categorical)} samples"
            )
        if samples.space is not self.space:
            check_space(samples, self.space)
        if self._fixed:
            categorical, numerical = self._fixed.to_reduced(samples)
        try:
            if self._reduced.active_if and categorical.shape[1:] == (len(self._reduced.sizes),):
                has = self._reduced.activity(np.asarray(categorical))
                engine = cast(_host.Optimizer, self._engine)  # no other has conditional variables
                return engine.tell(categorical, numerical, losses, self.maximize, *has)
            return self._engine.tell(categorical, numerical, losses, self.maximize)
        except (TypeError, OverflowError) as error:
            raise (TypeError if isinstance(error, TypeError) else ValueError)(
                f"losses and samples must be numbers: {error}; got losses {brief(losses)}"
            ) from None

    @property
    def capturable(self) -> bool:
        """Whether ``ask`` and ``tell`` work on tensors that stay where they are and do not
        synchronize with the device: steps with them can be captured in a CUDA graph."""
        return False

    def recommend(self) -> dict[str, Any]:
        """The most likely sample: arg max of the probabilities, means of the Gaussians."""
        return self._decoded(self._likeliest().tolist(), self._theta.numerical[0].tolist())

    def _likeliest(self) -> IntArray:
        """The most likely choice of each variable of the reduced space."""
        # Without categorical variables there are no columns to take the largest of.
        if not self._reduced.categorical:
            return np.zeros(0, dtype=np.int64)
        likeliest: IntArray = self._theta.categorical.argmax(axis=1)
        return likeliest

    def _decoded(self, categorical: list[int], numerical: list[float]) -> dict[str, Any]:
        """The values of a sample of the reduced space."""
        if self._fixed and self.space.active_if:
            whole = self._fixed.to_whole(np.array([categorical]), np.array([numerical]))
            return self.space.decode(*(rows[0].tolist() for rows in whole))
        return self._reduced.decode(categorical, numerical)

    def _counted(self) -> tuple[BoolArray, BoolArray]:
        """Which categorical and which numerical variables of the reduced space count as converged:
        those that the most likely sample has."""
        has, has_number = self._reduced.activity(self._likeliest()[None])
        return has[0], has_number[0]

    @property
    def best(self) -> Best | None:
        """The best evaluated sample so far and its loss; None before there is a finite loss.

        It is a loss of one evaluation. Where losses are noisy, or of weights that go on changing, a
        low one may be luck, and :meth:`recommend` is what the search has found.
        """
        best = self._engine.best
        if best is None:
            return None
        loss, _, categorical, numerical = best
        return Best(self._decoded(categorical, numerical), -loss if self.maximize else loss)

    def should_stop(self) -> bool:
        """Whether the search is over: it has converged and finds nothing better, it does not move,
        or a limit is reached.

        Converged is a distribution whose :attr:`progress` has reached ``convergence_limit``. A
        Gaussian can travel, and widen again, after that, so the search goes on until ``patience``
        populations have not given a new :attr:`best`.

        Warns:
            RuntimeWarning: If ``stall_limit`` populations in a row moved nothing, because their
                losses are all equal or none is finite.
        """
        generation = self.generation
        if self.generation_limit is not None and generation >= self.generation_limit:
            return True
        if (
            self.evaluation_limit is not None
            and self.evaluations + self.population_size > self.evaluation_limit
        ):
            return True
        best = self._engine.best
        waited = generation - (best[1] if best else 0)
        if waited >= self.patience and self.progress >= self.convergence_limit:
            return True
        stalled = self.stalled
        if self.stall_limit is None or stalled < self.stall_limit:
            return False
        warnings.warn(
            f"nothing has moved for {stalled} populations: their losses were all equal or not "
            "finite, or their samples did not differ",
            RuntimeWarning,
            stacklevel=2,
        )
        return True

    @property
    def theta(self) -> Theta:
        """Parameters of the distribution (copies)."""
        return self._fixed.theta(self._theta) if self._fixed else self._theta

    @property
    def _theta(self) -> Theta:
        """Those over the reduced space."""
        sizes = self._reduced.sizes
        padded = np.zeros((len(sizes), max(sizes, default=0)))
        padded[np.arange(padded.shape[1]) < np.array(sizes, dtype=np.int64)[:, None]] = (
            self._engine.theta
        )
        mean, variance = self._engine.mean, self._engine.variance
        return Theta(padded, np.stack([mean, mean**2 + variance]))

    @property
    def n_theta(self) -> int:
        """Dimension of θ."""
        return self._reduced.n_theta

    @property
    def generation(self) -> int:
        """How many populations were evaluated."""
        return int(self._engine.generation)

    @property
    def evaluations(self) -> int:
        """How many samples were evaluated."""
        return int(self._engine.evaluations)

    @property
    def stalled(self) -> int:
        """How many populations, up to the last, have moved nothing: 0 where the last did. At
        ``stall_limit`` the search counts as stuck."""
        return self.generation - int(self._engine.moved)

    @property
    def seed(self) -> int:
        """The seed, also if it was left to the operating system."""
        return int(self._engine.seed)

    @property
    @abstractmethod
    def delta(self) -> float:
        """Length of the next step."""

    @property
    def entropy(self) -> float:
        """Entropy of the distribution in nats: Shannon's of the categorical variables plus the
        differential entropy of the Gaussians."""
        p = self._engine.theta
        p = p[p > 0]
        gaussian = 0.5 * np.log(2 * math.pi * math.e * self._engine.variance)
        return float(gaussian.sum() - (p * np.log(p)).sum())

    @property
    def convergence(self) -> float:
        """Mean over the categorical variables of max_j θ_ij (Section 3.2); for a space without
        any, :attr:`progress`. Those that are fixed, or that the most likely sample lacks, do not
        count."""
        # Numbers of a single value have columns there as well.
        counted = [
            bool(has)
            and isinstance(self.space[name], Categorical)
            and name not in (self.fixed or ())
            for name, has in zip(self._reduced.categorical, self._counted()[0])
        ]
        if not any(counted):
            return self.progress
        return float(self._theta.categorical.max(axis=1)[counted].mean())

    @property
    def progress(self) -> float:
        """How far the distribution has come, from 0 at the highest entropy to 1 at the narrowest
        one the margins allow: the mean over all variables with something to choose that the most
        likely sample has."""
        sizes = np.array(self._reduced.sizes, dtype=np.float64)
        has, has_number = self._counted()
        choice = (sizes > 1) & has
        parts = []
        if choice.any():
            top = self._theta.categorical.max(axis=1)[choice]
            start = 1 / sizes[choice]
            end = 1 - (sizes[choice] - 1) * self._engine.margin[choice]
            parts.append((top - start) / (end - start))
        if self._reduced.numerical:
            variables = self._reduced.numerical.values()
            start = np.array([(v.bounds[1] - v.bounds[0]) / 2 for v in variables])
            end = np.array([v.std_min for v in variables])
            std = np.sqrt(self._engine.variance)
            # A range so narrow that sigma cannot shrink is where it should be.
            room = np.maximum(start - end, np.finfo(np.float64).tiny)
            parts.append(np.where(start > end, (start - std) / room, 1.0)[has_number])
        return float(np.concatenate(parts).mean())

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes next, as plain numbers, strings and lists: it can be
        saved by ``torch.save`` (and loaded with ``weights_only=True``), JSON or pickle. It is of
        one moment, also where other threads ask and tell meanwhile."""
        engine = self._engine
        while True:
            moment = engine.asked, engine.generation
            state = {
                "version": STATE_VERSION,
                "optimizer": type(self).__name__,
                "space": list(self._reduced.description),
                **self._settings(),
                "seed": self.seed,
                "asked": int(engine.asked),
                "generation": self.generation,
                "evaluations": self.evaluations,
                "moved": int(engine.moved),
                "best": self._best_state(),
                **{name: getattr(engine, name).tolist() for name in self._arrays()},
                **self._own_numbers(),
            }
            if (engine.asked, engine.generation) == moment:  # or another thread has moved it
                return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues, bit for bit, where the optimizer that gave ``state`` was.

        Raises:
            ValueError, TypeError: If the state is of another kind of optimizer, another space or
                other settings, is incomplete, or holds what no state can. The optimizer is then as
                it was.

        Warns:
            UserWarning: If the state was saved before states said of which space they are, and
                fits as far as can be seen.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {type(state).__name__}")
        expected = {"optimizer": type(self).__name__, **self._settings()}
        own = self.state_dict()
        old = state.get("version") == 1
        if old:
            del own["space"]
            # No state of that time is of a variable with a step or a logarithm.
            ranges = [
                repr(v)
                if v.log or (isinstance(v, Integer) and v.step > 1)
                else list(map(float, v.bounds))
                for v in self._reduced.numerical.values()
            ]
            expected |= {"sizes": self._reduced.sizes, "ranges": ranges}
            state = self._completed(state)
        else:
            expected["version"] = STATE_VERSION
        # The kind first: of another one, everything else is missing as well.
        for key in ("version", "optimizer"):
            if key in state and key in expected and state[key] != expected[key]:
                raise ValueError(
                    f"state was saved with {key}={state[key]!r}, this optimizer has "
                    f"{expected[key]!r}"
                )
        missing = sorted({*own, *expected} - set(state))
        if missing:
            raise ValueError(f"state lacks {missing}")
        if not old:
            if not isinstance(state["space"], (list, tuple)):
                raise TypeError(f"state['space'] must be a list, got {state['space']!r}")
            difference = self._reduced.difference(state["space"])
            if difference:
                raise ValueError(f"state must be of the optimizer's space, but its {difference}")
        for key, value in expected.items():
            if state[key] != value:
                raise ValueError(
                    f"state was saved with {key}={state[key]!r}, this optimizer has {value!r}"
                )
        arrays = {name: self._checked_array(name, state[name]) for name in self._arrays()}
        check_integer("state['seed']", state["seed"], 0, 2**64)
        for name in ("asked", "generation", "evaluations", "moved"):
            check_integer(f"state[{name!r}]", state[name], 0, 2**63)
        best = self._checked_best(state["best"])
        self._check_own_numbers(state)
        if old:
            warnings.warn(
                "state does not say of which space it is; its numbers of choices and its ranges "
                "fit, but names, order and choices of the variables are not checked",
                stacklevel=2,
            )
        for name, value in arrays.items():
            setattr(self._engine, name, value)
        for name in ("seed", "asked", "generation", "evaluations", "moved", *self._own_numbers()):
            setattr(self._engine, name, state[name])
        self._engine.best = best

    def _completed(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state of version 1 with what that did not hold."""
        done = state.get("generation")
        return {
            "variance_ratio_min": 0.0,
            "evaluations": done * self.population_size if isinstance(done, int) else done,
            "moved": done,
            "best": None,
            **state,
        }

    def _arrays(self) -> tuple[str, ...]:
        return ("theta", "mean", "variance", *self._own_arrays)

    def _checked_array(self, name: str, values: Any) -> FloatArray:
        """An array of a state (ValueError or TypeError if it is none that a state can have)."""
        least, most = self._array_bounds()[name]
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(f"state[{name!r}] must hold numbers, got {brief(values)}") from None
        shape = getattr(self._engine, name).shape
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(
                f"state[{name!r}] must hold {math.prod(shape)} finite numbers, got {brief(values)}"
            )
        wrong = np.flatnonzero((array < least) | (array > most))
        if wrong.size:
            i = wrong[0]
            low, high = np.broadcast_to(least, shape)[i], np.broadcast_to(most, shape)[i]
            raise ValueError(
                f"state[{name!r}][{i}] must be in [{low:.9g}, {high:.9g}], got {array[i]:.9g}"
            )
        if name == "theta" and array.size:
            first = np.cumsum([0, *self._reduced.sizes[:-1]])
            sums = np.add.reduceat(array, first)
            wrong = np.flatnonzero(np.abs(sums - 1) > TOLERANCE)
            if wrong.size:
                raise ValueError(
                    f"state['theta'] must hold probabilities that sum to 1 for each variable, but "
                    f"those of {list(self._reduced.categorical)[wrong[0]]!r} sum to "
                    f"{sums[wrong[0]]:.9g}"
                )
        return array

    def _array_bounds(self) -> dict[str, tuple[Any, Any]]:
        """The least and the most that an update leaves in the arrays, by name, with room for
        rounding."""
        variables = self._reduced.numerical.values()
        low, high = np.array([v.bounds for v in variables], dtype=np.float64).reshape(-1, 2).T
        half = (high - low) / 2
        # A range may be so narrow that its half is below the smallest standard deviation.
        least = np.minimum([v.std_min for v in variables], half)
        margin = np.repeat(self._engine.margin, self._reduced.sizes)
        return {
            "theta": (margin - TOLERANCE, 1 + TOLERANCE),
            "mean": (low - TOLERANCE * half, high + TOLERANCE * half),
            "variance": (least**2 * (1 - TOLERANCE), half**2 * (1 + TOLERANCE)),
        }

    def _best_state(self) -> dict[str, Any] | None:
        best = self._engine.best
        if best is None:
            return None
        loss, *rest = best
        return dict(zip(BEST_KEYS, (-loss if self.maximize else loss, *rest)))

    def _checked_best(self, best: Any) -> BestEvaluated | None:
        """What a state holds as its best sample, for the engine (ValueError or TypeError if it is
        none that a state can have)."""
        if best is None:
            return None
        if not isinstance(best, Mapping) or set(best) != set(BEST_KEYS):
            raise ValueError(
                f"state['best'] must be None or hold {list(BEST_KEYS)}, got {brief(best)}"
            )
        loss, generation, categorical, numerical = (best[key] for key in BEST_KEYS)
        check_number("state['best']['loss']", loss)
        check_integer("state['best']['generation']", generation, 1, 2**63)
        categorical = listed("state['best']['categorical']", categorical, "integers")
        numerical = listed("state['best']['numerical']", numerical, "numbers")
        for index in categorical:
            check_integer("state['best']['categorical']", index, 0, 2**63)
        for number in numerical:
            check_number("state['best']['numerical']", number)
        self._reduced.decode(categorical, numerical)
        return -loss if self.maximize else loss, generation, categorical, numerical

    def _own_numbers(self) -> dict[str, Any]:
        """The numbers that the engine keeps beside the arrays, by name."""
        return {}

    def _check_own_numbers(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """ValueError or TypeError if they are none that a state can have."""

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a state to fit, in a form that compares and saves well."""
        return {
            "population_size": self.population_size,
            **{name: getattr(self, name) for name in self._own_settings},
            "margin": self.margin,
            "maximize": self.maximize,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("population_size", *CommonSettings.__annotations__, *self._own_settings)
        settings = {name: getattr(self, name) for name in names}
        return _rebuild, (type(self), self.space, settings, self.state_dict())

    def __repr__(self) -> str:
        fixed = f"fixed={self.fixed!r}, " if self.fixed else ""
        return (
            f"{type(self).__name__}({self.space!r}, {fixed}population_size={self.population_size}, "
            f"generation={self.generation}, convergence={self.convergence:.3f}, "
            f"delta={self.delta:.3g})"
        )


def _rebuild(
    cls: type[OptimizerT], space: SearchSpace, settings: dict[str, Any], state: dict[str, Any]
) -> OptimizerT:
    optimizer = cls(space, **settings)
    optimizer.load_state_dict(state)
    return optimizer
