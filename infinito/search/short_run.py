"""The objective of a search over configs: a real run, short, and quiet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infinito.config.schema import Config
from infinito.errors import ConfigError, DataError, DivergedError, InfinitoError, ResourceError
from infinito.model.count import count_flops
from infinito.runtime.events import reading
from infinito.search.objective import Measurement, ObjectiveSpec, TrialFailedError
from infinito.search.space import Assignment, configured
from infinito.train.run import Callback, run
from infinito.train.trainer import Trainer

_STATUS: dict[type[InfinitoError], str] = {
    DivergedError: "diverged",
    ResourceError: "out_of_memory",
    ConfigError: "refused",
    DataError: "refused",
}


@dataclass(frozen=True)
class ShortRun:
    """Trains ``base`` under an assignment for a share of the objective's tokens or FLOPs.

    A trial writes nothing and is evaluated once, at its end. It can be sent to another process;
    with ``threads`` it computes with as many there.
    """

    base: Config
    spec: ObjectiveSpec
    threads: int | None = None

    def config(self, values: Assignment, fraction: float = 1.0) -> Config:
        """The config of a trial: so many steps as its share of the budget has room for."""
        config = configured(self.base, values)
        steps = max(1, round(self._tokens(config) * fraction / _tokens_a_step(config)))
        return config.with_training(max_steps=steps)

    def __call__(self, values: Assignment, budget_fraction: float) -> Measurement:
        """Train and measure. Raises TrialFailedError where there is no figure."""
        figures, tokens = self.figures(values, budget_fraction)
        return Measurement(self.spec.value_of(figures), float(tokens))

    def figures(self, values: Assignment, budget_fraction: float) -> tuple[dict[str, float], int]:
        """What a trial measured, by name, and its training tokens. Raises TrialFailedError."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        config, trainer = self.config(values, budget_fraction), None
        try:
            with reading(alone=True):
                trainer = Trainer(config)
                found = trained_figures(trainer)
        except (DivergedError, ResourceError, ConfigError, DataError) as error:
            cost = trainer.progress.tokens if trainer is not None else 0
            raise TrialFailedError(_STATUS[type(error)], error.message, cost) from error
        return found, trainer.progress.tokens

    def _tokens(self, config: Config) -> float:
        """Tokens of a full trial of ``config``."""
        if self.spec.tokens is not None:
            return float(self.spec.tokens)
        assert self.spec.flops is not None  # one of the two is given
        length = config.data.sequence_length
        vocabulary = config.tokenizer.vocab_size or 8192
        per_sequence = count_flops(config.model, vocabulary, 1, length).training
        return math.ceil(self.spec.flops / per_sequence) * length


def trained_figures(trainer: Trainer, callbacks: Sequence[Callback] = ()) -> dict[str, float]:
    """Train to the end and evaluate once: the figures by name. Raises what training raises."""
    run(trainer, callbacks)
    evaluation = trainer.validate()
    if evaluation is None:
        raise DataError("a search needs a validation text", "name one with --set data.*")
    report = trainer.performance_report()
    return {
        "valid_loss": evaluation.score.loss,
        "valid_word_perplexity": evaluation.score.word_perplexity,
        "tokens_per_second": report["tokens_per_second"],
        "memory_mb": report["peak_memory_mb"],
    }


def _tokens_a_step(config: Config) -> int:
    return config.training.sequences_per_step * config.data.sequence_length
