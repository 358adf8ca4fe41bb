"""Which of our models are a stock architecture, and what their weights are called there.

A transformer with SwiGLU, RoPE and dot products is Qwen3 (with query/key norms, Yang et al. 2025)
or Llama (without; Touvron et al. 2023), whose layers differ from ours in names alone. They do not
normalise embeddings: the norm of a row depends on nothing else, so the input table is stored
normalised, apart from the output matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infinito.config.model_config import ModelConfig
from infinito.config.schema import Config

if TYPE_CHECKING:
    from torch import Tensor

_OUTER = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_INNER = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}


def objections(model: ModelConfig) -> list[str]:
    """The keys, with their values, for which a model is no stock architecture; none: it is."""
    attention, moe = model.attention, model.moe
    found = {
        "model.block": (model.block, model.block == "standard"),
        "model.activation": (model.activation, model.activation == "swiglu"),
        "model.position": (model.resolved_position, model.resolved_position == "rope"),
        "model.attention.kind": (attention.kind, attention.kind == "dot"),
        "model.attention.learnable_lambda": ("true", not attention.has_lambda),
        "model.attention.lambda_init": (attention.lambda_init, attention.lambda_init == 1),
        "model.moe.n_experts": (moe.n_experts, moe.n_experts < 2),
    }
    return [f"{key}: {value}" for key, (value, is_stock) in found.items() if not is_stock]


def gguf_objections(config: Config) -> list[str]:
    """The same for llama.cpp, which has no tokenizers of ours but pair codes."""
    kind = config.tokenizer.kind
    return objections(config.model) + ([] if kind == "bpe" else [f"tokenizer.kind: {kind}"])


def stock_architecture(model: ModelConfig) -> str:
    """What transformers and llama.cpp call a model without :func:`objections`."""
    return "qwen3" if model.qk_norm else "llama"


def stock_name(name: str) -> str:
    """Our name of a weight -> the stock one: ``blocks.0.attention.key.weight`` and so on."""
    path, _, kind = name.rpartition(".")
    if not path.startswith("blocks."):
        return f"{_OUTER[path]}.{kind}"
    _, layer, inner = path.split(".", 2)
    return f"model.layers.{layer}.{_INNER[inner]}.{kind}"


def tied_in_stock(model: ModelConfig) -> bool:
    """Whether one table serves input and output there, too."""
    return model.tie_embeddings and not model.embedding_norm


def stock_weights(model: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights {name: tensor} under stock names, the embedding norm folded into its table."""
    import torch.nn.functional as F

    table, gain = weights["embedding.weight"], weights.get("embedding_norm.weight")
    renamed = {stock_name(n): w for n, w in weights.items() if n != "embedding_norm.weight"}
    if gain is not None:
        normalised = F.rms_norm(table, gain.shape, gain, model.norm_epsilon)
        renamed[stock_name("embedding.weight")] = normalised
    if model.tie_embeddings and not tied_in_stock(model):
        renamed[stock_name("head.weight")] = table
    return renamed


def stock_config(config: Config, vocab_size: int) -> dict[str, Any]:
    """``config.json`` of the stock architecture, without the ids of special tokens."""
    model = config.model
    architecture = stock_architecture(model)
    return {
        "architectures": [f"{architecture.capitalize()}ForCausalLM"],
        "model_type": architecture,
        "vocab_size": vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.resolved_d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.resolved_kv_heads,
        "head_dim": model.d_head,
        "hidden_act": "silu",
        "max_position_embeddings": config.data.sequence_length,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": tied_in_stock(model),
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }
