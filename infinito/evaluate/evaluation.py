"""From a loaded model and a tokenised text to a report."""

from __future__ import annotations

import time
from dataclasses import dataclass

from infinito.data.token_store import TokenStore, why_bits_lead
from infinito.errors import ConfigError
from infinito.evaluate.adaptation import adapt
from infinito.evaluate.causality import CHECKED_LENGTH, check_causality
from infinito.evaluate.closed_words import ClosedWords, Lexicon
from infinito.evaluate.conventions import Figure, Measured, all_conventions
from infinito.evaluate.interval import document_texts, word_perplexity_interval
from infinito.evaluate.members import Subject, Texts
from infinito.evaluate.perplexity import Score, resolve_windows, score
from infinito.evaluate.report import LEAK_BELOW, Adapt, Report
from infinito.load import LoadedModel


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate: windows, batches, and which costly figures to add."""

    context: int | None = None
    stride: int | None = None
    batch_size: int | None = None
    all_conventions: bool = False
    adapt: Adapt = "none"
    exact_words: bool = False


def check_figures(loaded: LoadedModel, request: EvaluationOptions) -> None:
    """Refuse a figure that a model cannot have, before minutes are spent on another.

    Raises:
        ConfigError: dynamic evaluation of weights in eight bits, which have no gradient; the closed
            vocabulary of a word tokenizer, which has no other.
    """
    if request.exact_words and loaded.tokenizer.kind == "word":
        raise ConfigError(
            "--exact-words: the vocabulary of a word tokenizer is closed as it is", "leave it out"
        )
    whole = all(weight.is_floating_point() for weight in loaded.model.parameters())
    if request.adapt in ("dynamic", "both") and not whole:
        raise ConfigError(
            "dynamic evaluation changes weights, and these are stored in eight bits",
            "evaluate the checkpoint that the export was made from, or use --adapt cache",
        )


@dataclass(frozen=True)
class ScoredText:
    """What is scored, in the tokens of a subject, and where it came from.

    Attributes:
        split: name of the split, or ``text`` for a file of the user's.
        corpus: name of the corpus, or the file.
        is_wikitext: the source is WikiText-2; what a corpus is called proves nothing.
    """

    store: TokenStore
    split: str
    corpus: str
    is_wikitext: bool = False


def evaluate(
    subject: Subject, text: ScoredText, request: EvaluationOptions, texts: Texts
) -> Report:
    """Test the models for leaks, then score ``text``, as ``request`` says.

    ``texts`` opens the splits that adaptation is tuned on.

    Raises:
        InfinitoError: as :func:`check_causality`, :func:`score` and :func:`adapt` say.
    """
    store = text.store
    predictor = subject.predictor
    context, stride, batch_size = windows = resolve_windows(
        predictor, request.context, request.stride, request.batch_size
    )
    for loaded in subject.models:
        check_causality(loaded.model, min(context, CHECKED_LENGTH))
    # Words that are refused are refused before the long passes.
    exact = [_exact_words(subject, store, texts, windows)] if request.exact_words else []
    adapts = request.adapt != "none"
    adaptive = (
        adapt(subject, store, request.adapt, texts, context, request.stride) if adapts else None
    )
    source = None if text.split == "text" else text.corpus
    start = time.monotonic()
    result = score(predictor, store, context=context, stride=stride, batch_size=batch_size)
    measured = Measured(predictor, store, result, batch_size, text.is_wikitext)
    figures = all_conventions(measured) if request.all_conventions else []
    seconds = time.monotonic() - start
    return Report(
        score=result,
        split=text.split,
        corpus=text.corpus,
        store=store,
        checkpoint=subject.name,
        step=subject.step,
        tokenizer_kind=predictor.tokenizer.kind,
        vocab_size=predictor.tokenizer.vocab_size,
        parameters=subject.parameters,
        interval=word_perplexity_interval(result.token_nll, store, predictor.tokenizer),
        seconds=seconds,
        bits_lead=why_bits_lead(store, predictor.tokenizer, source),
        warnings=_warnings(subject, text, result),
        figures=exact + figures,
        members=subject.members,
        adaptive=adaptive,
    )


def _exact_words(
    subject: Subject, store: TokenStore, texts: Texts, windows: tuple[int, int, int]
) -> Figure:
    """The word perplexity over the vocabulary of the training text."""
    start, loaded = time.monotonic(), subject.models[0]
    tokenizer = loaded.tokenizer
    lexicon = Lexicon(document_texts(texts("train"), tokenizer), tokenizer)
    lexicon.require(document_texts(store, tokenizer))
    closed_model = ClosedWords(loaded.model, tokenizer, lexicon)
    context, stride, batch_size = windows
    closed = score(closed_model, store, context=context, stride=stride, batch_size=batch_size)
    return Figure(
        "word_perplexity_closed_vocabulary",
        closed.word_perplexity,
        f"word ppl, closed vocabulary of the {lexicon.n_words} words of the training text, exact "
        f"({time.monotonic() - start:.0f} s)",
        word_perplexity_interval(closed.token_nll, store, tokenizer),
    )


def _warnings(subject: Subject, text: ScoredText, result: Score) -> list[str]:
    warnings, sha256, split = [], text.store.text_sha256, text.split
    for loaded in subject.models:
        known = loaded.data_sha256.get(split)
        which = f"{loaded.path}: " if len(subject.models) > 1 else ""
        if sha256 == loaded.data_sha256.get("train"):
            warnings.append(
                f"{which}this is the text the model was trained on: a measure of memory, not skill"
            )
        elif known is not None and known != sha256:
            warnings.append(
                f"{which}the {split} text is not the one this checkpoint knew "
                f"(its sha256 was {known[:12]}...)"
            )
    if text.is_wikitext and result.word_perplexity < LEAK_BELOW:
        warnings.append(
            f"word perplexity below {LEAK_BELOW:g} on WikiText-2 from scratch: "
            "a leak, not a success"
        )
    return warnings
