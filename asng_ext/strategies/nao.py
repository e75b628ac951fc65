"""NAO (Luo et al., 2018): gradient ascent in the code of an autoencoder of architectures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asng_ext._random import DrawsFrom
from asng_ext.runs.config import Checked, setting
from asng_ext.strategies.categorical import CategoricalStrategy
from asng_ext.strategies.protocol import Parts
from asng_ext.tasks.protocol import Batch

__all__ = ["Autoencoder", "Nao", "NaoOptions"]

_PREDICTOR = (100, 100, 100)
_PREDICTOR_SHARE = 0.8
"""Of the predictor's error in what is minimized; the rest is the decoder's."""
_CLIP = 5.0
"""The largest Euclidean norm of a gradient."""
_STRIDE = 0.1
"""By which a step in the code grows; the code of each variable has length 1."""


class Autoencoder(nn.Module):
    """Turns architectures of d categorical variables into a code and back, and predicts scores.

    The code is (n, d, hidden): what an LSTM gives after each variable, of length 1. The predictor
    sees its mean over the variables, the decoder, another LSTM, one after the other with the choice
    before. That takes the place of NAO's attention, as all architectures have the same variables.

    Args:
        sizes: Choices of each variable.
        hidden: Units of both LSTMs.
    """

    def __init__(self, sizes: Sequence[int], hidden: int) -> None:
        super().__init__()
        ends = torch.tensor(sizes).cumsum(0)
        self._offsets = ends - torch.tensor(sizes)
        self._impossible = torch.arange(max(sizes)) >= torch.tensor(sizes)[:, None]
        self.choices = nn.Embedding(int(ends[-1]), hidden)
        self.encoder = nn.LSTM(hidden, hidden, batch_first=True)
        layers: list[nn.Module] = []
        for before, after in zip((hidden, *_PREDICTOR), _PREDICTOR):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.predictor = nn.Sequential(*layers, nn.Linear(_PREDICTOR[-1], 1), nn.Sigmoid())
        self.start = nn.Parameter(0.1 * torch.randn(hidden))
        self.decoder = nn.LSTM(2 * hidden, hidden, batch_first=True)
        self.heads = nn.Parameter(torch.randn(len(sizes), hidden, max(sizes)) / hidden**0.5)

    def _embedded(self, indices: Tensor) -> Tensor:
        return cast(Tensor, self.choices(indices + self._offsets[: indices.shape[1]]))

    def encode(self, indices: Tensor) -> Tensor:
        """The code of (n, d) category indices."""
        return F.normalize(self.encoder(self._embedded(indices))[0], dim=2)

    def predict(self, code: Tensor) -> Tensor:
        """(n,) scores from 0 to 1."""
        return cast(Tensor, self.predictor(code.mean(dim=1)))[:, 0]

    def log_probabilities(self, code: Tensor, indices: Tensor) -> Tensor:
        """(n, d, K) of the choices of each variable, given those of ``indices`` before."""
        start = self.start.expand(len(code), 1, -1)
        before = torch.cat([start, self._embedded(indices[:, :-1])], dim=1)
        return self._scores(self.decoder(torch.cat([code, before], dim=2))[0], 0)

    def _scores(self, out: Tensor, first: int) -> Tensor:
        positions = slice(first, first + out.shape[1])
        logits = torch.einsum("nth,thk->ntk", out, self.heads[positions])
        return logits.masked_fill(self._impossible[positions], -torch.inf).log_softmax(dim=2)

    def decode(self, code: Tensor) -> Tensor:
        """(n, d) category indices: the most likely choice of each variable, given those before."""
        indices = torch.zeros(len(code), 0, dtype=torch.long)
        before, state = self.start.expand(len(code), -1), None
        for position in range(code.shape[1]):
            out, state = self.decoder(torch.cat([code[:, position], before], dim=1)[:, None], state)
            chosen = self._scores(out, position)[:, 0].argmax(dim=1)
            indices = torch.cat([indices, chosen[:, None]], dim=1)
            before = self.choices(chosen + self._offsets[position])
        return indices

    def fit(
        self,
        indices: Tensor,
        scores: Tensor,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        generator: torch.Generator,
    ) -> None:
        """Trains with (n, d) architectures and their (n,) scores from 0 to 1 by Adam, in batches in
        an order of the generator."""
        adam = torch.optim.Adam(self.parameters(), lr=learning_rate)
        for _ in range(epochs):
            order = torch.randperm(len(indices), generator=generator)
            for rows in torch.split(order, batch_size):
                adam.zero_grad()
                code = self.encode(indices[rows])
                found = self.log_probabilities(code, indices[rows])
                errors = F.mse_loss(self.predict(code), scores[rows])
                surprise = -found.gather(2, indices[rows][:, :, None]).mean()
                loss = _PREDICTOR_SHARE * errors + (1 - _PREDICTOR_SHARE) * surprise
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.parameters(), _CLIP)
                adam.step()

    def climb(self, seeds: Tensor, known: Tensor, steps: int) -> Tensor:
        """New architectures, at most one from each seed.

        A step in the direction in which the predicted score grows fastest becomes longer until what
        it leads to is decoded into a new architecture.

        Args:
            seeds: (n, d) category indices.
            known: (m, d) those of architectures that are not new.
            steps: How often it becomes longer at most.

        Returns:
            (at most n, d), each once.
        """
        code = self.encode(seeds).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.predict(code).sum(), code)
        upwards = F.normalize(gradient, dim=2)
        met = set(map(tuple, known.tolist()))
        found: list[list[int]] = []
        left = torch.arange(len(seeds))
        with torch.no_grad():
            for step in range(1, steps + 1):
                if not len(left):
                    break
                moved = F.normalize(code[left] + step * _STRIDE * upwards[left], dim=2)
                decoded = self.decode(moved).tolist()
                stays = []
                for architecture in decoded:
                    is_known = tuple(architecture) in met
                    stays.append(is_known)
                    if not is_known:
                        met.add(tuple(architecture))
                        found.append(architecture)
                left = left[torch.tensor(stays)]
        return torch.tensor(found, dtype=torch.long).view(-1, seeds.shape[1])


@dataclass(frozen=True)
class NaoOptions(Checked):
    """Settings; the defaults are the published ones, but for the steps in the code, which are
    as long as gradients there."""

    rounds: int = setting(5, "in a search, at most one an epoch", low=1, high=1_000_000)
    pool: int = setting(1000, "architectures in the pool", low=2, high=1_000_000)
    seeds: int = setting(
        100, "best architectures of the pool, from which to climb", low=1, high=1_000_000
    )
    predictor_epochs: int = setting(
        1000, "of the training of the autoencoder in a round", low=1, high=1_000_000
    )
    batch: int = setting(100, "architectures in a step of it", low=1, high=1_000_000)
    learning_rate: float = setting(1e-3, "of its Adam", above=0, high=1e3)
    hidden: int = setting(96, "units of its LSTMs", low=1, high=4096)
    steps: int = setting(
        100, "by which a step in the code grows at most, by a tenth each", low=1, high=1_000_000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds >= self.pool:
            raise ValueError(f"seeds must be less than pool, {self.pool}, got {self.seeds}")


class Nao(CategoricalStrategy):
    """Weights are trained with architectures of a pool, a random one a step, at first any of the
    space. In rounds the pool is scored on the validation data, one batch for each architecture,
    and those to which the gradient of a predictor leads from the best take the places of the
    worst. The last round, after the last epoch, is of scores alone.

    The architecture is the best of the last scores, before any the first of the pool. Probabilities
    are the shares of choices in the pool.

    The metric "score" is that of the architecture, 0 before there is any.
    """

    name = "nao"

    Options = NaoOptions
    options: NaoOptions

    def begin(self, parts: Parts) -> None:
        super().begin(parts)
        self._pool = torch.as_tensor(self.uniform(self.options.pool).categorical)
        self._best: list[int] = self._pool[0].tolist()
        self._score = 0.0

    def step(self, batches: tuple[Batch, Batch]) -> None:
        row = torch.randint(len(self._pool), (1,), generator=self.generator)
        self.train_weights(batches[0], self.samples(self._pool[row]))

    def end_epoch(self, epoch: int) -> None:
        """Has a round, if it is time."""
        rounds = self.options.rounds
        if (epoch + 1) * rounds // self.epochs == epoch * rounds // self.epochs:
            return
        batches = cycle(self.validation(epoch))
        scores = torch.tensor([self.reward(next(batches), row) for row in self._pool.tolist()])
        order = scores.argsort(descending=True, stable=True)
        self._pool, scores = self._pool[order], scores[order]
        self._best, self._score = self._pool[0].tolist(), float(scores[0])
        if epoch + 1 < self.epochs:
            found = self._climbed(scores, epoch)
            self._pool = torch.cat([self._pool[: len(self._pool) - len(found)], found])

    def _climbed(self, scores: Tensor, epoch: int) -> Tensor:
        """New architectures, from a pool in the order of its scores."""
        options = self.options
        with DrawsFrom(self.seed, f"autoencoder of nao, epoch {epoch}"):
            autoencoder = Autoencoder(self.space.sizes, options.hidden)
        spread = scores.max() - scores.min()
        autoencoder.fit(
            self._pool,
            (scores - scores.min()) / (spread if spread > 0 else 1),
            epochs=options.predictor_epochs,
            batch_size=options.batch,
            learning_rate=options.learning_rate,
            generator=self.generator,
        )
        return autoencoder.climb(self._pool[: options.seeds], self._pool, options.steps)

    def recommend(self) -> dict[str, Any]:
        return self.decoded(self._best)

    def probabilities(self) -> Sequence[Any]:
        columns = zip(self._pool.unbind(dim=1), self.space.sizes)
        count = len(self._pool)
        return [(column.bincount(minlength=size) / count).numpy() for column, size in columns]

    def numbers(self) -> dict[str, float]:
        return {**super().numbers(), "score": self._score}

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "pool": self._pool.clone(),
            "best": list(self._best),
            "score": self._score,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._pool = state["pool"].clone()
        self._best, self._score = list(state["best"]), state["score"]
