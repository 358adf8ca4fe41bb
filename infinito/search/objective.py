"""What a search makes better: the figures of a trial, and the one number they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field, model_validator

from infinito.config.section import Section
from infinito.search.space import Assignment

Figure = Literal["valid_loss", "valid_word_perplexity", "tokens_per_second"]


@dataclass(frozen=True)
class Measurement:
    """What a trial measured: its figure in the units of the metric, and what it cost in tokens."""

    value: float
    cost: float


class Objective(Protocol):
    """Carries out one trial at a share of the budget of a full one, from above 0 to 1."""

    def __call__(self, values: Assignment, budget_fraction: float) -> Measurement:
        """Measure. Raises TrialFailedError where this assignment has no figure."""


class TrialFailedError(Exception):
    """A trial has no figure: it counts, as the worst there is.

    Attributes:
        status: ``diverged``, ``refused``, ``out_of_memory`` or ``over_limit``.
    """

    def __init__(self, status: str, reason: str = "", cost: float = 0.0) -> None:
        super().__init__(f"{status}: {reason}")
        self.status, self.reason, self.cost = status, reason, cost


class ObjectiveSpec(Section):
    """The ``objective`` of a space file.

    Attributes:
        metric: What is made better: losses, perplexity and a weighted sum small, speed great.
        tokens: Training tokens of a full trial; or else ``flops``, its training operations.
        rungs: Successive halving: how many lengths are tried, each twice the one before.
        weights: Of the figures in a weighted sum.
        memory_mb: Trials whose peak lies above do not count.
    """

    metric: Literal["valid_loss", "valid_word_perplexity", "tokens_per_second", "weighted"]
    tokens: int | None = Field(None, ge=1)
    flops: float | None = Field(None, gt=0)
    rungs: int = Field(1, ge=1, le=6)
    weights: dict[Figure, float] = Field(default_factory=dict)
    memory_mb: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _fits_together(self) -> ObjectiveSpec:
        if (self.tokens is None) == (self.flops is None):
            raise ValueError("give the length of a full trial: either tokens or flops")
        if (self.metric == "weighted") != bool(self.weights):
            raise ValueError("weights are what the metric weighted needs, and only it has them")
        return self

    @property
    def is_per_token(self) -> bool:
        """Whether the number depends on how text is cut into tokens."""
        return self.metric == "valid_loss" or "valid_loss" in self.weights

    def value_of(self, figures: Mapping[str, float]) -> float:
        """The number that the figures of a run come to, in the units of the metric.

        Raises TrialFailedError where ``memory_mb`` is exceeded.
        """
        if self.memory_mb is not None and figures["memory_mb"] > self.memory_mb:
            reason = f"{figures['memory_mb']:.0f} MB of {self.memory_mb:g}"
            raise TrialFailedError("over_limit", reason)
        if self.metric == "weighted":
            return sum(weight * figures[name] for name, weight in self.weights.items())
        return figures[self.metric]

    def to_minimise(self, value: float) -> float:
        """A number that is small where ``value`` is good; .01 less is about 1 % better.

        Speed and perplexity by their logarithm, so that the difference of two is a ratio.
        """
        if self.metric == "tokens_per_second":
            return -math.log(value) if value > 0 else math.inf
        return math.log(value) if self.metric == "valid_word_perplexity" else value
