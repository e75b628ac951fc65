"""What architectures cost, as tables of choices: parameters, FLOPs and latency.

A FLOP is an addition or a multiplication of a convolution or a matrix product, as
``torch.utils.flop_counter`` counts them: two for each weight and place it is used at.
Normalization, activations, pools and sums are not counted. FLOPs and latency are of one forward
pass in evaluation mode, and of one image where the network is built from settings.

Parameters and FLOPs are exact. The latency of a network is the sum of its parts', which are
measured one by one, as they would run without a compiler and with the device to themselves.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from asng_ext._checks import check_mapping, check_number, check_size
from asng_ext.costs import CostTable, Term
from asng_ext.nn.autoencoder import OUTPUT_KERNEL
from asng_ext.nn.autoencoder_space import CaeSpace, fitting_layers
from asng_ext.nn.cell import FIRST_NODE, Cell, CellSpace, Edge, LeafProjection
from asng_ext.nn.cell_network import CellNetwork, parameter_count
from asng_ext.nn.choice import Choice, search_space
from asng_ext.nn.operations import make_operation
from asng_ext.space import Samples

__all__ = ["KINDS", "CaeCost", "Latencies", "cell_costs", "choice_costs", "count_flops"]

KINDS = ("parameters", "flops", "latency")
"""What is counted; latency in milliseconds."""

_SECONDS, _LEAST, _MOST = 0.02, 5, 200
"""How long a part is measured for, and the numbers of its passes."""


def count_flops(module: nn.Module, *inputs: Any) -> int:
    """FLOPs of a forward pass in evaluation mode, which leaves the module as it was.

    Args:
        module: On any device, "meta" too.
        inputs: What its ``forward`` takes.
    """
    with FlopCounterMode(display=False) as counter:
        _run(module, inputs)
    return int(counter.get_total_flops())


def _run(module: nn.Module, inputs: Any) -> Any:
    training = [part for part in module.modules() if part.training]
    try:
        with torch.no_grad():
            return module.eval()(*inputs)
    finally:
        for part in training:
            part.training = True


class Latencies:
    """Milliseconds that parts of networks take on a device, each measured once.

    Args:
        device: Where to measure.
        measured: What was measured before, by name, as :meth:`content` says.

    Raises:
        ValueError, TypeError: If that is not numbers above 0.
    """

    def __init__(
        self, device: torch.device | str = "cpu", measured: Mapping[str, float] | None = None
    ) -> None:
        self.device = torch.device(device)
        self.measured: dict[str, float] = {}
        check_mapping("measured", {} if measured is None else measured)
        for name, value in (measured or {}).items():
            check_number(f"measured[{name!r}]", value, 0.0)
            self.measured[name] = float(value)

    def content(self) -> dict[str, Any]:
        """The table, for a file, and what it was measured on."""
        cuda = self.device.type == "cuda"
        return {
            "unit": "milliseconds, one forward pass",
            "device": torch.cuda.get_device_name(self.device) if cuda else str(self.device),
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "measured": self.measured,
        }

    def of(self, name: str, module: nn.Module, inputs: Any) -> float:
        """The median time of a pass.

        Args:
            name: Of the module; together with the shapes of the inputs it says what is measured.
            module: Unless it is on "meta", in which case a copy gets weights of its own, it is run
                as it is.
            inputs: What its ``forward`` takes; tensors on "meta" stand for random ones.
        """
        shapes = ", ".join(
            "×".join(map(str, leaf.shape))
            for leaf in pytree.tree_leaves(inputs)
            if isinstance(leaf, Tensor)
        )
        key = f"{name}: {shapes}"
        if key not in self.measured:
            here, given = _materialized(module, inputs, self.device)
            self.measured[key] = self._time(here, given)
        return self.measured[key]

    def _time(self, module: nn.Module, inputs: Any) -> float:
        cuda = self.device.type == "cuda"

        def once() -> float:
            if cuda:
                torch.cuda.synchronize(self.device)
            start = time.perf_counter()
            _run(module, inputs)
            if cuda:
                torch.cuda.synchronize(self.device)
            return time.perf_counter() - start

        for _ in range(_LEAST):
            once()
        times: list[float] = []
        while len(times) < _LEAST or (sum(times) < _SECONDS and len(times) < _MOST):
            times.append(once())
        return 1e3 * statistics.median(times)


def _materialized(module: nn.Module, inputs: Any, device: torch.device) -> tuple[nn.Module, Any]:
    """A module on "meta" as one with random weights on a device, and inputs likewise."""
    generator = torch.Generator().manual_seed(0)

    def random(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or tensor.device.type != "meta":
            return tensor
        made = torch.rand(tensor.shape, generator=generator, device="cpu").to(device)
        return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made

    given = pytree.tree_map(random, inputs)
    if not any(p.device.type == "meta" for p in (*module.parameters(), *module.buffers())):
        return module, given
    module = copy.deepcopy(module).to_empty(device=device)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.rand(tensor.shape, generator=generator, device="cpu"))
    return module.to(memory_format=torch.channels_last), given  # type: ignore[call-overload]


Measure = Callable[[str, nn.Module, Any], float]


def _measure(kind: str, latencies: Latencies | None) -> Measure:
    """What a part of a kind costs, from its name, the module and its inputs."""
    if kind == "parameters":
        return lambda name, module, inputs: parameter_count(module)
    if kind == "flops":
        return lambda name, module, inputs: count_flops(module, *inputs)
    if kind == "latency":
        return (latencies or Latencies()).of
    raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


# Cells


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class _Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def cell_costs(
    space: CellSpace,
    kind: str,
    *,
    image_size: tuple[int, int],
    latencies: Latencies | None = None,
    **settings: Any,
) -> CostTable:
    """What the `CellNetwork` of each architecture of a space costs, without the auxiliary head.

    Args:
        space: The cell space.
        kind: One of `KINDS`.
        image_size: (height, width) of the images in pixels.
        latencies: Where latencies are measured and kept; by default on the CPU.
        settings: Further arguments of the network: classes, cells, channels, in_channels.

    Returns:
        The table of `space.search_space()`.

    Raises:
        ValueError: If an argument is not one that `CellNetwork` takes.
    """
    measure = _measure(kind, latencies)
    check_size("image_size", image_size)
    base = 0.0
    edges: dict[tuple[str, int, Edge], float] = {}
    inputs: dict[tuple[str, int], float] = {}
    leaves: dict[str, float] = dict.fromkeys(space.KINDS, 0.0)

    @cache  # parts of one name and size are equal
    def operation(name: str, channels: int, stride: int, size: torch.Size) -> float:
        module = make_operation(name, channels, stride, nn.BatchNorm2d)
        label = f"{name} of stride {stride}"
        return measure(label, module, (torch.empty(1, channels, *size),))

    with torch.device("meta"):  # shapes without memory
        # Any architecture has the parts that do not depend on it.
        any_one = [0] * len(space.categories)
        network = CellNetwork(space, any_one, auxiliary=False, **settings)
        x = torch.empty(1, network.settings["in_channels"], *image_size)
        prev_prev = prev = _run(network.stem, (x,))
        base += measure(f"stem to {prev.shape[1]} channels", network.stem, (x,))
        for part, is_reduction in zip(network.cells, network.is_reduction, strict=True):
            assert isinstance(part, Cell)
            which, channels = space.KINDS[is_reduction], part.output.channels
            projected = []
            for i, (module, source) in enumerate(((part.older, prev_prev), (part.newer, prev))):
                name = f"{type(module).__name__} to {channels} channels"
                inputs[which, i] = inputs.get((which, i), 0.0) + measure(name, module, (source,))
                projected.append(_run(module, (source,)))
            state = torch.empty_like(projected[0])
            if is_reduction:
                state = state[..., ::2, ::2]
            for node in range(space.nodes):
                for i in range(node + FIRST_NODE):
                    source = projected[i] if i < FIRST_NODE else state
                    stride = 2 if is_reduction and i < FIRST_NODE else 1
                    for name in space.operations:
                        key = (which, node, Edge(i, name))
                        cost = operation(name, channels, stride, source.shape[2:])
                        edges[key] = edges.get(key, 0.0) + cost
            base += space.nodes * measure("sum", _Sum(), (state, state))
            # The output is linear in the number of leaf nodes.
            one, all_nodes = (
                measure(
                    f"output of {count} nodes",
                    LeafProjection(tuple(range(count)), channels, nn.BatchNorm2d),
                    ([state] * count, tuple(range(count))),
                )
                for count in (1, space.nodes)
            )
            slope = (all_nodes - one) / max(1, space.nodes - 1)
            leaves[which] += slope
            base += one - slope
            prev_prev, prev = prev, state
        base += measure("mean", _Mean(), (prev,))
        base += measure("classifier", network.classifier, (prev.mean((2, 3)),))

    terms = []
    values = list(space.variables[f"{space.KINDS[0]}/node{space.nodes - 1}/input0"])
    for (which, node, edge), cost in edges.items():
        value, prefix = values[edge.input], f"{which}/node{node}"
        pair = [
            {f"{prefix}/input{j}": value, f"{prefix}/operation{j}": edge.operation} for j in (0, 1)
        ]
        # An edge that occurs twice in a node is there once.
        terms += [Term(cost, pair[0]), Term(cost, pair[1]), Term(-cost, pair[0] | pair[1])]
    for (which, i), cost in inputs.items():
        base += cost
        if kind != "parameters":  # what no node reads is there, but never runs
            terms.append(Term(-cost, unless=_read_by(space, which, 0, values[i])))
    for which, cost in leaves.items():
        for node in range(space.nodes):
            terms.append(Term(cost, unless=_read_by(space, which, node + 1, f"node{node}")))
    return CostTable(space.search_space(), (term for term in terms if term.cost), base)


def _read_by(space: CellSpace, which: str, first: int, value: str) -> dict[str, str]:
    """Conditions that say of an input that the nodes from a first one on read it."""
    return {
        f"{which}/node{node}/input{j}": value for node in range(first, space.nodes) for j in (0, 1)
    }


# Autoencoders


class CaeCost:
    """What the `CaeNetwork` of each architecture of a space costs.

    Args:
        space: The autoencoder space.
        kind: "parameters" or "flops".
        in_channels: Channels of the images.
        image_size: (height, width) of the images in pixels.

    Raises:
        ValueError: If the kind is another.
    """

    def __init__(
        self, space: CaeSpace, kind: str, *, in_channels: int, image_size: tuple[int, int]
    ) -> None:
        if kind not in ("parameters", "flops"):
            raise ValueError(f"kind must be parameters or flops for autoencoders, got {kind!r}")
        self.space, self.kind = space, kind
        self.in_channels, self.image_size = in_channels, tuple(image_size)

    def __call__(self, samples: Samples) -> list[float]:
        """(λ,) costs."""
        return [float(self._of(values)) for values in samples]

    def fingerprint(self) -> str:
        """A text that is the same where the costs are."""
        return f"{self.in_channels} channels, {self.image_size} pixels"

    def _of(self, values: Mapping[str, Any]) -> int:
        height, width = self.image_size
        layers, sizes = fitting_layers(self.space.decode(values), height, width)
        before, total = self.in_channels, 0
        for i, (layer, size) in enumerate(zip(layers, sizes, strict=True)):
            # The decoder's layer reads what the next one gives, the innermost the encoder's.
            rows = layers[min(i + 1, len(layers) - 1)].channels
            weights = layer.kernel**2 * layer.channels * (before + rows)
            height, width = ((n + layer.stride - 1) // layer.stride for n in size)
            total += weights if self.kind == "parameters" else 2 * weights * height * width
            before = layer.channels
        first = layers[0].channels if layers else self.in_channels
        weights = OUTPUT_KERNEL**2 * first * self.in_channels
        height, width = self.image_size
        return total + (weights if self.kind == "parameters" else 2 * weights * height * width)


# Choices


def choice_costs(
    model: nn.Module, kind: str, *inputs: Any, latencies: Latencies | None = None
) -> CostTable:
    """What the subnets of a model with choices cost.

    Weights that are shared count once. For FLOPs and latency the candidates of a choice must give
    outputs of one shape, as they must anyway.

    Args:
        model: The supernet, which stays as it is.
        kind: One of `KINDS`.
        inputs: What the model's ``forward`` takes: an example of the size that counts, on the
            model's device. Parameters need none.
        latencies: Where latencies are measured and kept; by default on the CPU.

    Returns:
        The table of `search_space(model)`.

    Raises:
        ValueError: If there is no choice, FLOPs or latency lack inputs, or a weight is shared by
            more than 8 candidates.
    """
    space = search_space(model)
    measure = _measure(kind, latencies)
    if kind == "parameters":
        return CostTable(space, _parameter_terms(model))
    if not inputs:
        raise ValueError(f"inputs must be an example of what the model takes to count {kind}")
    terms: list[Term] = []
    _add_terms(copy.deepcopy(model).eval(), "model", inputs, {}, {}, measure, terms)
    return CostTable(space, terms)


def _add_terms(
    module: nn.Module,
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    where: Mapping[str, str],
    measure: Measure,
    terms: list[Term],
) -> None:
    """Adds what a module costs under conditions, and what its choices add to it."""
    calls: list[tuple[Choice, tuple[Any, ...], dict[str, Any]]] = []
    depth = 0

    def enter(choice: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal depth
        if depth == 0:  # those inside of candidates come later
            assert isinstance(choice, Choice)
            calls.append((choice, args, kwargs))
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    handles = []
    for choice in [m for m in module.modules() if isinstance(m, Choice)]:
        choice.activate(where.get(choice.name, choice.names[0]))
        handles.append(choice.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(choice.register_forward_hook(leave))
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()

    def cost(part: nn.Module, label: str, args: Any, kwargs: Mapping[str, Any]) -> float:
        return measure(label, _Called(part, kwargs), args) if kwargs else measure(label, part, args)

    own = cost(module, name, args, kwargs)
    for i, (choice, given, named) in enumerate(calls):
        part = choice.candidate(choice.active)
        own -= cost(part, f"{name}/{choice.name} {i}={choice.active}", given, named)
    terms.append(Term(own, dict(where)))
    for i, (choice, given, named) in enumerate(calls):
        for value in choice.names:
            if where.get(choice.name, value) == value:
                inner, label = {**where, choice.name: value}, f"{name}/{choice.name} {i}={value}"
                _add_terms(choice.candidate(value), label, given, named, inner, measure, terms)


class _Called(nn.Module):
    """A module with its arguments by name."""

    def __init__(self, module: nn.Module, kwargs: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.kwargs = module, kwargs

    def forward(self, *args: Any) -> Any:
        return self.module(*args, **self.kwargs)


_MOST_PLACES = 8


def _parameter_terms(model: nn.Module) -> list[Term]:
    places: dict[Tensor, list[dict[str, str]]] = {}
    _find_places(model, {}, places)
    terms = []
    for parameter, conditions in places.items():
        different = [c for i, c in enumerate(conditions) if c not in conditions[:i]]
        # A place that another implies adds nothing.
        kept = [c for c in different if not any(o.items() < c.items() for o in different)]
        if len(kept) > _MOST_PLACES:
            raise ValueError(
                f"a weight must be shared by at most {_MOST_PLACES} candidates, got {len(kept)}"
            )
        # It is there if one of the conditions holds: inclusion and exclusion.
        for count in range(1, len(kept) + 1):
            for together in itertools.combinations(kept, count):
                merged = {name: value for c in together for name, value in c.items()}
                if all(c.items() <= merged.items() for c in together):
                    terms.append(Term((-1) ** (count + 1) * parameter.numel(), merged))
    return terms


def _find_places(
    module: nn.Module, where: Mapping[str, str], places: dict[Tensor, list[dict[str, str]]]
) -> None:
    """The conditions under which each weight is there."""
    for parameter in module._parameters.values():
        if parameter is not None:
            places.setdefault(parameter, []).append(dict(where))
    if isinstance(module, Choice):
        for value in module.names:
            if where.get(module.name, value) == value:
                _find_places(module.candidate(value), {**where, module.name: value}, places)
        return
    for child in module.children():
        _find_places(child, where, places)
