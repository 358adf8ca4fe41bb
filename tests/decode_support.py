"""Small models of every shape, for the tests of the compiled decode step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from infinito.config.model_config import ModelConfig
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.transformer import Transformer

POSITIONS = 40
PROMPT = 5
ODD: dict[str, Any] = {"d_model": 30, "n_heads": 3, "d_ff": 37}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"d_model": 64},
    "odd": ODD,
    "grouped": {"d_model": 64, "n_kv_heads": 2, "activation": "swiglu", "d_ff": 44},
    "one key head": {"d_model": 64, "n_kv_heads": 1, "activation": "gelu", "qk_norm": False},
    "untied": {"d_model": 48, "tie_embeddings": False, "dropout": 0.3, "word_dropout": 0.1},
    "wide heads": {"d_model": 272, "n_heads": 2, "n_layers": 1},
    "learned": {"d_model": 44, "position": "learned"},
    "alibi": {"d_model": 44, "position": "alibi", "n_kv_heads": 2, "activation": "gelu"},
    "sharp dot": {"d_model": 64, "attention": {"lambda_init": 1.7}},
    "learnable dot": {"d_model": 64, "attention": {"learnable_lambda": True}},
    "l1": {"d_model": 44, "n_kv_heads": 2, "attention": {"kind": "l1"}},
    "l1 learned": {"d_model": 52, "position": "learned", "attention": {"kind": "l1"}},
    "l2": {"d_model": 56, "qk_norm": False, "attention": {"kind": "l2"}},
    "l2 alibi": {"d_model": 64, "position": "alibi", "attention": {"kind": "l2"}},
    "l2sq": {"d_model": 64, "n_kv_heads": 1, "attention": {"kind": "l2sq", "lambda_init": 0.6}},
    "l2sq learned": {"d_model": 44, "position": "learned", "attention": {"kind": "l2sq"}},
    "cosine": {"d_model": 64, "qk_norm": False, "attention": {"kind": "cosine"}},
    "cosine odd": {
        **ODD,
        "position": "alibi",
        "attention": {"kind": "cosine", "learnable_lambda": False, "lambda_init": 2.5},
    },
    "experts": {"d_model": 56, "d_ff": 37, "moe": {"n_experts": 5, "top_k": 2}},
    "one expert of three": {
        "d_model": 64,
        "d_ff": 50,
        "activation": "swiglu",
        "attention": {"kind": "l1"},
        "moe": {"n_experts": 3, "top_k": 1, "n_shared": 2},
    },
    "double": {"d_model": 56, "block": "double", "second_d_ff": 50, "tie_embeddings": False},
    "double l1": {
        "block": "double",
        "second_d_ff": 37,
        "activation": "swiglu",
        "position": "learned",
        "learned_positions": 50,
        "attention": {"kind": "l1"},
    },
}


def build(vocab_size: int = 300, **options: Any) -> Transformer:
    """A model whose logits are definite and whose gains are not all 1."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{"n_layers": 2, **options}), vocab_size, POSITIONS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape), alpha=0.3)
            else:
                parameter.mul_(2)
    return model


def prompted(model: Transformer, tokens: Tensor) -> KeyValueCache:
    cache = model.new_cache(len(tokens), POSITIONS)
    model.hidden(tokens[:, :PROMPT], cache)
    return cache


def said_by(model: Transformer, column: Tensor, cache: KeyValueCache) -> Tensor:
    """Logits (B, V) of the plain twin after one token more of each sequence."""
    return model.logits(model.hidden(column[:, None], cache)[:, -1])
