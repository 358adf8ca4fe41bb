"""Predictors whose probabilities are averaged; how much each counts is learnt on other text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from infinito.errors import ConfigError
from infinito.evaluate.perplexity import Floats
from infinito.evaluate.predictor import Predictor
from infinito.model.loss import IGNORED

_CONVERGED, _ROUNDS = 1e-7, 500


def mixture_nats(members: Floats, weights: Floats) -> Floats:
    """Nats (N,) of the mean probability of members, given as nats (K, N), with weights (K,)."""
    least: Floats = members.min(axis=0)
    total: Floats = least - np.log(weights @ np.exp(least - members))
    return total


def best_weights(members: Floats) -> Floats:
    """Weights (K,) under which the mixture of members, given as nats (K, N), loses least.

    Expectation maximisation (Dempster et al. 1977); the likelihood is concave in the weights, so
    what is found is the best there is.
    """
    likelihood = np.exp(members.min(axis=0) - members)
    weights = np.full(len(members), 1 / len(members))
    for _ in range(_ROUNDS):
        before, weights = weights, weights * (likelihood / (weights @ likelihood)).mean(axis=1)
        if np.abs(weights - before).max() < _CONVERGED:
            break
    normalised: Floats = weights / weights.sum()
    return normalised


class Mixture(ABC):
    """A predictor by the weighted mean of its members' probabilities.

    Attributes:
        weights: (K,) of the members; they sum to one.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights: Floats = np.array(weights)
        self._seen: list[Floats] = []

    @abstractmethod
    def member_nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Nats (K, B, T) float64 of each member; they may be infinite for all but one."""

    def restart(self) -> None:
        """Begin a new text."""
        self._seen.clear()

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> (B, T)."""
        scored = targets != IGNORED
        members = self.member_nats(inputs, targets)[:, scored].numpy()
        self._seen.append(members)
        nats = torch.zeros(targets.shape, dtype=torch.float64)
        nats[scored] = torch.from_numpy(mixture_nats(members, self.weights))
        return nats

    def fit(self) -> Floats:
        """Set the weights to the best for the text last scored; the members' nats (K, N) of it."""
        members = np.concatenate(self._seen, axis=1)
        self.weights = best_weights(members)
        return members


class Ensemble(Mixture):
    """Models, or other predictors, of one tokenizer; equal weights until they are fitted."""

    def __init__(
        self,
        members: Sequence[Predictor],
        names: Sequence[str],
        weights: Sequence[float] | None = None,
    ) -> None:
        """Raises ConfigError, with the names, where a tokenizer is not that of the first."""
        super().__init__(weights or [1 / len(members)] * len(members))
        first = members[0].tokenizer
        for member, name in zip(members, names, strict=True):
            if member.tokenizer.fingerprint != first.fingerprint:
                raise ConfigError(
                    f"{name} has another tokenizer than {names[0]} ({member.tokenizer.kind} of "
                    f"{member.tokenizer.vocab_size} and {first.kind} of {first.vocab_size} "
                    "tokens): their probabilities cannot be averaged",
                    "train them with the same tokenizer section on the same text",
                )
        self.members, self.tokenizer = list(members), first
        self.context = min(member.context for member in members)
        limits = [member.largest_context for member in members]
        self.largest_context = min((limit for limit in limits if limit is not None), default=None)

    def restart(self) -> None:
        """Begin a new text, each member for itself."""
        super().restart()
        for member in self.members:
            member.restart()

    def member_nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> (K, B, T)."""
        return torch.stack([member.nats(inputs, targets) for member in self.members])

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Each member for itself."""
        for member in self.members:
            member.learn(inputs, targets)
