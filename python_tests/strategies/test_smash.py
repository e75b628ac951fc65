"""SMASH: weights are made for the architecture that runs, and only where they are needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import planted_choices as planted
import pytest
import small_classification as small
import torch
from cell_supernets import draw, gradients

from asng_ext._random import DrawsFrom
from asng_ext.engine.search import search
from asng_ext.nn import CellSpace, CellSupernet
from asng_ext.nn.operations import OPERATIONS, SeparableConv
from asng_ext.strategies.smash import FusedSmashSupernet, Smash, SmashSupernet

FEW = {"samples": 3, "perturbed": 2, "chain": 2, "batches": 1, "hidden": 8}
SPACE = CellSpace(2)
SETTINGS = {"classes": 4, "cells": 3, "channels": 4, "in_channels": 1}
# Four separable convolutions, one of them twice in a node, and four other operations.
SEP = SPACE.operations.index("sep_conv_5x5")
ARCHITECTURE = [0, 1, SEP, 0, 1, 1, SEP, SEP, 0, 0, 1, SEP, 2, 1, 0, SEP]


def smash(**options: Any) -> planted.Make:
    chosen = Smash.Options(**options)
    return lambda task, epochs: Smash(task, chosen, epochs=epochs, seed=3)


Supernet = SmashSupernet | FusedSmashSupernet
EITHER = pytest.mark.parametrize(
    "kind", [SmashSupernet, pytest.param(FusedSmashSupernet, marks=pytest.mark.operators)]
)


def supernet(kind: type[Supernet] = SmashSupernet, space: CellSpace = SPACE) -> Supernet:
    with DrawsFrom(0, "supernet"):
        return kind(space, 8, **SETTINGS)


@EITHER
def test_it_computes_what_a_supernet_with_the_made_weights_does(kind: type[Supernet]) -> None:
    made = supernet(kind)
    plain = CellSupernet(SPACE, **SETTINGS)
    missing, unexpected = plain.load_state_dict(made.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(".pointwise." in name for name in missing)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    other = [1, *ARCHITECTURE[1:]]
    outs = []
    with torch.no_grad():
        for architecture in (ARCHITECTURE, other):
            code = made.hypernetwork.encode(torch.tensor(architecture))
            convolutions = [m for m in plain.modules() if isinstance(m, SeparableConv)]
            stages = [stage for each in convolutions for stage in each.children()]
            for layer, stage in enumerate(stages):
                weight = made.hypernetwork(code, [layer])[0, :, :, None, None]
                norms = weight.square().sum(dim=1)
                torch.testing.assert_close(norms, torch.ones_like(norms))
                stage.pointwise.weight.copy_(weight)
            outs.append(made(x, architecture))
            torch.testing.assert_close(outs[-1], plain(x, architecture))
        # Also where an operation stays the same, its weights do not.
        assert not torch.allclose(outs[0], plain(x, ARCHITECTURE), atol=1e-3)
        torch.testing.assert_close(made.forward_population(x, [ARCHITECTURE, other])[0], outs[0])


@pytest.mark.operators
@pytest.mark.parametrize("operations", [SPACE.operations, SPACE.operations[::-1], OPERATIONS])
def test_the_compiled_one_is_the_plain_one(operations: tuple[str, ...]) -> None:
    """Weights, numbers, gradients and states, in double precision."""
    space = CellSpace(3, operations)
    plain, fused = (supernet(kind, space).double() for kind in (SmashSupernet, FusedSmashSupernet))
    states = [made.state_dict() for made in (plain, fused)]
    assert small.equal(dict(sorted(states[0].items())), dict(sorted(states[1].items())))
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for made in (plain, fused):
        made.hypernetwork.double()
        logits: Any = made.forward_population(x, draw(3, space=space))
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        named = {**made.hypernetwork.state_dict(keep_vars=True)}
        of_made = {name: weight.grad for name, weight in named.items()}
        found.append([logits.detach(), of_made, gradients(made)])
    (logits, of_made, of_weights), (expected, wanted, wanted_of_weights) = found
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    for one, other in ((of_made, wanted), (of_weights, wanted_of_weights)):
        assert one.keys() == other.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-8, atol=1e-10)


@EITHER
def test_only_layers_that_run_are_trained(kind: type[Supernet]) -> None:
    made = supernet(kind)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made(x, ARCHITECTURE).square().mean().backward()
    gradients = made.hypernetwork.layers.weight.grad
    # Of three cells, two are reductions and one is normal. Both stages of each.
    normal, reduction = 2, 2
    assert int((gradients != 0).any(dim=1).sum()) == 2 * (normal + 2 * reduction)
    parameters = set(made.parameters())
    assert not parameters & set(made.hypernetwork.parameters())
    assert not any("pointwise" in name for name, _ in made.named_parameters())


def test_adam_trains_the_hypernetwork() -> None:
    """The first step of Adam is its learning rate for each weight with a gradient."""
    task = small.task()
    strategy = smash(**FEW, learning_rate=0.01, weight_decay=0.0)(task, 1)
    steps: list[Any] = []
    step = strategy.step

    def watched(batches: Any) -> None:
        weight = strategy._hypernetwork.mixed.weight  # type: ignore[attr-defined]
        before = weight.detach().clone()
        step(batches)
        steps.append((weight - before).abs().max().item())

    strategy.step = watched  # type: ignore[method-assign]
    search(task, strategy, replace(small.SEARCH, epochs=1), seed=1, stream=None)
    assert steps[0] == pytest.approx(0.01, rel=1e-3)


def test_it_finds_what_is_planted() -> None:
    """Rewards are the share of choices that are those of one architecture."""
    task = small.task()
    target = torch.tensor(ARCHITECTURE)
    strategy = smash(samples=50, perturbed=20, chain=600, batches=1, hidden=8)(task, 2)
    rewards: list[float] = []

    def reward(batch: Any, indices: Any) -> float:
        rewards.append(float((torch.tensor(indices) == target).float().mean()))
        return rewards[-1]

    strategy.reward = reward  # type: ignore[method-assign]
    result = search(task, strategy, replace(small.SEARCH, epochs=2), seed=1, stream=None)
    assert len(rewards) == 670
    assert task.cell_space.to_indices(result.architecture) == ARCHITECTURE
    assert max(rewards[:50]) < max(rewards[:70]) < 1
    # Changes of the best of the first are nearer to it than others.
    assert sum(rewards[50:70]) / 20 > max(rewards[:50]) - 0.15


def test_resume_bit_for_bit(tmp_path: Path) -> None:
    planted.check_resumes(smash(**FEW), tmp_path, 1, small.task, small.SEARCH)


def test_it_searches_cells() -> None:
    planted.check_classification(smash(**FEW))


def test_wrong_spaces_and_supernets() -> None:
    planted.check_wants_categories(smash())
    with pytest.raises(ValueError, match="whose supernet is a CellSupernet, got Lines"):
        planted.found(smash(), 1)


@EITHER
def test_spaces_with_nothing_to_make(kind: type[Supernet]) -> None:
    with pytest.raises(ValueError, match="must have a separable convolution"):
        supernet(kind, CellSpace(2, ("identity", "avg_pool_3x3")))
