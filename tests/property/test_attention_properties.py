"""Laws of distance attention on shapes that Hypothesis chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infinito.attention import ATTENTION, Request, distance_attention
from infinito.attention import cpu as cpu_kernel
from tests.attention_support import (
    ALL_KINDS,
    DISTANCES,
    Inputs,
    assert_matches_reference,
    make_inputs,
)

BACKENDS = ("cpu", "chunked") if cpu_kernel.missing is None else ("chunked",)
few = settings(max_examples=20, deadline=None)


@st.composite
def shapes(draw: st.DrawFn) -> Inputs:
    queries, groups = draw(st.integers(1, 90)), draw(st.integers(1, 2))
    key_heads = draw(st.integers(1, 2))
    return make_inputs(
        batch=draw(st.integers(1, 2)),
        heads=groups * key_heads,
        key_heads=key_heads,
        queries=queries,
        keys=queries + draw(st.sampled_from([0, 0, 1, 63, 70])),
        width=draw(st.integers(1, 130)),
        seed=draw(st.integers(0, 100)),
    )


def attend(x: Inputs, kind: str, backend: str, **options: Any) -> torch.Tensor:
    lam = options.pop("lam", x.lam)
    return distance_attention(x.q, x.k, x.v, kind, lam, backend=backend, **options)


backends = st.sampled_from(BACKENDS)
distances = st.sampled_from(DISTANCES)


@given(x=shapes(), kind=st.sampled_from(ALL_KINDS), backend=backends, data=st.data())
@few
def test_matches_the_reference(x: Inputs, kind: str, backend: str, data: st.DataObject) -> None:
    options = {
        "causal": data.draw(st.booleans()),
        "dropout_p": data.draw(st.sampled_from([0.0, 0.4])),
        "alibi_slopes": data.draw(st.sampled_from([None, torch.full((x.q.shape[1],), 0.1)])),
        "dropout_seed": 9,
    }
    assert_matches_reference(x, kind, backend, 1e-4, **options)


@given(x=shapes(), kind=distances, backend=backends)
@few
def test_rows_sum_to_one(x: Inputs, kind: str, backend: str) -> None:
    ones = attend(replace(x, v=torch.ones_like(x.v)), kind, backend)
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=1e-5, atol=1e-5)


@given(x=shapes(), kind=distances, backend=backends, data=st.data())
@few
def test_no_query_sees_a_later_key(x: Inputs, kind: str, backend: str, data: st.DataObject) -> None:
    keys, queries = x.k.shape[2], x.q.shape[2]
    changed = data.draw(st.integers(0, keys - 1))
    k, v = x.k.clone(), x.v.clone()
    k[:, :, changed], v[:, :, changed] = 50.0, -7.0
    before, after = attend(x, kind, backend), attend(replace(x, k=k, v=v), kind, backend)
    first = max(0, changed - (keys - queries))  # the first query that sees the key
    assert torch.equal(before[:, :, :first], after[:, :, :first])
    if kind == "cosine" or changed == 0:
        assert not torch.equal(before[:, :, first:], after[:, :, first:]) or keys == 1


@given(x=shapes(), kind=st.sampled_from(["l1", "l2", "l2sq"]), backend=backends)
@few
def test_translation_of_queries_and_keys_changes_nothing(
    x: Inputs, kind: str, backend: str
) -> None:
    x = replace(x, q=(x.q * 32).round() / 32, k=(x.k * 32).round() / 32)  # the sums are exact
    moved = replace(x, q=x.q + 8, k=x.k + 8)
    torch.testing.assert_close(
        attend(moved, kind, backend), attend(x, kind, backend), rtol=1e-3, atol=1e-3
    )


@given(x=shapes(), backend=backends, power=st.sampled_from([0.25, 4.0]))
@few
def test_scaling_inputs_is_scaling_lambda(x: Inputs, backend: str, power: float) -> None:
    scaled = replace(x, q=x.q * power, k=x.k * power)
    for kind, degree in (("l1", 1), ("l2", 1), ("l2sq", 2), ("cosine", 0)):
        own = attend(scaled, kind, backend, lam=x.lam / power**degree)
        torch.testing.assert_close(own, attend(x, kind, backend), rtol=1e-3, atol=1e-4)


@given(x=shapes(), kind=distances, backend=backends)
@few
def test_lambda_zero_is_the_mean_and_large_lambda_the_nearest(
    x: Inputs, kind: str, backend: str
) -> None:
    mean = attend(x, kind, backend, lam=0.0, causal=False)
    groups = x.q.shape[1] // x.k.shape[1]
    expected = x.v.mean(2, keepdim=True).repeat_interleave(groups, 1).expand_as(mean)
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    # Each query stands on one key, apart from all others; unit vectors apart for cosine.
    keys = torch.eye(x.k.shape[2])[None, None].expand(*x.k.shape[:2], -1, -1)
    queries = keys.repeat_interleave(groups, 1)[:, :, -x.q.shape[2] :]
    nearest = distance_attention(queries, keys, keys, kind, 1e3, backend="chunked", scale=1.0)
    torch.testing.assert_close(nearest, queries)


@given(x=shapes(), kind=st.sampled_from(ALL_KINDS), backend=backends)
@few
def test_token_by_token_equals_all_at_once(x: Inputs, kind: str, backend: str) -> None:
    whole = attend(x, kind, backend)
    queries, keys = x.q.shape[2], x.k.shape[2]
    for i in {0, queries // 2, queries - 1}:
        seen = keys - queries + i + 1
        one = replace(x, q=x.q[:, :, i : i + 1], k=x.k[:, :, :seen], v=x.v[:, :, :seen])
        torch.testing.assert_close(attend(one, kind, backend), whole[:, :, i : i + 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", DISTANCES)
def test_extremes_stay_finite(kind: str, backend: str) -> None:
    x = make_inputs(queries=70)
    for change in (replace(x, q=x.q * 0, k=x.k * 0), replace(x, q=x.q * 1e6), replace(x, k=x.q)):
        leaves = [t.clone().requires_grad_() for t in (change.q, change.k, change.v, x.lam)]
        out = distance_attention(*leaves[:3], kind, leaves[3], backend=backend)
        out.backward(x.grad)
        assert all(t.isfinite().all() for t in (out, *(leaf.grad for leaf in leaves)))


def test_every_available_backend_is_tested_here() -> None:
    objections = {n: v.objection(Request("l1")) for n, v in ATTENTION.variants.items()}
    served = [name for name, objection in objections.items() if objection is None]
    assert set(served) == {*BACKENDS, "reference"}
