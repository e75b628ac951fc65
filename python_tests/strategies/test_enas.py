"""ENAS: the controller is a distribution, learns by unbiased gradients, and finds what is best."""

from __future__ import annotations

from itertools import cycle, product
from pathlib import Path
from typing import Any

import planted_choices as planted
import pytest
import torch
from torch import Tensor

import asng_ext as asng
from asng_ext.nn import CellSpace
from asng_ext.runs.config import SearchConfig
from asng_ext.strategies import make
from asng_ext.strategies.enas import Controller, Enas
from asng_ext.strategies.protocol import Parts
from asng_ext.training.metrics import Means

SPACE = asng.SearchSpace(
    {
        "input": asng.Categorical(["x", "y"]),
        "operation": asng.Categorical(["a", "b", "c"]),
        "more": asng.Categorical([1, 2]),
    }
)
ALL = torch.tensor(list(product(range(2), range(3), range(2))))


def enas(**options: Any) -> planted.Make:
    chosen = Enas.Options(**options)
    return lambda task, epochs: Enas(task, chosen, epochs=epochs, seed=3)


def begun(task: Any, **options: Any) -> Enas:
    strategy = Enas(task, Enas.Options(**options), epochs=1, seed=3)
    supernet = task.supernet()
    strategy.begin(Parts(task, supernet, torch.optim.SGD(supernet.parameters()), Means()))
    return strategy


def log_probabilities(controller: Controller) -> Tensor:
    """Of all architectures."""
    _, found = controller(len(ALL), lambda position, _: ALL[:, position])
    return torch.stack([row.gather(1, ALL[:, [i]])[:, 0] for i, row in enumerate(found)]).sum(dim=0)


def tiny(**options: Any) -> Enas:
    task = planted.Planted()
    task.space = SPACE
    strategy = begun(task, **options)
    with torch.no_grad():  # far from uniform
        for number, weight in enumerate(strategy.controller.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    return strategy


def test_probabilities_of_all_architectures_sum_to_1() -> None:
    strategy = tiny()
    probabilities = log_probabilities(strategy.controller).detach().exp()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-6)
    assert float(probabilities.max() / probabilities.min()) > 3
    # They are those with which architectures are drawn.
    indices, _ = strategy.controller.draw(20_000, strategy.generator)
    shares = (indices[:, None] == ALL).all(dim=2).float().mean(dim=0)
    torch.testing.assert_close(shares, probabilities, atol=0.012, rtol=0)


def test_reinforce_is_the_gradient_of_the_expected_reward() -> None:
    table = torch.tensor([3.0, 0, 1, 0, 0, 2, 0, 5, 0, 1, 0, 0])
    strategy = tiny(samples=40_000, entropy_weight=0.0, hidden=4)
    of = {tuple(row): float(reward) for row, reward in zip(ALL.tolist(), table)}
    strategy.reward = lambda batch, indices: of[tuple(indices)]  # type: ignore[method-assign]
    weights = list(strategy.controller.parameters())
    estimated = torch.autograd.grad(strategy.controller_loss(cycle([None])), weights)
    expected_reward = (log_probabilities(strategy.controller).exp() * table).sum()
    exact = torch.autograd.grad(-expected_reward, weights)
    a, b = (torch.cat([g.flatten() for g in gradient]) for gradient in (estimated, exact))
    assert float((a - b).norm() / b.norm()) < 0.05
    assert strategy.numbers()["baseline"] == pytest.approx(float(expected_reward.detach()), abs=0.5)


def test_logits_are_those_of_the_reference_code() -> None:
    """Saturated heads show the largest logits: 1.1 of inputs, 1.1 / 2.5 of operations, and 0.25
    more of separable convolutions in the normal cell."""
    space = CellSpace(1, ("identity", "sep_conv_3x3", "avg_pool_3x3")).search_space()
    controller = Controller(space, 8, 1.1, 2.5, 0.25)
    with torch.no_grad():
        for head in controller.heads:
            head.weight.zero_()  # type: ignore[operator]
            head.bias.copy_(torch.tensor([-1e3, 1e3, 1e3])[: len(head.bias)])  # type: ignore[arg-type,operator]
    _, found = controller.greedy()
    ratios = {name: row[0] - row[0, 0] for name, row in zip(space.categorical, found)}
    torch.testing.assert_close(ratios["normal/node0/input0"], torch.tensor([0, 2.2]))
    for name, bias in (("normal/node0/operation1", 0.25), ("reduction/node0/operation1", 0.0)):
        torch.testing.assert_close(ratios[name], torch.tensor([0, 0.88 + bias, 0.88]))


def test_probabilities_shown_are_those_of_the_greedy_path() -> None:
    strategy = begun(planted.Planted())
    probabilities = strategy.probabilities()
    assert strategy.decoded([row.argmax() for row in probabilities]) == strategy.recommend()
    assert [row.sum() for row in probabilities] == pytest.approx([1] * 5)
    torch.testing.assert_close(
        strategy.theta.categorical.sum(axis=1), torch.ones(5).double().numpy()
    )


def test_probabilities_are_those_along_the_architecture_that_was_chosen() -> None:
    strategy = tiny(updates=1, samples=2, derive=60, learning_rate=1e-6)
    wanted = [1, 0, 1]
    strategy.reward = lambda batch, indices: float(list(indices) == wanted)  # type: ignore[method-assign]
    strategy.end_epoch(0)
    assert strategy.recommend() == strategy.decoded(wanted)
    assert strategy.controller.greedy()[0][0].tolist() != wanted
    # By the definition of a conditional probability, from those of whole architectures.
    joint = log_probabilities(strategy.controller).detach().double().exp().view(2, 3, 2)
    expected = [
        joint.sum((1, 2)),
        joint[1].sum(1) / joint[1].sum(),
        joint[1, 0] / joint[1, 0].sum(),
    ]
    for row, probabilities in zip(strategy.probabilities(), expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(row), probabilities, atol=1e-5, rtol=0)
    loaded = tiny()
    loaded.load_state_dict(strategy.state_dict())
    assert list(map(list, loaded.probabilities())) == list(map(list, strategy.probabilities()))


def test_it_finds_what_is_planted() -> None:
    result = planted.found(enas(updates=20, samples=5, derive=30, learning_rate=0.01), 4)
    assert result.architecture == planted.best()
    assert result.rows[-2]["test_right"] == 1  # of the greedy path
    rewards = [row["baseline"] for row in result.rows]
    assert rewards == sorted(rewards)
    # As likely as the bounded logits allow.
    exp = torch.tensor([1.1, -1.1, -1.1]).exp()
    assert result.rows[-1]["convergence"] == pytest.approx(float(exp[0] / exp.sum()), abs=0.01)


def test_resume_bit_for_bit(tmp_path: Path) -> None:
    planted.check_resumes(enas(updates=2, samples=3, derive=4), tmp_path, 2)


def test_it_searches_cells() -> None:
    planted.check_classification(enas(updates=2, samples=3, derive=4))


def test_wrong_spaces_and_options() -> None:
    planted.check_wants_categories(enas())
    with pytest.raises(ValueError, match="strategy_options: samples must be at least 1"):
        make(
            planted.Planted(),
            SearchConfig(strategy="enas", strategy_options="samples=0"),
            seed=0,
        )
