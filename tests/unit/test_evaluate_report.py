"""The block a person reads, the document for programs, warnings, and other conventions."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from infinito.evaluate.detokenise import detokenise_wikitext
from infinito.evaluate.evaluation import EvaluationOptions
from infinito.evaluate.perplexity import perplexity
from infinito.evaluate.report import comparison_rows
from tests.evaluation_support import byte_tokenizer, evaluated, loaded_tiny, store_of

TOKENIZER = byte_tokenizer()
DOCUMENTS = [f" = Page {n} = \n \n It was @-@ it seems - number {n} , again .\n" for n in range(6)]
STORE = store_of(DOCUMENTS, TOKENIZER)


def test_text_and_document_agree() -> None:
    report = evaluated(loaded_tiny(), STORE, "valid", "python-docs", EvaluationOptions())
    plain, text = report.to_plain(), report.to_text()
    labels = {
        "loss": "loss", "token_perplexity": "token perplexity",
        "word_perplexity": "word perplexity", "bits_per_byte": "bits per byte",
    }  # fmt: skip
    for key, label in labels.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{label}:"))
        assert line.split(":")[1].split()[0] == f"{plain[key]:.4f}"
    assert "upper bound: open vocabulary" in text
    assert plain["loss"] * plain["n_tokens"] == pytest.approx(plain["nll_total"])
    assert (plain["split"], plain["step"], plain["checkpoint"]) == ("valid", 40, "run/best.pt")
    assert plain["text_sha256"] in text
    json.dumps(plain, allow_nan=False)


def test_unknown_words_are_a_share_of_the_words() -> None:
    some = dataclasses.replace(STORE, n_unknown=9)
    report = evaluated(loaded_tiny(), some, "valid", "x", EvaluationOptions())
    words = sum(len(document.split()) for document in DOCUMENTS)
    assert f"bytes, {9 / words:.2%} unknown" in report.to_text()


def test_a_model_that_is_spared_words_is_not_the_best() -> None:
    report = evaluated(loaded_tiny(), STORE, "valid", "x", EvaluationOptions())
    easier = dataclasses.replace(
        report,
        score=dataclasses.replace(report.score, nll_total=report.score.nll_total / 2),
        store=dataclasses.replace(STORE, n_unknown=7),
    )
    assert [row[-1] for row in comparison_rows([report, easier])] == [
        "best", "7 more words are <unk>",
    ]  # fmt: skip


def test_closed_vocabularies_are_named() -> None:
    report = evaluated(loaded_tiny(), STORE, "valid", "python-docs", EvaluationOptions())
    closed = dataclasses.replace(report, tokenizer_kind="word", vocab_size=33278)
    assert "AWD-LSTM convention, closed vocabulary of 33278 words" in closed.to_text()


@pytest.mark.parametrize(
    ("hashes", "words"),
    [
        ({"train": "0" * 64}, "trained on"),
        ({"train": "1" * 64, "valid": "2" * 64}, "not the one this checkpoint knew"),
        ({"train": "1" * 64, "valid": "0" * 64}, None),
    ],
)
def test_warnings_about_the_text(hashes: dict[str, str], words: str | None) -> None:
    warnings = evaluated(loaded_tiny(**hashes), STORE, "valid", "x", EvaluationOptions()).warnings
    assert (words is None and not warnings) or (words is not None and words in warnings[0])


def test_wonderful_perplexity_on_wikitext_is_called_a_leak() -> None:
    many = dataclasses.replace(STORE, n_words=10**6)
    report = evaluated(loaded_tiny(), many, "test", "wikitext-2", EvaluationOptions(), True)
    assert report.score.word_perplexity < 20
    assert "a leak, not a success" in report.to_text()
    assert not evaluated(loaded_tiny(), many, "text", "wikitext-2", EvaluationOptions()).warnings
    assert not evaluated(
        loaded_tiny(), STORE, "test", "wikitext-2", EvaluationOptions(), True
    ).warnings


def test_numbers_beyond_floats_become_null() -> None:
    none = dataclasses.replace(STORE, n_words=0)
    plain = evaluated(loaded_tiny(), none, "valid", "x", EvaluationOptions()).to_plain()
    assert plain["word_perplexity"] is None
    assert plain["word_perplexity_interval"] is not None


def test_all_conventions_are_those_of_a_plain_computation() -> None:
    request = EvaluationOptions(context=8, stride=8, all_conventions=True)
    report = evaluated(loaded_tiny(), STORE, "valid", "wikitext-2", request, True)
    figures = report.to_plain()["conventions"]
    score = report.score
    assert figures["word_perplexity_no_overlap"] == pytest.approx(score.word_perplexity, rel=1e-6)
    assert figures["word_perplexity_stride_4"] != figures["word_perplexity_no_overlap"]
    words = STORE.n_words - STORE.n_lines
    assert figures["word_perplexity_no_line_ends"] == perplexity(score.nll_total, words)
    rest = score.nll_total - float(score.token_nll[0])
    assert figures["word_perplexity_first_unscored"] == perplexity(rest, STORE.n_words)
    nats = figures["lm_eval_bits_per_byte"] * math.log(2) * STORE.n_bytes
    assert figures["lm_eval_byte_perplexity"] == pytest.approx(math.exp(nats / STORE.n_bytes))
    assert all(f"{value:.4f}" in report.to_text() for value in figures.values())
    assert np.isfinite(list(figures.values())).all()


def test_detokenising_gives_prose() -> None:
    spaced = 'the " well @-@ known " ( 1 @,@ 000 ) cat \'s 2 @.@ 5 m , it said : no ; yes . \n'
    prose = 'the "well-known" (1,000) cat\'s 2.5 m, it said: no; yes.\n'
    assert detokenise_wikitext(spaced) == prose


def test_figures_of_other_conventions_have_intervals_by_article() -> None:
    loaded = loaded_tiny()
    documents = [f"{'word ' * (number % 5 + 2)}{number}\n" for number in range(12)]
    store = store_of(documents, loaded.tokenizer)
    request = EvaluationOptions(stride=4, all_conventions=True)
    plain = evaluated(loaded, store, "text", "notes.txt", request).to_plain()
    intervals = plain["convention_intervals"]
    for name in ("no_overlap", "stride_4", "document_reset"):
        low, high = intervals[f"word_perplexity_{name}"]
        assert low < plain["conventions"][f"word_perplexity_{name}"] < high
    # A stride of half the context is the headline's: the same figure, the same interval.
    assert intervals["word_perplexity_stride_4"] == pytest.approx(plain["word_perplexity_interval"])
    assert not any("token_perplexity" in name for name in intervals)
