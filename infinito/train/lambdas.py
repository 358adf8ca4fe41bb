"""Fit the attention lambdas of a trained model, everything else frozen.

One positive number a head (or a layer) is all that moves, so there is no dropout, no decay and
hardly a risk of overfitting. The start counts as a candidate: the result is never worse than it
on the validation text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinito.checkpoint.atomic import reserved
from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from infinito.checkpoint.structure import check_shapes
from infinito.config.loading import config_from_plain, to_plain
from infinito.config.schema import Config
from infinito.data.order import SequenceOrder
from infinito.data.prepare import Dataset
from infinito.errors import CheckpointError, ConfigError, DataError, DivergedError
from infinito.evaluate.perplexity import Score, score, windows_a_pass
from infinito.load import build_model, planned_shapes
from infinito.model.attention import SelfAttention
from infinito.model.transformer import Transformer
from infinito.model.weights import load_weights
from infinito.runtime.device import choose_device
from infinito.runtime.events import note
from infinito.runtime.precision import autocast
from infinito.tokenizer.tokenizer import Tokenizer

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


@dataclass
class Subject:
    """A checkpoint opened for fitting: its content, and the model whose lambdas can move."""

    content: dict[str, Any] = field(repr=False)
    config: Config
    model: Transformer
    tokenizer: Tokenizer

    def save(self, path: Path) -> None:
        """Write a new checkpoint like the one opened, with the model's lambdas in it.

        Raises ResourceError where ``path`` exists.
        """
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        changed = {"config": to_plain(self.config), "model": weights, "average": None}
        with reserved(path):
            write_checkpoint(path, {**self.content, **changed})


def open_subject(path: Path, device: str = "auto") -> Subject:
    """Open ``path`` with averaged weights where it has them.

    A model with a fixed lambda, dot-product attention included, gets one that can move and starts
    at the same value.
    """
    content = read_checkpoint(path)
    config = _learnable(config_from_plain(content["config"], str(path), CheckpointError))
    tokenizer = Tokenizer.from_json(content["tokenizer"])
    weights = dict(content["average"] or content["model"])
    start = math.log(config.model.attention.lambda_init)  # what a fixed lambda stood at
    shapes = planned_shapes(config, tokenizer.vocab_size)
    for name in shapes:
        if name.endswith("log_lambda"):
            weights.setdefault(name, torch.full(shapes[name], start))
    check_shapes(weights, shapes)
    model = build_model(config, tokenizer.vocab_size)
    load_weights(model, weights)
    model.to(choose_device(device).value)
    return Subject(content, config, model, tokenizer)


def _learnable(config: Config) -> Config:
    attention = config.model.attention.model_copy(update={"learnable_lambda": True})
    model = config.model.model_copy(update={"attention": attention})
    return config.model_copy(update={"model": model})


def fit_lambda(
    subject: Subject,
    dataset: Dataset,
    *,
    epochs: float = 1.0,
    max_steps: int | None = None,
    learning_rate: float = 0.02,
) -> LambdaFit:
    """Train only the lambdas of ``subject.model`` and leave the best in it.

    Adam (Kingma & Ba 2015) on log lambda, the rate falling to 0 in a line. The validation text
    chooses among few candidates, so the change it shows is slightly optimistic.

    Args:
        subject: the model is changed in place.
        dataset: splits ``train`` and ``valid`` by the subject's tokenizer.
        epochs: passes over the training text; ``max_steps`` wins.
        max_steps: steps of ``training.batch_size`` sequences.
        learning_rate: of log lambda: 0.02 is about 2 % of lambda a step at first.

    Raises:
        ConfigError: the numbers make no sense.
        DataError: there is no validation text.
        DivergedError: the loss is not finite.
    """
    if not (epochs > 0 and learning_rate > 0 and (max_steps is None or max_steps > 0)):
        raise ConfigError("epochs, steps and learning rate must be positive", "give larger numbers")
    if "valid" not in dataset.splits:
        raise DataError("fitting lambda needs a validation text", "name one with --set data.*")
    fit = _Fit(subject, dataset)
    fit.run(fit.steps(epochs, max_steps), learning_rate)
    return fit.result()


class _Fit:
    """The frozen model, its lambdas, and the candidates seen so far."""

    def __init__(self, subject: Subject, dataset: Dataset) -> None:
        self.config, self.model = subject.config, subject.model
        self.tokenizer, self.dataset = subject.tokenizer, dataset
        self.attentions = [m for m in self.model.modules() if isinstance(m, SelfAttention)]
        self.lambdas = [a.log_lambda for a in self.attentions if a.log_lambda is not None]
        self.model.eval().requires_grad_(False)
        for parameter in self.lambdas:
            parameter.requires_grad_(True)
        self.order = SequenceOrder(
            dataset.splits["train"], self.config.data.sequence_length, self.config.seed
        )
        self.before = self.values()
        self.first = self.best = self.validate()
        self.best_state, self.best_step = self.state(), 0
        self.history = [(0, self.first.loss)]
        self.tokens = 0

    def steps(self, epochs: float, max_steps: int | None) -> int:
        wanted = epochs * self.order.sequences_per_epoch / self.config.training.batch_size
        return max_steps if max_steps is not None else max(1, math.ceil(wanted))

    def run(self, steps: int, learning_rate: float) -> None:
        optimizer = torch.optim.Adam(self.lambdas, lr=learning_rate)
        due = {math.ceil(steps * part / _EVALUATIONS) for part in range(1, _EVALUATIONS + 1)}
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - (step - 1) / steps)
            optimizer.zero_grad()
            self.accumulate(step)
            optimizer.step()
            if step in due:
                self.consider(step, steps)
        self.restore(self.best_state)

    def accumulate(self, step: int) -> None:
        """The gradient of the next sequences in the lambdas."""
        size, device = self.config.training.batch_size, self.model.embedding.weight.device
        sequences = self.order.batch((step - 1) * size, size).to(device)
        with autocast(self.precision, device.type):
            loss = self.model.loss(sequences[:, :-1], sequences[:, 1:])
        count = sequences[:, 1:].numel()
        if not math.isfinite(loss.item()):
            raise DivergedError(
                f"fitting lambda diverged at step {step}", "lower --lr, or take another checkpoint"
            )
        (loss / count).backward()
        self.tokens += count

    def consider(self, step: int, steps: int) -> None:
        """Score the lambdas as they are; keep them if they are the best."""
        result = self.validate()
        self.history.append((step, result.loss))
        better = result.loss < self.best.loss
        if better:
            self.best, self.best_state, self.best_step = result, self.state(), step
        mark = "  best" if better else ""
        note(f"step {step}/{steps}  valid loss {result.loss:.4f}{mark}")

    def validate(self) -> Score:
        length = self.config.data.sequence_length
        device = self.model.embedding.weight.device
        with autocast(self.precision, device.type):
            return score(
                self.model, self.dataset.splits["valid"], self.tokenizer,
                context=length, stride=length,
                batch_size=max(self.config.training.batch_size, windows_a_pass(length)),
            )  # fmt: skip

    @property
    def precision(self) -> str:
        return self.config.training.precision

    def values(self) -> list[list[float]]:
        return [torch.as_tensor(a.lam).tolist() for a in self.attentions]

    def state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.lambdas]

    @torch.no_grad()
    def restore(self, state: list[Tensor]) -> None:
        for parameter, value in zip(self.lambdas, state, strict=True):
            parameter.copy_(value)

    def result(self) -> LambdaFit:
        difference = self.best.token_nll - self.first.token_nll
        return LambdaFit(
            before=self.before,
            after=self.values(),
            loss_before=self.first.loss,
            loss_after=self.best.loss,
            noise=standard_error(difference, self.config.data.sequence_length),
            history=self.history,
            best_step=self.best_step,
            tokens=self.tokens,
        )


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
