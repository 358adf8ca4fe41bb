"""The self-test passes honest models of every shape and finds leaks of several kinds."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infinito.attention import KINDS
from infinito.config.loading import config_from_plain
from infinito.errors import CheckpointError, DivergedError
from infinito.evaluate.causality import check_causality
from infinito.evaluate.evaluation import EvaluationOptions
from infinito.model import attention
from infinito.model.block import Block
from infinito.runtime.precision import autocast
from infinito.runtime.random import fixed_draws
from infinito.train.trainer import Trainer
from tests.evaluation_support import evaluated, loaded_tiny, store_of, tiny_model
from tests.support import tiny_settings

Leaks = Callable[[Tensor, Tensor], Tensor]


def leak(monkeypatch: pytest.MonkeyPatch, visible: Leaks, when: Callable[..., bool]) -> None:
    """Attention that also sees ``visible(row, key)`` whenever ``when(query, dropout_p)``."""

    def leaky(q: Tensor, k: Tensor, v: Tensor, *_: Any, dropout_p: float, **__: Any) -> Tensor:
        row, key = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None, :]
        mask = key <= row
        if when(q, dropout_p):
            mask = mask | visible(row, key)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    monkeypatch.setattr(attention, "distance_attention", leaky)


def always(*_: Any) -> bool:
    return True


@pytest.mark.parametrize("position", ["rope", "alibi", "learned"])
@pytest.mark.parametrize("heads", [1, 2])
def test_honest_models_pass_and_stay_as_they_were(position: str, heads: int) -> None:
    model = tiny_model(position=position, n_kv_heads=heads, dropout=0.3).train()
    before = torch.get_rng_state()
    check_causality(model)
    check_causality(model, training=True)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])
def test_earlier_bits_stay_in_every_kind_precision_and_back_end(
    precision: str, kind: str, backend: str
) -> None:
    model = tiny_model(
        context=200, dropout=0.2, word_dropout=0.1, position="alibi" if kind == "l1" else "rope",
        attention={"kind": kind, "backend": backend, "learnable_lambda": kind != "dot"},
    )  # fmt: skip
    model.checkpoint_activations = kind == "l2"
    with autocast(precision, "cpu"):
        check_causality(model)
        check_causality(model, training=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["dot", "l2sq", "cosine"])
def test_earlier_bits_stay_in_the_fused_kernel_of_torch(precision: str, kind: str) -> None:
    model = tiny_model(context=200, attention={"kind": kind, "backend": "sdpa"})
    with autocast(precision, "cpu"):
        check_causality(model)


def test_a_context_of_two_is_enough() -> None:
    check_causality(tiny_model(context=2))
    check_causality(tiny_model(), 1)


def test_an_attention_without_mask_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    leak(monkeypatch, lambda row, key: key > row, always)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attention.*kind dot"):
        check_causality(tiny_model())


@pytest.mark.parametrize("first", [16, 32, 64, 128])
@pytest.mark.parametrize(
    "visible",
    [
        lambda row, key, first: (row >= first) & (key > row),
        lambda row, key, first: (row >= first) & (key // first == row // first),  # its own tile
        lambda row, key, first: (row == first - 1) & (key == first),  # across one border
    ],
)
def test_a_leak_that_begins_at_a_tiles_border_is_found(
    first: int, visible: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    leak(monkeypatch, lambda row, key: visible(row, key, first), always)
    check_causality(tiny_model(context=first))  # a shorter text cannot show it
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attention"):
        check_causality(tiny_model(context=256))


def test_an_evaluation_tests_as_far_as_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    leak(monkeypatch, lambda row, key: row >= 64, always)
    loaded = loaded_tiny()
    text = store_of(["a text of some words .\n" * 9], loaded.tokenizer)
    evaluated(loaded, text, "valid", "x", EvaluationOptions(context=64))
    with pytest.raises(CheckpointError, match="causality"):
        evaluated(loaded, text, "valid", "x", EvaluationOptions(context=128))


@pytest.mark.parametrize(
    "when",
    [
        lambda query, dropout_p: dropout_p > 0,
        lambda query, dropout_p: torch.is_grad_enabled(),
        lambda query, dropout_p: query.dtype == torch.bfloat16 and dropout_p > 0,
    ],
)
def test_a_leak_of_the_training_route_alone_ends_a_training(
    when: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    leak(monkeypatch, lambda row, key: (row >= 64) & (key > row), when)
    plain = tiny_settings(
        tmp_path, training__precision="bfloat16", model__dropout=0.1, data__sequence_length=96
    )
    with pytest.raises(CheckpointError, match="causality"):
        Trainer(config_from_plain(plain, "test"))


def test_a_leak_under_autocast_alone_is_found_there(monkeypatch: pytest.MonkeyPatch) -> None:
    leak(monkeypatch, lambda row, key: key > row, lambda q, _: q.dtype == torch.bfloat16)
    model = tiny_model(context=64)
    check_causality(model)
    with pytest.raises(CheckpointError), autocast("bfloat16", "cpu"):
        check_causality(model)


def test_a_leak_of_one_position_is_found_and_named() -> None:
    model = tiny_model()
    model.blocks[1].feed_forward.register_forward_hook(
        lambda _module, _input, output: output + torch.roll(output, -1, dims=1)
    )
    with pytest.raises(CheckpointError, match=r"FeedForward blocks\.1\.feed_forward"):
        check_causality(model)


def test_broken_weights_are_not_called_a_leak() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.final_norm.weight[0] = math.nan
    with pytest.raises(DivergedError):
        check_causality(model)


@pytest.mark.parametrize("rows", [1, 5, 30])
def test_a_pass_of_several_rows_finds_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(context=256, dropout=0.2)
    check_causality(model, 256, rows=rows, training=True)
    leak(monkeypatch, lambda row, key: (row == 127) & (key == 128), always)
    with pytest.raises(CheckpointError, match=r"from 128 on .* blocks\.0\.attention"):
        check_causality(model, 256, rows=rows, training=True)


def test_a_leak_of_compiled_blocks_makes_the_run_eager(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, notes: list[str]
) -> None:
    def leaky_compile(block: nn.Module) -> None:
        block._compiled_call_impl = lambda x, _: block.forward(x) + x.flip(1)

    monkeypatch.setattr(Block, "compile", leaky_compile)
    plain = tiny_settings(tmp_path, training__fusion="aggressive")
    trainer = Trainer(config_from_plain(plain, "test"))
    assert any("eager, because compiling failed (causality" in note for note in notes)
    check_causality(trainer.model)


@pytest.mark.parametrize("training", [False, True])
def test_its_cost_is_what_it_says(training: bool) -> None:
    model = tiny_model(context=1024, d_model=64)
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    logits = 2 * 200 * 257 * 64  # once, to see that they are finite
    attention_products = 13 * 2 * 4 * 200**2 * 64
    with FlopCounterMode(display=False) as counter:
        check_causality(model, training=training)
    counted = counter.get_total_flops()
    assert 0.9 * 5200 * matrices < counted
    assert counted <= 5200 * matrices + logits + attention_products


def test_the_generator_of_an_apple_gpu_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    put_back: list[Tensor] = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.mps, "set_rng_state", put_back.append)
    with fixed_draws(1, "mps:0"):
        first = torch.rand(3)
    with fixed_draws(1, "cpu"):
        assert torch.equal(first, torch.rand(3))
    assert put_back == [torch.tensor([7])]
