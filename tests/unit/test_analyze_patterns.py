"""Statistics of attention weights: the plain twin, known patterns, blocks and their memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infinito.analyze.patterns import STATISTICS, pattern_sums, uniform_patterns
from infinito.attention.call import Call, prepare_call
from infinito.attention.chunked import weight_blocks
from infinito.attention.reference import full_weights
from infinito.model.position import alibi_slopes
from tests import analyze_reference as twin
from tests.attention_support import ALL_KINDS, make_inputs


def make_call(q: Tensor, k: Tensor, kind: str, lam: float | Tensor, slopes: Any = None) -> Call:
    return prepare_call(q, k, k, kind, lam, True, 0.0, None, None, slopes)  # type: ignore[arg-type]


def random_call(kind: str, key_heads: int, alibi: bool, length: int = 23) -> Call:
    x = make_inputs(heads=4, key_heads=key_heads, queries=length, width=8)
    lam = torch.tensor([0.5, 1.0, 3.0, 20.0])
    return make_call(x.q, x.k, kind, lam, alibi_slopes(4) if alibi else None)


def means(call: Call, **options: Any) -> dict[str, list[float]]:
    batch, _, length, _ = call.query.shape
    table = pattern_sums(call, **options) / (batch * (length - 1))
    return dict(zip(STATISTICS, table.tolist(), strict=True))


@pytest.mark.parametrize("alibi", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_plain_twin_agrees(kind: str, key_heads: int, alibi: bool) -> None:
    call = random_call(kind, key_heads, alibi)
    expected = twin.pattern_sums(call)
    for rows in (None, 1, 5, 22, 23, 100):
        found = pattern_sums(call, rows)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-4, msg=f"{rows} rows")


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_blocks_are_the_rows_of_the_whole_matrix(kind: str) -> None:
    call = random_call(kind, key_heads=2, alibi=True)
    whole = full_weights(call)
    for rows, weights in weight_blocks(call, 7):
        assert weights.shape[-2:] == (len(rows), rows.stop)
        torch.testing.assert_close(weights, whole[:, :, rows.start : rows.stop, : rows.stop])
        assert not whole[:, :, rows.start : rows.stop, rows.stop :].any()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_nothing_to_tell_apart_is_uniform(kind: str) -> None:
    zeros = torch.zeros(2, 3, 17, 4)
    for name, values in means(make_call(zeros, zeros, kind, 1.0)).items():
        assert values == pytest.approx([uniform_patterns(17)[name]] * 3, rel=1e-6), name


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_vanishing_lambda_is_uniform(kind: str) -> None:
    x = make_inputs(queries=30)
    found = means(make_call(x.q, x.k, kind, 1e-9))
    assert found["normalised_entropy"] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert found["mean_distance"] == pytest.approx([sum(range(1, 30)) / 2 / 29] * 2, rel=1e-6)


def test_the_uniform_figures_are_the_closed_ones() -> None:
    found = uniform_patterns(4)  # positions 1, 2 and 3 see 2, 3 and 4 keys
    assert found["entropy"] == pytest.approx(math.log(24) / 3)
    assert found["normalised_entropy"] == 1.0
    assert found["mean_distance"] == pytest.approx((0.5 + 1 + 1.5) / 3)
    for name in ("max_weight", "first_token_mass", "self_mass"):
        assert found[name] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)


@pytest.mark.parametrize("kind", ["l1", "l2", "l2sq", "cosine"])
@pytest.mark.parametrize("back", [0, 1])
def test_a_huge_lambda_looks_at_the_nearest_key_alone(kind: str, back: int) -> None:
    key = make_inputs(queries=19).k
    query = key.roll(back, dims=2)  # each query is the key `back` positions before it
    found = means(make_call(query, key, kind, 1e5))
    assert found["entropy"] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert found["normalised_entropy"] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert found["max_weight"] == pytest.approx([1.0, 1.0])
    assert found["mean_distance"] == pytest.approx([back, back], abs=1e-5)
    assert found["self_mass"] == pytest.approx([1.0 - back] * 2, abs=1e-6)
    assert found["first_token_mass"] == pytest.approx([back / 18] * 2, abs=1e-6)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_memory_is_bounded_by_the_block() -> None:
    x = make_inputs(batch=1, queries=1500, width=16)
    call = make_call(x.q, x.k, "l1", 1.0)
    with Largest() as seen:
        pattern_sums(call, 8)
    # The statistics of a row are small; a block of differences would be width times as much.
    assert 2 * 8 * 1500 <= seen.elements <= 2 * 1500 * 16
