"""ENAS (Pham et al., 2018): a recurrent controller, trained by REINFORCE, draws architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from asng_ext._random import DrawsFrom
from asng_ext.runs.config import Checked, setting
from asng_ext.space import SearchSpace
from asng_ext.strategies.categorical import CategoricalStrategy
from asng_ext.strategies.protocol import Parts
from asng_ext.tasks.protocol import Batch

__all__ = ["Controller", "Enas", "EnasOptions"]


class Controller(nn.Module):
    """Draws all variables one after the other, each given those before.

    An LSTM is fed with the embedding of the last choice. Each variable has an embedding and a
    linear head of its own, whatever it chooses among; ENAS itself chooses inputs by attention over
    earlier nodes, which spaces other than its own do not have, and shares the rest among nodes.

    Args:
        space: Of categorical variables.
        hidden: Units of the LSTM, and numbers of an embedding.
        tanh_constant: The logits are this times the tanh of what the head gives.
        operation_divisor: By which those are divided whose variables have "operation" in their
            names.
        separable_bias: What is added to those of separable convolutions in a normal cell:
            values that begin with "sep" of variables "normal/…".
    """

    def __init__(
        self,
        space: SearchSpace,
        hidden: int,
        tanh_constant: float,
        operation_divisor: float,
        separable_bias: float,
    ) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(hidden))
        # Nothing follows the last choice.
        self.embeddings = nn.ModuleList(nn.Embedding(size, hidden) for size in space.sizes[:-1])
        self.lstm = nn.LSTMCell(hidden, hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, size) for size in space.sizes)
        for weight in self.parameters():
            nn.init.uniform_(weight, -0.1, 0.1)
        self._scales = []
        self._biases = []
        for name, variable in space.categorical.items():
            is_operation = "operation" in name
            is_biased = is_operation and name.startswith("normal/")
            self._scales.append(tanh_constant / (operation_divisor if is_operation else 1))
            self._biases.append(
                torch.tensor(
                    [
                        separable_bias * (is_biased and str(value).startswith("sep"))
                        for value in variable.values
                    ]
                )
            )

    def forward(
        self, count: int, choose: Callable[[int, Tensor], Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Goes through all variables.

        Args:
            count: Architectures at once, n.
            choose: Given a position and (n, K) log-probabilities, (n,) choices.

        Returns:
            (n, d) category indices, and for each variable the (n, K) log-probabilities.
        """
        x = self.start.expand(count, -1)
        state = (torch.zeros_like(x), torch.zeros_like(x))
        indices: list[Tensor] = []
        found: list[Tensor] = []
        for position, head in enumerate(self.heads):
            if position:
                x = self.embeddings[position - 1](indices[-1])
            state = self.lstm(x, state)
            logits = self._scales[position] * head(state[0]).tanh() + self._biases[position]
            found.append(logits.log_softmax(dim=1))
            indices.append(choose(position, found[-1].detach()))
        return torch.stack(indices, dim=1), found

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[Tensor]]:
        """The same of random architectures."""
        return cast(
            "tuple[Tensor, list[Tensor]]",
            self(
                count,
                lambda _, found: torch.multinomial(found.exp(), 1, generator=generator)[:, 0],
            ),
        )

    def greedy(self) -> tuple[Tensor, list[Tensor]]:
        """The same of the one that takes the most likely choice each time."""
        with torch.no_grad():
            return cast(
                "tuple[Tensor, list[Tensor]]", self(1, lambda _, found: found.argmax(dim=1))
            )

    def along(self, indices: Sequence[int]) -> list[Tensor]:
        """For each variable the (1, K) log-probabilities, given the choices before of one
        architecture."""
        with torch.no_grad():
            _, found = self(1, lambda position, _: torch.tensor([indices[position]]))
        return cast("list[Tensor]", found)


@dataclass(frozen=True)
class EnasOptions(Checked):
    """Settings; the defaults are those of the reference code."""

    updates: int = setting(30, "of the controller after each epoch", low=1, high=1_000_000)
    samples: int = setting(10, "architectures of an update", low=1, high=1_000_000)
    derive: int = setting(
        100, "architectures from which the best is taken at the end", low=1, high=1_000_000
    )
    learning_rate: float = setting(0.0035, "of the controller's Adam", above=0, high=1e3)
    entropy_weight: float = setting(
        1e-4, "of the entropy of the choices, in nats, in the reward", low=0, high=1e3
    )
    baseline_decay: float = setting(
        0.99, "of the moving average of rewards that is the baseline", low=0, below=1
    )
    hidden: int = setting(64, "units of the LSTM", low=1, high=4096)
    tanh_constant: float = setting(1.1, "the largest logit", above=0, high=1e3)
    operation_divisor: float = setting(
        2.5, "by which logits of operations are smaller", above=0, high=1e3
    )
    separable_bias: float = setting(
        0.25,
        "added to logits of separable convolutions in the normal cell",
        low=-1e3,
        high=1e3,
    )


class Enas(CategoricalStrategy):
    """Weights are trained with one architecture of the controller a step; the controller after each
    epoch, by the rewards of architectures on batches of the validation data, one each.

    The architecture is that of the greedy path through the controller until the last epoch is done:
    then it is the best of several drawn ones on one batch. Probabilities are those of the choices
    along the path of that architecture, each given its choices before, not marginal ones.

    The metric "baseline" is the moving average of rewards.
    """

    name = "enas"

    Options = EnasOptions
    options: EnasOptions

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        options = self.options
        with DrawsFrom(self.seed, "controller of enas"):
            self.controller = Controller(
                self.space,
                options.hidden,
                options.tanh_constant,
                options.operation_divisor,
                options.separable_bias,
            )
        self._adam = torch.optim.Adam(self.controller.parameters(), lr=options.learning_rate)
        self._baseline = 0.0
        self._choose([])

    def step(self, batches: tuple[Batch, Batch]) -> None:
        with torch.no_grad():
            indices, _ = self.controller.draw(1, self.generator)
        self.train_weights(batches[0], self.samples(indices))

    def end_epoch(self, epoch: int) -> None:
        """Trains the controller; after the last epoch, chooses the architecture."""
        batches = cycle(self.validation(epoch))
        for _ in range(self.options.updates):
            self._adam.zero_grad()
            self.controller_loss(batches).backward()  # type: ignore[no-untyped-call]
            self._adam.step()
        self._choose(self._derived(next(batches)) if epoch + 1 == self.epochs else [])

    def controller_loss(self, batches: Iterator[Batch]) -> Tensor:
        """A number whose gradient estimates that of the negative expected reward, (); moves the
        baseline."""
        options = self.options
        indices, found = self.controller.draw(options.samples, self.generator)
        chosen = [row.gather(1, k[:, None])[:, 0] for row, k in zip(found, indices.unbind(dim=1))]
        entropies = -sum((row.exp() * row).sum(dim=1) for row in found).detach()  # type: ignore[union-attr]
        advantages = []
        for architecture, entropy in zip(indices.tolist(), entropies.tolist()):
            reward = self.reward(next(batches), architecture) + options.entropy_weight * entropy
            # Before it moves, so that it depends on no reward that it is subtracted from.
            advantages.append(reward - self._baseline)
            self._baseline += (1 - options.baseline_decay) * advantages[-1]
        log_probability = torch.stack(chosen).sum(dim=0)
        return -(log_probability * torch.tensor(advantages)).mean()

    def _choose(self, best: list[int]) -> None:
        """Recommends an architecture from now on; if it is empty, that of the greedy path."""
        self._best = best
        self._recommended: list[int] = best or self.controller.greedy()[0][0].tolist()
        found = self.controller.along(self._recommended)
        self._probabilities = [row[0].double().softmax(dim=0).numpy() for row in found]

    def _derived(self, batch: Batch) -> list[int]:
        with torch.no_grad():
            indices, _ = self.controller.draw(self.options.derive, self.generator)
        architectures: list[list[int]] = indices.tolist()
        rewards = [self.reward(batch, architecture) for architecture in architectures]
        return architectures[int(np.argmax(rewards))]

    def recommend(self) -> dict[str, Any]:
        return self.decoded(self._recommended)

    def probabilities(self) -> Sequence[Any]:
        return self._probabilities

    def numbers(self) -> dict[str, float]:
        return {**super().numbers(), "baseline": self._baseline}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "controller": self.controller.state_dict(),
            "adam": self._adam.state_dict(),
            "baseline": self._baseline,
            "best": list(self._best),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.controller.load_state_dict(state["controller"])
        self._adam.load_state_dict(state["adam"])
        self._baseline = state["baseline"]
        self._choose(list(state["best"]))
