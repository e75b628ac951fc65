"""Convolutional autoencoders (Section 3.3): the supernet of the search and the derived network.

Both are stacks of layers. The encoder convolves with stride 2, or with stride 1 where the layer
has a skip; the decoder mirrors it with transposed convolutions, and adds the encoder's output
where the layer has a skip. ReLU follows every layer but the last transposed convolution, which
gives the image. There are neither biases nor normalization.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext._checks import brief, check_positive, check_size, is_integer
from asng_ext.nn.autoencoder_space import CaeLayer, CaeSpace, checked_layers, fitting_layers
from asng_ext.nn.sliceable_weight import SliceableWeight, prepare_to_read
from asng_ext.ops import autoencoder as cae_ops

__all__ = ["CaeNetwork", "CaeSupernet", "base_layers"]

OUTPUT_KERNEL = 3

_SMALLEST_HALVED = 24 * 24
"""Pixels of the larger feature map from which the compiled layers are faster with stride 2."""


def base_layers(depth: int, channels: int = 64, kernel: int = 3) -> tuple[CaeLayer, ...]:
    """The baseline BASE: equal layers with a skip in each, as many as a network found has.

    Raises:
        ValueError: If an argument is below 1, or the kernel is even.
    """
    for name, value in (("depth", depth), ("channels", channels), ("kernel", kernel)):
        if not is_integer(value):
            raise TypeError(f"{name} must be an integer, got {brief(value)}")
    if depth < 1 or channels < 1 or kernel < 1 or kernel % 2 == 0:
        raise ValueError(
            "depth and channels must be 1 or more and kernel odd, "
            f"got depth={depth}, channels={channels}, kernel={kernel}"
        )
    return tuple(CaeLayer(i, kernel, channels, True) for i in range(depth))


def _encode(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """ReLU of (N, I, H, W) convolved by (O, I, k, k), (N, O, ⌈H/stride⌉, ⌈W/stride⌉)."""
    if _fuses(x, weight, stride, x.shape[2:]):
        return cae_ops.encode(x, weight, stride)
    kernel = weight.shape[2]
    if kernel == 1:
        # A matmul. PyTorch's own 1×1 convolution with a stride crashes in its backward on the CPU
        # for channels-last inputs of three channels.
        y = F.linear(x[:, :, ::stride, ::stride].permute(0, 2, 3, 1), weight[:, :, 0, 0])
        return F.relu(y, inplace=True).permute(0, 3, 1, 2)
    return F.relu(F.conv2d(x, weight, stride=stride, padding=kernel // 2), inplace=True)


def _decode(
    x: Tensor,
    weight: Tensor,
    skipped: Tensor | None,
    stride: int,
    size: Sequence[int],
    relu: bool = True,
) -> Tensor:
    """Transposed convolution of (N, I, h, w) by (I, O, k, k), plus the skip, (N, O, *size)."""
    height, width = size
    if _fuses(x, weight, stride, size):
        return cae_ops.decode(x, weight, skipped, stride, (height, width), relu)
    kernel = weight.shape[2]
    if kernel == 1:
        y = F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0].t())
        if stride > 1:
            spread = y.new_zeros(y.shape[0], height, width, y.shape[3])
            spread[:, ::stride, ::stride] = y
            y = spread
        y = y.permute(0, 3, 1, 2)
    else:
        # ⌈H/2⌉ is the half of two sizes; the padding says which one it was.
        padding = [s - stride * (n - 1) - 1 for s, n in zip(size, x.shape[2:])]
        y = F.conv_transpose2d(
            x, weight, stride=stride, padding=kernel // 2, output_padding=padding
        )
    if skipped is not None:
        y = y + skipped
    return F.relu(y, inplace=True) if relu else y


def _fuses(x: Tensor, weight: Tensor, stride: int, size: Sequence[int]) -> bool:
    """Whether the compiled layers can do it and are faster; `size` is the larger feature map's."""
    # An exported network is to run where the compiled layers are not.
    if weight.shape[2] not in cae_ops.KERNELS or torch.compiler.is_exporting():
        return False
    if x.device.type == "cuda":
        return cae_ops.cuda_available()
    if (
        x.device.type != "cpu"
        or x.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
        or not cae_ops.available()
    ):
        return False
    # With stride 2 there are fewer multiplications to save, 3×3 kernels have next to none, and in
    # small feature maps transforming the weight costs more than it saves.
    return stride == 1 or (weight.shape[2] == 5 and math.prod(size) >= _SMALLEST_HALVED)


def _fuses_chain(x: Tensor) -> bool:
    """Whether one operator takes the whole autoencoder."""
    on_gpu = x.device.type == "cuda" and cae_ops.cuda_available()
    return on_gpu and not torch.compiler.is_exporting()


class _Autoencoder(nn.Module):
    """What the supernet and the derived network share: the forward pass through the layers."""

    in_channels: int
    encoder: Any
    decoder: Any

    @abstractmethod
    def _weight(self, part: Any, layer: CaeLayer, rows: int, columns: int) -> Tensor:
        """A layer's in the encoder or the decoder, (rows, columns, k, k)."""

    @abstractmethod
    def _output_weight(self, rows: int) -> Tensor:
        """(rows, in_channels, 3, 3)."""

    def _prepare(self, layers: Sequence[CaeLayer]) -> None:
        """Is called before the weights of these layers, and the output's, are read."""

    def _restore(self, x: Tensor, architectures: Sequence[Sequence[CaeLayer]]) -> list[Tensor]:
        """The same images by each architecture."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(
                f"x must be (N, {self.in_channels}, H, W) and have pixels, got {tuple(x.shape)}"
            )
        fitting = [fitting_layers(layers, *x.shape[2:]) for layers in architectures]
        self._prepare([layer for layers, _ in fitting for layer in layers])
        x = x.contiguous(memory_format=torch.channels_last)
        on_cpu = torch.is_autocast_enabled("cpu") and x.device.type == "cpu"
        if on_cpu and cae_ops.available() and not torch.cpu._is_amx_tile_supported():
            # Without a unit for matrices (AMX) a processor does not multiply bfloat16 faster than
            # the compiled layers do float32, although it may have instructions for it.
            with torch.autocast("cpu", enabled=False):
                return self._run(x if x.dtype == torch.float64 else x.float(), fitting)
        return self._run(x, fitting)

    def _run(
        self, x: Tensor, fitting: Sequence[tuple[Sequence[CaeLayer], Sequence[tuple[int, int]]]]
    ) -> list[Tensor]:
        """By layers and the sizes that `fitting_layers` gives with them."""
        if _fuses_chain(x):
            return cae_ops.chains(x, [self._chain(x.shape[1], layers) for layers, _ in fitting])
        return [self._run_layers(x, layers, sizes) for layers, sizes in fitting]

    def _run_layers(
        self, x: Tensor, layers: Sequence[CaeLayer], sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        encoded: list[Tensor | None] = []
        for layer in layers:
            weight = self._weight(self.encoder, layer, layer.channels, x.shape[1])
            x = _encode(x, weight, layer.stride)
            encoded.append(x if layer.skip else None)
        for layer, size in zip(reversed(layers), reversed(sizes)):
            weight = self._weight(self.decoder, layer, x.shape[1], layer.channels)
            x = _decode(x, weight, encoded.pop(), layer.stride, size)
        return _decode(x, self._output_weight(x.shape[1]), None, 1, x.shape[2:], relu=False)

    def _chain(self, image_channels: int, layers: Sequence[CaeLayer]) -> cae_ops.Chain:
        encoder, decoder = [], []
        channels = [layer.channels for layer in layers]
        # The innermost decoder layer reads the last encoder layer.
        for layer, before, inside in zip(
            layers, [image_channels, *channels], [*channels[1:], *channels[-1:]]
        ):
            encoder.append(self._weight(self.encoder, layer, layer.channels, before))
            decoder.append(self._weight(self.decoder, layer, inside, layer.channels))
        output = self._output_weight(channels[0] if layers else image_channels)
        return cae_ops.Chain(encoder, decoder, output, [layer.stride for layer in layers])


class CaeSupernet(_Autoencoder):
    """Weights for every architecture of a space; a call computes what its layers need.

    There is one pair of weights, of the encoder's convolution and of the decoder's, for each
    layer, kernel and presence of a skip, as wide as the widest architecture. A layer with fewer
    channels uses the first ones, so neither inactive input channels nor inactive output channels
    are computed. The paper's spaces have 183.5 M weights.

    The initial weights are normal with variance 2 / fan-in (He et al., 2015), with the fan-in of
    the widest architecture: what narrower ones lack in size comes by the skips, while a smaller
    fan-in would make the outputs of deep and wide ones grow with every layer.

    Args:
        space: The space.
        in_channels: Channels of the images, 3 for color.

    Raises:
        ValueError: If `in_channels` is not positive.
    """

    def __init__(self, space: CaeSpace, in_channels: int = 3) -> None:
        super().__init__()
        if not isinstance(space, CaeSpace):
            raise TypeError(f"space must be a CaeSpace, got {brief(space)}")
        check_positive("in_channels", in_channels)
        self.space = space
        self.in_channels = in_channels
        most = space.max_channels
        self.encoder = nn.ModuleDict()
        self.decoder = nn.ModuleDict()
        for index in range(space.layers):
            for kernel in space.kernels:
                for skip in (True, False):
                    key = _key(index, kernel, skip)
                    self.encoder[key] = SliceableWeight(most, max(most, in_channels), kernel)
                    self.decoder[key] = SliceableWeight(most, most, kernel)
        self.output = SliceableWeight(max(most, in_channels), in_channels, OUTPUT_KERNEL)
        for module in self.modules():
            if isinstance(module, SliceableWeight):
                fan_in = most * module.weight.shape[2] ** 2
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
        # The output has no ReLU after it.
        nn.init.normal_(self.output.weight, std=math.sqrt(1 / (most * OUTPUT_KERNEL**2)))

    def forward(self, x: Tensor, layers: Sequence[CaeLayer]) -> Tensor:
        """Restored images.

        Args:
            x: (N, in_channels, H, W) images, of any size.
            layers: The architecture, as `CaeSpace.decode` gives it.

        Returns:
            (N, in_channels, H, W), channels last, not limited to [0, 1].

        Raises:
            ValueError: If `x` has another shape or a layer is none of the space.
        """
        return self.restore(x, [layers])[0]

    def restore(self, x: Tensor, architectures: Sequence[Sequence[CaeLayer]]) -> list[Tensor]:
        """What `forward` gives of the same images by each of some architectures.

        On a CUDA device they are computed in one call, with fewer launches than one by one.

        Args:
            x: (N, in_channels, H, W) images, of any size.
            architectures: One or more, as `CaeSpace.decode` gives them.

        Returns:
            Restored images of each architecture, in order.

        Raises:
            ValueError: If `x` has another shape, a layer is none of the space, or there is no
                architecture.
        """
        if not architectures:
            raise ValueError("architectures must be one or more, got none")
        return self._restore(x, architectures)

    def _prepare(self, layers: Sequence[CaeLayer]) -> None:
        keys = [_key(layer.index, layer.kernel, layer.skip) for layer in layers]
        both: tuple[Any, Any] = (self.encoder, self.decoder)
        weights = [part[key] for part in both for key in keys if key in part]
        prepare_to_read([*weights, self.output])

    def _output_weight(self, rows: int) -> Tensor:
        return self.output.leading_slice(rows, self.in_channels)

    def _weight(self, part: Any, layer: CaeLayer, rows: int, columns: int) -> Tensor:
        key = _key(layer.index, layer.kernel, layer.skip)
        if key not in part:
            raise ValueError(
                f"layers must be of the space with {self.space.layers} layers and kernels "
                f"{self.space.kernels}, got {layer}"
            )
        return cast(SliceableWeight, part[key]).leading_slice(rows, columns)


class CaeNetwork(_Autoencoder):
    """The network of one architecture, with weights of just its sizes.

    Layers that images of the given size leave out have no weights. The initial weights are normal
    with variance 2 / fan-in (He et al., 2015).

    Args:
        layers: The architecture, such as `CaeSpace.decode` or `base_layers` give it; it may be
            empty.
        in_channels: Channels of the images.
        image_size: (height, width) of the images to come, in pixels.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        layers: Sequence[CaeLayer],
        in_channels: int = 3,
        image_size: tuple[int, int] = (64, 64),
    ) -> None:
        super().__init__()
        check_positive("in_channels", in_channels)
        check_size("image_size", image_size)
        layers = checked_layers(layers)
        self.in_channels = in_channels
        self.image_size = tuple(image_size)
        self.layers = fitting_layers(layers, *image_size)[0]
        self.encoder = nn.ParameterDict()
        self.decoder = nn.ParameterDict()
        before = in_channels
        # The innermost decoder layer reads the last encoder layer.
        for layer, following in zip(self.layers, (*self.layers[1:], *self.layers[-1:])):
            rows = following.channels
            kernel, key = layer.kernel, f"layer{layer.index}"
            self.encoder[key] = _he_normal(layer.channels, before, kernel, fan_in=before)
            # With stride 2 a pixel of the result has a quarter of the kernel's inputs.
            fan_in = rows / layer.stride**2 if kernel > 1 else rows
            self.decoder[key] = _he_normal(rows, layer.channels, kernel, fan_in=fan_in)
            before = layer.channels
        first = self.layers[0].channels if self.layers else in_channels
        self.output = _he_normal(first, in_channels, OUTPUT_KERNEL, fan_in=2 * first)

    def forward(self, x: Tensor) -> Tensor:
        """Restored images (N, in_channels, H, W), channels last, not limited to [0, 1].

        Raises:
            ValueError: If `x` is not (N, in_channels, *image_size).
        """
        if x.shape[2:] != self.image_size:
            raise ValueError(f"x must be images of size {self.image_size}, got {tuple(x.shape)}")
        return self._restore(x, [self.layers])[0]

    @torch.no_grad()
    def inherit(self, supernet: CaeSupernet) -> None:
        """Copies the weights that the supernet uses for this architecture.

        Raises:
            ValueError: If the architecture is none of the supernet's space.
        """
        for own, shared in ((self.encoder, supernet.encoder), (self.decoder, supernet.decoder)):
            for layer in self.layers:
                weight = own[f"layer{layer.index}"]
                weight.copy_(supernet._weight(shared, layer, *weight.shape[:2]))
        self.output.copy_(supernet._output_weight(self.output.shape[0]))

    def _weight(self, part: Any, layer: CaeLayer, rows: int, columns: int) -> Tensor:
        return cast(Tensor, part[f"layer{layer.index}"])

    def _output_weight(self, rows: int) -> Tensor:
        return self.output


def _key(index: int, kernel: int, skip: bool) -> str:
    return f"layer{index}_kernel{kernel}_skip{int(skip)}"


def _he_normal(rows: int, columns: int, kernel: int, *, fan_in: float) -> nn.Parameter:
    std = math.sqrt(2 / (fan_in * kernel**2))
    return nn.Parameter(torch.randn(rows, columns, kernel, kernel) * std)
