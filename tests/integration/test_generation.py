"""The decoding engine with real models and tokenizers (catalogue rows G-01 to G-10)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from infinito.config.model_config import ModelConfig
from infinito.config.schema import TokenizerConfig
from infinito.errors import DivergedError
from infinito.generate.engine import Sample, generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.model.transformer import Transformer
from infinito.tokenizer.tokenizer import Tokenizer, train_tokenizer

CONTEXT = 16
TEXT = "the cat <unk> sat on the mat .\nthe dog , a <unk> one , saw the cat .\n"


def tokenizer_of(kind: str) -> Tokenizer:
    settings: dict[str, Any] = {"kind": kind, "vocab_size": 280 if kind == "bpe" else None}
    return train_tokenizer(TokenizerConfig(**settings), [TEXT * 3])


def model_of(tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> Transformer:
    torch.manual_seed(seed)
    config = ModelConfig(**{"d_model": 32, "n_layers": 2, "n_heads": 4, **changes})
    model = Transformer(config, tokenizer.vocab_size, CONTEXT)
    with torch.no_grad():  # an untrained model is nearly uniform; make its choices definite
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of("byte")


@pytest.fixture(scope="module")
def endless() -> Tokenizer:
    """Bytes whose last id does not end a sample, so that lengths are certain."""
    tokenizer = tokenizer_of("byte")
    tokenizer.per_line_eos = True
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    return model_of(tokenizer)


def run(
    model: Transformer, tokenizer: Tokenizer, prompt: str = "the cat", **options: Any
) -> list[Sample]:
    twin = options.pop("use_cache", True)
    config = SamplingConfig(**{"max_new_tokens": 24, **options})
    return generate(model, tokenizer, tokenizer.encode(prompt), config, use_cache=twin)


VARIANTS = [
    {"position": "rope"},
    {"position": "learned"},
    {"position": "alibi"},
    {"position": "rope", "n_kv_heads": 2, "activation": "swiglu", "qk_norm": False},
    {"position": "rope", "tie_embeddings": False, "dropout": 0.3},
]


@pytest.mark.row("G-10")
@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("prompt", ["", "the cat", "the cat sat on the mat and " * 3])
def test_cache_equals_plain_decoding_far_past_the_context(
    changes: dict[str, Any], prompt: str, endless: Tokenizer
) -> None:
    model = model_of(endless, **changes)
    options = {"temperature": 0, "max_new_tokens": 5 * CONTEXT, "repetition_penalty": 1.3}
    fast, plain = (run(model, endless, prompt, **options, use_cache=c) for c in (True, False))
    assert fast == plain
    assert len(fast[0].ids) == 5 * CONTEXT
    assert len(set(fast[0].ids)) > 8, "a constant text would prove nothing"


@pytest.mark.row("G-10")
def test_cache_equals_plain_decoding_of_a_batch(model: Transformer, endless: Tokenizer) -> None:
    options = {"num_samples": 3, "max_new_tokens": 3 * CONTEXT, "temperature": 1.0}
    fast, plain = (run(model, endless, **options, use_cache=c) for c in (True, False))
    assert fast == plain


def test_full_context_keeps_its_last_half(model: Transformer, tokenizer: Tokenizer) -> None:
    """The first token past the context is what a fresh model says of the last half."""
    ids = tokenizer.encode("abcdefghijklmnop")  # with the eos in front: one more than fits
    with torch.inference_mode():
        states = model.hidden(torch.tensor([ids[-CONTEXT // 2 :]]))
        expected = int(model.logits(states[0, -1]).argmax())
    config = SamplingConfig(max_new_tokens=1, temperature=0, repetition_penalty=1)
    assert generate(model, tokenizer, ids, config)[0].ids == [expected]


@pytest.mark.row("G-01")
def test_same_seed_same_text_other_seed_other_text(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    torch.manual_seed(1)
    first = run(model, tokenizer, seed=5)
    torch.manual_seed(2)
    assert run(model, tokenizer, seed=5) == first
    assert run(model, tokenizer, seed=6) != first


def test_generation_leaves_torchs_random_state_alone(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    before = torch.get_rng_state()
    run(model, tokenizer)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.row("G-02")
def test_greedy_is_one_text_whatever_the_seed(model: Transformer, tokenizer: Tokenizer) -> None:
    texts = {
        run(model, tokenizer, temperature=0, seed=seed, top_p=p)[0].text
        for seed in (0, 1)
        for p in (0.1, 1.0)
    } | {run(model, tokenizer, top_k=1, seed=seed)[0].text for seed in (0, 1)}
    assert len(texts) == 1


def test_greedy_takes_the_lowest_id_of_equals(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    with torch.no_grad():
        model.final_norm.weight.zero_()
    assert run(model, tokenizer, temperature=0, repetition_penalty=1)[0].ids == [0] * 24


def test_a_sample_does_not_depend_on_how_many_there_are(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = run(model, tokenizer, num_samples=5)
    assert len({sample.text for sample in many}) > 1
    assert run(model, tokenizer, num_samples=1) == many[:1]
    monkeypatch.setattr("infinito.generate.engine._GROUP", 2)
    assert run(model, tokenizer, num_samples=5) == many


@pytest.mark.row("G-03")
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 10**6},
        {"top_k": 0, "top_p": 1.0},
        {"top_p": 0.0},
        {"top_p": 1e-9},
        {"temperature": 1e-6},
        {"temperature": 1e6},
        {"repetition_penalty": 1e6},
        {"min_p": 1.0},
        {"no_repeat_ngram_size": 1, "max_new_tokens": 300},
        {"max_new_tokens": 4 * CONTEXT},
    ],
)
def test_extreme_legal_values(
    model: Transformer, tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    (sample,) = run(model, tokenizer, **options)
    assert sample.ids
    assert all(0 <= identifier < tokenizer.vocab_size for identifier in sample.ids)


@pytest.mark.row("G-05")
def test_no_new_tokens(model: Transformer, tokenizer: Tokenizer) -> None:
    assert run(model, tokenizer, max_new_tokens=0) == [Sample([], "", "length")]


def test_no_ngram_is_repeated(model: Transformer, tokenizer: Tokenizer) -> None:
    prompt = "the cat"
    plain = run(model, tokenizer, prompt, temperature=0, repetition_penalty=1, max_new_tokens=80)
    (sample,) = run(
        model, tokenizer, prompt, temperature=0, repetition_penalty=1,
        no_repeat_ngram_size=2, max_new_tokens=80,
    )  # fmt: skip
    ids = tokenizer.encode(prompt) + sample.ids
    pairs = list(itertools.pairwise(ids))
    assert len(pairs) == len(set(pairs))
    assert sample != plain[0]


@pytest.mark.row("G-11")
def test_repetition_penalty_reaches_the_prompt_but_not_the_eos(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer)
    plain = run(model, tokenizer, temperature=0, repetition_penalty=1)[0].ids
    prompt = bytes(x for x in plain if x < 128).decode()
    penalised = run(model, tokenizer, prompt, temperature=0, repetition_penalty=1e6)[0].ids
    assert not set(penalised) & set(prompt.encode())


def biased(tokenizer: Tokenizer, texts: dict[int, float]) -> Transformer:
    """A model whose logits are the same at every position: constant, plus ``texts``."""
    model = model_of(tokenizer, tie_embeddings=False)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.embedding.weight.fill_(1.0)
        assert model.head is not None
        model.head.weight.zero_()
        for identifier, bias in texts.items():
            model.head.weight[identifier] = bias / model.config.d_model
    return model


def test_end_of_document_ends_a_sample(tokenizer: Tokenizer) -> None:
    model = biased(tokenizer, {tokenizer.eos_id: 50.0})
    assert run(model, tokenizer) == [Sample([tokenizer.eos_id], "", "eos")]


def test_line_ends_never_end_a_sample() -> None:
    tokenizer = tokenizer_of("word")
    model = biased(tokenizer, {tokenizer.eos_id: 50.0})
    (sample,) = run(model, tokenizer)
    assert (sample.text, sample.finish_reason) == ("\n" * 24, "length")


@pytest.mark.parametrize("prompt", ["", "\n"])
def test_line_ends_are_not_penalised(prompt: str) -> None:
    tokenizer = tokenizer_of("word")
    model = biased(tokenizer, {tokenizer.eos_id: 50.0, tokenizer.encode("cat")[0]: 40.0})
    options = {"temperature": 0, "repetition_penalty": 2, "max_new_tokens": 3}
    assert run(model, tokenizer, prompt, **options)[0].text == "\n\n\n"


def test_a_character_that_was_never_completed_is_shown_as_such(tokenizer: Tokenizer) -> None:
    model = biased(tokenizer, {"€".encode()[0]: 50.0})
    assert run(model, tokenizer, max_new_tokens=1)[0].text == "\ufffd"


@pytest.mark.parametrize("kind", ["bpe", "word", "byte"])
def test_unknown_is_never_written_unless_asked_for(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    wanted = set(tokenizer.encode(" <unk>") + tokenizer.encode("<unk>"))
    model = biased(tokenizer, dict.fromkeys(wanted, 4.0))
    options = {"max_new_tokens": 300, "num_samples": 4, "repetition_penalty": 1, "top_k": 0}
    texts = [sample.text for sample in run(model, tokenizer, "", **options)]
    allowed = [sample.text for sample in run(model, tokenizer, "", allow_unknown=True, **options)]
    assert not any("<unk>" in text for text in texts)
    assert kind == "byte" or any("<unk>" in text for text in allowed)


def test_a_prompt_that_begins_unknown_is_not_completed_to_it(tokenizer: Tokenizer) -> None:
    model = biased(tokenizer, {ord(">"): 50.0, ord("x"): 40.0})
    options = {"temperature": 0, "repetition_penalty": 1, "max_new_tokens": 2}
    assert run(model, tokenizer, "<unk", **options)[0].text == "x>"
    assert run(model, tokenizer, "<unk", allow_unknown=True, **options)[0].text == ">>"


def test_stop_text_is_cut_off_across_token_borders(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    (whole,) = run(model, tokenizer, temperature=0)
    stop = whole.text[5:9]
    (sample,) = run(model, tokenizer, temperature=0, stop=("never there", stop))
    assert sample.finish_reason == "stop"
    assert sample.text == whole.text[: whole.text.index(stop)]
    assert len(sample.ids) < len(whole.ids)


def test_streamed_pieces_join_to_the_text(tokenizer: Tokenizer) -> None:
    euro = "€".encode()
    model = biased(tokenizer, dict.fromkeys(euro, 6.0))
    pieces: dict[int, str] = {0: "", 1: ""}

    def take(index: int, piece: str) -> None:
        pieces[index] += piece

    config = SamplingConfig(max_new_tokens=60, num_samples=2, stop=("€€€",), repetition_penalty=1)
    samples = generate(model, tokenizer, [], config, take)
    assert [pieces[0], pieces[1]] == [sample.text for sample in samples]
    assert "€" in pieces[0] + pieces[1]


@pytest.mark.row("G-09")
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_told(tokenizer: Tokenizer, broken: float, temperature: float) -> None:
    model = model_of(tokenizer)
    with torch.no_grad():
        model.embedding.weight[5, 3] = broken
    with pytest.raises(DivergedError, match="not finite"):
        run(model, tokenizer, temperature=temperature)


def test_model_is_left_as_it_was_and_can_be_trained_on(tokenizer: Tokenizer) -> None:
    model = model_of(tokenizer, dropout=0.5).train()
    assert run(model, tokenizer, seed=3) == run(model, tokenizer, seed=3)
    assert model.training
    tokens = torch.arange(CONTEXT)[None]
    model(tokens, tokens).nats.backward()
    assert model.embedding.weight.grad is not None
