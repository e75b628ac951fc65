"""What architectures cost: tables agree with the networks that are built."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import asng_ext as asng
from asng_ext.nn import (
    CaeCatSpace,
    CaeCost,
    CaeIntSpace,
    CaeNetwork,
    CellNetwork,
    CellSpace,
    Choice,
    Latencies,
    cell_costs,
    choice_costs,
    count_flops,
    derive,
    parameter_count,
    search_space,
)
from asng_ext.nn.operations import OPERATIONS

SETTINGS = {"classes": 7, "cells": 4, "channels": 4, "in_channels": 2}


def draws(space: asng.SearchSpace, count: int) -> asng.Samples:
    return asng.ASNG(space, population_size=count, seed=0).ask()


@pytest.mark.parametrize("space", [CellSpace(3), CellSpace(1), CellSpace(2, OPERATIONS)])
def test_costs_of_cells_are_those_of_the_network(space: CellSpace) -> None:
    samples = draws(space.search_space(), 8)
    samples.categorical[0] = 0  # all nodes are leaves, all edges occur twice
    samples.categorical[1] = [size - 1 for size in space.categories]  # a chain
    size = (10, 7)
    parameters, flops = (
        cell_costs(space, kind, image_size=size, **SETTINGS)(samples)
        for kind in ("parameters", "flops")
    )
    for i, architecture in enumerate(samples.categorical):
        with torch.device("meta"):
            network = CellNetwork(space, architecture, image_size=7, **SETTINGS)
            images = torch.empty(1, 2, *size)
        assert parameters[i] == parameter_count(network)
        assert flops[i] == count_flops(network, images)


@pytest.mark.parametrize(
    "space", [CaeCatSpace(4, channels=(2, 5)), CaeIntSpace(4, low=2, high=9, levels_back=2)]
)
@pytest.mark.parametrize("size", [(12, 9), (2, 2)])
def test_costs_of_autoencoders_are_those_of_the_network(space: Any, size: tuple[int, int]) -> None:
    samples = draws(space.search_space(), 8)
    named = {"in_channels": 3, "image_size": size}
    parameters, flops = (CaeCost(space, kind, **named)(samples) for kind in ("parameters", "flops"))
    for i, values in enumerate(samples):
        with torch.device("meta"):
            network = CaeNetwork(space.decode(values), **named)
            images = torch.empty(1, 3, *size)
        assert parameters[i] == parameter_count(network)
        assert flops[i] == count_flops(network, images)
    with pytest.raises(ValueError, match="kind must be parameters or flops for autoencoders"):
        CaeCost(space, "latency", **named)


class Twice(nn.Module):
    """Calls a choice twice, once by name."""

    def __init__(self, choice: nn.Module) -> None:
        super().__init__()
        self.choice = choice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.choice(self.choice(input=x))
        return y


def model() -> nn.Module:
    shared = nn.Linear(6, 6)
    inner = Choice("inner", {"wide": nn.Linear(6, 6), "none": nn.Identity(), "shared": shared})
    narrow = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 6))
    return nn.Sequential(
        nn.Linear(4, 6),
        Choice("outer", {"nested": nn.Sequential(nn.Linear(6, 6), inner), "narrow": narrow}),
        Choice("own", [nn.Identity(), shared, nn.Sequential(shared, narrow)]),
        nn.BatchNorm1d(6),
        Choice("inner", {"wide": nn.Linear(6, 6), "none": nn.Identity(), "shared": nn.Identity()}),
        Twice(Choice("twice", {"a": nn.Linear(6, 6, bias=False), "b": nn.Identity()})),
    )


def test_costs_of_choices_are_those_of_the_derived_network() -> None:
    supernet, x = model(), torch.randn(3, 4)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    space = search_space(supernet)
    parameters = choice_costs(supernet, "parameters")
    flops = choice_costs(supernet, "flops", x)
    rows = [
        dict(zip(space, values))
        for values in itertools.product(*(v.values for v in space.values()))
    ]  # type: ignore[union-attr]
    samples = space.samples(rows)
    counted = parameters(samples), flops(samples)
    for row, weights, operations in zip(rows, *counted, strict=True):
        network = derive(supernet, row)
        assert weights == parameter_count(network), row
        assert operations == count_flops(network, x), row
    assert len(rows) == 36
    assert len(set(counted[0])) > 10
    assert all(choice.active is None for choice in supernet.modules() if isinstance(choice, Choice))
    assert all(module.training for module in supernet.modules())
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())


def test_latencies_are_measured_once() -> None:
    supernet, x = model(), torch.randn(3, 4)
    latencies = Latencies()
    table = choice_costs(supernet, "latency", x, latencies=latencies)
    samples = draws(search_space(supernet), 6)
    assert (table(samples) > 0).all()
    measured = dict(latencies.measured)
    assert "model/outer 0=narrow: 3×6" in measured
    again = Latencies(measured=latencies.content()["measured"])
    np.testing.assert_array_equal(
        choice_costs(supernet, "latency", x, latencies=again)(samples), table(samples)
    )
    assert again.measured == measured
    with pytest.raises(ValueError, match=r"measured\['a'\] must be finite and above 0, got -1"):
        Latencies(measured={"a": -1})


def test_a_wider_candidate_takes_longer() -> None:
    wide = nn.Sequential(nn.Linear(4, 3000), nn.Linear(3000, 3000), nn.Linear(3000, 4))
    supernet = nn.Sequential(Choice("op", {"none": nn.Identity(), "wide": wide}))
    table = choice_costs(supernet, "latency", torch.randn(8, 4))
    none, slow = table(search_space(supernet).samples([{"op": "none"}, {"op": "wide"}]))
    assert slow > 5 * none


def test_latencies_of_cells() -> None:
    space, latencies = CellSpace(2), Latencies()
    settings = {"image_size": (8, 8), "latencies": latencies, **SETTINGS}
    table = cell_costs(space, "latency", **settings)
    pools = space.to_indices(
        {n: "max_pool_3x3" if "operation" in n else "older" for n in space.variables}
    )
    separable = space.to_indices(
        {n: "sep_conv_5x5" if "operation" in n else "older" for n in space.variables}
    )
    numbers = np.zeros((2, 0))
    samples = asng.Samples(space.search_space(), np.array([pools, separable]), numbers)
    costs = table(samples)
    assert 0 < costs[0] < costs[1]
    measured = dict(latencies.measured)
    assert cell_costs(space, "latency", **settings).fingerprint() == table.fingerprint()
    assert latencies.measured == measured


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("weights",), "kind must be one of parameters, flops, latency, got 'weights'"),
        (("flops",), "inputs must be an example"),
    ],
)
def test_what_is_wrong_is_named(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        choice_costs(model(), *arguments)


def test_weights_that_many_share_are_refused() -> None:
    shared = nn.Linear(2, 2)
    many = [Choice(f"c{i}", [shared, nn.Identity()]) for i in range(9)]
    with pytest.raises(ValueError, match="at most 8 candidates, got 9"):
        choice_costs(nn.Sequential(*many), "parameters")
