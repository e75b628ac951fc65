from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

class Operation:
    """An operation of the cell space."""

    @property
    def name(self) -> str: ...
    @property
    def form(self) -> str:
        """What is computed, such as "max_pool" or "separable"."""
    @property
    def kernel(self) -> int: ...
    @property
    def dilation(self) -> int: ...
    @property
    def in_paper(self) -> bool:
        """Whether the paper's space has it."""
    @property
    def weights(self) -> tuple[str, ...]:
        """Names of its depthwise and pointwise weight, if it is separable."""

# By the value of an operation variable.
OPERATIONS: tuple[Operation, ...]
# Names of weights in the order in which operators take them.
OPERATION_WEIGHTS: tuple[str, ...]
CELL_WEIGHTS: tuple[str, ...]
CHANNEL_BLOCK: int
EPSILON: float

# Shapes of weights by name, in that order.
def operation_weights(
    edges: int, reductions: int, channels: int, /
) -> dict[str, tuple[int, ...]]: ...
def cell_weights(
    nodes: int, channels: int, prev_prev_channels: int, prev_channels: int, /
) -> dict[str, tuple[int, ...]]: ...

# Multiples, for each architecture, of the padded channels, of an input's size and of the output's,
# whose sum is the number of values that an operator saves.
SavedUnits = tuple[int, int, int]

def node_saved_units(edges: int, /) -> SavedUnits: ...
def cell_saved_units(nodes: int, /) -> SavedUnits: ...
def stacked_cell_saved_units(nodes: int, /) -> SavedUnits: ...

STEM_SAVED_UNITS: SavedUnits

# Columns of the counters of a device-resident optimizer, and the most samples it takes at once.
COUNTERS: tuple[str, ...]
LARGEST_POPULATION: int
# The most samples of a population on the host; no array of the toy problem is larger.
MOST_SAMPLES: int

class Common(TypedDict):
    sizes: list[int]
    margin: list[float]
    low: list[float]
    high: list[float]
    std_min: list[float]
    variance_ratio_min: float
    population_size: int
    seed: int

# Loss, generation, categories and numbers of the best sample.
BestEvaluated = tuple[float, int, list[int], list[float]]

class Optimizer:
    theta: FloatArray
    mean: FloatArray
    variance: FloatArray
    seed: int
    asked: int
    generation: int
    evaluations: int
    moved: int
    best: BestEvaluated | None
    @property
    def margin(self) -> FloatArray: ...
    @property
    def n_theta(self) -> int: ...
    def ask(self) -> tuple[npt.NDArray[np.int64], FloatArray]: ...
    def tell(
        self,
        categorical: npt.NDArray[np.int64],
        numerical: FloatArray,
        losses: list[float] | FloatArray,
        negate: bool,
        has_categorical: npt.NDArray[np.bool_] = ...,
        has_numerical: npt.NDArray[np.bool_] = ...,
        /,
    ) -> bool: ...

class ASNG(Optimizer):
    s: FloatArray
    gamma: float
    Delta: float
    def __init__(
        self, common: Common, alpha: float, delta_init: float, delta_max: float
    ) -> None: ...
    @property
    def delta(self) -> float: ...

class SNG(Optimizer):
    def __init__(self, common: Common, delta: float) -> None: ...

class NaturalAdam(Optimizer):
    first_moment: FloatArray
    second_moment: FloatArray
    updates: int
    def __init__(self, common: Common, step_size: float, beta1: float, beta2: float) -> None: ...

class CompatUpdate:
    def __init__(
        self,
        *,
        sizes: list[int],
        stride: int,
        margin: list[float],
        low: list[float],
        high: list[float],
        std_min: list[float],
        alpha: float,
        delta_init: float,
        delta_max: float,
    ) -> None: ...
    def adapt(
        self,
        theta: FloatArray,
        theta_int: FloatArray,
        s: FloatArray,
        gamma: float,
        Delta: float,
        samples: npt.ArrayLike,
        numerical: npt.ArrayLike,
        losses: Any,
        range_restriction: bool,
        offset: float,
        offset_in_accumulation: bool,
        /,
    ) -> tuple[FloatArray, FloatArray, FloatArray, bool, float, float, float, float]: ...
    def step(
        self,
        theta: FloatArray,
        delta: float,
        samples: npt.ArrayLike,
        losses: Any,
        range_restriction: bool,
        offset: float,
        /,
    ) -> tuple[FloatArray, float]: ...
    def step_adam(
        self,
        theta: FloatArray,
        m: FloatArray,
        v: FloatArray,
        step_size: float,
        beta1: float,
        beta2: float,
        updates: int,
        samples: npt.ArrayLike,
        losses: Any,
        range_restriction: bool,
        /,
    ) -> tuple[FloatArray, FloatArray, FloatArray, bool]: ...
    def one_hot(self, theta: FloatArray, uniforms: FloatArray, /) -> npt.NDArray[np.bool_]: ...

def numbers(values: list[Any], /) -> FloatArray: ...

class ToyRun:
    iteration: int
    succeeded: bool
    def __init__(self, settings: dict[str, Any], seed: int, run: int) -> None: ...
    def advance(self, count: int) -> bool: ...
    @property
    def x(self) -> FloatArray: ...
    @property
    def theta(self) -> FloatArray: ...
    @property
    def delta(self) -> float: ...

def toy_batch(
    settings: dict[str, Any],
    seed: int,
    first: int,
    count: int,
    threads: int,
    progress: Callable[[int, int], Any] | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]: ...
def toy_key(seed: int, run: int) -> int: ...
def toy_start(key: int, count: int) -> FloatArray: ...
def toy_noise(key: int, evaluation: int, count: int) -> FloatArray: ...
