"""The closed-vocabulary figure against an enumeration of everything that may be written."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from infinito.config.schema import TokenizerConfig
from infinito.errors import DataError
from infinito.evaluate.closed_words import ClosedWords, Lexicon
from infinito.evaluate.evaluation import EvaluationOptions
from infinito.evaluate.perplexity import score, stream_nats
from infinito.evaluate.predictor import ModelPredictor
from infinito.evaluate.windows import sliding_windows
from infinito.tokenizer.tokenizer import Tokenizer, train_tokenizer
from tests.evaluation_support import evaluated, loaded_tiny, store_of, tiny_model

TEXTS = [
    " \n = cat cats = \n \n the cat sat on cats , cathode \n \n \n",
    " \n = the hat = \n the sat hat <unk> 's don't \n on a cat \n",
]
VALID = [" \n = the cat = \n \n don't the cathode \n"]


def bpe() -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=280), TEXTS)


def byte() -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="byte"), TEXTS)


KINDS = {"bpe": bpe, "byte": byte}


def units(text: str) -> list[str]:
    """Words with their spaces, and the line ends between two words as one."""
    return [part for part in re.split(r"((?: \n)+)|( [^ \n]+)", text) if part]


def may_follow(before: str | None, after: str) -> bool:
    """As the texts show: lines are never empty but in runs, and a document begins with one."""
    if before is None or not before.isspace():
        return before is not None or after.isspace()
    return not after.isspace()


def spellings(tokenizer: Tokenizer, before: str | None) -> list[tuple[str, tuple[int, ...]]]:
    """All that the closed vocabulary may put behind a unit, with its tokens."""
    known = sorted({unit for text in TEXTS for unit in units(text)})
    found = [(u, tuple(tokenizer.encode(u))) for u in known if may_follow(before, u)]
    if before is not None and before.isspace():
        found.append(("", (tokenizer.eos_id,)))
    return found


def brute_force(tokenizer: Tokenizer, prefix: tuple[int, ...], before: str | None) -> set[int]:
    """The tokens that may follow ``prefix``, by writing every unit that may stand at its start."""
    found: set[int] = set()
    for unit, ids in spellings(tokenizer, before):
        if ids[: len(prefix)] == prefix and len(ids) > len(prefix):
            found.add(ids[len(prefix)])
        elif prefix[: len(ids)] == ids:  # the unit is read, or may be
            found |= brute_force(tokenizer, prefix[len(ids) :], unit or None)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_is_renormalised_over_what_may_stand_there(kind: str) -> None:
    tokenizer = KINDS[kind]()
    model = tiny_model(vocab_size=tokenizer.vocab_size)
    store = store_of(VALID, tokenizer)
    closed = ClosedWords(model, tokenizer, Lexicon(TEXTS, tokenizer))
    found = score(closed, store, context=100).token_nll
    inputs = torch.tensor([[tokenizer.eos_id, *store.tokens[:-1].tolist()]])
    with torch.no_grad():
        probabilities = model.logits(model.hidden(inputs))[0].double().softmax(-1)
    ids = tuple(store.tokens.tolist())
    allowed = [brute_force(tokenizer, ids[:place], None) for place in range(len(ids))]
    expected = [
        np.log(float(row[sorted(tokens)].sum() / row[token]))
        for row, tokens, token in zip(probabilities, allowed, ids, strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    static = score(ModelPredictor(model, tokenizer), store, context=100).token_nll
    assert (found <= static + 1e-6).all()


@pytest.mark.parametrize("history", [" \n = the", " \n = cat = \n"])
def test_the_words_of_the_vocabulary_sum_to_one(history: str) -> None:
    """A word's probability: its tokens', times what its end leaves to beginnings of others."""
    tokenizer = bpe()
    model = tiny_model(vocab_size=tokenizer.vocab_size, context=64)
    closed = ClosedWords(model, tokenizer, Lexicon(TEXTS, tokenizer))

    def nats(ids: list[int]) -> float:
        windows = sliding_windows(0, len(ids), 64, 64)
        return float(stream_nats(closed, np.array(ids), windows, 1).sum())

    known = tokenizer.encode(history)
    total = 0.0
    for word, ids in spellings(tokenizer, units(history)[-1]):
        starts = {i[0] for _, i in spellings(tokenizer, word)} if word else set()
        ways = [[*known, *ids, start] for start in starts] or [[*known, *ids]]
        total += sum(np.exp(nats(known) - nats(way)) for way in ways)
    assert total == pytest.approx(1, abs=1e-4)


def test_windows_and_batches_change_nothing_but_the_context() -> None:
    tokenizer, text = byte(), store_of(VALID * 3, byte()).tokens
    model = tiny_model(vocab_size=257)
    closed = ClosedWords(model, tokenizer, Lexicon(TEXTS, tokenizer))
    runs = [
        stream_nats(closed, text, sliding_windows(0, len(text), 8, 4), size) for size in (1, 3, 50)
    ]
    assert runs[0] == pytest.approx(runs[1], rel=1e-5)
    assert runs[0] == pytest.approx(runs[2], rel=1e-5)


def test_other_words_are_refused() -> None:
    tokenizer = byte()
    lexicon = Lexicon(TEXTS, tokenizer)
    lexicon.require(TEXTS)
    with pytest.raises(DataError, match=r"lacks 1 words of this text: 'cot'$"):
        lexicon.require([" \n = the cot \n"])
    closed = ClosedWords(tiny_model(), tokenizer, lexicon)
    with pytest.raises(DataError, match="'o' stands where no word"):
        score(closed, store_of([" \n = the cot \n"], tokenizer))


def test_the_report_has_it_beside_the_bound() -> None:
    store = store_of(TEXTS, byte())
    report = evaluated(loaded_tiny(), store, "valid", "x", EvaluationOptions(exact_words=True))
    found = report.to_plain()["conventions"]["word_perplexity_closed_vocabulary"]
    assert 1 < found < report.score.word_perplexity
    words = len(set(" ".join(TEXTS).split())) + 1
    assert f"closed vocabulary of the {words} words" in report.to_text()
