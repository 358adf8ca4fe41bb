"""The chunked loss in half precision and on other devices, beside plain cross-entropy."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from infinito.model.loss import summed_cross_entropy

RARE = slice(600, 700)
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def example(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden (N, C), weight (V, C), targets (N,); the last words get some 1e-10 everywhere."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(96, 32), torch.randn(700, 32) / 8
    hidden[:, 0], weight[:, 0], weight[RARE, 0] = 4.0, 0.0, -4.0
    hidden, weight = (x.to(dtype).float().requires_grad_() for x in (hidden, weight))
    return hidden, weight, torch.randint(0, 600, (96,))


def gradients(dtype: torch.dtype, upstream: float, device: str) -> tuple[Tensor, ...]:
    """Of hidden and weight, where the loss counts ``upstream`` times."""
    hidden, weight, targets = (x.to(device) for x in example(dtype))
    with torch.autocast(device, dtype):
        loss = summed_cross_entropy(hidden, weight, targets)
    return tuple(g.cpu() for g in torch.autograd.grad(loss * upstream, (hidden, weight)))


def exact_gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
    hidden, weight, targets = (x.detach() for x in example(dtype))
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    return torch.autograd.grad(plain, (hidden, weight))


@pytest.mark.parametrize("device", DEVICES)
def test_words_that_float16_cannot_count_have_their_gradient(device: str) -> None:
    """Their slope, the softmax itself, is below the smallest float16 whatever the loss scale."""
    _, found = gradients(torch.float16, 1.0, device)
    _, wanted = exact_gradients(torch.float16)
    error = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert error.max() < 0.01


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_wide_when_what_comes_from_above_meets_them(
    dtype: torch.dtype, device: str
) -> None:
    """A loss is divided by its thousands of targets: in half, that rounds once more, or to 0."""
    once = gradients(dtype, 1.0, device)
    for upstream in (1 / 3, 2.0**-30):
        for found, whole in zip(gradients(dtype, upstream, device), once, strict=True):
            torch.testing.assert_close(found, whole * upstream, rtol=1e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_word_that_every_row_predicts_does_not_overflow(dtype: torch.dtype, device: str) -> None:
    hidden = torch.full((8192, 8), 30.0, device=device)
    weight = torch.zeros(9, 8, requires_grad=True, device=device)
    targets = torch.zeros(8192, dtype=torch.int64, device=device)
    with torch.autocast(device, dtype):
        summed_cross_entropy(hidden, weight, targets).backward()
    assert weight.grad is not None
    torch.testing.assert_close(
        weight.grad[0].cpu(), torch.full((8,), -8192 * 30.0 * 8 / 9), rtol=0.01, atol=0
    )


class Device(TorchDispatchMode):
    """What a loss asks of a device: its matrix products, and no float64, which Apple's lack."""

    products = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        assert not (isinstance(result, Tensor) and result.is_meta and result.dtype == torch.float64)
        return result


def test_a_device_gets_few_large_products_and_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """meta stands for every device but the CPU; 64 rows, which a CPU's cache holds, starve them."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    rows, width, vocabulary = 4096, 64, 1 << 15
    hidden = torch.empty(rows, width, device="meta", requires_grad=True)
    weight = torch.empty(vocabulary, width, device="meta", requires_grad=True)
    with Device() as seen:
        targets = torch.empty(rows, dtype=torch.int64, device="meta")
        summed_cross_entropy(hidden, weight, targets).backward()
    assert 3 <= seen.products <= 3 * math.ceil(rows / 1024)
