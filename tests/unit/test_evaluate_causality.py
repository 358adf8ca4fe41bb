"""The self-test passes honest models of every shape and finds leaks of several kinds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infinito.errors import CheckpointError, DivergedError
from infinito.evaluate.causality import check_causality
from infinito.model import attention
from tests.evaluation_support import tiny_model


@pytest.mark.parametrize("position", ["rope", "alibi", "learned"])
@pytest.mark.parametrize("heads", [1, 2])
def test_honest_models_pass_and_stay_as_they_were(position: str, heads: int) -> None:
    model = tiny_model(position=position, n_kv_heads=heads, dropout=0.3).train()
    before = torch.get_rng_state()
    check_causality(model)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training


def test_a_context_of_two_is_enough() -> None:
    check_causality(tiny_model(context=2))


def test_an_attention_without_mask_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(attention, "distance_attention", leaky)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.attention.*kind dot"):
        check_causality(tiny_model())


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
