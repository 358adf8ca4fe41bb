"""Test-time adaptation: scored first, learnt after; equal to the formulas; undone at the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from infinito.evaluate.adaptation import climb
from infinito.evaluate.adaptive import CachedPredictor, DynamicModel, gradient_scales
from infinito.evaluate.kneser_ney import KneserNey
from infinito.evaluate.perplexity import Floats, stream_nats, window_batch
from infinito.evaluate.predictor import Predictor
from infinito.evaluate.windows import Window, sliding_windows
from infinito.model.transformer import Transformer
from tests.evaluation_support import byte_tokenizer, store_of, tiny_model

TOKENIZER = byte_tokenizer()
TOKENS = store_of(["the cat and the dog and the cat " * 3], TOKENIZER).tokens
CONTEXT, SEGMENT = 8, 4


def windows_of_training() -> list[tuple[Tensor, Tensor]]:
    return [
        window_batch(TOKENS, [Window(begin, begin + 8, begin + 4)], 256) for begin in (1, 20, 41)
    ]


def dynamic(model: Transformer | None = None) -> DynamicModel:
    model = model or tiny_model()
    scales = gradient_scales(model, TOKENIZER, windows_of_training())
    return DynamicModel(model, TOKENIZER, scales, rate=0.02, decay=0.05)


def ngram() -> KneserNey:
    other = TOKENIZER.encode("a bird sees nothing of those houses in there , my friend")
    return KneserNey(np.array(other), TOKENIZER, CONTEXT)


KINDS: dict[str, Callable[[], Predictor]] = {
    "dynamic": dynamic,
    "cache": lambda: CachedPredictor(DynamicModel(tiny_model(), TOKENIZER), 5.0, 20),
    "both": lambda: CachedPredictor(dynamic(), 5.0, 20),
    "ngram": lambda: CachedPredictor(ngram(), 0.0, 20),
}


def nats(predictor: Predictor, tokens: object = TOKENS) -> Floats:
    text = np.asarray(tokens)
    return stream_nats(predictor, text, sliding_windows(0, len(text), CONTEXT, SEGMENT), 1)


def looks_ahead(predictor: Predictor) -> bool:
    """Whether the loss of any token depends, by a bit, on tokens that come after it."""
    before = nats(predictor)
    for place in (1, 5, 8, 9, 30, 31, 61):
        changed = TOKENS.copy()
        changed[place + 1 :] = (changed[place + 1 :] + 1) % 250
        if (nats(predictor, changed)[: place + 1] != before[: place + 1]).any():
            return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_is_learnt_from_before_it_is_scored(kind: str) -> None:
    assert not looks_ahead(KINDS[kind]())


class _Peeking(DynamicModel):
    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        super().nats(inputs, targets)
        self.learn(inputs, targets)
        return super().nats(inputs, targets)


class _SeesItself(CachedPredictor):
    def _cache_nats(self, wanted: Tensor, own: Tensor) -> Tensor:
        super()._cache_nats(wanted, own)
        self._keys, self._values = self._pending
        return super()._cache_nats(wanted, own)


def test_the_check_sees_who_learns_first() -> None:
    good = dynamic()
    peeking = _Peeking(good.model, TOKENIZER, good._scales, 0.02, 0.05)
    assert looks_ahead(peeking)
    assert looks_ahead(_SeesItself(DynamicModel(tiny_model(), TOKENIZER), 5.0, 20))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learnt_helps_and_is_forgotten(kind: str) -> None:
    predictor = KINDS[kind]()
    first, again = nats(predictor), nats(predictor)
    assert (first == again).all()
    static = nats(ngram() if kind == "ngram" else DynamicModel(tiny_model(), TOKENIZER))
    assert first[:1] == static[:1]
    assert first[SEGMENT * 4 :].sum() < static[SEGMENT * 4 :].sum()


def test_weights_are_put_back_to_the_bit() -> None:
    model = tiny_model()
    before = [weight.detach().clone() for weight in model.parameters()]
    predictor = dynamic(model)
    nats(predictor)
    assert any((a != b).any() for a, b in zip(before, model.parameters(), strict=True))
    predictor.restart()
    assert all((a == b).all() for a, b in zip(before, model.parameters(), strict=True))


def test_a_step_is_the_formula() -> None:
    model, rate, decay = tiny_model(), 0.02, 0.05
    parameters = list(model.parameters())

    def gradient(inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """By the road of training: forward, backward."""
        model.zero_grad()
        model.eval().requires_grad_(True)
        model(inputs, targets).nats.backward()
        return [weight.grad.clone() for weight in parameters if weight.grad is not None]

    found = [gradient(*window) for window in windows_of_training()]
    squares = [sum(g[i] ** 2 for g in found) / len(found) for i in range(len(parameters))]
    scales = [torch.as_tensor(square).sqrt() for square in squares]
    mean = sum(float(s.sum()) for s in scales) / sum(s.numel() for s in scales)
    trained = [weight.detach().clone() for weight in parameters]
    predictor = dynamic(model)
    text = TOKENS[:16]
    expected = []
    for window in sliding_windows(0, 16, CONTEXT, SEGMENT):
        inputs, targets = window_batch(text, [window], 256)
        losses = model.token_losses(inputs, targets)[0, window.scored_from - window.begin :]
        expected += losses.tolist()
        for weight, start, scale, slope in zip(
            parameters, trained, scales, gradient(inputs, targets), strict=True
        ):
            pull = torch.minimum(torch.ones(()), decay * scale / mean) * (start - weight.detach())
            weight.data += pull - rate * slope / (scale + mean)
    assert nats(predictor, text) == pytest.approx(expected, rel=1e-4)


def test_the_cache_is_the_formula() -> None:
    size, sharpness, share = 20, 5.0, 0.3
    model = tiny_model()
    found = nats(CachedPredictor(DynamicModel(model, TOKENIZER), sharpness, size, share))
    keys: list[Tensor] = []
    words: list[int] = []
    expected = []
    for window in sliding_windows(0, len(TOKENS), CONTEXT, SEGMENT):
        inputs, targets = window_batch(TOKENS, [window], 256)
        with torch.no_grad():
            states = model.hidden(inputs)[0]
            probability = model.logits(states).softmax(-1).double()
        oldest = max(0, len(words) - size)
        for place in range(window.scored_from - window.begin, window.end - window.begin):
            state, token = states[place] / states[place].norm(), int(targets[0, place])
            likeness = [math.exp(sharpness * float(state @ key)) for key in keys[oldest:]]
            own = float(probability[place, token])
            cached = own
            if likeness:
                alike = sum(x for x, w in zip(likeness, words[oldest:], strict=True) if w == token)
                cached = alike / sum(likeness)
            expected.append(-math.log((1 - share) * own + share * cached))
            keys.append(state)
            words.append(token)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"attention": {"kind": kind}} for kind in ("l1", "l2", "l2sq", "cosine")]
    + [{"moe": {"n_experts": 3, "top_k": 1}}, {"tie_embeddings": False}],
)
def test_every_kind_of_model_adapts(changes: dict[str, object]) -> None:
    predictor = dynamic(tiny_model(**changes))
    adapted = nats(predictor)
    predictor.restart()
    static = nats(DynamicModel(predictor.model, TOKENIZER))
    assert np.isfinite(adapted).all()
    assert adapted[SEGMENT * 4 :].sum() < static[SEGMENT * 4 :].sum()


def test_climbing_finds_the_best_of_a_lattice() -> None:
    asked = []

    def cost(values: dict[str, float]) -> float:
        asked.append(values)
        return 1 + math.log(values["a"] / 27) ** 2 + math.log(values["b"] / 0.2) ** 2

    assert climb({"a": 1.0, "b": 1.8}, cost, 3.0) == {"a": 27.0, "b": pytest.approx(0.2)}
    assert len(asked) < 14
    assert climb({"a": 1.0}, lambda _: math.inf, 3.0) == {"a": 1.0}
