"""From a loaded model and a tokenised text to a report."""

from __future__ import annotations

import time
from dataclasses import dataclass

from infinito.data.token_store import TokenStore, why_bits_lead
from infinito.evaluate.causality import CHECKED_LENGTH, check_causality
from infinito.evaluate.conventions import Measured, all_conventions
from infinito.evaluate.interval import word_perplexity_interval
from infinito.evaluate.perplexity import Score, resolve_windows, score
from infinito.evaluate.predictor import ModelPredictor
from infinito.evaluate.report import LEAK_BELOW, Report, Source
from infinito.load import LoadedModel
from infinito.model.count import count_parameters


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate: windows, batches, and whether to add the costly figures."""

    context: int | None = None
    stride: int | None = None
    batch_size: int | None = None
    all_conventions: bool = False


def evaluate(
    loaded: LoadedModel,
    store: TokenStore,
    split: str,
    corpus: str,
    request: EvaluationOptions,
    is_wikitext: bool = False,
) -> Report:
    """Test the model for leaks, then score ``store``.

    Args:
        loaded: the model, its tokenizer and where it came from.
        store: the text, tokenised by that tokenizer.
        split: name of the split, or ``text`` for a file of the user's.
        corpus: name of the corpus, or the file.
        request: how.
        is_wikitext: the source of the text is WikiText-2; what a corpus is called proves nothing.

    Raises:
        InfinitoError: as :func:`check_causality` and :func:`score` say.
    """
    start = time.monotonic()
    predictor = ModelPredictor(loaded.model, loaded.tokenizer)
    context, stride, batch_size = resolve_windows(
        predictor, request.context, request.stride, request.batch_size
    )
    check_causality(loaded.model, min(context, CHECKED_LENGTH))
    result = score(predictor, store, context=context, stride=stride, batch_size=batch_size)
    measured = Measured(predictor, store, result, batch_size, is_wikitext)
    figures = all_conventions(measured) if request.all_conventions else []
    return Report(
        score=result,
        source=Source(
            split, corpus, store.text_sha256,
            store.n_lines, store.n_unknown, len(store.document_starts),
        ),
        checkpoint=str(loaded.path),
        step=loaded.step,
        tokenizer_kind=loaded.tokenizer.kind,
        vocab_size=loaded.tokenizer.vocab_size,
        parameters=count_parameters(
            loaded.model.config, loaded.tokenizer.vocab_size, loaded.model.max_positions
        ).total,
        interval=word_perplexity_interval(result, store, loaded.tokenizer),
        seconds=time.monotonic() - start,
        bits_lead=why_bits_lead(store, loaded.tokenizer, None if split == "text" else corpus),
        warnings=_warnings(loaded, store, split, result, is_wikitext),
        figures=figures,
    )  # fmt: skip


def _warnings(
    loaded: LoadedModel, store: TokenStore, split: str, result: Score, is_wikitext: bool
) -> list[str]:
    warnings = []
    known = loaded.data_sha256.get(split)
    if store.text_sha256 == loaded.data_sha256.get("train"):
        warnings.append("this is the text the model was trained on: a measure of memory, not skill")
    elif known is not None and known != store.text_sha256:
        warnings.append(
            f"the {split} text is not the one this checkpoint knew (its sha256 was {known[:12]}...)"
        )
    if is_wikitext and result.word_perplexity < LEAK_BELOW:
        warnings.append(
            f"word perplexity below {LEAK_BELOW:g} on WikiText-2 from scratch: "
            "a leak, not a success"
        )
    return warnings
