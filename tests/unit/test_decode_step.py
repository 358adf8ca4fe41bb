"""The compiled decode step against its plain twin, the model with a cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from infinito.attention import KINDS, Kind
from infinito.config.schema import TokenizerConfig
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.kernels import native
from infinito.model import decode
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.packed import StoredMatrix, pack, packable, to_bfloat16, to_int8
from infinito.model.transformer import Transformer
from infinito.tokenizer.tokenizer import train_tokenizer
from tests.decode_support import POSITIONS, PROMPT, SHAPES, build, prompted, said_by

missing = decode._kernel.missing
pytestmark = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_model_up_to_the_last_position(name: str, batch: int, isa: str) -> None:
    model = build(**SHAPES[name])
    tokens = torch.randint(0, 300, (batch, POSITIONS))
    plain, ours = prompted(model, tokens), prompted(model, tokens)
    step = decode.DecodeStep(model, ours)
    for column in tokens[:, PROMPT:].unbind(1):
        expected = said_by(model, column, plain)
        with native.forced_isa(isa):
            found = step(column[:, None].tolist())
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert expected.std() > 0.05, "constant logits would prove nothing"
    assert ours.length == plain.length == POSITIONS
    torch.testing.assert_close(ours.keys, plain.keys, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.values, plain.values, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_a_prompt_in_chunks_equals_the_model(
    name: str, batch: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_ROWS", 11 * batch)  # 11 = 4 + 4 + 3: whole query tiles and not
    monkeypatch.setattr(decode, "_MOST_PORTABLE", POSITIONS)
    model = build(**SHAPES[name])
    tokens = torch.randint(0, 300, (batch, POSITIONS))
    plain, ours = prompted(model, tokens), prompted(model, tokens)
    expected = model.logits(model.hidden(tokens[:, PROMPT:], plain)[:, -1])
    step = decode.DecodeStep(model, ours)
    with native.forced_isa(isa):
        found = step(tokens[:, PROMPT:].tolist())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.keys, plain.keys, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.values, plain.values, atol=1e-4, rtol=1e-5)
    assert ours.length == POSITIONS


def test_a_prompt_that_does_not_fit_is_refused_before_it_is_read() -> None:
    model = build(d_model=32)
    step = decode.DecodeStep(model, model.new_cache(1, 4))
    with pytest.raises(AssertionError, match="no room"):
        step([[0] * 5])
    with pytest.raises(IndexError, match="vocabulary"):
        step([[0, 1, 300]])
    step([[0] * 4])


def test_lambda_is_read_at_every_step() -> None:
    model = build(**SHAPES["l1"])
    tokens = torch.randint(0, 300, (1, POSITIONS))
    step = decode.DecodeStep(model, prompted(model, tokens))
    model.blocks[1].attention.log_lambda.add_(1.0)
    plain = prompted(model, tokens)
    expected = said_by(model, tokens[:, PROMPT], plain)
    found = step(tokens[:, PROMPT : PROMPT + 1].tolist())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", ["equal to the query", "zero", "far from zero"])
def test_keys_that_are_hard_to_score(kind: Kind, keys: str) -> None:
    position = "learned" if keys == "far from zero" else "alibi"
    options = {"d_model": 44, "n_layers": 1, "position": position, "qk_norm": False}
    model = build(**options, attention={"kind": kind})
    tokens = torch.randint(0, 300, (1, POSITIONS))
    plain, ours = prompted(model, tokens), prompted(model, tokens)
    attention = model.blocks[0].attention
    with torch.no_grad():
        for cache in (plain, ours):
            if keys == "zero":
                cache.keys[:, :, :, 2] = 0
            elif keys == "far from zero":
                cache.keys += 100
            else:
                x = model.embedding(tokens[:, PROMPT : PROMPT + 1])
                x = model.blocks[0].attention_norm(model.embedding_norm(x))
                cache.keys[0, :, :, 3] = attention.project(x, PROMPT)[0][:, :, 0]
    expected = said_by(model.double(), tokens[:, PROMPT], as_double(plain)).float()
    step = decode.DecodeStep(model.float(), ours)
    found = step(tokens[:, PROMPT : PROMPT + 1].tolist())
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def as_double(cache: KeyValueCache) -> KeyValueCache:
    cache.keys, cache.values = cache.keys.double(), cache.values.double()
    return cache


@pytest.mark.parametrize("top_k", [1, 2])
def test_all_rows_to_the_same_experts(top_k: int) -> None:
    model = build(**{**SHAPES["experts"], "moe": {"n_experts": 5, "top_k": top_k}})
    tokens = torch.randint(0, 300, (6, 4))
    for block in model.blocks:  # up to a positive factor all experts are alike to the router
        router = block.feed_forward.router.weight
        router.copy_(router[:1] * torch.tensor([1.0, 4.0, 3.0, 2.0, 1.5])[:, None])
        block.feed_forward_norm.weight.zero_()[7] = 3.0  # and all rows nearly alike
    plain = model.logits(model.hidden(tokens))
    torch.testing.assert_close(decoded(model, tokens), plain, atol=1e-4, rtol=1e-5)


def test_a_row_that_is_no_number_leaves_the_experts_of_others_alone() -> None:
    model = build(**SHAPES["experts"])
    tokens = torch.randint(1, 300, (6, 4))
    expected = decoded(model, tokens)
    model.embedding.weight[0] = torch.nan
    tokens[3] = 0
    found = decoded(model, tokens)
    assert found[3].isnan().all()
    others = [0, 1, 2, 4, 5]
    assert torch.equal(found[others, :, 1:], expected[others, :, 1:])  # logit 0 has its weight


def test_a_router_that_is_no_number_reaches_the_logits() -> None:
    for top_k in (1, 2):
        model = build(**{**SHAPES["experts"], "moe": {"n_experts": 5, "top_k": top_k}})
        model.blocks[1].feed_forward.router.weight[4] = torch.nan
        step = decode.DecodeStep(model, model.new_cache(1, POSITIONS))
        assert step([[7]]).isnan().all()


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("store", [None, to_bfloat16, to_int8, partial(to_int8, group=10**6)])
@pytest.mark.parametrize("name", ["grouped", "odd", "double", "experts", "one expert of three"])
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads(
    name: str, store: Callable[[Tensor], StoredMatrix] | None, isa: str
) -> None:
    model = build(**SHAPES[name])
    if store is not None:
        pack(model, packable(model), store)
    tokens = torch.randint(0, 300, (27, 4))  # of 27 and 21, part of a vector of columns is left
    threads = torch.get_num_threads()
    try:
        with native.forced_isa(isa):
            expected = torch.cat([decoded(model, row) for row in tokens.split(1)])
            for rows, count in ((27, 3), (21, 2), (9, 2), (2, 1)):
                torch.set_num_threads(count)
                assert torch.equal(decoded(model, tokens[:rows]), expected[:rows])
    finally:
        torch.set_num_threads(threads)


def decoded(model: Transformer, tokens: Tensor) -> Tensor:
    """Logits of every token, read one at a time, by a step and a cache of their own."""
    step = decode.DecodeStep(model, model.new_cache(len(tokens), tokens.shape[1]))
    return torch.stack([step(column[:, None].tolist()) for column in tokens.unbind(1)], 1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_steps_of_several_threads_do_not_meet(two_threads: None) -> None:
    model = build(**SHAPES["plain"])
    tokens = torch.randint(0, 300, (4, 1, POSITIONS))
    expected = [decoded(model, row) for row in tokens]
    with ThreadPoolExecutor(4) as pool:  # inference mode is a matter of each thread
        found = list(pool.map(torch.inference_mode()(decoded), [model] * 4, tokens))
    for ours, alone in zip(found, expected, strict=True):
        assert torch.equal(ours, alone)


def test_a_forked_process_decodes_too(two_threads: None) -> None:
    model = build(**SHAPES["plain"])
    tokens = torch.randint(0, 300, (1, POSITIONS))
    expected = decoded(model, tokens)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(decoded(model, tokens), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_logits_stay_as_they_were_at_the_next_step() -> None:
    model = build(**SHAPES["plain"])
    step = decode.DecodeStep(model, model.new_cache(1, POSITIONS))
    first = step([[1]])
    before = first.clone()
    step([[2]])
    assert torch.equal(first, before)


@pytest.mark.parametrize("activation", ["relu2", "gelu", "swiglu"])
@pytest.mark.parametrize("place", ["embedding.weight", "blocks.0.feed_forward.up.weight"])
def test_a_weight_that_is_no_number_reaches_the_logits(activation: str, place: str) -> None:
    model = build(d_model=32, activation=activation)
    model.get_parameter(place)[7] = torch.nan
    step = decode.DecodeStep(model, model.new_cache(1, POSITIONS))
    assert step([[7]]).isnan().any()


def test_a_token_outside_the_vocabulary_is_refused_and_a_full_cache_too() -> None:
    model = build(d_model=32)
    cache = model.new_cache(1, 2)
    step = decode.DecodeStep(model, cache)
    for token in (-1, 300):
        with pytest.raises(IndexError, match="vocabulary"):
            step([[token]])
    assert cache.length == 0
    step([[0]])
    step([[299]])
    with pytest.raises(AssertionError, match="no room"):
        step([[0]])


def test_what_it_does_not_know_it_does_not_support() -> None:
    assert decode.objection(build(d_model=32)) is None
    assert decode.objection(build(d_model=32).train()) == "the model is in training"
    assert "float64" in str(decode.objection(build(d_model=32).double()))
    stranger = build(d_model=32)
    stranger.blocks[1].attention.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    assert "blocks.1.attention.extra" in str(decode.objection(stranger))
    with torch.autocast("cpu", torch.bfloat16):
        assert decode.objection(build(d_model=32)) == "autocast is on"


@pytest.mark.parametrize("samples", [1, 3])
def test_the_engine_writes_the_same_with_and_without_it(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), [])
    tokenizer.per_line_eos = True  # then no id ends a sample, and lengths are certain
    model = build(257, **SHAPES["plain"])
    calls = []
    original = decode.DecodeStep.__call__

    def counted(self: decode.DecodeStep, tokens: list[list[int]]) -> Tensor:
        if len(tokens[0]) == 1:
            calls.append(tokens)
        return original(self, tokens)

    monkeypatch.setattr(decode.DecodeStep, "__call__", counted)
    config = SamplingConfig(max_new_tokens=64, temperature=0, num_samples=samples)
    fast = generate(model, tokenizer, [1, 2, 3], config)
    # All but the prompt, and the half that is encoded again when the context is full.
    assert len(calls) >= 60
    assert len(calls[-1]) == samples
    monkeypatch.setattr(decode._kernel, "missing", "not today")
    assert generate(model, tokenizer, [1, 2, 3], config) == fast
    assert len(fast) == samples
    assert len(set(fast[0].ids)) > 8, "a constant text would prove nothing"
