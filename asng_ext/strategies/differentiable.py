"""Methods that follow gradients of the architecture: DARTS, SNAS, GDAS and ProxylessNAS.

Each variable has logits, whose softmax are its probabilities p. They are trained by Adam through a
:class:`asng_ext.nn.Relaxation`, a weight for each choice in the place of one choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from asng_ext.nn import Relaxation
from asng_ext.runs.config import Checked, setting
from asng_ext.strategies.categorical import CategoricalStrategy
from asng_ext.strategies.protocol import Parts
from asng_ext.tasks.protocol import Batch, Metrics, RelaxedTask, SearchTask
from asng_ext.training.divergence import DivergedError
from asng_ext.training.weight_optimizers import restore_weight_optimizer

__all__ = ["Darts", "DartsSecondOrder", "Gdas", "Proxyless", "Snas"]


@dataclass(frozen=True)
class LogitsOptions(Checked):
    """Settings of Adam for the logits."""

    learning_rate: float = setting(3e-4, "of the logits", above=0, high=1e3)
    beta1: float = setting(0.5, "Adam's β₁", low=0, below=1)
    beta2: float = setting(0.999, "Adam's β₂", low=0, below=1)
    weight_decay: float = setting(1e-3, "of the logits", low=0, high=1e3)


class _Logits(CategoricalStrategy):
    """What has logits, and recommends the most likely choices."""

    Options = LogitsOptions
    mixes = False
    """Whether the mixture by probabilities is what is trained, so that it is tested, too. A step
    then does the same work whatever the numbers are."""

    def __init__(self, task: SearchTask, options: Any, *, epochs: int, seed: int) -> None:
        super().__init__(task, options, epochs=epochs, seed=seed)
        if not hasattr(task, "relaxed_losses"):
            raise ValueError(
                f"strategy {self.name} needs a task that runs mixtures of architectures, with "
                f"the members of asng_ext.tasks.protocol.RelaxedTask, got {type(task).__name__}"
            )
        self.relaxed = cast(RelaxedTask, task)

    @property
    def capture_blocker(self) -> str | None:
        return None if self.mixes else f"the strategy {self.name} chooses on the host what runs"

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        device = next(parts.supernet.parameters()).device
        self.steps = 0
        # Not 0: variables that are alike must not stay the same.
        self.logits = [
            (1e-3 * torch.randn(size, generator=self.generator)).to(device).requires_grad_()
            for size in self.space.sizes
        ]
        self.adam = torch.optim.Adam(
            self.logits,
            lr=self.options.learning_rate,
            betas=(self.options.beta1, self.options.beta2),
            weight_decay=self.options.weight_decay,
            fused=True,  # reads no number on the host
            capturable=device.type == "cuda",
        )

    def step(self, batches: tuple[Batch, Batch]) -> None:
        self.parts.modes.train()
        self.train(*batches)

    def stepped(self) -> None:
        self.steps += 1

    def train(self, for_weights: Batch, for_logits: Batch) -> None:
        """One step of the weights, and one of the logits if it is time for one."""
        raise NotImplementedError

    @property
    def progress(self) -> float:
        """How much of the search is done, in [0, 1]."""
        return self.steps / (self.epochs * self.task.search_steps)

    def softmax(self) -> tuple[Tensor, ...]:
        """The probabilities, differentiable."""
        return tuple(logits.softmax(0) for logits in self.logits)

    def probabilities(self) -> Sequence[Any]:
        with torch.no_grad():
            return [p.double().cpu().numpy() for p in self.softmax()]

    def recommend(self) -> dict[str, Any]:
        return self.decoded([int(row.argmax()) for row in self.probabilities()])

    def test(self) -> dict[str, float]:
        if not self.mixes:
            return {}
        with torch.no_grad():
            tested = self.relaxed.test_relaxed(self.parts.supernet, Relaxation(self.softmax()))
        return {f"mix_{name}": value for name, value in tested.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "steps": self.steps,
            "logits": [logits.detach() for logits in self.logits],
            "adam": self.adam.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.steps = int(state["steps"])
        with torch.no_grad():
            for logits, saved in zip(self.logits, state["logits"], strict=True):
                logits.copy_(saved)
        restore_weight_optimizer(self.adam, state["adam"])

    def loss(self, batch: Batch, relaxation: Relaxation) -> tuple[Tensor, Metrics]:
        """That of a mixture."""
        return self.relaxed.relaxed_losses(self.parts.supernet, batch, relaxation)

    def train_mixture(self, batch: Batch, relaxation: Relaxation) -> None:
        """A step of the weights on the loss of a mixture, which also gives the logits gradients if
        it depends on them."""
        self.parts.weight_optimizer.zero_grad(set_to_none=False)
        loss, metrics = self.loss(batch, relaxation)
        loss.backward()  # type: ignore[no-untyped-call]
        self.parts.weight_optimizer.step()
        self.parts.means.add({"loss": loss, **metrics}, "train_")

    def train_logits(self, batch: Batch, relaxation: Relaxation) -> None:
        """A step of the logits on the loss of a mixture that depends on them."""
        with self.parts.modes.frozen_batch_norm():
            loss, metrics = self.loss(batch, relaxation)
            gradients = torch.autograd.grad(loss, self.logits, allow_unused=True)
        self.move_logits(gradients)
        self.parts.means.add({"loss": loss, **metrics}, "theta_", watched="loss")

    def move_logits(self, gradients: Sequence[Tensor | None]) -> None:
        """A step of Adam; of a variable without a gradient it is 0."""
        for logits, gradient in zip(self.logits, gradients, strict=True):
            logits.grad = torch.zeros_like(logits) if gradient is None else gradient
        self.adam.step()


class Darts(_Logits):
    """DARTS (Liu et al., 2019), first order: the logits follow the gradient of the loss of the
    mixture on data that train no weights, then the weights that of theirs."""

    name = "darts"
    mixes = True

    def train(self, for_weights: Batch, for_logits: Batch) -> None:
        self.train_logits(for_logits, Relaxation(self.softmax()))
        self.train_mixture(for_weights, self.mixture())

    def mixture(self) -> Relaxation:
        """That by the probabilities, which are taken as they are."""
        with torch.no_grad():
            return Relaxation(self.softmax())


class DartsSecondOrder(Darts):
    """DARTS, second order: the gradient of the loss after one more step of the weights,

        ∇_α L_val(w', α) − η (∇_α L_train(w⁺, α) − ∇_α L_train(w⁻, α)) / 2R,

    where w' = w − η (μ·v + ∇L_train(w, α) + decay·w) is that step without clipping, and
    w± = w ± R ∇L_val(w', α) with R = 0.01 / ‖∇L_val(w', α)‖: a finite difference in the place of
    the product with second derivatives.
    """

    name = "darts2"

    def train(self, for_weights: Batch, for_logits: Batch) -> None:
        with self.parts.modes.frozen_batch_norm():
            loss, metrics, gradients = self.unrolled(for_weights, for_logits)
        self.move_logits(gradients)
        self.parts.means.add({"loss": loss, **metrics}, "theta_", watched="loss")
        self.train_mixture(for_weights, self.mixture())

    def unrolled(
        self, for_weights: Batch, for_logits: Batch
    ) -> tuple[Tensor, Metrics, list[Tensor]]:
        """The loss and the metrics after one more step of the weights, and the gradients of the
        logits. The weights stay as they are."""
        weights = [w for w in self.parts.supernet.parameters() if w.requires_grad]
        of_weights = self._gradients(for_weights, weights)[2]
        rate, moved = self._step_of(weights, of_weights)
        with _set_to(weights, moved):
            loss, metrics, both = self._gradients(for_logits, [*self.logits, *weights])
        outer, direction = both[: len(self.logits)], both[len(self.logits) :]
        # Where it is 0 both sides are the same.
        norm = nn.utils.get_total_norm(direction)
        radius = 0.01 / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        sides = []
        for sign in (1, -1):
            shifted = [w.detach() + sign * radius * d for w, d in zip(weights, direction)]
            with _set_to(weights, shifted):
                sides.append(self._gradients(for_weights, self.logits)[2])
        inner = ((up - down) / (2 * radius) for up, down in zip(*sides))
        return loss, metrics, [o - rate * i for o, i in zip(outer, inner)]

    def _gradients(
        self, batch: Batch, variables: Sequence[Tensor]
    ) -> tuple[Tensor, Metrics, list[Tensor]]:
        loss, metrics = self.loss(batch, Relaxation(self.softmax()))
        gradients = torch.autograd.grad(loss, variables, allow_unused=True)
        filled = [torch.zeros_like(v) if g is None else g for v, g in zip(variables, gradients)]
        return loss.detach(), metrics, filled

    def _step_of(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> tuple[Any, list[Tensor]]:
        """The learning rate, and the weights after one more step of their optimizer."""
        optimizer = self.parts.weight_optimizer
        (group,) = optimizer.param_groups
        moved = []
        for weight, gradient in zip(weights, gradients):
            velocity = optimizer.state.get(weight, {}).get("momentum_buffer")
            gradient = gradient + group["weight_decay"] * weight.detach()
            change = gradient if velocity is None else gradient + group["momentum"] * velocity
            if group["nesterov"]:
                change = gradient + group["momentum"] * change
            moved.append(weight.detach() - group["lr"] * change)
        return group["lr"], moved


@contextmanager
def _set_to(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """In this context weights have other values, and afterwards the same bits as before."""
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_copy_(list(weights), list(values))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)


@dataclass(frozen=True)
class SnasOptions(LogitsOptions):
    """Settings of SNAS."""

    temperature: float = setting(1.0, "at the start", above=0, high=1e6)
    temperature_end: float = setting(0.03, "at the end; it falls linearly", above=0, high=1e6)
    clip: float = setting(10.0, "largest norm of the logits' gradient", above=0, high=1e9)


class Snas(_Logits):
    """SNAS (Xie et al., 2019): weights and logits follow the gradient of one loss, that of a
    relaxed sample z = softmax((log p + Gumbel noise) / temperature). Both halves of the data train
    both, so that a step is two."""

    name = "snas"
    Options = SnasOptions
    options: SnasOptions
    mixes = True

    @property
    def temperature(self) -> float:
        """It falls linearly."""
        first, last = self.options.temperature, self.options.temperature_end
        return first + (last - first) * self.progress

    def numbers(self) -> dict[str, float]:
        return {**super().numbers(), "temperature": self.temperature}

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        # Of a step the noise of both samples and the temperature, where a replay reads them.
        numbers = 2 * sum(map(len, self.logits)) + 1
        self._prepared = torch.empty(numbers, device=self.logits[0].device)

    def prepare(self) -> None:
        temperature = torch.tensor([self.temperature])
        prepared = torch.cat([*self.gumbel(), *self.gumbel(), temperature])
        self._prepared.copy_(prepared, non_blocking=True)

    def gumbel(self) -> list[Tensor]:
        """(K,) draws of the standard Gumbel distribution for each variable."""
        # Drawn on the CPU: the same on every device.
        draws = (torch.rand(len(each), generator=self.generator) for each in self.logits)
        tiny = torch.finfo(torch.float32).tiny
        return [-(-u.clamp(min=tiny).log()).clamp(min=tiny).log() for u in draws]

    def relaxed_sample(self, which: int) -> tuple[Tensor, ...]:
        """z of each variable, of the first sample of a step or the second."""
        sizes = list(map(len, self.logits))
        *noise, temperature = torch.split(self._prepared, [*sizes, *sizes, 1])
        of_sample = noise[which * len(sizes) : (which + 1) * len(sizes)]
        return tuple(
            ((logits.log_softmax(0) + each) / temperature).softmax(0)
            for logits, each in zip(self.logits, of_sample)
        )

    def train(self, for_weights: Batch, for_logits: Batch) -> None:
        for which, batch in enumerate((for_weights, for_logits)):
            self.adam.zero_grad(set_to_none=False)
            self.train_mixture(batch, Relaxation(self.relaxed_sample(which)))
            nn.utils.clip_grad_norm_(self.logits, self.options.clip)
            self.move_logits([logits.grad for logits in self.logits])


@dataclass(frozen=True)
class GdasOptions(LogitsOptions):
    """Settings of GDAS."""

    temperature: float = setting(10.0, "at the start", above=0, high=1e6)
    temperature_end: float = setting(0.1, "at the end; it falls linearly", above=0, high=1e6)


class Gdas(Snas):
    """GDAS (Dong and Yang, 2019): weights and logits are trained with samples, each an arg max of
    logits with Gumbel noise. The logits get the gradient of a sample as if it were its relaxation;
    only the operations that were sampled run, and only these have a gradient."""

    name = "gdas"
    Options = GdasOptions  # type: ignore[assignment]
    mixes = False

    def sampled(self, which: int) -> Relaxation:
        """A sample, with the gradient of the relaxed one."""
        relaxed = self.relaxed_sample(which)
        chosen = tuple((int(z.argmax()),) for z in relaxed)
        hard = tuple(_one_hot(z, i) + (z - z.detach()) for z, (i,) in zip(relaxed, chosen))
        return Relaxation(hard, chosen)

    def train(self, for_weights: Batch, for_logits: Batch) -> None:
        with torch.no_grad():
            active = self.sampled(0).active
        assert active is not None
        self.train_weights(for_weights, self.samples(active))
        self.train_logits(for_logits, self.sampled(1))


@dataclass(frozen=True)
class ProxylessOptions(LogitsOptions):
    """Settings of ProxylessNAS."""

    learning_rate: float = setting(1e-3, "of the logits", above=0, high=1e3)
    beta1: float = setting(0.0, "Adam's β₁", low=0, below=1)
    weight_decay: float = setting(0.0, "of the logits", low=0, high=1e3)
    warmup: float = setting(
        1 / 3, "share of the search in which only weights are trained", low=0, below=1
    )
    every: int = setting(5, "steps of the weights for one of the logits", low=1, high=1_000_000)


class Proxyless(_Logits):
    """ProxylessNAS (Cai et al., 2019) with gradients: a step of the weights trains one sampled
    architecture. For a step of the logits two choices of each variable are drawn, one of which
    runs; their logits get the gradient of both as if weights were the softmax of the two, and are
    then shifted together, so that other choices keep their probabilities."""

    name = "proxyless"
    Options = ProxylessOptions
    options: ProxylessOptions

    def train(self, for_weights: Batch, for_logits: Batch) -> None:
        drawn = [int(self._drawn(p, 1)[0]) for p in self.probabilities()]
        self.train_weights(for_weights, self.samples(drawn))
        if self.progress >= self.options.warmup and (self.steps + 1) % self.options.every == 0:
            pairs = [self._drawn(p, min(2, len(p))) for p in self.probabilities()]
            before = self._masses(pairs)
            self.train_logits(for_logits, self.gated(pairs))
            self._restore(pairs, before)

    def gated(self, pairs: Sequence[Tensor]) -> Relaxation:
        """One of each pair at random by the softmax of the two, with the gradient of that."""
        weights, active = [], []
        for logits, pair in zip(self.logits, pairs, strict=True):
            soft = logits[pair.to(logits.device)].softmax(0)
            runs = int(self._drawn(soft.detach().double().cpu().numpy(), 1)[0])
            gate = _one_hot(soft, runs) + (soft - soft.detach())
            weights.append(torch.zeros_like(logits).index_put((pair.to(logits.device),), gate))
            active.append(tuple(pair.tolist()))
        return Relaxation(tuple(weights), tuple(active))

    def _drawn(self, probabilities: Any, count: int) -> Tensor:
        """So many different choices, by their probabilities."""
        weights = torch.from_numpy(probabilities).clamp(min=1e-30)
        if not weights.isfinite().all():
            raise DivergedError(f"the probabilities of {self.name} are not finite")
        return torch.multinomial(weights, count, generator=self.generator)

    def _masses(self, pairs: Sequence[Tensor]) -> list[Tensor]:
        return [
            each.detach()[pair.to(each.device)].logsumexp(0)
            for each, pair in zip(self.logits, pairs)
        ]

    def _restore(self, pairs: Sequence[Tensor], masses: Sequence[Tensor]) -> None:
        """Gives pairs the probability that they had together."""
        with torch.no_grad():
            for logits, pair, before, now in zip(
                self.logits, pairs, masses, self._masses(pairs), strict=True
            ):
                logits[pair.to(logits.device)] += before - now


def _one_hot(like: Tensor, index: int) -> Tensor:
    one = torch.zeros_like(like)
    one[index] = 1
    return one
