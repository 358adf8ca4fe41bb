"""The adaptive figure beside the headline: settings found on validation text, then one pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from torch import Tensor

from infinito.data.token_store import TokenStore
from infinito.errors import DivergedError
from infinito.evaluate.adaptive import CachedPredictor, DynamicModel, Observed, gradient_scales
from infinito.evaluate.interval import word_perplexity_interval
from infinito.evaluate.kneser_ney import KneserNey
from infinito.evaluate.members import Subject, Texts
from infinito.evaluate.mixture import Ensemble, mixture_nats
from infinito.evaluate.perplexity import score, stream_nats, window_batch
from infinito.evaluate.predictor import ModelPredictor, Predictor
from infinito.evaluate.report import Adapt, Adaptive
from infinito.evaluate.windows import Window, sliding_windows
from infinito.model.language_model import LanguageModel
from infinito.runtime.events import note
from infinito.tokenizer.tokenizer import Tokenizer

_SEGMENT = 64
_TUNING_TOKENS = 20_000
_SCALE_WINDOWS = 200
_CACHE_SIZE = 4096
_SHARPNESS = 16.0
_WORTHWHILE = 1e-3  # relative gain of a search step that leads to another


class _Tuner:
    """Builds the adaptive twin of a predictor; each step of the search scores validation text."""

    def __init__(self, kind: Adapt, texts: Texts, context: int, segment: int) -> None:
        self.kind, self.texts, self.context, self.segment = kind, texts, context, segment
        self.tokens = texts("valid").tokens[:_TUNING_TOKENS]

    def nats(self, predictor: Predictor) -> float:
        """Of the validation text; infinite where the predictor breaks."""
        windows = sliding_windows(0, len(self.tokens), self.context, self.segment)
        try:
            return float(stream_nats(predictor, self.tokens, windows, 1).sum())
        except DivergedError:
            return math.inf

    def adapted(self, predictor: Predictor) -> tuple[Predictor, dict[str, float]]:
        """An adaptive twin of a model or of n-grams, and its settings."""
        if not isinstance(predictor, ModelPredictor):
            assert isinstance(predictor, KneserNey)
            return self._cached(predictor, 0.0)
        if self.kind == "cache":
            return self._cached(DynamicModel(predictor.model, predictor.tokenizer), _SHARPNESS)
        dynamic, found = self._dynamic(predictor.model, predictor.tokenizer)
        if self.kind == "dynamic":
            return dynamic, found
        cached, more = self._cached(dynamic, _SHARPNESS)
        return cached, found | more

    def _dynamic(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> tuple[DynamicModel, dict[str, float]]:
        scales = gradient_scales(model, tokenizer, self._training_windows(tokenizer.eos_id))

        def cost(values: dict[str, float]) -> float:
            candidate = DynamicModel(model, tokenizer, scales, **values)
            nats = self.nats(candidate)
            candidate.restart()
            return nats

        found = climb({"rate": 1e-4, "decay": 2e-3}, cost, 3.0)
        return DynamicModel(model, tokenizer, scales, **found), found

    def _training_windows(self, start_id: int) -> list[tuple[Tensor, Tensor]]:
        tokens = self.texts("train").tokens
        length = min(self.context, len(tokens) - 1)
        begins = np.unique(np.linspace(1, len(tokens) - length, _SCALE_WINDOWS).astype(int))
        read = max(length - self.segment, 0)
        windows = [Window(begin, begin + length, begin + read) for begin in begins.tolist()]
        return [window_batch(tokens, [window], start_id) for window in windows]

    def _cached(self, base: Observed, sharpness: float) -> tuple[CachedPredictor, dict[str, float]]:
        shares: dict[float, float] = {}

        def cost(values: dict[str, float]) -> float:
            candidate = CachedPredictor(base, values["sharpness"], _CACHE_SIZE)
            self.nats(candidate)
            members = candidate.fit()  # the best share costs no pass of its own
            shares[values["sharpness"]] = float(candidate.weights[1])
            return float(mixture_nats(members, candidate.weights).sum())

        found = climb({"sharpness": sharpness}, cost, 2.0)
        found["share"] = shares[found["sharpness"]]
        return CachedPredictor(base, size=_CACHE_SIZE, **found), found | {"size": _CACHE_SIZE}


def climb(
    values: dict[str, float], cost: Callable[[dict[str, float]], float], factor: float
) -> dict[str, float]:
    """Multiply or divide one value after the other as long as the cost falls by a thousandth."""
    best = cost(values)
    for name in filter(values.get, values):  # what is zero stays zero
        for step in (factor, 1 / factor):
            candidate = {**values, name: values[name] * step}
            while (found := cost(candidate)) < best * (1 - _WORTHWHILE):
                values, best = candidate, found
                candidate = {**values, name: values[name] * step}
    return values


def adapt(
    subject: Subject, store: TokenStore, kind: Adapt, texts: Texts, context: int, stride: int | None
) -> Adaptive:
    """Score ``store`` with a predictor that learns from it, tuned on the validation text alone.

    The subject's weights are as before afterwards.

    Args:
        subject: as :func:`check_figures` and the command line let it pass.
        stride: tokens that are scored before they are learnt from; a segment of 64 if None.
    """
    start, predictor = time.monotonic(), subject.predictor
    members = predictor.members if isinstance(predictor, Ensemble) else [predictor]
    tuner = _Tuner(kind, texts, context, min(context, _SEGMENT if stride is None else stride))
    note(f"adapt {kind}: finding settings on the first {len(tuner.tokens)} validation tokens")
    names = [member["checkpoint"] for member in subject.members] or [subject.name]
    adapted, settings = zip(*map(tuner.adapted, members), strict=True)
    predictor = adapted[0]
    if len(adapted) > 1:
        predictor = ensemble = Ensemble(adapted, names)
        tuner.nats(ensemble)
        ensemble.fit()
        for found, weight in zip(settings, ensemble.weights.tolist(), strict=True):
            found["weight"] = weight
    tuned = time.monotonic()
    try:
        result = score(predictor, store, context=context, stride=tuner.segment, batch_size=1)
    finally:
        predictor.restart()
    return Adaptive(
        kind,
        result,
        word_perplexity_interval(result, store, predictor.tokenizer),
        dict(zip(names, settings, strict=True)),
        len(tuner.tokens),
        time.monotonic() - tuned,
        tuned - start,
    )
