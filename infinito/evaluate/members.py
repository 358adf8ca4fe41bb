"""What can be evaluated: a checkpoint, the n-grams of its tokens, or several of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infinito.data.token_store import TokenStore
from infinito.evaluate.kneser_ney import ORDER, KneserNey
from infinito.evaluate.mixture import Ensemble
from infinito.evaluate.perplexity import perplexity, score
from infinito.evaluate.predictor import ModelPredictor, Predictor
from infinito.load import LoadedModel

#: The tokens of a split of the data that a subject was trained on.
Texts = Callable[[Literal["train", "valid"]], TokenStore]


@dataclass(frozen=True)
class Subject:
    """A predictor, and what a report says of it.

    Attributes:
        step: of a checkpoint.
        models: those within, which are tested for leaks and asked what they were trained on.
        members: of an ensemble: name, step, weight and perplexity alone on the validation text.
    """

    predictor: Predictor
    name: str
    step: int | None = None
    models: tuple[LoadedModel, ...] = ()
    members: list[dict[str, Any]] = field(default_factory=list)


def model_subject(loaded: LoadedModel) -> Subject:
    """A checkpoint by itself."""
    predictor = ModelPredictor(loaded.model, loaded.tokenizer)
    return Subject(predictor, str(loaded.path), loaded.step, (loaded,))


def ngram_subject(beside: LoadedModel, texts: Texts) -> Subject:
    """Kneser-Ney n-grams of the tokens that ``beside`` was trained on."""
    context = beside.model.max_positions
    predictor = KneserNey(texts("train").tokens, beside.tokenizer, context)
    return Subject(predictor, f"ngram (Kneser-Ney, order {ORDER})")


def ensemble_subject(
    subjects: Sequence[Subject],
    texts: Texts,
    context: int | None,
    stride: int | None,
    batch_size: int | None,
) -> Subject:
    """The mixture of ``subjects``, weighted by what is best for the validation text.

    Raises:
        ConfigError: their tokenizers differ; ``context`` and the others as in :func:`score`.
    """
    names = [subject.name for subject in subjects]
    ensemble = Ensemble([subject.predictor for subject in subjects], names)
    valid = texts("valid")
    score(ensemble, valid, context=context, stride=stride, batch_size=batch_size)
    alone = ensemble.fit().sum(axis=1)
    members = [
        {
            "checkpoint": subject.name,
            "step": subject.step,
            "weight": float(weight),
            "valid_word_perplexity": perplexity(float(nats), valid.n_words),
        }
        for subject, weight, nats in zip(subjects, ensemble.weights, alone, strict=True)
    ]
    models = tuple(loaded for subject in subjects for loaded in subject.models)
    return Subject(ensemble, " + ".join(names), None, models, members)
