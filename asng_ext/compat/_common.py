"""What the classes of the 2019 code share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from asng_ext import _host
from asng_ext._checks import brief, check_number, check_truth_value, listed
from asng_ext.optimizers import margins
from asng_ext.optimizers._evaluations import as_array
from asng_ext.space import MOST_CHOICES, FloatArray, IntArray, Integer

Integers = Sequence[int] | npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]

NO_GAUSSIANS = np.empty(0)

INPUT_ERRORS = (TypeError, ValueError, OverflowError, RuntimeError)
"""What an update raises of samples and losses that are none; the last of tensors."""

_ARRAY, _DOUBLE = np.ndarray, np.dtype(np.float64)
_KINDS = {"iu": "integers", "biuf": "numbers"}


def as_numbers(name: str, values: Any, kinds: str = "biuf") -> npt.NDArray[Any]:
    """Values as an array; TypeError unless they are numbers of these kinds."""
    try:
        array = np.asarray(values)
        if array.dtype.kind in kinds:
            return array
    except (TypeError, ValueError, RuntimeError):  # the last of tensors that NumPy cannot read
        pass
    raise TypeError(f"{name} must be an array of {_KINDS[kinds]}, got {brief(values)}")


def check_sizes(categories: Integers) -> IntArray:
    sizes = as_numbers("categories", categories, "iu")
    if sizes.ndim != 1 or not sizes.size or ((sizes < 1) | (sizes > MOST_CHOICES)).any():
        raise ValueError(
            f"categories must be a sequence of integers in [1, {MOST_CHOICES}], got "
            f"{brief(categories)}"
        )
    return sizes.astype(np.int64)


def uniform(sizes: IntArray) -> FloatArray:
    """(d, max K) probabilities 1/K, padded with zeros."""
    return np.where(np.arange(sizes.max()) < sizes[:, None], 1.0 / sizes[:, None], 0.0)


def one_hot_mle(theta: FloatArray) -> FloatArray:
    """The most likely category of each row."""
    out = np.zeros_like(theta)
    out[np.arange(len(theta)), theta.argmax(axis=1)] = 1.0
    return out


def initial(init: Any, like: FloatArray) -> FloatArray:
    """A copy of ``init_theta`` in the shape it must have."""
    array = as_numbers("init_theta", init)
    if array.shape != like.shape:
        raise ValueError(
            f"init_theta must have shape {like.shape}, got {array.shape}: {brief(init)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"init_theta must hold finite numbers, got {brief(init)}")
    return np.array(array, dtype=np.float64)


def checked_losses(losses: Any) -> Any:
    """Losses as an update takes them; TypeError or ValueError unless numbers of shape (λ,)."""
    # What needs no conversion: an update looks at the elements of a list itself.
    if type(losses) is list or (
        type(losses) is _ARRAY and losses.dtype is _DOUBLE and losses.ndim == 1
    ):
        return losses
    return as_array(losses)


def refusal(error: Exception, samples: Any, losses: Any, range_restriction: object) -> Exception:
    """What to raise in place of an update's error: it names what is wrong, and shows it."""
    count, text = len(as_array(losses)), str(error)  # wrong losses end here
    if "incompatible function arguments" in text:  # pybind11's, of single values
        check_truth_value("range_restriction", range_restriction)
        text = "attributes such as gamma and Delta must be numbers"
    elif " must " not in text:  # not the update's own, but of NumPy or Python
        text = f"samples must hold numbers ({text})"
    if text.startswith("samples") and ", got " not in text:
        given = samples.shape if isinstance(samples, np.ndarray) else brief(samples)
        text += f", for losses of shape ({count},), got {given}"
    return (TypeError if isinstance(error, TypeError) else ValueError)(text)


def make_updater(
    sizes: IntArray,
    alpha: float = 1.5,
    delta_init: float = 1.0,
    delta_max: float = math.inf,
    ranges: Any = (),
) -> _host.CompatUpdate:
    low, high = (
        ([float(bound) for bound in column] for column in zip(*ranges)) if len(ranges) else ([], [])
    )
    check_number("alpha", alpha, 0.0)
    check_number("delta_init", delta_init, 0.0)
    check_number("Delta_max", delta_max, 0.0, infinite=True)
    return _host.CompatUpdate(
        sizes=sizes.tolist(),
        stride=int(sizes.max()),
        margin=margins(sizes.tolist()),
        low=low,
        high=high,
        std_min=[Integer(0, 1).std_min] * len(low),
        alpha=float(alpha),
        delta_init=float(delta_init),
        delta_max=float(delta_max),
    )


def utility(f: Any, rho: float = 0.25, negative: bool = True) -> tuple[FloatArray, IntArray]:
    """Ranking-based utilities (Section 2.4), best first, and the order that sorts the losses.

    Args:
        f: (λ,) losses.
        rho: The share of samples rewarded, and of those punished, rounded up.
        negative: Whether the worst are punished.
    """
    losses = np.asarray(f, dtype=np.float64)
    ranked = np.where(np.isnan(losses), np.inf, losses)
    order = np.argsort(ranked)
    count = len(ranked)
    selected = int(np.ceil(count * rho))
    awards = np.zeros(count)
    awards[:selected] = 1 / selected
    awards[count - selected :] = -1 / selected if negative else 0
    best_first = ranked[order]
    shared = np.zeros(count)
    begin = 0
    for end in range(1, count + 1):
        if end < count:
            better, worse = best_first[end - 1], best_first[end]
            if better == worse or worse - better < 1e-14 * abs(better):
                continue
        shared[begin:end] = awards[begin:end].mean()
        begin = end
    return shared, order


def theta_header(sizes: IntArray, name: str = "theta") -> list[str]:
    return [f"{name}{i}_{j}" for i, size in enumerate(sizes) for j in range(size)]


def flat(theta: FloatArray, sizes: IntArray) -> FloatArray:
    """The probabilities without the padding, row by row."""
    return np.asarray(theta[np.arange(theta.shape[1]) < sizes[:, None]])


def from_log(values: Sequence[float], count: int, what: str = "numbers") -> list[float]:
    """The parameters in a log, where they may be texts."""
    try:
        numbers = [float(value) for value in listed("theta_log", values, what)]
        if len(numbers) == count:
            return numbers
    except (TypeError, ValueError):
        pass
    raise ValueError(f"theta_log must hold {count} {what}, got {brief(values)}")


def padded(values: Sequence[float], sizes: IntArray) -> FloatArray:
    """The inverse of :func:`flat`, from numbers or text."""
    numbers = from_log(values, int(sizes.sum()), "probabilities")
    theta = np.zeros((len(sizes), int(sizes.max())))
    theta[np.arange(theta.shape[1]) < sizes[:, None]] = numbers
    return theta


class Probabilities:
    """A (d, Cmax) array θ, and what comes of it alone.

    Args:
        categories: (d,) numbers of categories.
        settings: Of ASNG, alpha, delta_init and delta_max.
    """

    def __init__(self, categories: Integers, **settings: float) -> None:
        self.C = check_sizes(categories)
        self.d = len(self.C)
        self.Cmax = int(self.C.max())
        self.valid_d = int((self.C > 1).sum())
        self.theta = uniform(self.C)
        self._updater = make_updater(self.C, **settings)

    def sampling(self) -> BoolArray:
        """(d, Cmax) one-hot sample."""
        return self._updater.one_hot(self.theta, np.random.rand(self.d, 1))

    def mle(self) -> FloatArray:
        """(d, Cmax) one-hot, the most likely categories."""
        return one_hot_mle(self.theta)

    def _probabilities(self) -> list[str]:
        return [f"{p:f}" for p in flat(self.theta, self.C)]


class CategoricalBase(Probabilities):
    """Optimizer whose θ is a (d, Cmax) array.

    Args:
        categories: (d,) numbers of categories.
        lam: λ, what :meth:`get_lam` tells the caller; ``update`` takes any number of samples.
        init_theta: (d, Cmax) probabilities to start from instead of uniform ones.
        settings: Of ASNG.
    """

    def __init__(
        self, categories: Integers, lam: int, init_theta: npt.ArrayLike | None, **settings: float
    ) -> None:
        super().__init__(categories, **settings)
        self.N = int((self.C - 1).sum())
        if init_theta is not None:
            self.theta = initial(init_theta, self.theta)
        self.lam = lam

    def get_lam(self) -> int:
        """λ."""
        return self.lam

    utility = staticmethod(utility)

    def load_theta_from_log(self, theta_log: Sequence[float]) -> None:
        """Sets theta from the probabilities of a log."""
        self.theta = padded(theta_log, self.C)
