"""Choices between arbitrary modules: running, searching and deriving."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import asng_ext as asng
from asng_ext.nn import (
    Choice,
    choice_costs,
    derive,
    parameter_count,
    search_space,
    set_architecture,
    subnet,
)


class Shift(nn.Module):
    """Adds a parameter; keyword and tuple make the passing-on visible."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.calls = 0

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        self.calls += 1
        return x + scale * self.value


def supernet() -> nn.Sequential:
    inner = Choice("inner", [Shift(10.0), Shift(20.0)])
    return nn.Sequential(
        Choice("outer", {"plain": Shift(1.0), "nested": nn.Sequential(Shift(2.0), inner)}),
        nn.ModuleDict({"last": Choice("last", {"a": Shift(100.0), "b": nn.Identity()})})["last"],
    )


ZERO = torch.zeros(())


def test_only_the_active_candidate_runs() -> None:
    first, second = Shift(1.0), Shift(2.0)
    choice = Choice("op", {"first": first, "second": second})
    assert choice.active is None
    set_architecture(choice, {"op": "second"})
    assert choice.active == "second"
    choice(ZERO, scale=3.0).backward()
    assert (first.calls, second.calls) == (0, 1)
    assert first.value.grad is None
    assert second.value.grad == 3.0


def test_search_space_and_architectures() -> None:
    model = supernet()
    space = search_space(model)
    assert space.names == ("outer", "inner", "last")
    assert space["inner"].values == ("0", "1")
    assert space.n_theta == 3
    expected = {(0, 0, 0): 101, (0, 1, 1): 1, (1, 0, 0): 112, (1, 1, 0): 122, (1, 1, 1): 22}
    for row, result in expected.items():
        values = space.decode(row)
        set_architecture(model, values)
        assert model(ZERO) == result
        for network in (derive(model, values), subnet(model, values)):
            assert network(ZERO) == result
            assert not any(isinstance(module, Choice) for module in network.modules())


def test_choices_of_one_name_choose_alike() -> None:
    model = nn.Sequential(Choice("op", [Shift(1.0), Shift(2.0)]), Choice("op", [Shift(3.0)] * 2))
    assert search_space(model).names == ("op",)
    set_architecture(model, {"op": "1"})
    assert model(ZERO) == 5
    model.append(Choice("op", [Shift(1.0)]))
    with pytest.raises(ValueError, match="choice 'op' has 0, 1 and 0"):
        search_space(model)


def test_derive_copies() -> None:
    model = supernet()
    derived = derive(model, {"outer": "nested", "inner": "1", "last": "a"})
    with torch.no_grad():
        for parameter in derived.parameters():
            parameter.zero_()
    set_architecture(model, {"outer": "nested", "inner": "1", "last": "a"})
    assert model(ZERO) == 122
    assert derived(ZERO) == 0
    assert len(list(derived.parameters())) == 3


def test_derive_when_the_root_is_a_choice() -> None:
    inner = Choice("inner", [Shift(1.0), Shift(2.0)])
    model = Choice("root", {"choice": inner, "x": Shift(3.0)})
    derived = derive(model, {"root": "choice", "inner": "1"})
    assert isinstance(derived, Shift)
    assert derived(ZERO) == 2


def test_derive_keeps_sharing_inside_the_model() -> None:
    shared = Choice("op", [Shift(1.0), Shift(2.0)])
    model = nn.Sequential(shared, shared, nn.Sequential(shared))
    derived = derive(model, {"op": "1"})
    assert derived(ZERO) == 6
    assert len(list(derived.parameters())) == 1


def test_a_subnet_has_the_weights_of_the_model() -> None:
    model = supernet()
    network = subnet(model, {"outer": "nested", "inner": "1", "last": "a"})
    network(ZERO).backward()
    assert [p.grad for p in model.parameters()] == [None, 1, None, 1, 1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert network(ZERO) == 0
    assert model[0].candidates["nested"][1] is not network[0][1]
    assert model[0].candidates["nested"][0] is network[0][0]  # nothing to choose in it
    set_architecture(model, {"outer": "plain", "inner": "0", "last": "b"})
    assert [module.calls for module in network.modules() if isinstance(module, Shift)] == [2, 2, 2]


def test_subnets_in_threads() -> None:
    model = supernet()
    results: dict[str, Tensor] = {}
    barrier = threading.Barrier(2)

    def run(inner: str) -> None:
        network = subnet(model, {"outer": "nested", "inner": inner, "last": "b"})
        barrier.wait()
        results[inner] = network(ZERO)

    threads = [threading.Thread(target=run, args=(inner,)) for inner in "01"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"0": 12, "1": 22}


def test_compiled_subnets() -> None:
    model = supernet()
    for inner, result in (("0", 112), ("1", 122)):
        network = subnet(model, {"outer": "nested", "inner": inner, "last": "a"})
        out = torch.compile(network, backend="aot_eager", fullgraph=True)(ZERO)
        assert out == result
        out.backward()
    # Around a choice, compiled code would run the choice.
    values = {"outer": "plain", "inner": "0", "last": "b"}
    with pytest.raises(ValueError, match="OptimizedModule around a choice must not be compiled"):
        subnet(torch.compile(model, backend="eager"), values)
    model.compile(backend="eager")
    with pytest.raises(ValueError, match="Sequential around a choice must not be compiled"):
        subnet(model, values)


class Checkpointed(nn.Module):
    """Repeats its layers in the backward pass."""

    def __init__(self, layers: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.layers = layers
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.layers, x, use_reentrant=self.use_reentrant)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    ways = {"relu": nn.Sequential(nn.Linear(8, 8), nn.ReLU()), "tanh": nn.Tanh()}
    return nn.Sequential(nn.Linear(4, 8), Choice("way", ways), nn.Linear(8, 2))


def gradients(model: nn.Module, call: Callable[[str, Tensor], Tensor]) -> list[Tensor | None]:
    """Of the losses of two architectures together."""
    x = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    model.zero_grad()
    torch.stack([call(way, x).pow(2).sum() for way in ("relu", "tanh")]).sum().backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_gradient_checkpointing(use_reentrant: bool, inside: bool) -> None:
    model = layers()
    expected = gradients(model, lambda way, x: subnet(model, {"way": way})(x))
    wrapped = Checkpointed(model, use_reentrant)

    def call(way: str, x: Tensor) -> Any:
        if inside:
            return subnet(wrapped, {"way": way})(x)
        return checkpoint(subnet(model, {"way": way}), x, use_reentrant=use_reentrant)

    for got, wanted in zip(gradients(model, call), expected, strict=True):
        assert wanted is not None
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_another_architecture_is_an_error(use_reentrant: bool) -> None:
    model = Checkpointed(layers(), use_reentrant)

    def call(way: str, x: Tensor) -> Any:
        set_architecture(model, {"way": way})
        return model(x)

    x = torch.ones(3, 4, requires_grad=True)
    call("relu", x).sum().backward()  # the only one until now
    with pytest.raises(RuntimeError, match="choice 'way' is called again in a backward pass"):
        gradients(model, call)


def test_state_dict_does_not_depend_on_the_active_candidate() -> None:
    model = supernet()
    keys = list(model.state_dict())
    assert keys == [
        "0.candidates.plain.value",
        "0.candidates.nested.0.value",
        "0.candidates.nested.1.candidates.0.value",
        "0.candidates.nested.1.candidates.1.value",
        "1.candidates.a.value",
    ]
    set_architecture(model, {"outer": "plain", "inner": "0", "last": "b"})
    assert list(model.state_dict()) == keys
    other = supernet()
    other.load_state_dict(model.state_dict())
    assert copy.deepcopy(model)(ZERO) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"outer": "plain", "inner": "0"}, r"missing: \['last'\], unknown: none"),
        (
            {"outer": "plain", "inner": "0", "last": "a", "lost": "a"},
            r"missing: none, unknown: \['lost'\]",
        ),
        (
            {"outer": "plain", "inner": "0", "last": "c"},
            "choice 'last' must be one of a, b, got 'c'",
        ),
        (
            {"outer": "plain", "inner": 0, "last": "a"},
            "choice 'inner' must be one of 0, 1, got 0",
        ),
    ],
)
def test_wrong_values_change_nothing(values: dict[str, object], message: str) -> None:
    model = supernet()
    set_architecture(model, {"outer": "nested", "inner": "1", "last": "b"})
    with pytest.raises(ValueError, match=message):
        set_architecture(model, values)
    assert model(ZERO) == 22
    with pytest.raises(ValueError, match=message):
        derive(model, values)


def test_forward_before_an_architecture_was_set() -> None:
    with pytest.raises(RuntimeError, match="choice 'op' has no active candidate yet"):
        Choice("op", [Shift(1.0)])(ZERO)


@pytest.mark.parametrize(
    ("name", "candidates", "error", "message"),
    [
        ("", [nn.Identity()], ValueError, "name must be a non-empty string"),
        ("op", [], ValueError, "candidates of choice 'op' must not be empty"),
        ("op", {}, ValueError, "candidates of choice 'op' must not be empty"),
        ("op", {"a.b": nn.Identity()}, ValueError, "'a.b' cannot name a candidate of choice 'op'"),
        ("op", {"type": nn.Identity()}, ValueError, "'type' cannot name a candidate"),
        ("op", {"": nn.Identity()}, ValueError, "'' cannot name a candidate"),
        ("op", {3: nn.Identity()}, ValueError, "3 cannot name a candidate"),
        ("op", {"a": torch.relu}, TypeError, "candidate 'a' of choice 'op' must be a torch.nn.Mod"),
    ],
)
def test_wrong_choices(name: str, candidates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Choice(name, candidates)


def test_model_without_choice() -> None:
    with pytest.raises(ValueError, match="model must contain at least one Choice"):
        search_space(nn.Identity())


def nested() -> nn.Module:
    """Choices in candidates, one of them in two candidates, one also outside."""

    def inner(name: str) -> Choice:
        return Choice(name, {"linear": nn.Linear(4, 4), "skip": nn.Identity()})

    deep = nn.Sequential(inner("a"), inner("both"), inner("also"))
    deeper = Choice("deeper", {"x": nn.Sequential(inner("b"), inner("both")), "y": nn.Identity()})
    outer = Choice("outer", {"deep": deep, "other": inner("both"), "more": deeper})
    return nn.Sequential(outer, inner("also"))


def test_choices_in_candidates_are_conditional() -> None:
    model = nested()
    names = ["outer", "a", "both", "also", "deeper", "b"]
    assert search_space(model).active_if == {}
    space = search_space(model, conditional=True)
    assert list(space) == names
    # "both" is in candidates of two choices, so that it depends on more than one can say.
    assert space.active_if == {
        "a": {"outer": ("deep",)},
        "deeper": {"outer": ("more",)},
        "b": {"deeper": ("x",)},
    }
    samples = asng.ASNG(space, population_size=60, seed=0).ask()
    x = torch.randn(2, 4)
    kept = set()
    for sample in samples:
        kept.add(frozenset(sample))
        network = subnet(model, sample)
        set_architecture(model, sample)
        torch.testing.assert_close(model(x), network(x), rtol=0, atol=0)
        assert not any(isinstance(module, Choice) for module in network.modules())
    assert len(kept) == 4
    with pytest.raises(ValueError, match=r"missing: \['deeper'\]"):
        subnet(model, {"outer": "more", "also": "skip"})
    with pytest.raises(ValueError, match="choice 'a' must be one of"):
        subnet(model, {"outer": "other", "also": "skip", "both": "skip", "a": "none"})
    assert subnet(model, {"outer": "other", "also": "skip", "both": "skip"})(x).equal(x)


def test_costs_count_what_a_network_has() -> None:
    model = nested()
    table = choice_costs(model, "parameters")
    samples = asng.ASNG(search_space(model, conditional=True), population_size=40, seed=0).ask()
    counted = [parameter_count(subnet(model, sample)) for sample in samples]
    assert table(samples).tolist() == counted
