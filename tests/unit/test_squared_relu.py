"""The hand-written gradient of squared ReLU is that of autograd, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from infinito.kernels.plain import squared_relu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_equal_autograd(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 33).to(dtype)
    weight = torch.randn(64, 33).to(dtype)
    gradients, values = [], []
    for function in (squared_relu, lambda v: F.relu(v).square()):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        (y * weight).sum().backward()
        values.append(y.detach())
        gradients.append(leaf.grad)
    assert torch.equal(values[0], values[1])
    assert torch.equal(gradients[0], gradients[1])
