"""Counts from the config equal the model built and torch's own FLOP counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infinito.config.loading import load_config
from infinito.config.model_config import AttentionConfig, ModelConfig
from infinito.load import build_model
from infinito.model import experts
from infinito.model.count import count_flops, count_parameters
from infinito.model.transformer import Transformer
from tests.support import ROOT

SHAPES: list[dict[str, Any]] = [
    {},
    {"activation": "swiglu", "n_kv_heads": 2},
    {"position": "learned", "tie_embeddings": False, "qk_norm": False, "d_ff": 40},
    {"position": "alibi", "activation": "gelu", "n_layers": 3},
    {"moe": {"n_experts": 5, "top_k": 2, "n_shared": 1}, "activation": "swiglu", "d_ff": 48},
    {"moe": {"n_experts": 3, "top_k": 1}},
    {"block": "double", "second_d_ff": 24, "position": "learned", "learned_positions": 40},
    {"attention": AttentionConfig(kind="l1", backend="reference")},
]


def config_of(changes: dict[str, Any]) -> ModelConfig:
    return ModelConfig(**{"d_model": 32, "n_layers": 2, "n_heads": 4, **changes})


@pytest.mark.parametrize("changes", SHAPES)
def test_parameters_equal_those_of_the_model(changes: dict[str, Any]) -> None:
    config = config_of(changes)
    model = Transformer(config, 100, 24)
    count = count_parameters(config, 100, 24)
    assert count.total == sum(p.numel() for p in model.parameters())
    inner = {n: p.numel() for n, p in model.blocks.named_parameters() if "norm" not in n}
    lambdas = sum(v for n, v in inner.items() if "lambda" in n)
    assert count.lambdas == lambdas
    assert count.attention == sum(v for n, v in inner.items() if ".attention." in n) - lambdas
    assert count.feed_forward == sum(v for n, v in inner.items() if "feed_forward." in n)
    experts = config.moe.n_experts
    passed = [
        n for n in inner if int((n + ".experts.0").split(".experts.")[1][0]) < config.moe.top_k
    ]
    assert count.active == count.total - sum(inner.values()) + sum(inner[n] for n in passed)
    assert (count.active < count.total) == (experts > 1)


@pytest.mark.parametrize("count", [5_769_730, 31_777_796, 30_857_730])
def test_a_preset_has_each_published_count(count: int) -> None:
    """The counts that were published; the model built has as many as its config counts."""
    configs = [load_config(path) for path in sorted((ROOT / "configs").glob("legacy-*.yaml"))]
    assert len(configs) == 3
    found = {}
    for config in configs:
        assert config.tokenizer.vocab_size is not None
        with torch.device("meta"):
            model = build_model(config, config.tokenizer.vocab_size)
        found[sum(p.numel() for p in model.parameters())] = config
    chosen = found[count]
    assert chosen.tokenizer.vocab_size is not None
    length = chosen.data.sequence_length
    assert count_parameters(chosen.model, chosen.tokenizer.vocab_size, length).total == count


@pytest.mark.parametrize("changes", SHAPES[:-1])  # a distance is no matrix product
def test_flops_equal_those_that_torch_counts(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "_ROWS", 1)  # torch would count the products of padding
    # The reference back end is made of plain products, which torch counts like any other.
    config = config_of({"attention": AttentionConfig(backend="reference"), **changes})
    model = Transformer(config, 100, 24).train()
    tokens = torch.randint(100, (3, 24))
    count = count_flops(config, 100, 3, 24)
    counter = FlopCounterMode(display=False)
    with counter:
        model.hidden(tokens)
    assert counter.get_total_flops() == count.forward - count.head
    with counter:
        model(tokens, tokens).nats.backward()
    # torch does not count a product into a buffer: here, the loss's gradient in the hidden states.
    assert counter.get_total_flops() == count.training - count.head
