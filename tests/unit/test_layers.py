"""Dropout masks: their rate, their scale, their gradient, their generator."""

from __future__ import annotations

import pytest
import torch

from infinito.kernels.plain import dropout, keep_mask
from infinito.model.layers import Dropout


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
def test_keep_mask_has_its_rate(probability: float) -> None:
    torch.manual_seed(0)
    mask = keep_mask(torch.Size((1000, 1001)), probability, torch.device("cpu"))
    deviation = (probability * (1 - probability) / mask.numel()) ** 0.5
    assert abs(mask.float().mean().item() - (1 - probability)) < 5 * deviation + 2**-16


def test_neighbouring_elements_are_independent() -> None:
    torch.manual_seed(0)
    mask = keep_mask(torch.Size((1 << 18, 4)), 0.5, torch.device("cpu")).float()
    correlation = torch.corrcoef(mask.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02


def test_dropout_keeps_the_mean_and_scales_gradients_alike() -> None:
    torch.manual_seed(0)
    x = torch.ones(1 << 18, requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    assert abs(y.mean().item() - 1) < 0.01
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_dropout_is_off_in_evaluation_and_at_zero() -> None:
    x = torch.randn(8)
    assert Dropout(0.5).eval()(x) is x
    assert dropout(x, 0.0) is x


def test_masks_follow_the_seed() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return keep_mask(torch.Size((256,)), 0.5, torch.device("cpu"))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
