"""What can be evaluated: a checkpoint, the n-grams of its tokens, or several of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infinito.data.token_store import TokenStore
from infinito.evaluate.kneser_ney import ORDER, KneserNey
from infinito.evaluate.mixture import Ensemble
from infinito.evaluate.perplexity import perplexity, resolve_windows, score
from infinito.evaluate.predictor import ModelPredictor, Predictor
from infinito.evaluate.tuned import kept_or_found
from infinito.load import LoadedModel
from infinito.model.count import count_parameters

#: The tokens of a split of the data that a subject was trained on.
Texts = Callable[[Literal["train", "valid"]], TokenStore]


@dataclass(frozen=True)
class Subject:
    """A predictor, and what a report says of it.

    Attributes:
        step: of a checkpoint.
        models: those within, which are tested for leaks and asked what they were trained on.
        sources: the checkpoints that it was made of; of n-grams, that whose tokens they count.
        members: of an ensemble: name, step, weight and perplexity alone on the validation text.
    """

    predictor: Predictor
    name: str
    step: int | None = None
    models: tuple[LoadedModel, ...] = ()
    sources: tuple[LoadedModel, ...] = ()
    members: list[dict[str, Any]] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Numbers in the models together."""
        models = [loaded.model for loaded in self.models]
        counts = [count_parameters(m.config, m.vocab_size, m.max_positions) for m in models]
        return sum(count.total for count in counts)


def model_subject(loaded: LoadedModel) -> Subject:
    """A checkpoint by itself."""
    predictor = ModelPredictor(loaded.model, loaded.tokenizer)
    return Subject(predictor, str(loaded.path), loaded.step, (loaded,), (loaded,))


def ngram_subject(beside: LoadedModel, texts: Texts) -> Subject:
    """Kneser-Ney n-grams of the tokens that ``beside`` was trained on."""
    context = beside.model.max_positions
    predictor = KneserNey(texts("train").tokens, beside.tokenizer, context)
    return Subject(predictor, f"ngram (Kneser-Ney, order {ORDER})", sources=(beside,))


def ensemble_subject(
    subjects: Sequence[Subject],
    texts: Texts,
    context: int | None,
    stride: int | None,
    batch_size: int | None,
) -> Subject:
    """The mixture of ``subjects``, weighted by what is best for the validation text.

    The weights are kept beside the first checkpoint and found again there.

    Raises:
        ConfigError: their tokenizers differ; ``context`` and the others as in :func:`score`.
    """
    names = [subject.name for subject in subjects]
    predictors = [subject.predictor for subject in subjects]
    ensemble = Ensemble(predictors, names)
    windows = resolve_windows(ensemble, context, stride, batch_size)
    sources = tuple(loaded for subject in subjects for loaded in subject.sources)
    valid = texts("valid")

    def find() -> dict[str, Any]:
        score(ensemble, valid, context=context, stride=stride, batch_size=batch_size)
        alone = ensemble.fit().sum(axis=1)
        return {
            "weights": ensemble.weights.tolist(),
            "alone": [perplexity(float(nats), valid.n_words) for nats in alone],
        }

    question = {
        "what": "weights of the ensemble", "context": windows[0], "stride": windows[1],
        "members": [type(predictor).__name__ for predictor in predictors],
        "valid_sha256": valid.text_sha256,
    }  # fmt: skip
    like = dict.fromkeys(("weights", "alone"), [0.0] * len(names))
    answer = kept_or_found(sources, question, like, find).answer
    ensemble = Ensemble(predictors, names, answer["weights"])
    members = [
        {
            "checkpoint": subject.name,
            "step": subject.step,
            "weight": weight,
            "valid_word_perplexity": alone,
        }
        for subject, weight, alone in zip(subjects, answer["weights"], answer["alone"], strict=True)
    ]
    models = tuple(loaded for subject in subjects for loaded in subject.models)
    return Subject(ensemble, " + ".join(names), None, models, sources, members)
