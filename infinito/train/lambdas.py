"""Fit the attention lambdas of a trained model, everything else frozen.

One positive number a head (or a layer) is all that moves, so there is no dropout, no decay and
hardly a risk of overfitting. It is a run like any other (:mod:`infinito.train.run`), of which the
best lambdas are kept; the start counts as a candidate, so the result is never worse than it on
the validation text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinito.checkpoint.atomic import reserved
from infinito.checkpoint.format import write_checkpoint
from infinito.config.loading import to_plain
from infinito.config.schema import Config
from infinito.data.prepare import Dataset
from infinito.errors import ConfigError, DataError
from infinito.evaluate.perplexity import Score
from infinito.load import OpenedCheckpoint, planned_model
from infinito.model.attention import head_lambdas
from infinito.model.roles import Role, declared_parameters
from infinito.runtime.events import note
from infinito.train.automatic import resolve
from infinito.train.callbacks import Evaluate
from infinito.train.run import Turn, run
from infinito.train.trainer import Trainer

#: Times that the validation text is scored, evenly over the steps, the start not counted.
_EVALUATIONS = 4


@dataclass(frozen=True)
class LambdaFit:
    """What a fit changed.

    Attributes:
        before, after: lambda of each layer and head.
        loss_before, loss_after: validation nats a token, in windows without overlap.
        noise: standard error of their difference, windows taken as independent.
        history: (step, validation loss) of each candidate, the start as step 0.
        best_step: the step whose lambdas were kept.
        tokens: training tokens seen.
    """

    before: list[list[float]]
    after: list[list[float]]
    loss_before: float
    loss_after: float
    noise: float
    history: list[tuple[int, float]]
    best_step: int
    tokens: int

    @property
    def change(self) -> float:
        """Validation nats a token; never positive."""
        return self.loss_after - self.loss_before

    @property
    def is_shown(self) -> bool:
        """Whether the change is more than twice its noise."""
        return self.change < -2 * self.noise


class _KeepBest:
    """Keeps the lambdas of the lowest validation loss, the start's at first."""

    def __init__(self, trainer: Trainer) -> None:
        first = trainer.validate()
        assert first is not None  # the caller has seen to it
        self.first: Score = first.score
        self.best, self.step, self.state = first.score, 0, _state(trainer)

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """Take over what is better than all before."""
        if turn.evaluation is None:
            return
        step, score = trainer.progress.step, turn.evaluation.score
        if turn.evaluation.is_best:
            self.best, self.step, self.state = score, step, _state(trainer)
        mark = "  best" if turn.evaluation.is_best else ""
        note(f"step {step}/{trainer.total_steps}  valid loss {score.loss:.4f}{mark}")


def lambda_trainer(
    opened: OpenedCheckpoint,
    dataset: Dataset,
    *,
    device: str = "auto",
    epochs: float = 1.0,
    max_steps: int | None = None,
    learning_rate: float = 0.02,
) -> Trainer:
    """A trainer of the checkpoint's weights, averaged where it has them, whose lambdas can move.

    A model with a fixed lambda, dot-product attention included, gets one that can move and starts
    at the same value.

    Args:
        opened: the checkpoint; it is not changed.
        dataset: splits ``train`` and ``valid`` by its tokenizer.
        device: as in a config.
        epochs: passes over the training text; ``max_steps`` wins.
        max_steps: steps of ``training.batch_size`` sequences.
        learning_rate: of log lambda: 0.02 is about 2 % of lambda a step at first.

    Raises:
        CheckpointError: its weights are of eight bits.
        ConfigError: the numbers make no sense.
        DataError: there is no validation text.
    """
    opened.require_trainable()
    if not (epochs > 0 and learning_rate > 0 and (max_steps is None or max_steps > 0)):
        raise ConfigError("epochs, steps and learning rate must be positive", "give larger numbers")
    if "valid" not in dataset.splits:
        raise DataError("fitting lambda needs a validation text", "name one with --set data.*")
    config = _fitting(opened.config, device, epochs, max_steps, learning_rate)
    weights = opened.weights()
    start = math.log(config.model.attention.lambda_init)  # what a fixed lambda stood at
    planned = planned_model(config, opened.tokenizer.vocab_size)
    for name, parameter, role in declared_parameters(planned):
        if role is Role.LAMBDA:
            weights.setdefault(name, torch.full(parameter.shape, start))
    return Trainer(config, dataset, weights, trainable=Role.LAMBDA)


def _fitting(
    config: Config, device: str, epochs: float, max_steps: int | None, learning_rate: float
) -> Config:
    """The config of the fit: lambda learnable, no dropout, no decay, the rate falling in a line."""
    attention = config.model.attention.model_copy(update={"learnable_lambda": True})
    dropouts = {key: 0.0 for key in type(config.model).model_fields if key.endswith("dropout")}
    moe = config.model.moe.model_copy(update={"balance_weight": 0.0, "z_weight": 0.0})
    model = config.model.model_copy(update={"attention": attention, "moe": moe, **dropouts})
    training = config.training.model_copy(
        update={
            "epochs": epochs, "max_steps": max_steps, "learning_rate": learning_rate,
            "optimizer": "adamw", "weight_decay": 0.0, "max_grad_norm": 0.0, "ema_decay": 0.0,
            "schedule": "linear", "warmup_steps": 0, "final_learning_rate_ratio": 0.0,
            "gradient_accumulation_steps": 1, "early_stopping_patience": 0, "fusion": "none",
        }
    )  # fmt: skip
    fitting = {"model": model, "training": training, "device": device}
    return resolve(config.model_copy(update=fitting), frozen=True)


def fit_lambda(trainer: Trainer) -> LambdaFit:
    """Train the lambdas of :func:`lambda_trainer` to the end, and leave the best in its model.

    AdamW on log lambda. The validation text chooses among few candidates, so the change it shows
    is slightly optimistic.

    Raises:
        DivergedError: the loss is not finite.
    """
    before, keeper = head_lambdas(trainer.model), _KeepBest(trainer)
    every = math.ceil(trainer.total_steps / _EVALUATIONS)
    result = run(trainer, [Evaluate(every), keeper])
    trainer.model.load_state_dict(keeper.state, strict=False)
    difference = keeper.best.token_nll - keeper.first.token_nll
    return LambdaFit(
        before=before,
        after=head_lambdas(trainer.model),
        loss_before=keeper.first.loss,
        loss_after=keeper.best.loss,
        noise=standard_error(difference, trainer.config.data.sequence_length),
        history=[(e["step"], e["valid_loss"]) for e in trainer.progress.evaluations],
        best_step=keeper.step,
        tokens=result.tokens,
    )


def save_fitted(opened: OpenedCheckpoint, trainer: Trainer, path: Path) -> None:
    """Write a checkpoint like the one opened, with the trainer's weights in it."""
    config = to_plain(opened.config)
    config["model"]["attention"]["learnable_lambda"] = True
    weights = {name: p.detach() for name, p in trainer.model.named_parameters()}
    # A lambda that is new to the run brings the moments of its fit along.
    moments = {**trainer.optimizers.state(), **opened.content["optimizers"]}
    changed = {"config": config, "model": weights, "average": None, "optimizers": moments}
    with reserved(path):
        write_checkpoint(path, {**opened.content, **changed})


def _state(trainer: Trainer) -> dict[str, Tensor]:
    moving = trainer.model.named_parameters()
    return {name: p.detach().clone() for name, p in moving if p.requires_grad}


def standard_error(values: NDArray[np.float64], window: int) -> float:
    """Standard error of the mean of ``values`` (N,), blocks of ``window`` taken as independent.

    Neighbouring tokens share a context, so single tokens would make the error look too small. 0
    with fewer than two blocks.
    """
    edges = np.arange(0, len(values), window)
    sums = np.add.reduceat(values - values.mean(), edges)
    if len(sums) < 2:
        return 0.0
    spread = math.sqrt(float(np.square(sums).sum()) * len(sums) / (len(sums) - 1))
    return spread / len(values)
