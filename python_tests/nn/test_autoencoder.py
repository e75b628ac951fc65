"""Autoencoder spaces, supernet and derived network against recorded numbers and each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import asng_ext as asng
from asng_ext.nn import (
    CaeCatSpace,
    CaeIntSpace,
    CaeLayer,
    CaeNetwork,
    CaeSpace,
    CaeSupernet,
    base_layers,
    parameter_count,
)
from asng_ext.nn.autoencoder_space import fitting_layers
from asng_ext.ops import autoencoder as cae_ops
from asng_ext.training.active_sgd import ActiveSGD

GOLDEN = Path(__file__).parent.parent / "golden"
CAT = CaeCatSpace(layers=7, channels=(3, 5, 8))
INT = CaeIntSpace(layers=7, low=2, high=8)
SPACES: dict[str, CaeSpace] = {"cat": CAT, "int": INT}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_values(space: CaeSpace, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    variables = space.search_space()
    categorical = [generator.integers(size) for size in variables.sizes]
    numerical = [generator.uniform(v.low - 1, v.high + 1) for v in variables.numerical.values()]
    return variables.decode(categorical, numerical)


# ------------------------------------------------------------------------------------ recorded


def parameter_name(role: str) -> str:
    """Name of the parameter that plays a role in the golden file."""
    if role == "output":
        return "output.weight"
    layer, kind, part = role.split("/")
    return f"{part}.{layer}_{kind}.weight"


@pytest.fixture(scope="module", params=["cat", "int"])
def golden(request: pytest.FixtureRequest) -> tuple[CaeSupernet, dict[str, Any]]:
    with np.load(GOLDEN / f"cae_{request.param}.npz") as file:
        data = {key: file[key] for key in file.files}
    space = SPACES[request.param]
    variables = space.search_space()
    if request.param == "cat":
        # The recorded rows have two variables with one category before the output's input.
        data["architectures"] = np.delete(data["architectures"], [21, 22], axis=1)
    numerical = data.get("numerical", np.zeros((12, 0)))
    data["chains"] = [
        space.decode(variables.decode(*row)) for row in zip(data["architectures"], numerical)
    ]
    supernet = CaeSupernet(space)
    supernet.load_state_dict(
        {
            parameter_name(key.removeprefix("w/")): torch.from_numpy(value)
            for key, value in data.items()
            if key.startswith("w/")
        }
    )
    return supernet.double(), data


def loss_of(out: Tensor, data: dict[str, Any]) -> Tensor:
    return F.mse_loss(out, torch.from_numpy(data["target"]).double())


@pytest.mark.parametrize("row", range(12))
def test_recorded_numbers(golden: tuple[CaeSupernet, dict[str, Any]], row: int) -> None:
    supernet, data = golden
    supernet.zero_grad()
    chain = data["chains"][row]
    active = [layer.index for layer in chain]
    assert active == np.flatnonzero(data["active"][row]).tolist()
    out = supernet(torch.from_numpy(data["x"]).double(), chain)
    loss = loss_of(out, data)
    loss.backward()
    np.testing.assert_allclose(out.detach().numpy(), data["output"][row], rtol=1e-6, atol=1e-9)
    assert loss.item() == pytest.approx(data["loss"][row], rel=1e-6)
    norms = json.loads(str(data["grad_norms"]))[str(row)]
    expected = {parameter_name(role): norm for role, norm in norms.items()}
    got = {
        name: parameter.grad.norm().item()
        for name, parameter in supernet.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("row", range(12))
def test_derived_network(golden: tuple[CaeSupernet, dict[str, Any]], row: int) -> None:
    supernet, data = golden
    network = CaeNetwork(data["chains"][row], image_size=(16, 16)).double()
    network.inherit(supernet)
    out = network(torch.from_numpy(data["x"]).double())
    np.testing.assert_allclose(out.detach().numpy(), data["output"][row], rtol=1e-6, atol=1e-9)
    loss_of(out, data).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    count = int(data["retrained_parameters"][row])
    if count >= 0:  # the recorded code cannot build a network of a single layer
        assert parameter_count(network) == count


# --------------------------------------------------------------------------------------- spaces


def test_dimensions_of_the_paper() -> None:
    assert CaeCatSpace().n_theta == 214
    assert CaeIntSpace().n_theta == 174
    assert CaeCatSpace().max_channels == CaeIntSpace().max_channels == 256
    names = CaeCatSpace().search_space()
    assert names["layer0/input"] == asng.Categorical(["image"])
    assert names["layer4/input"].values == ("image", "layer0", "layer1", "layer2", "layer3")
    assert names["layer5/input"].values == ("layer0", "layer1", "layer2", "layer3", "layer4")
    assert names["output/input"].values == tuple(f"layer{i}" for i in range(15, 20))
    assert names["layer0/type"].values[:3] == ("1x1_skip", "1x1", "3x3_skip")


@pytest.mark.parametrize("space", [CAT, INT, CaeIntSpace(3, (5,), 2, low=4, high=4)])
def test_chains_are_written_and_read(space: CaeSpace) -> None:
    for seed in range(50):
        values = random_values(space, seed)
        chain = space.decode(values)
        written = space.encode(chain)
        assert space.decode(written) == chain
        space.search_space().encode(written)
        for layer in chain:
            names = [name for name in values if name.startswith(f"layer{layer.index}/")]
            assert {n: values[n] for n in names} == {n: written[n] for n in names}


def test_the_output_may_read_the_image() -> None:
    space = CaeIntSpace(layers=2, low=2, high=4)
    assert space.decode(space.encode(())) == ()
    assert space.search_space()["output/input"].values == ("image", "layer0", "layer1")


def test_wrong_chains_and_values() -> None:
    for chain, message in [
        ([CaeLayer(9, 3, 3, True)], "index must be in 0..6, got 9"),
        ([CaeLayer(6, 3, 3, True)], "layer6 must read one of"),
        ([CaeLayer(0, 3, 3, True)], "the output must read one of"),
        ([CaeLayer(4, 3, 4, True)], "layer4/channels"),
        ([CaeLayer(4, 7, 3, True)], "layer4/type"),
    ]:
        with pytest.raises(ValueError, match=message):
            CAT.encode(chain)
    with pytest.raises(ValueError, match="kernel must be one of"):
        INT.encode([CaeLayer(4, 7, 3, True)])
    with pytest.raises(ValueError, match="values must have 'output/input'"):
        INT.decode({})
    values = CAT.encode([CaeLayer(4, 3, 3, True)])
    with pytest.raises(ValueError, match="layer4/channels"):
        CAT.decode({**values, "layer4/channels": 4})


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": 0},
        {"levels_back": 0},
        {"kernels": (2,)},
        {"kernels": ()},
        {"kernels": (3, 3)},
        {"channels": ()},
        {"channels": (0,)},
    ],
)
def test_wrong_spaces(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        CaeCatSpace(**arguments)
    with pytest.raises(ValueError, match="low must be at most high"):
        CaeIntSpace(low=3, high=2)


# ------------------------------------------------------------------------------------- networks


def test_layers_without_skip_end_at_one_pixel() -> None:
    plain, skip = CaeLayer(0, 3, 4, False), CaeLayer(1, 3, 4, True)
    assert fitting_layers([plain] * 3 + [skip], 5, 3) == (
        (plain, plain, skip),
        ((5, 3), (3, 2), (2, 1)),
    )
    assert fitting_layers([plain], 1, 9) == ((), ())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (16, 16), (13, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_random_architectures(size: tuple[int, int], channels: int) -> None:
    supernets = [CaeSupernet(space, channels) for space in (CAT, INT)]
    x = torch.rand(2, channels, *size)
    for seed in range(12):
        for supernet in supernets:
            chain = supernet.space.decode(random_values(supernet.space, seed))
            supernet.zero_grad()
            out = supernet(x, chain)
            assert out.shape == x.shape
            out.square().mean().backward()
            active = fitting_layers(chain, *size)[0]
            used = {name for name, p in supernet.named_parameters() if p.grad is not None}
            assert len(used) == 2 * len(active) + 1
            network = CaeNetwork(chain, channels, size)
            network.inherit(supernet)
            torch.testing.assert_close(network(x), out)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(6, 6), (5, 4)])
def test_strides_are_those_of_pytorch(kernel: int, size: tuple[int, int]) -> None:
    """A layer without skip against convolutions written out, with a stride for 1×1 as well."""
    supernet = CaeSupernet(CaeCatSpace(1, channels=(4,)), 2).double()
    layer = CaeLayer(0, kernel, 4, False)
    x = torch.rand(2, 2, *size, dtype=torch.float64)
    encoder = supernet._weight(supernet.encoder, layer, layer.channels, 2)
    decoder = supernet._weight(supernet.decoder, layer, 4, layer.channels)
    y = F.relu(F.conv2d(x, encoder, stride=2, padding=kernel // 2))
    even = [1 - side % 2 for side in size]
    y = F.conv_transpose2d(y, decoder, stride=2, padding=kernel // 2, output_padding=even)
    y = F.conv_transpose2d(F.relu(y), supernet._output_weight(4), padding=1)
    torch.testing.assert_close(supernet(x, [layer]), y)


def test_gradients_are_those_of_finite_differences() -> None:
    space = CaeCatSpace(3, channels=(2, 3))
    chain = [CaeLayer(0, 3, 3, True), CaeLayer(1, 1, 2, False), CaeLayer(2, 5, 2, False)]
    network = CaeNetwork(space.decode(space.encode(chain)), 1, (5, 4)).double()
    x = torch.rand(1, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: network(x), (x, *network.parameters()))


def test_base() -> None:
    network = CaeNetwork(base_layers(2), image_size=(8, 8))
    # (3 + 64)·64·9 in the encoder, 2·64·64·9 in the decoder, 64·3·9 for the output.
    assert parameter_count(network) == 67 * 64 * 9 + 2 * 64 * 64 * 9 + 64 * 3 * 9
    assert all(layer.skip and layer.kernel == 3 for layer in base_layers(5))
    for arguments in [{"depth": 0}, {"depth": 1, "kernel": 2}, {"depth": 1, "channels": 0}]:
        with pytest.raises(ValueError, match="must be 1 or more"):
            base_layers(**arguments)


def test_wrong_images_and_layers() -> None:
    supernet = CaeSupernet(CAT)
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\)"):
        supernet(torch.zeros(1, 1, 8, 8), [])
    with pytest.raises(ValueError, match="layers must be of the space"):
        supernet(torch.zeros(1, 3, 8, 8), [CaeLayer(8, 3, 3, True)])
    with pytest.raises(ValueError, match="rows and columns must be from 1"):
        supernet(torch.zeros(1, 3, 8, 8), [CaeLayer(0, 3, 9, True)])
    with pytest.raises(ValueError, match="architectures must be one or more, got none"):
        supernet.restore(torch.zeros(1, 3, 8, 8), [])
    with pytest.raises(ValueError, match="layers must be of the space"):
        supernet.restore(torch.zeros(1, 3, 8, 8), [[], [CaeLayer(8, 3, 3, True)]])
    with pytest.raises(ValueError, match="x must be images of size"):
        CaeNetwork(base_layers(1), image_size=(8, 8))(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="image_size must be positive"):
        CaeNetwork(base_layers(1), image_size=(0, 8))
    with pytest.raises(ValueError, match="in_channels"):
        CaeSupernet(CAT, 0)


@pytest.mark.parametrize("space", [CAT, INT], ids=["cat", "int"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_same_images_by_several_architectures(space: CaeSpace, autocast: bool) -> None:
    """The bits of one after the other, with SGD between."""
    x = torch.rand(2, 3, 9, 8)
    chains = [space.decode(random_values(space, seed)) for seed in range(12)]
    found = []
    for at_once in (False, True):
        torch.manual_seed(0)
        supernet = CaeSupernet(space)
        sgd = ActiveSGD(supernet, 0.05, 0.9, 0.5)
        for first in range(0, 12, 3):
            some = [*chains[first : first + 3], chains[first], ()]
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                outs = (
                    supernet.restore(x, some) if at_once else [supernet(x, chain) for chain in some]
                )
            torch.stack([(out.float() - x).square().mean() for out in outs]).mean().backward()
            sgd.step()
            found.append([out.detach() for out in outs])
        found.append(list(supernet.state_dict().values()))
    for one, other in zip(found[:5], found[5:], strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


# ------------------------------------------------------------------------------ compiled layers


def run_once(supernet: CaeSupernet, x: Tensor, chain: Any) -> list[Tensor]:
    """Output and the gradients of all weights in use."""
    supernet.zero_grad()
    out = supernet(x, chain)
    out.square().mean().backward()
    return [out.detach()] + [p.grad for p in supernet.parameters() if p.grad is not None]


@pytest.mark.operators
@pytest.mark.parametrize("size", [(13, 4), (26, 25)])
def test_compiled_layers_are_the_plain_ones(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    for space in (CAT, INT):
        supernet = CaeSupernet(space).double()
        chains = [space.decode(random_values(space, seed)) for seed in range(6)]
        compiled = [run_once(supernet, x, chain) for chain in chains]
        with monkeypatch.context() as patch:
            patch.setattr(cae_ops, "available", lambda: False)
            patch.setattr(cae_ops, "encode", None)  # would fail if it was called
            plain = [run_once(supernet, x, chain) for chain in chains]
        for got, expected in zip(compiled, plain, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_many_architectures() -> None:
    """Hundreds of them, as a search meets them, one after the other with SGD between."""
    space = CaeIntSpace(layers=6, low=1, high=6)
    supernet = CaeSupernet(space)
    sgd = ActiveSGD(supernet, 0.01, 0.9, 5.0)
    x = torch.rand(2, 3, 9, 8)
    for seed in range(300):
        out = supernet(x, space.decode(random_values(space, seed)))
        (out - x).square().mean().backward()
        sgd.step()
        assert out.isfinite().all(), seed


def test_autocast_gives_images_like_those_without() -> None:
    supernet = CaeSupernet(CAT)
    x = torch.rand(2, 3, 16, 16)
    for seed in range(6):
        chain = CAT.decode(random_values(CAT, seed))
        expected = supernet(x, chain)
        with torch.autocast("cpu", torch.bfloat16):
            out = supernet(x.bfloat16(), chain)
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)
