"""Scoring a split: every token once, in the right context, whatever the batch size."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from infinito.errors import ConfigError, DataError, DivergedError
from infinito.evaluate.interval import document_words, word_perplexity_interval
from infinito.evaluate.perplexity import perplexity, score, stream_nats
from infinito.evaluate.predictor import ModelPredictor
from infinito.evaluate.windows import document_windows, second_half_windows, sliding_windows
from infinito.model.transformer import Transformer
from tests.evaluation_support import byte_tokenizer, store_of, tiny_model

TOKENIZER = byte_tokenizer()
STORE = store_of(["The cat sat.\n", "On the mat it sat, and it sat long.\n"], TOKENIZER)


@torch.no_grad()
def plain_nats(
    model: Transformer, tokens: list[int], eos: int, context: int, stride: int
) -> list[float]:
    """The slow twin: one forward pass a token, its window found by arithmetic."""
    model.eval()
    nats = []
    for position, token in enumerate(tokens):
        number = 0 if position < context else -(-(position + 1 - context) // stride)
        begin = number * stride
        read = ([eos, *tokens])[begin : position + 1]
        logits = model.logits(model.hidden(torch.tensor([read]))[0, -1])
        nats.append(F.cross_entropy(logits[None], torch.tensor([token])).item())
    return nats


@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=24),
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_windows_equal_a_slow_plain_twin(
    ids: list[int], context: int, stride: int, batch_size: int
) -> None:
    stride = min(stride, context)
    model = tiny_model()
    store = dataclasses.replace(STORE, tokens=np.array(ids, dtype=np.uint16))
    result = score(
        ModelPredictor(model, TOKENIZER),
        store,
        context=context,
        stride=stride,
        batch_size=batch_size,
    )
    expected = plain_nats(model, ids, TOKENIZER.eos_id, context, stride)
    np.testing.assert_allclose(result.token_nll, expected, rtol=1e-5, atol=1e-5)
    assert result.nll_total == pytest.approx(sum(expected), rel=1e-5)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_windows_score_each_position_once(length: int, context: int, stride: int) -> None:
    stride = min(stride, context)
    scored = [
        position
        for window in sliding_windows(0, length, context, stride)
        for position in range(window.scored_from, window.end)
    ]
    assert scored == list(range(length))
    assert all(w.end - w.begin <= context for w in sliding_windows(0, length, context, stride))


def test_stride_one_equals_token_by_token() -> None:
    model, tokens = tiny_model(), STORE.tokens.tolist()
    result = score(ModelPredictor(model, TOKENIZER), STORE, context=6, stride=1)
    expected = []
    for position in range(len(tokens)):
        read = ([TOKENIZER.eos_id, *tokens])[max(0, position - 5) : position + 1]
        losses = model.token_losses(
            torch.tensor([read]), torch.tensor([[-100] * (len(read) - 1) + [tokens[position]]])
        )
        expected.append(losses[0, -1].item())
    np.testing.assert_allclose(result.token_nll, expected, rtol=1e-5, atol=1e-5)


def test_a_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.embedding.weight.zero_()
    result = score(ModelPredictor(model, TOKENIZER), STORE)
    assert result.token_perplexity == pytest.approx(257, rel=1e-6)
    assert result.loss == pytest.approx(math.log(257), rel=1e-7)


@pytest.mark.row("E-02")
def test_the_total_does_not_depend_on_the_batch_size() -> None:
    model = tiny_model()
    totals = [
        score(ModelPredictor(model, TOKENIZER), STORE, batch_size=size).nll_total
        for size in (1, 3, 4, 16)
    ]
    assert totals == pytest.approx([totals[0]] * 4, rel=1e-6)


def test_all_units_tell_of_the_same_total() -> None:
    result = score(ModelPredictor(tiny_model(), TOKENIZER), STORE)
    assert (result.n_tokens, result.n_words, result.n_bytes) == (51, 14, 49)
    assert result.n_tokens * math.log(result.token_perplexity) == pytest.approx(result.nll_total)
    assert result.n_words * math.log(result.word_perplexity) == pytest.approx(result.nll_total)
    assert result.n_bytes * result.bits_per_byte * math.log(2) == pytest.approx(result.nll_total)
    assert perplexity(1e6, 1) == perplexity(1.0, 0) == math.inf


def test_defaults_are_the_training_length_and_half_of_it() -> None:
    result = score(ModelPredictor(tiny_model(context=8), TOKENIZER), STORE)
    assert (result.context, result.stride) == (8, 4)
    assert result == score(
        ModelPredictor(tiny_model(context=8), TOKENIZER), STORE, context=8, stride=4
    )


def test_random_state_and_mode_are_left_alone() -> None:
    model = tiny_model(dropout=0.5, word_dropout=0.2).train()
    model.blocks[1].eval()
    before = torch.get_rng_state()
    first = score(ModelPredictor(model, TOKENIZER), STORE).nll_total
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert model.blocks[0].training
    assert not model.blocks[1].training
    assert first == score(ModelPredictor(model, TOKENIZER), STORE).nll_total  # no dropout was drawn


def test_a_model_can_still_be_trained_after_scoring() -> None:
    model = tiny_model().train()
    score(ModelPredictor(model, TOKENIZER), STORE)
    tokens = torch.tensor([[1, 2, 3]])
    model(tokens, tokens).nats.backward()
    assert model.embedding.weight.grad is not None


@pytest.mark.parametrize(
    "settings", [{"context": 0}, {"stride": 0}, {"context": 4, "stride": 5}, {"batch_size": 0}]
)
def test_senseless_windows_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        score(ModelPredictor(tiny_model(), TOKENIZER), STORE, **settings)  # type: ignore[arg-type]


def test_learned_positions_limit_the_context() -> None:
    with pytest.raises(ConfigError, match="8 learned positions"):
        score(ModelPredictor(tiny_model(position="learned"), TOKENIZER), STORE, context=9)
    assert score(ModelPredictor(tiny_model(), TOKENIZER), STORE, context=9).context == 9


def test_an_empty_text_and_broken_weights_are_told() -> None:
    empty = dataclasses.replace(STORE, tokens=np.array([], dtype=np.uint16))
    with pytest.raises(DataError):
        score(ModelPredictor(tiny_model(), TOKENIZER), empty)
    model = tiny_model()
    with torch.no_grad():
        model.embedding.weight[5, 0] = math.nan
    with pytest.raises(DivergedError):
        score(ModelPredictor(model, TOKENIZER), STORE)


def test_documents_alone_do_not_see_each_other() -> None:
    model, store = tiny_model(), STORE
    other = store_of(["The dog ran.\n", "On the mat it sat, and it sat long.\n"], TOKENIZER)
    second = int(store.document_starts[1])
    nats = []
    for text in (store, other):
        windows = document_windows(text.document_starts.tolist(), len(text.tokens), 8, 4)
        nats.append(stream_nats(ModelPredictor(model, TOKENIZER), text.tokens, windows, 3))
    assert not np.allclose(nats[0][:second], nats[1][:second])
    np.testing.assert_allclose(nats[0][second:], nats[1][second:], rtol=1e-5)


def test_second_halves_follow_the_arithmetic_of_llama_cpp() -> None:
    windows = list(second_half_windows(21, 8))
    assert [list(range(w.scored_from, w.end)) for w in windows] == [[5, 6, 7], [13, 14, 15]]
    model, tokens = tiny_model(), STORE.tokens[:21]
    nats = stream_nats(ModelPredictor(model, TOKENIZER), tokens, windows, 2, restart=True)
    inputs = torch.tensor([[TOKENIZER.eos_id, *tokens[9:15].tolist()]])
    targets = torch.tensor([tokens[9:16].tolist()])
    expected = model.token_losses(inputs, targets)[0, -3:].numpy()
    np.testing.assert_allclose(nats[13:16], expected, rtol=1e-5)


def test_the_interval_surrounds_the_score_and_repeats() -> None:
    documents = [f"{'word ' * (number % 5 + 2)}{number}\n" for number in range(12)]
    store = store_of(documents, TOKENIZER)
    result = score(ModelPredictor(tiny_model(), TOKENIZER), store)
    assert document_words(store, TOKENIZER).sum() == store.n_words
    interval = word_perplexity_interval(result.token_nll, store, TOKENIZER)
    assert interval is not None
    assert interval[0] < result.word_perplexity < interval[1]
    assert interval == word_perplexity_interval(result.token_nll, store, TOKENIZER)
    assert word_perplexity_interval(result.token_nll, STORE, TOKENIZER) is None
