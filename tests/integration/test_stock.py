"""Our models as stock architectures: transformers' own code computes the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from infinito.config.loading import config_from_plain
from infinito.config.schema import Config
from infinito.export.stock import objections, stock_architecture, stock_config, stock_weights
from infinito.load import build_model

_VOCABULARY = 300


def config_of(**model: Any) -> Config:
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 4, "activation": "swiglu"}
    data = {"source": "python-docs", "sequence_length": 64}
    return config_from_plain({"data": data, "model": {**shape, **model}}, "test")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 2, "tie_embeddings": False, "norm_epsilon": 1e-3, "rope_theta": 500.0},
        {"qk_norm": False, "head_width": 24, "embedding_norm": False},
        {"qk_norm": False, "n_kv_heads": 1, "embedding_norm": False, "tie_embeddings": False},
    ],
)
def test_stock_code_computes_the_same_logits(changes: dict[str, Any]) -> None:
    import transformers

    config = config_of(**changes)
    assert objections(config.model) == []
    torch.manual_seed(0)
    model = build_model(config, _VOCABULARY).eval()
    for parameter in model.parameters():  # gains at 1 would hide a gain in the wrong place
        parameter.data += 0.2 * torch.randn_like(parameter) * parameter.std().nan_to_num(1).add(0.1)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    plain = stock_config(config, _VOCABULARY)
    assert plain.pop("model_type") == stock_architecture(config.model)
    stock = transformers.AutoConfig.for_model(stock_architecture(config.model), **plain)
    twin = transformers.AutoModelForCausalLM.from_config(stock).eval()
    missing, strange = twin.load_state_dict(stock_weights(config.model, weights), strict=False)
    assert strange == []
    assert missing == (["lm_head.weight"] if stock.tie_word_embeddings else [])
    tokens = torch.randint(_VOCABULARY, (2, 60))
    with torch.no_grad():
        ours, theirs = model.logits(model.hidden(tokens)), twin(tokens).logits
    assert float(ours.std()) > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"activation": "relu2"}, "model.activation: relu2"),
        ({"position": "alibi"}, "model.position: alibi"),
        ({"attention": {"kind": "l2"}}, "model.attention.kind: l2"),
        ({"attention": {"learnable_lambda": True}}, "model.attention.learnable_lambda: true"),
        ({"attention": {"lambda_init": 2.0}}, "model.attention.lambda_init: 2.0"),
        ({"moe": {"n_experts": 4}}, "model.moe.n_experts: 4"),
        ({"block": "double", "second_d_ff": 32}, "model.block: double"),
    ],
)
def test_what_stands_in_the_way_is_named(changes: dict[str, Any], key: str) -> None:
    assert key in objections(config_of(**changes).model)
