"""Gradients of the architecture against differences, second derivatives and expectations."""

from __future__ import annotations

import io
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_classification as small
import torch
from recording_graphs import RecordingGraphs
from torch import Tensor
from toy_supernet import ToyTask, begun, make_step

from asng_ext import strategies
from asng_ext._signals import Interrupted
from asng_ext.engine.search import search
from asng_ext.nn import Relaxation
from asng_ext.runs.config import SearchConfig
from asng_ext.runs.folder import RunFolder
from asng_ext.training.cuda_graphs import WARM_UPS


def started(name: str, steps: int = 3, planted: tuple[int, ...] = (1, 2), **options: Any) -> Any:
    """A strategy in double precision after some steps, so that momentum is under way."""
    task = ToyTask(planted, dtype=torch.float64)
    strategy = begun(name, task, **options)
    strategy.logits = [
        torch.randn(len(logits), generator=strategy.generator, dtype=torch.float64).requires_grad_()
        for logits in strategy.logits
    ]
    (group,) = strategy.adam.param_groups
    group["params"] = strategy.logits
    pairs = list(zip(task.weight_batches(0), task.theta_batches(0)))
    for pair in pairs[:steps]:
        make_step(strategy, pair)
    return strategy, pairs[steps]


def differences(function: Any, tensors: list[Tensor], h: float = 1e-5) -> list[Tensor]:
    """The gradient of a number by central differences."""
    found = []
    with torch.no_grad():
        for tensor in tensors:
            gradient = torch.zeros_like(tensor)
            for i in range(len(tensor)):
                value, sides = tensor[i].item(), []
                for shifted in (value + h, value - h):
                    tensor[i] = shifted
                    sides.append(float(function()))
                tensor[i] = value
                gradient[i] = (sides[0] - sides[1]) / (2 * h)
            found.append(gradient)
    return found


def moved(strategy: Any, monkeypatch: Any) -> list[list[Tensor]]:
    """Gradients that the strategy gives to Adam, as they come."""
    given: list[list[Tensor]] = []
    monkeypatch.setattr(strategy, "move_logits", lambda g: given.append(list(g)))
    return given


def test_first_order_darts_follows_the_loss_of_the_validation_batch(monkeypatch: Any) -> None:
    strategy, (for_weights, for_logits) = started("darts")
    given = moved(strategy, monkeypatch)
    wanted = differences(
        lambda: strategy.loss(for_logits, Relaxation(strategy.softmax()))[0], strategy.logits
    )
    strategy.train(for_weights, for_logits)
    (gradients,) = given
    for gradient, expected in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def unrolled_loss(strategy: Any, for_weights: Any, for_logits: Any, create: bool) -> Tensor:
    """The validation loss after one more step of the weights as a function of the logits: with the
    graph of the step, or as a number."""
    (weight,) = strategy.parts.supernet.parameters()
    optimizer = strategy.parts.weight_optimizer
    (group,) = optimizer.param_groups
    loss = strategy.loss(for_weights, Relaxation(strategy.softmax()))[0]
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=create)
    velocity = optimizer.state[weight]["momentum_buffer"]
    change = group["momentum"] * velocity + gradient + group["weight_decay"] * weight
    stepped = {"weight": weight - group["lr"] * change}
    x, y = for_logits
    mixture = torch.stack(strategy.softmax())
    out = torch.func.functional_call(strategy.parts.supernet, stepped, (x, mixture))
    return (out - y).square().mean()


def test_second_order_darts_is_the_gradient_through_one_step() -> None:
    strategy, (for_weights, for_logits) = started("darts2")
    strategy.parts.weight_optimizer.param_groups[0] |= {"lr": 0.1, "weight_decay": 0.01}
    before = strategy.parts.supernet.weight.detach().clone()
    loss, _, gradients = strategy.unrolled(for_weights, for_logits)
    assert torch.equal(strategy.parts.supernet.weight, before)
    exact_loss = unrolled_loss(strategy, for_weights, for_logits, create=True)
    exact = torch.autograd.grad(exact_loss, strategy.logits)
    torch.testing.assert_close(loss, exact_loss.detach())

    def number() -> Tensor:
        with torch.enable_grad():
            return unrolled_loss(strategy, for_weights, for_logits, create=False).detach()

    bilevel = differences(number, strategy.logits)
    first_order, _ = started("darts2")
    outer = torch.autograd.grad(
        first_order.loss(for_logits, Relaxation(first_order.softmax()))[0], first_order.logits
    )
    for i, gradient in enumerate(gradients):
        torch.testing.assert_close(exact[i], bilevel[i], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(gradient, exact[i], rtol=1e-3, atol=1e-4)
        # The term that first order leaves out is not small.
        assert (outer[i] - exact[i]).norm() > 0.1 * exact[i].norm()


def test_second_order_darts_takes_a_gradient_of_zero() -> None:
    strategy, (for_weights, _) = started("darts2")
    x, _ = for_weights
    strategy.parts.supernet.weight.data.zero_()
    strategy.parts.weight_optimizer.state.clear()
    nothing = (x, torch.zeros(len(x), dtype=torch.float64))
    _, _, gradients = strategy.unrolled(nothing, nothing)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@pytest.mark.parametrize("name", ["darts", "darts2", "snas"])
@pytest.mark.parametrize("of", [ToyTask, small.task], ids=["toy", "cells"])
def test_captured_steps_give_the_numbers_of_others(name: str, of: Any) -> None:
    def searched(graphs: RecordingGraphs, replays: bool) -> Any:
        task = of()
        task.__class__ = type("Capturable", (type(task),), {"capturable": True})
        config = SearchConfig(
            epochs=2,
            batch_size=20,
            strategy=name,
            strategy_options="learning_rate=0.01",
            graphs=replays,
        )
        strategy = strategies.make(task, config, seed=0)
        result = search(task, strategy, config, seed=0, stream=None, graphs=graphs)
        return result, strategy.state_dict()

    graphs = RecordingGraphs()
    captured, state = searched(graphs, True)
    plain, expected = searched(RecordingGraphs(), False)
    steps = ToyTask.search_steps if of is ToyTask else small.task().search_steps
    assert graphs.captured == 1
    assert graphs.replays == 2 * steps - WARM_UPS > 0
    assert state["steps"] == expected["steps"] == 2 * steps
    assert small.equal(state, expected)
    assert small.equal(captured.supernet.state_dict(), plain.supernet.state_dict())


def test_captured_steps_of_snas_resume_within_an_epoch(tmp_path: Path) -> None:
    """Noise and temperature of replays are those that steps would have had."""
    config = SearchConfig(epochs=2, strategy="snas", strategy_options="learning_rate=0.05")

    def searched(run: RunFolder | None, stops: int | None = None, replays: bool = True) -> Any:
        task = ToyTask()
        task.capturable = True
        own = replace(config, graphs=replays)
        strategy: Any = strategies.make(task, own, seed=0)
        prepare = strategy.prepare

        def prepared() -> None:
            if strategy.steps == stops:
                os.kill(os.getpid(), signal.SIGTERM)
            prepare()

        strategy.prepare = prepared
        graphs = RecordingGraphs()
        result = search(task, strategy, own, seed=0, run=run, stream=None, graphs=graphs)
        return [dict(result.supernet.state_dict()), result.rows, strategy.state_dict()], graphs

    expected, _ = searched(None, replays=False)
    whole, graphs = searched(None)
    assert graphs.replays == 2 * ToyTask.search_steps - WARM_UPS
    run = RunFolder.create(tmp_path / "run")
    for stops in (6, 40):
        with pytest.raises(Interrupted):
            searched(run, stops)
    resumed, graphs = searched(run)
    assert graphs.replays == 2 * ToyTask.search_steps - 41 - WARM_UPS
    assert small.equal(whole, expected)
    assert small.equal(resumed, expected)


@pytest.mark.parametrize("name", ["gdas", "proxyless"])
def test_what_chooses_on_the_host_is_not_captured(name: str) -> None:
    task, stream = ToyTask(), io.StringIO()
    task.capturable = True
    config = SearchConfig(epochs=1, strategy=name)
    graphs, strategy = RecordingGraphs(), strategies.make(task, config, seed=0)
    search(task, strategy, config, seed=0, stream=stream, graphs=graphs)
    assert graphs.ran == 0
    assert f"without CUDA graphs: the strategy {name} chooses on the host" in stream.getvalue()


@pytest.mark.parametrize("name", ["snas", "gdas"])
def test_temperatures_fall_linearly(name: str) -> None:
    task = ToyTask((1, 2))
    strategy = begun(name, task, epochs=2, temperature=8.0, temperature_end=2.0)
    assert strategy.numbers()["temperature"] == 8
    strategy.steps = task.search_steps
    assert strategy.numbers()["temperature"] == 5


def test_snas_draws_by_the_probabilities_and_its_gradient_is_that_of_the_expected_loss() -> None:
    """At a low temperature a relaxed sample is nearly one-hot: the mean of a loss that is linear in
    it is Σ p_k L_k, and so is the mean of the gradients."""
    strategy = begun("snas", ToyTask((1,)), temperature=0.3, temperature_end=0.3)
    logits = torch.tensor([0.5, -0.5, 0.0, 1.0], requires_grad=True)
    strategy.logits = [logits]
    losses = torch.tensor([1.0, -2.0, 0.5, 3.0])
    draws = 4000
    counts, total, gradient = torch.zeros(4), 0.0, torch.zeros(4)
    for _ in range(draws):
        strategy.prepare()
        (z,) = strategy.relaxed_sample(1)
        counts[z.argmax()] += 1
        loss = z @ losses
        total += loss.item()
        gradient += torch.autograd.grad(loss, logits)[0] / draws
    p = logits.detach().softmax(0)
    # 3 degrees of freedom; beyond 16.3 once in a thousand.
    assert float(((counts - draws * p) ** 2 / (draws * p)).sum()) < 16.3
    expected = p * (losses - p @ losses)
    # Standard errors are about 0.03; the relaxation's own bias is below 0.06.
    assert abs(total / draws - float(p @ losses)) < 0.15
    torch.testing.assert_close(gradient, expected, atol=0.15, rtol=0)


def test_the_mean_of_the_gradients_of_gdas_by_quadrature() -> None:
    """Of two choices the difference of Gumbel draws is logistic: the mean over it of what a sample
    gives, L'_a ∂z_a/∂logits of the sampled choice a, is an integral."""
    strategy = begun("gdas", ToyTask((1,)), temperature=2.0, temperature_end=2.0)
    # The others are never drawn.
    logits = torch.tensor([0.7, -0.2, -1e3, -1e3], requires_grad=True)
    strategy.logits = [logits]
    losses = torch.tensor([1.0, 3.0])
    draws = 5000
    mean, picked = torch.zeros(4), 0
    for _ in range(draws):
        strategy.prepare()
        sampled = strategy.sampled(1)
        ((choice,),) = sampled.active
        assert sampled.weights[0].tolist() == [float(i == choice) for i in range(4)]
        picked += choice
        loss = sampled.weights[0][choice] * losses[choice]
        mean += torch.autograd.grad(loss, logits)[0] / draws
    noise = np.linspace(-40, 40, 400001)
    density = np.exp(-np.abs(noise)) / (1 + np.exp(-np.abs(noise))) ** 2
    margin = 0.9 + noise
    z = 1 / (1 + np.exp(-margin / 2.0))
    slope = z * (1 - z) / 2.0  # of z_0 by the first logit, less that by the second
    each = np.where(margin > 0, 1.0 * slope, -3.0 * slope)
    expected = float((density * each).sum() * (noise[1] - noise[0]))
    assert abs(picked / draws - 1 / (1 + math.exp(0.9))) < 0.02
    assert mean.tolist() == pytest.approx([expected, -expected, 0, 0], abs=0.02)


def test_gdas_trains_what_was_sampled_alone() -> None:
    strategy, (for_weights, _) = started("gdas", steps=0)
    seen: list[Any] = []
    losses = strategy.task.losses
    strategy.task.losses = lambda *given: (seen.append(given[2].categorical), losses(*given))[1]
    before = strategy.parts.supernet.weight.detach().clone()
    strategy.train(for_weights, for_weights)
    changed = (strategy.parts.supernet.weight != before).nonzero().tolist()
    assert changed == [[v, int(choice)] for v, choice in enumerate(seen[0][0])]


class TestProxyless:
    def test_the_gradient_is_that_of_both_choices(self) -> None:
        strategy, (_, batch) = started("proxyless", warmup=0.0)
        pairs = [torch.tensor([3, 1]), torch.tensor([0, 2])]
        relaxation = strategy.gated(pairs)
        loss, _ = strategy.loss(batch, relaxation)
        gradients = torch.autograd.grad(loss, strategy.logits)
        gates = [weights.detach().clone() for weights in relaxation.weights]
        by_gate = differences(
            lambda: strategy.loss(batch, Relaxation(tuple(gates), relaxation.active))[0], gates
        )
        for v, pair in enumerate(pairs):
            runs = int(gates[v].argmax())
            assert gates[v].tolist() == [float(k == runs) for k in range(4)]
            assert runs in pair.tolist()
            expected = torch.zeros(4, dtype=torch.float64)
            p = strategy.logits[v].detach()[pair].softmax(0)
            for i in range(2):
                for j in range(2):
                    share = by_gate[v][pair[j]] * p[j] * (float(i == j) - p[i])
                    expected[pair[i]] += share
            torch.testing.assert_close(gradients[v], expected, rtol=1e-6, atol=1e-8)

    def test_with_all_choices_it_is_that_of_the_full_softmax(self) -> None:
        strategy, (_, batch) = started("proxyless", warmup=0.0)
        everything = [torch.arange(4), torch.arange(4)]
        relaxation = strategy.gated(everything)
        loss, _ = strategy.loss(batch, relaxation)
        gradients = torch.autograd.grad(loss, strategy.logits)
        gates = [w.detach().clone().requires_grad_() for w in relaxation.weights]
        full = torch.autograd.grad(strategy.loss(batch, Relaxation(tuple(gates)))[0], gates)
        for logits, gradient, by_gate in zip(strategy.logits, gradients, full, strict=True):
            p = logits.detach().softmax(0)
            jacobian = torch.diag(p) - torch.outer(p, p)
            torch.testing.assert_close(gradient, jacobian @ by_gate)

    def test_other_choices_keep_their_probabilities(self) -> None:
        strategy, pair = started("proxyless", steps=4, warmup=0.0, learning_rate=0.5)
        drawn: list[Any] = []
        gated = strategy.gated
        strategy.gated = lambda pairs: (drawn.extend(pairs), gated(pairs))[1]
        before = strategy.probabilities()
        make_step(strategy, pair)  # the fifth
        after = strategy.probabilities()
        assert len(drawn) == 2
        for old, new, chosen in zip(before, after, drawn, strict=True):
            others = [k for k in range(4) if k not in chosen.tolist()]
            assert new[others] == pytest.approx(old[others], rel=1e-9)
            assert abs(new[chosen[0]] - old[chosen[0]]) > 1e-4

    def test_logits_rest_in_the_warm_up_and_between(self) -> None:
        task = ToyTask((1, 2))
        strategy = begun("proxyless", task, epochs=2, warmup=0.5, every=3)
        pairs = [p for e in (0, 1) for p in zip(task.weight_batches(e), task.theta_batches(e))]
        moves = []
        for pair in pairs:
            before = [logits.detach().clone() for logits in strategy.logits]
            make_step(strategy, pair)
            moves.append(not all(map(torch.equal, before, strategy.logits)))
        assert moves == [step >= 25 and (step + 1) % 3 == 0 for step in range(50)]
