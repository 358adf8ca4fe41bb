"""Counts from the config equal the model built and torch's own FLOP counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infinito.config.schema import AttentionConfig, ModelConfig
from infinito.model.count import count_flops, count_parameters
from infinito.model.transformer import Transformer

SHAPES: list[dict[str, Any]] = [
    {},
    {"activation": "swiglu", "n_kv_heads": 2},
    {"position": "learned", "tie_embeddings": False, "qk_norm": False, "d_ff": 40},
    {"position": "alibi", "activation": "gelu", "n_layers": 3},
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
    matrices = {n: p.numel() for n, p in model.blocks.named_parameters() if p.ndim == 2}
    assert count.attention == sum(v for n, v in matrices.items() if ".attention." in n)
    assert count.feed_forward == sum(v for n, v in matrices.items() if ".feed_forward." in n)


@pytest.mark.parametrize("changes", SHAPES[:-1])  # a distance is no matrix product
def test_flops_equal_those_that_torch_counts(changes: dict[str, Any]) -> None:
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
        model.loss(tokens, tokens).backward()
    # torch does not count a product into a buffer: here, the loss's gradient in the hidden states.
    assert counter.get_total_flops() == count.training - count.head
