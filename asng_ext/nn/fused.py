"""The supernet of the cell space on the compiled operators: all sampled architectures at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext import _host, ops
from asng_ext.nn.cell import Architecture, Cell, CellSpace, Population
from asng_ext.nn.cell_network import CellSupernet
from asng_ext.nn.mixture import CellMixture
from asng_ext.nn.operations import OPERATIONS, FactorizedReduction
from asng_ext.ops import _libraries
from asng_ext.ops._feature_maps import padded_channels

__all__ = ["FusedCellSupernet", "StackedCell", "cell_supernet"]


class StackedCell(nn.Module):
    """The weights of a `Cell`, those of one kind in one tensor, as the operator takes them.

    In state dicts they have the names and shapes of the `Cell`.
    """

    def __init__(self, cell: Cell, space: CellSpace, reduction: bool) -> None:
        super().__init__()
        self.prev_prev_is_larger = isinstance(cell.older, FactorizedReduction)
        self.channels = channels = cell.output.channels
        # The first weight of either projection is (outputs, inputs, 1, 1).
        in_channels = (next(p.parameters()).shape[1] for p in (cell.older, cell.newer))
        shapes = _host.cell_weights(space.nodes, channels, *in_channels)
        offered = [o for o in _host.OPERATIONS if o.name in space.operations]
        factorizes = reduction and any(o.form == "identity" for o in offered)
        needed = {"prev_prev_weight", "prev_weight", "output_weight"}
        needed.update(name for operation in offered for name in operation.weights)
        for name, shape in shapes.items():
            if name in needed or (name == "reduction" and factorizes):
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            else:
                # A reduction cell is known by its reduction, whether an edge applies it or not.
                unused = shape if name == "reduction" and reduction else (0,)
                self.register_buffer(name, torch.zeros(unused), persistent=False)
        # Of each weight of a `Cell`: the parameter that holds it, and where in it.
        self._places: dict[str, tuple[str, tuple[int | slice, ...]]] = {}
        if self.prev_prev_is_larger:
            self._place_factorized("older", "prev_prev_weight")
        else:
            self._places["older.conv.weight"] = ("prev_prev_weight", ())
        self._places["newer.conv.weight"] = ("prev_weight", ())
        self._places["output.conv.weight"] = ("output_weight", ())
        edges = ((node, i) for node in range(space.nodes) for i in range(node + 2))
        for edge, (node, i) in enumerate(edges):
            key = f"operations.node{node}_input{i}"
            if factorizes and i < 2:
                self._place_factorized(f"{key}_identity", "reduction", 2 * node + i)
            for operation in offered:
                for stage in range(2):
                    for kind, parameter in zip(("depthwise", "pointwise"), operation.weights):
                        name = f"{key}_{operation.name}.half{stage}.{kind}.weight"
                        self._places[name] = (parameter, (edge, stage))
        with torch.no_grad():
            for name, weight in cell.named_parameters():
                self._view(name).copy_(weight.view_as(self._view(name)))
        # Not as a module: its weights are those of this one.
        self._plain = (cell,)
        # By the parameter, and how many of its dimensions count parts: the layers, and the parts
        # that they have, by number and further indices.
        self._layers: dict[tuple[str, int], list[tuple[nn.Module, int, tuple[slice, ...]]]] = {}
        for name, (parameter, index) in self._places.items():
            layer = cell.get_submodule(name.removesuffix(".weight"))
            del layer.weight
            numbers = [i for i in index if isinstance(i, int)]
            rest = tuple(i for i in index if isinstance(i, slice))
            counts = getattr(self, parameter).shape[: len(numbers)]
            number = int(np.ravel_multi_index(numbers, counts)) if numbers else 0
            layers = self._layers.setdefault((parameter, len(numbers)), [])
            layers.append((layer, number, rest))

    def _place_factorized(self, name: str, parameter: str, *index: int) -> None:
        even = self.channels - self.channels // 2
        self._places[f"{name}.conv_even.weight"] = (parameter, (*index, slice(0, even)))
        self._places[f"{name}.conv_odd.weight"] = (parameter, (*index, slice(even, None)))

    def _view(self, name: str) -> Tensor:
        """The part of a stacked weight that a `Cell` has under `name`, in its shape."""
        parameter, index = self._places[name]
        return _as_convolution(cast(Tensor, getattr(self, parameter))[index])

    def views(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by the names that a `Cell` gives them."""
        for name in self._places:
            yield name, self._view(name)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, view in self.views():
            destination[prefix + name] = view if keep_vars else view.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, view in self.views():
            weight = state_dict.get(prefix + name)
            if weight is None:
                missing_keys.append(prefix + name)
            elif weight.shape != view.shape:
                error_msgs.append(
                    f"size mismatch for {prefix + name}: copying a param with shape "
                    f"{tuple(weight.shape)}, the shape in current model is {tuple(view.shape)}."
                )
            else:
                with torch.no_grad():
                    view.copy_(weight)
        if strict:
            for key in state_dict:
                if key.startswith(prefix) and key[len(prefix) :] not in self._places:
                    unexpected_keys.append(key)

    @contextmanager
    def as_cell(self) -> Iterator[Cell]:
        """In this context a `Cell` whose weights are views of these."""
        for (parameter, leading), layers in self._layers.items():
            weight = _as_convolution(cast(Tensor, getattr(self, parameter)), leading)
            # All parts at once: their gradients are then put together at once, too.
            parts = weight.flatten(0, leading - 1).unbind() if leading else (weight,)
            for layer, number, rest in layers:
                # Not by `Module.__setattr__`, which takes as long as small convolutions.
                object.__setattr__(layer, "weight", parts[number][rest] if rest else parts[number])
        try:
            yield self._plain[0]
        finally:
            for layers in self._layers.values():
                for layer, *_ in layers:
                    object.__delattr__(layer, "weight")

    def give_up(self, name: str) -> None:
        """From now on a weight is none of this module, and runs need it `given`."""
        delattr(self, name)
        self._places = {part: place for part, place in self._places.items() if place[0] != name}
        self._layers = {key: layers for key, layers in self._layers.items() if key[0] != name}

    @contextmanager
    def given(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """In this context the cell has these weights, in the places of those that it gave up."""
        for name, weight in weights.items():
            setattr(self, name, weight)
        try:
            yield
        finally:
            for name in weights:
                delattr(self, name)

    def weights(self) -> list[Tensor]:
        """As the operators take them."""
        return [cast(Tensor, getattr(self, name)) for name in _host.CELL_WEIGHTS]

    def forward(
        self,
        prev_prev: Tensor,
        prev: Tensor,
        inputs: Tensor,
        operations: Tensor,
        plan: ops.cell.Plan | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(λ or 1, B, H, W, P) twice to (λ, B, H', W', P), and prev for the next but one."""
        return ops.cell.cell_passing_on(
            prev_prev, prev, inputs, operations, self.weights(), self.prev_prev_is_larger, plan
        )


def _as_convolution(weight: Tensor, leading: int = 0) -> Tensor:
    """1×1 convolutions are matrices here, after so many leading dimensions; depthwise weights have
    all their dimensions."""
    return weight[..., None, None] if weight.dim() == leading + 2 else weight


class FusedCellSupernet(CellSupernet):
    """A `CellSupernet` on the compiled operators, for the CPU and for CUDA devices.

    It computes the same numbers as one in plain PyTorch, starts from the same weights for the same
    seed, and has the same state dict, so that either loads the other's. Its parameters are fewer
    and larger: the weights of one kind in a cell are one tensor, whose gradient is zero where no
    sampled architecture uses it. All architectures of a population run together, and what they
    share is computed once.

    Args: see `CellSupernet`.

    Raises:
        ValueError: See `CellSupernet`.
        RuntimeError: The compiled operators are not available.
    """

    def __init__(self, space: CellSpace, *args: Any, **settings: Any) -> None:
        _libraries.require()
        super().__init__(space, *args, **settings)
        self._categories = np.array(space.categories)
        numbers = [OPERATIONS.index(name) for name in space.operations]
        beyond = _host.OPERATIONS[len(numbers) :]
        # A value beyond the space's must not be an operation that works: those with weights do not.
        self._is_renumbered = numbers != list(range(len(numbers))) or not all(
            operation.weights for operation in beyond
        )
        # Of no operation, for values that are none of an operation variable.
        self.register_buffer("_numbers", torch.tensor([*numbers, -1]), persistent=False)
        self.cells = nn.ModuleList(
            StackedCell(cast(Cell, cell), space, reduction)
            for cell, reduction in zip(self.cells, self.is_reduction, strict=True)
        )
        # As the operator takes it, so that neither it nor its gradient needs to be copied.
        weight = next(self.stem.parameters())
        weight.data = weight.detach().clone(memory_format=torch.contiguous_format)

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor | tuple[Tensor, Tensor]:
        """Runs one architecture; see `CellSupernet.forward`.

        One on another device than the CPU is not validated; see `forward_population`.
        """
        if _is_device_resident(architecture):
            out = self.forward_population(x, architecture[None])
        else:
            out = self.forward_population(x, np.array([self.space.check(architecture)]))
        return out[0] if isinstance(out, Tensor) else (out[0][0], out[1][0])

    def forward_population(
        self, x: Tensor, architectures: Population
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Runs several architectures on the same images.

        Args:
            x: Images, (B, in_channels, H, W), in any memory format.
            architectures: (λ, d) category indices. A tensor on a CUDA device, where the images
                must be, too, is not validated, so that nothing synchronizes and the call can be
                captured in a CUDA graph: the logits of an architecture that is not one of the space
                are NaN.

        Returns:
            Logits, (λ, B, classes). With an auxiliary head, in training mode, the pair of the
            logits and those of the head.

        Raises:
            ValueError: An architecture is not one of the space, or there is none; or they are on
                another device than the images and not on the CPU.
            RuntimeError: The images are on a CUDA device, and the operators for it cannot be used.
        """
        y, auxiliary_logits = self._features(x, architectures)
        features = y.mean((2, 3), dtype=self.classifier.weight.dtype)
        logits: Tensor = self.classifier(features[..., : self.classifier.in_features])
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)

    def population_losses(
        self,
        x: Tensor,
        labels: Tensor,
        architectures: Population,
        class_weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy of several architectures; see `CellSupernet.population_losses`."""
        # The operator knows no weights.
        if class_weights is not None or not _libraries.has_cuda_kernels(x.device):
            return super().population_losses(x, labels, architectures, class_weights)
        y, _ = self._features(x, architectures)
        return ops.head.losses(y, self.classifier.weight, self.classifier.bias, labels)

    def _run_mixture(
        self, mixture: CellMixture, cell: nn.Module, prev_prev: Tensor, prev: Tensor
    ) -> Tensor:
        with cast(StackedCell, cell).as_cell() as plain:
            return mixture.run(plain, prev_prev, prev, compiled=True)

    def _features(self, x: Tensor, architectures: Population) -> tuple[Tensor, Tensor | None]:
        """The last cell's output, (λ, B, H, W, P), and in training the logits of the auxiliary head
        if any."""
        if x.device.type == "cuda":
            _libraries.require_cuda()
        inputs, operations = self._index_tensors(architectures, x.device)
        stem = self._run_stem(x)
        wants_auxiliary = self.training and self.auxiliary is not None
        if wants_auxiliary or not ops.cell.runs_stacks(x.device):
            return self._run_cells(stem, inputs, operations)
        return ops.cell.cells(stem, inputs, operations, self._cell_weights()), None

    def _cell_weights(self) -> list[list[Tensor]]:
        return [cast(StackedCell, cell).weights() for cell in self.cells]

    def _run_cells(
        self, stem: Tensor, inputs: Tensor, operations: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The same, cell by cell."""
        prev_prev = prev = stem
        auxiliary_logits: Tensor | None = None
        plans = ops.cell.plans(stem, inputs, operations, self._cell_weights())
        for i, (cell, plan) in enumerate(zip(self.cells, plans, strict=True)):
            kind = int(self.is_reduction[i])
            prev, prev_prev = cell(prev_prev, prev, inputs[kind], operations[kind], plan)
            if self.training and self.auxiliary is not None and i == self.auxiliary_at:
                # Its normalization takes the statistics of one architecture at a time.
                auxiliary_logits = torch.stack(
                    [
                        self.auxiliary(y[..., : cell.channels].permute(0, 3, 1, 2))
                        for y in prev.unbind(0)
                    ]
                )
        return prev, auxiliary_logits

    def _run_stem(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (1, B, H, W, P)."""
        in_channels = self.settings["in_channels"]
        if x.dim() != 4 or x.shape[1] != in_channels:
            raise ValueError(f"x must have shape (B, {in_channels}, H, W), got {tuple(x.shape)}")
        if not x.requires_grad:
            images, (weight, scale, bias) = x.permute(0, 2, 3, 1), self.stem.parameters()
            return ops.stem.stem(images.contiguous(), weight.contiguous(), scale, bias)
        # The operator has no gradient for the images.
        image = self.stem(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        channels = image.shape[-1]
        return F.pad(image, (0, padded_channels(channels) - channels))[None].contiguous()

    def _index_tensors(
        self, architectures: Population, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Inputs and operations, each (2, λ, nodes, 2): normal cells first."""
        given: Tensor | npt.NDArray[Any]
        given = architectures if _is_device_resident(architectures) else np.asarray(architectures)
        shape = tuple(given.shape)
        if len(shape) != 2 or shape[0] == 0 or shape[1] != len(self._categories):
            raise ValueError(
                f"architectures must have shape (λ, {len(self._categories)}) with λ at least 1, "
                f"got {shape}"
            )
        if isinstance(given, Tensor):
            values = _unvalidated(given, device)
            if _libraries.has_cuda_kernels(device):
                numbers = cast(Tensor, self._numbers)[:-1]
                return ops.choices.choices(values.long().contiguous(), numbers)
            values = values.to(torch.int32).contiguous()
        else:
            values = torch.from_numpy(self._validated(given)).to(device, non_blocking=True)
        # Per node: input 0, input 1, operation 0, operation 1.
        kinds = values.view(len(values), 2, -1, 2, 2).movedim(1, 0)
        inputs, operations = kinds[:, :, :, 0].contiguous(), kinds[:, :, :, 1].contiguous()
        return inputs, self._number(operations)

    def _number(self, operations: Tensor) -> Tensor:
        """From the values of operation variables to the numbers that operators know."""
        if not self._is_renumbered:
            return operations
        none = len(self.space.operations)
        known = (operations >= 0) & (operations < none)
        numbers = cast(Tensor, self._numbers)[operations.where(known, none).long()]
        return numbers.to(torch.int32)

    def _validated(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """(λ, d) architectures, checked."""
        integral = values.dtype.kind in "iu"
        if not integral or (values < 0).any() or (values >= self._categories).any():
            for row in values:
                self.space.check(row)  # says which value is wrong
            raise ValueError(f"architectures must be integers, got {values.dtype}")
        return values.astype(np.int32)


def _unvalidated(architectures: Tensor, device: torch.device) -> Tensor:
    """(λ, d) architectures whose values stay on their device."""
    if architectures.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"architectures must be integers, got {architectures.dtype}")
    if architectures.device != device:
        raise ValueError(
            f"architectures must be on the CPU or on {device} as the images are, "
            f"got {architectures.device}"
        )
    return architectures


def _is_device_resident(architectures: Population | Architecture) -> TypeGuard[Tensor]:
    """Whether they are on a device that would have to be synchronized to validate them."""
    return isinstance(architectures, Tensor) and architectures.device.type != "cpu"


def cell_supernet(
    space: CellSpace,
    *,
    implementation: str = "auto",
    device: torch.device | str = "cpu",
    **settings: Any,
) -> CellSupernet:
    """The supernet of a cell space.

    Args:
        space: The search space.
        implementation: "fused" for the compiled operators, "plain" for plain PyTorch, "auto" for
            the operators where they are available.
        device: Where the supernet will run, which decides what is available; its weights are
            there.
        settings: Further arguments of `CellSupernet`.

    Raises:
        ValueError: `implementation` is unknown, or see `CellSupernet`.
        RuntimeError: "fused" was asked for and the compiled operators are not available there.
    """
    if implementation not in ("auto", "fused", "plain"):
        raise ValueError(
            f"implementation must be 'auto', 'fused' or 'plain', got {implementation!r}"
        )
    device = torch.device(device)
    if implementation == "auto":
        implementation = "fused" if _libraries.available_on(device) else "plain"
    elif implementation == "fused" and device.type == "cuda":
        _libraries.require_cuda()
    supernet = FusedCellSupernet if implementation == "fused" else CellSupernet
    return supernet(space, **settings).to(device)
