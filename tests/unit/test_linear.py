"""The quick matrix product of few rows against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from infinito.model.linear import Linear, linear


@pytest.mark.parametrize(
    "shape", [(1, 1, 24), (1, 24), (3, 24), (8, 1, 24), (2, 3, 24), (9, 24), (24,)]
)
@pytest.mark.parametrize("outputs", [64, 12, 257, 1])
def test_equals_torch(shape: tuple[int, ...], outputs: int) -> None:
    x, weight = torch.randn(shape), torch.randn(outputs, 24)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


def test_few_rows_take_the_quick_road_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *given: (calls.append(given), plain(*given))[1])
    weight = torch.randn(16, 24, requires_grad=True)
    linear(torch.randn(1, 24), weight).sum().backward()
    with torch.inference_mode():
        linear(torch.randn(9, 24), weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(torch.randn(1, 24), weight).dtype == torch.bfloat16
    assert not calls
    with torch.inference_mode():
        linear(torch.randn(1, 24), weight)
    assert len(calls) == 1


def test_layer_has_the_weight_of_torchs() -> None:
    layer = Linear(24, 16)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {"weight": (16, 24)}
    assert layer(torch.randn(2, 5, 24)).shape == (2, 5, 16)
