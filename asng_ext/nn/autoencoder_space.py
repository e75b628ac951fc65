"""The autoencoder spaces (Section 3.3): how an architecture is written down and read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from asng_ext._checks import brief, check_mapping, check_positive, is_integer, listed
from asng_ext.space import Categorical, Integer, SearchSpace, Variable

__all__ = ["CaeCatSpace", "CaeIntSpace", "CaeLayer", "CaeSpace", "fitting_layers"]

IMAGE = "image"


@dataclass(frozen=True)
class CaeLayer:
    """A convolution of the encoder and its mirror image in the decoder.

    Attributes:
        index: Which layer of the space it is, from 0.
        kernel: Side of the kernel in pixels, odd.
        channels: Output channels.
        skip: Whether the encoder's output is added to the decoder's. With a skip the stride is 1,
            without it 2.
    """

    index: int
    kernel: int
    channels: int
    skip: bool

    @property
    def stride(self) -> int:
        """Of the convolution and of its mirror image."""
        return 1 if self.skip else 2

    def __str__(self) -> str:
        return f"{self.kernel}×{self.kernel}, {self.channels}" + (", skip" if self.skip else "")


def checked_layers(layers: Any) -> list[CaeLayer]:
    """The layers as a list; TypeError unless they are some."""
    checked: list[CaeLayer] = listed("layers", layers, "CaeLayer")
    for layer in checked:
        if not isinstance(layer, CaeLayer):
            raise TypeError(f"layers must be a sequence of CaeLayer, got {brief(layer)} in it")
        for name in ("index", "kernel", "channels"):
            if not is_integer(value := getattr(layer, name)):
                raise TypeError(f"{name} of layers must be an integer, got {brief(value)}")
    return checked


def fitting_layers(
    layers: Sequence[CaeLayer], height: int, width: int
) -> tuple[tuple[CaeLayer, ...], tuple[tuple[int, int], ...]]:
    """Which layers an image of height × width pixels goes through, and the size before each.

    A layer without a skip is left out where height or width is 1 already.
    """
    fitting: list[CaeLayer] = []
    sizes: list[tuple[int, int]] = []
    for layer in layers:
        if not layer.skip and min(height, width) == 1:
            continue
        fitting.append(layer)
        sizes.append((height, width))
        if not layer.skip:
            height, width = (height + 1) // 2, (width + 1) // 2
    return tuple(fitting), tuple(sizes)


@dataclass(frozen=True)
class CaeSpace(ABC):
    """What both autoencoder spaces share: layers in a row, some of which are used.

    A layer reads one of the `levels_back` layers before it, or the image while that is in reach;
    so does the output. Walking back from the output gives the layers that count.

    Args:
        layers: Number of layers.
        kernels: Sides of the kernels to choose from, odd, in pixels.
        levels_back: How far back an input may lie.

    Raises:
        ValueError: If an argument is out of its range.
    """

    layers: int = 20
    kernels: tuple[int, ...] = (1, 3, 5)
    levels_back: int = 5

    def __post_init__(self) -> None:
        for name in ("layers", "levels_back"):
            check_positive(name, getattr(self, name))
        object.__setattr__(self, "kernels", tuple(listed("kernels", self.kernels, "integers")))
        for kernel in self.kernels:
            check_positive("kernels", kernel)
        if (
            not self.kernels
            or any(k % 2 == 0 for k in self.kernels)
            or len(set(self.kernels)) < len(self.kernels)
        ):
            raise ValueError(f"kernels must be different odd integers, got {self.kernels}")

    @property
    def max_channels(self) -> int:
        """The most channels a layer can have."""
        return max(self._widths)

    @property
    @abstractmethod
    def _widths(self) -> tuple[int, ...]:
        """Numbers of channels of the space, the largest among them."""

    @abstractmethod
    def _layer_variables(self, index: int) -> dict[str, Variable]:
        """A layer's variables by their last names."""

    @abstractmethod
    def _layer(self, index: int, values: Mapping[str, Any]) -> CaeLayer:
        """The layer that the values describe."""

    @abstractmethod
    def _layer_values(self, layer: CaeLayer) -> dict[str, Any]:
        """The inverse of `_layer`."""

    def inputs(self, index: int) -> tuple[str, ...]:
        """What layer `index` may read, in order; the output counts as layer number `layers`."""
        reach = range(max(0, index - self.levels_back), index)
        first = (IMAGE,) if index < self.levels_back else ()
        return (*first, *(f"layer{i}" for i in reach))

    def search_space(self) -> SearchSpace:
        """The space for an optimizer."""
        return self._space

    @cached_property
    def _space(self) -> SearchSpace:
        variables: dict[str, Variable] = {}
        for i in range(self.layers):
            named = self._layer_variables(i)
            variables |= {f"layer{i}/{name}": variable for name, variable in named.items()}
        variables["output/input"] = Categorical(self.inputs(self.layers))
        return SearchSpace(variables)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        """Last names of a layer's variables."""
        return tuple(self._layer_variables(0))

    @property
    def n_theta(self) -> int:
        """Number of free distribution parameters."""
        return self._space.n_theta

    def decode(self, values: Mapping[str, Any]) -> tuple[CaeLayer, ...]:
        """The layers that count, from the image to the output; there may be none.

        Raises:
            ValueError: If a variable that counts is missing or has a value it cannot take.
            TypeError: If a number is expected and the value is none.
        """
        check_mapping("values", values)
        layers: list[CaeLayer] = []
        index = self._source(values, "output")
        while index is not None:
            prefix = f"layer{index}"
            named = {name: self._value(values, f"{prefix}/{name}") for name in self._names}
            layers.append(self._layer(index, named))
            index = self._source(values, prefix)
        return tuple(reversed(layers))

    def encode(self, layers: Sequence[CaeLayer]) -> dict[str, Any]:
        """Values of all variables that give these layers; what does not count is filled up.

        Raises:
            ValueError: If a layer is none of the space, or cannot read the one before.
        """
        values: dict[str, Any] = {}
        for i in range(self.layers):
            unused = CaeLayer(i, self.kernels[0], self._widths[0], skip=True)
            named = self._layer_values(unused) | {"input": self.inputs(i)[-1]}
            values |= {f"layer{i}/{name}": value for name, value in named.items()}
        source = IMAGE
        for layer in checked_layers(layers):
            if not 0 <= layer.index < self.layers:
                raise ValueError(f"index must be in 0..{self.layers - 1}, got {layer.index}")
            self._check_source(source, layer.index)
            named = self._layer_values(layer) | {"input": source}
            values |= {f"layer{layer.index}/{name}": value for name, value in named.items()}
            source = f"layer{layer.index}"
        self._check_source(source, self.layers)
        values["output/input"] = source
        self._space.encode(values)  # raises for a kernel or a width that the space lacks
        return values

    def _check_source(self, source: str, index: int) -> None:
        if source not in self.inputs(index):
            name = "the output" if index == self.layers else f"layer{index}"
            raise ValueError(f"{name} must read one of {self.inputs(index)}, got {source!r}")

    def _source(self, values: Mapping[str, Any], reader: str) -> int | None:
        """Number of the layer that a layer or the output reads; None for the image."""
        source = self._value(values, f"{reader}/input")
        return None if source == IMAGE else int(str(source).removeprefix("layer"))

    def _value(self, values: Mapping[str, Any], name: str) -> Any:
        """The value of a variable, checked as the search space checks it."""
        if name not in values:
            raise ValueError(f"values must have {name!r}, which this architecture uses")
        variable, value = self._space[name], values[name]
        if not isinstance(variable, Categorical) or value not in variable.values:
            SearchSpace({name: variable}).encode({name: value})
        return value


@dataclass(frozen=True)
class CaeCatSpace(CaeSpace):
    """All variables categorical: a layer's type (kernel and skip), its channels and its input.

    20 layers have n_θ = 214 free parameters.

    Args:
        layers, kernels, levels_back: As in `CaeSpace`.
        channels: Numbers of channels to choose from.
    """

    channels: tuple[int, ...] = (64, 128, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "channels", tuple(listed("channels", self.channels, "integers")))
        for count in self.channels:
            check_positive("channels", count)
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels must be different positive integers, got {self.channels}")

    @property
    def _widths(self) -> tuple[int, ...]:
        return self.channels

    @cached_property
    def _types(self) -> dict[str, tuple[int, bool]]:
        return {
            f"{k}x{k}" + ("_skip" if skip else ""): (k, skip)
            for k in self.kernels
            for skip in (True, False)
        }

    def _layer_variables(self, index: int) -> dict[str, Variable]:
        return {
            "type": Categorical(tuple(self._types)),
            "channels": Categorical(self.channels),
            "input": Categorical(self.inputs(index)),
        }

    def _layer(self, index: int, values: Mapping[str, Any]) -> CaeLayer:
        kernel, skip = self._types[values["type"]]
        return CaeLayer(index, kernel, int(values["channels"]), skip)

    def _layer_values(self, layer: CaeLayer) -> dict[str, Any]:
        name = f"{layer.kernel}x{layer.kernel}" + ("_skip" if layer.skip else "")
        return {"type": name, "channels": layer.channels}


@dataclass(frozen=True)
class CaeIntSpace(CaeSpace):
    """Skip and input categorical, kernel and channels integer.

    The kernel is written as its place among the kernels, from 1: with kernels 1, 3, 5 the value 2
    is a 3×3 convolution. 20 layers have n_θ = 174 free parameters.

    Args:
        layers, kernels, levels_back: As in `CaeSpace`.
        low, high: Range of the number of channels, both included.
    """

    low: int = 64
    high: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            check_positive(name, getattr(self, name))
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got low={self.low} and high={self.high}")

    @property
    def _widths(self) -> tuple[int, ...]:
        return self.low, self.high

    def _layer_variables(self, index: int) -> dict[str, Variable]:
        return {
            "skip": Categorical(("no", "yes")),
            "input": Categorical(self.inputs(index)),
            "kernel": _integer(1, len(self.kernels)),
            "channels": _integer(self.low, self.high),
        }

    def _layer(self, index: int, values: Mapping[str, Any]) -> CaeLayer:
        kernel = self.kernels[int(values["kernel"]) - 1]
        return CaeLayer(index, kernel, int(values["channels"]), values["skip"] == "yes")

    def _layer_values(self, layer: CaeLayer) -> dict[str, Any]:
        if layer.kernel not in self.kernels:
            raise ValueError(f"kernel must be one of {self.kernels}, got {layer.kernel}")
        return {
            "skip": "yes" if layer.skip else "no",
            "kernel": self.kernels.index(layer.kernel) + 1,
            "channels": layer.channels,
        }


def _integer(low: int, high: int) -> Variable:
    """A Gaussian needs a range; a single value is nothing to search."""
    return Integer(low, high) if low < high else Categorical((low,))
