"""The adaptive figure beside the headline: settings found on validation text, then one pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

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
from infinito.evaluate.tuned import Cost, Tuned, kept_or_found, together
from infinito.evaluate.windows import Window, sliding_windows
from infinito.load import LoadedModel
from infinito.runtime.precision import DTYPES, unsupported_reason

_SEGMENT = 64
_TUNING_TOKENS = 20_000
_SCALE_WINDOWS = 200
_CACHE_SIZE = 4096
_SHARPNESS = 16.0
_FIRST_SHARE = 0.1
_WORTHWHILE = 1e-3  # relative gain of a search step that leads to another

Settings = dict[str, float]


class _Tuner:
    """Builds the adaptive twin of a predictor; each step of the search scores validation text."""

    def __init__(
        self, kind: Adapt, texts: Texts, context: int, segment: int, subject: Subject
    ) -> None:
        self.kind, self.texts, self.context, self.segment = kind, texts, context, segment
        self.precisions = {id(one.model): step_precision(one) for one in subject.models}
        self.valid = texts("valid")
        self.tokens = self.valid.tokens[:_TUNING_TOKENS]
        self._scales: dict[int, list[Tensor]] = {}

    def nats(self, predictor: Predictor) -> float:
        """Of the validation text; infinite where the predictor breaks."""
        windows = sliding_windows(0, len(self.tokens), self.context, self.segment)
        try:
            return float(stream_nats(predictor, self.tokens, windows, 1).sum())
        except DivergedError:
            return math.inf

    def find(self, predictor: Predictor, source: LoadedModel) -> Tuned:
        """The best settings there are on the way up from the usual ones, kept beside ``source``."""
        is_model = isinstance(predictor, ModelPredictor)
        found, parts = Settings(), list[Tuned]()
        if is_model and self.kind != "cache":
            start = {"rate": 1e-4, "decay": 2e-3}
            parts.append(
                self.kept(
                    [source], "dynamic", predictor, start, lambda: self._climbed(predictor, start)
                )
            )
            found |= parts[-1].answer
        if not is_model or self.kind != "dynamic":
            sharpness = _SHARPNESS if is_model else 0.0
            parts.append(
                self.kept(
                    [source], "cache", [predictor, found],
                    dict.fromkeys(("sharpness", "share", "size"), 0.0),
                    lambda: self._cache_settings(predictor, found, sharpness),
                )
            )  # fmt: skip
            found |= parts[-1].answer
        return together(parts, found)

    def build(self, predictor: Predictor, found: Settings) -> Predictor:
        """The adaptive twin of a model or of n-grams, with settings that were found."""
        base: Observed
        if isinstance(predictor, ModelPredictor):
            base = self._dynamic(predictor, found)
        else:
            assert isinstance(predictor, KneserNey)
            base = predictor
        if "share" not in found:
            return base
        return CachedPredictor(base, found["sharpness"], int(found["size"]), found["share"])

    def _dynamic(self, predictor: ModelPredictor, found: Settings) -> DynamicModel:
        model, tokenizer = predictor.model, predictor.tokenizer
        if "rate" not in found:
            return DynamicModel(model, tokenizer)
        precision = self.precisions[id(model)]
        if id(model) not in self._scales:
            windows = self._training_windows(tokenizer.eos_id)
            self._scales[id(model)] = gradient_scales(model, tokenizer, windows, precision)
        scales = self._scales[id(model)]
        return DynamicModel(model, tokenizer, scales, found["rate"], found["decay"], precision)

    def kept(
        self,
        sources: Sequence[LoadedModel],
        what: str,
        of: object,
        like: dict[str, Any],
        find: Callable[[], dict[str, Any]],
    ) -> Tuned:
        """What was found before for ``what`` of ``of`` under these circumstances, or now."""
        question = {
            "what": f"adapt {what}", "of": _plain(of), "context": self.context,
            "segment": self.segment, "precisions": [step_precision(source) for source in sources],
            "valid_sha256": self.valid.text_sha256, "tokens": len(self.tokens),
        }  # fmt: skip
        return kept_or_found(sources, question, like, find)

    def _climbed(self, predictor: Predictor, values: Settings) -> Settings:
        def cost(values: Settings) -> float:
            candidate = self.build(predictor, values)
            nats = self.nats(candidate)
            candidate.restart()
            return nats

        return climb(values, cost, 3.0)

    def _cache_settings(self, predictor: Predictor, found: Settings, sharpness: float) -> Settings:
        shares: dict[float, float] = {}

        def cost(values: Settings) -> float:
            tried = {**found, **values, "size": _CACHE_SIZE, "share": _FIRST_SHARE}
            candidate = self.build(predictor, tried)
            assert isinstance(candidate, CachedPredictor)
            self.nats(candidate)
            members = candidate.fit()  # the best share costs no pass of its own
            candidate.restart()
            shares[values["sharpness"]] = float(candidate.weights[1])
            return float(mixture_nats(members, candidate.weights).sum())

        best = climb({"sharpness": sharpness}, cost, 2.0)["sharpness"]
        return {"sharpness": best, "share": shares[best], "size": _CACHE_SIZE}

    def _training_windows(self, start_id: int) -> list[tuple[Tensor, Tensor]]:
        tokens = self.texts("train").tokens
        length = min(self.context, len(tokens) - 1)
        begins = np.unique(np.linspace(1, len(tokens) - length, _SCALE_WINDOWS).astype(int))
        read = max(length - self.segment, 0)
        windows = [Window(begin, begin + length, begin + read) for begin in begins.tolist()]
        return [window_batch(tokens, [window], start_id) for window in windows]


def step_precision(loaded: LoadedModel) -> str:
    """In which a model's steps at test time are computed: that of its training where it can be."""
    precision = loaded.config.training.precision
    known = precision in DTYPES and not unsupported_reason(precision, str(loaded.model.device))
    return precision if known and precision != "float16" else "float32"


def climb(values: Settings, cost: Callable[[Settings], float], factor: float) -> Settings:
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

    The settings are kept beside the checkpoint and found again there, for this text and others.
    The subject's weights are as before afterwards.

    Args:
        subject: as :func:`check_figures` and the command line let it pass.
        stride: tokens that are scored before they are learnt from; a segment of 64 if None.
    """
    predictor = subject.predictor
    members = predictor.members if isinstance(predictor, Ensemble) else [predictor]
    segment = min(context, _SEGMENT if stride is None else stride)
    tuner = _Tuner(kind, texts, context, segment, subject)
    names = [member["checkpoint"] for member in subject.members] or [subject.name]
    findings = [tuner.find(*pair) for pair in zip(members, subject.sources, strict=True)]
    settings: list[Settings] = [finding.answer for finding in findings]
    if len(members) > 1:
        findings.append(_weights(tuner, subject, members, names, settings))
        weights = findings[-1].answer["weights"]
        settings = [found | {"weight": w} for found, w in zip(settings, weights, strict=True)]
    finding = together(findings)
    start, work = time.monotonic(), time.process_time()
    adapted = [tuner.build(*pair) for pair in zip(members, settings, strict=True)]
    predictor = adapted[0]
    if len(adapted) > 1:
        predictor = Ensemble(adapted, names, [found["weight"] for found in settings])
    try:
        result = score(predictor, store, context=context, stride=segment, batch_size=1)
    except DivergedError as error:  # of models that check_causality has found to be sound
        raise DivergedError(
            f"--adapt {kind} breaks down on this text: {error.message}",
            "leave --adapt out, or use --adapt cache, which changes no weight",
        ) from error
    finally:
        predictor.restart()
    return Adaptive(
        kind,
        result,
        word_perplexity_interval(result.token_nll, store, predictor.tokenizer),
        dict(zip(names, settings, strict=True)),
        len(tuner.tokens),
        Cost(time.monotonic() - start, time.process_time() - work),
        finding.cost,
        finding.kept_in,
    )


def _weights(
    tuner: _Tuner,
    subject: Subject,
    members: Sequence[Predictor],
    names: Sequence[str],
    settings: Sequence[Settings],
) -> Tuned:
    """Of adaptive twins of the members."""

    def find() -> dict[str, list[float]]:
        adapted = [tuner.build(*pair) for pair in zip(members, settings, strict=True)]
        ensemble = Ensemble(adapted, names)
        tuner.nats(ensemble)
        ensemble.fit()
        ensemble.restart()
        return {"weights": ensemble.weights.tolist()}

    of, like = [*members, *settings], {"weights": [0.0] * len(members)}
    return tuner.kept(subject.sources, "the ensemble", of, like, find)


def _plain(of: object) -> object:
    """Predictors by what they are; their checkpoints are part of the question."""
    if isinstance(of, list):
        return [_plain(part) for part in of]
    return of if isinstance(of, dict) else type(of).__name__
