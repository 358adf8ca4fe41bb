"""Predictors that learn from a text while they are scored on it: each token is scored first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.evaluate.mixture import Mixture
from infinito.evaluate.predictor import ModelPredictor, Predictor
from infinito.model.language_model import LanguageModel
from infinito.model.loss import IGNORED
from infinito.model.mode import evaluation_mode
from infinito.runtime.precision import autocast
from infinito.tokenizer.tokenizer import Tokenizer


class Observed(Predictor, Protocol):
    """A predictor that shows the states (N, C) from which it made its last N predictions."""

    states: Tensor


class DynamicModel(ModelPredictor):
    """A model that takes a step of gradient descent on each window once that has been scored.

    Dynamic evaluation with scaled gradients and a pull back to the trained weights (Krause et al.
    2018, arXiv 1709.07432, §5; for Transformers arXiv 1904.08378): with gradient g of the scored
    tokens' total loss, and r its root mean square over training text, of mean m over all weights,

        w <- w - rate * g / (r + m) + min(1, decay * r / m) * (trained w - w)

    A rate of 0 leaves the model as it is.

    ``precision`` is that of the matrix products; weights, gradients and sums are as they were.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        scales: Sequence[Tensor] = (),
        rate: float = 0.0,
        decay: float = 0.0,
        precision: str = "float32",
    ) -> None:
        """Adapt ``model`` in place; ``scales`` as :func:`gradient_scales` gives them."""
        super().__init__(model, tokenizer)
        self.states, self.rate, self.decay, self.precision = torch.zeros(0), rate, decay, precision
        self._objective, self._asked = torch.zeros(()), torch.zeros(0)
        if not rate:
            return
        self._parameters = list(model.parameters())
        model.requires_grad_(True)
        self._trained = [weight.detach().clone() for weight in self._parameters]
        self._scales = list(scales)
        count = sum(scale.numel() for scale in scales)
        self._mean = sum(float(scale.sum()) for scale in scales) / max(1, count)

    def restart(self) -> None:
        """Put the trained weights back."""
        if self.rate:
            with torch.no_grad():
                for weight, trained in zip(self._parameters, self._trained, strict=True):
                    weight.copy_(trained)

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> (B, T)."""
        device, scored = self.model.device, targets != IGNORED
        # Autocast keeps the casts of weights until it ends: outside, it would not see them change.
        with (
            evaluation_mode(self.model),
            torch.set_grad_enabled(self.rate > 0),
            autocast(self.precision, device.type),
        ):
            states = self.model.hidden(inputs.to(device))[scored.to(device)]
            wanted = targets[scored].to(device)
            losses = F.cross_entropy(self.model.logits(states), wanted, reduction="none")
        self.states, self._objective, self._asked = states.detach(), losses.sum(), targets
        nats = torch.zeros(targets.shape, dtype=torch.float64)
        nats[scored] = losses.detach().cpu().double()
        return nats

    def gradients(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Of the scored tokens' total loss, for each weight."""
        if targets is not self._asked:
            self.nats(inputs, targets)
        found = torch.autograd.grad(
            self._objective, self._parameters, allow_unused=True, materialize_grads=True
        )
        self._asked = torch.zeros(0)
        return list(found)

    @torch.no_grad()
    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """One step on what is scored of the windows."""
        if not self.rate:
            return
        with torch.enable_grad():
            gradients = self.gradients(inputs, targets)
        for weight, trained, scale, gradient in zip(
            self._parameters, self._trained, self._scales, gradients, strict=True
        ):
            pull = (scale * (self.decay / self._mean)).clamp_(max=1.0).mul_(trained - weight)
            weight.sub_(gradient.div_(scale + self._mean), alpha=self.rate).add_(pull)


def gradient_scales(
    model: LanguageModel,
    tokenizer: Tokenizer,
    windows: Sequence[tuple[Tensor, Tensor]],
    precision: str = "float32",
) -> list[Tensor]:
    """Root mean square of each weight's gradient over ``windows`` of training text."""
    observer = DynamicModel(model, tokenizer, rate=1.0, precision=precision)
    squares = [torch.zeros_like(weight) for weight in model.parameters()]
    for inputs, targets in windows:
        for square, gradient in zip(squares, observer.gradients(inputs, targets), strict=True):
            square.addcmul_(gradient, gradient)
    return [(square / len(windows)).sqrt_() for square in squares]


class CachedPredictor(Mixture):
    """A predictor mixed with what followed similar states before: a neural cache.

    Grave et al. 2017 (arXiv 1612.04426): the cache's probability of a token is the softmax of
    ``sharpness * cosine(state now, state then)`` over the last ``size`` tokens, summed where that
    token followed. (There, the plain dot product; states of equal length do not depend on the
    model's width.) Of states that are all equal it is the unigram cache.
    """

    def __init__(self, base: Observed, sharpness: float, size: int, share: float = 0.1) -> None:
        super().__init__([1 - share, share])
        self.base, self.sharpness, self.size = base, sharpness, size
        self.tokenizer, self.context = base.tokenizer, base.context
        self.largest_context = base.largest_context

    def restart(self) -> None:
        """Forget the text, and so does the base."""
        super().restart()
        self.base.restart()
        self._keys, self._values = torch.zeros(0), torch.zeros(0, dtype=torch.int64)

    def member_nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> (2, B, T): the base's nats and the cache's."""
        own = self.base.nats(inputs, targets)
        scored = targets != IGNORED
        cached = own.clone()
        cached[scored] = self._cache_nats(targets[scored], own[scored])
        return torch.stack([own, cached])

    def _cache_nats(self, wanted: Tensor, own: Tensor) -> Tensor:
        """Nats (N,) of targets (N,), which follow each other; the base's where nothing is known.

        Also within a window a token finds only those before it.
        """
        queries = F.normalize(self.base.states.float(), dim=-1)
        keys = torch.cat([self._keys.to(queries).view(-1, queries.shape[1]), queries])
        values, known = torch.cat([self._values, wanted]), len(self._values)
        later = torch.ones(len(wanted), len(values), dtype=torch.bool, device=keys.device)
        scores = self.sharpness * queries @ keys.t()
        weights = scores.masked_fill_(later.triu(known), -torch.inf).softmax(dim=-1)
        followed = (values == wanted[:, None]).to(weights)
        nats = -(weights * followed).sum(dim=-1).cpu().double().log()
        self._pending = keys[-self.size :], values[-self.size :]
        return nats if known else torch.cat([own[:1], nats[1:]])

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Keep the states and tokens that were scored last, and let the base learn."""
        self._keys, self._values = self._pending
        self.base.learn(inputs, targets)
