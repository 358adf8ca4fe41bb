"""The attention benchmark: its rows, its ratios, and memory measured in processes of their own."""

from __future__ import annotations

import pytest
import torch

from infinito.attention import cpu as cpu_kernel
from infinito.attention import distance_attention
from infinito.bench.attention_memory import can_measure, make_inputs, peak_bytes, run_kind
from infinito.bench.attention_speed import KINDS, bench_attention


def test_rows_of_every_kind_with_ratios() -> None:
    result = bench_attention(
        (64,), batch=1, heads=2, width=16, seconds=0.1, cdist_length=64, memory=False
    )
    rows = {row["kind"]: row for row in result["rows"]}
    assert set(rows) == {"sdpa", *KINDS, "cdist"}
    assert rows["sdpa"]["forward_ratio"] == rows["sdpa"]["forward_backward_ratio"] == 1
    assert all(row["forward_backward_ms"] > row["forward_ms"] > 0 for row in rows.values())
    assert result["machine"]["threads"] == torch.get_num_threads()
    if cpu_kernel.missing is None:
        assert 0 < rows["l1"]["forward_of_floor"] < 1
        assert 0 < rows["l1"]["forward_backward_of_floor"] < 1


def test_cdist_row_computes_the_same_attention() -> None:
    x = make_inputs(1, 2, 20, 8)
    exact = distance_attention(x.query, x.key, x.value, "l1", x.lam, backend="reference")
    torch.testing.assert_close(run_kind("cdist", x), exact)
    torch.testing.assert_close(run_kind("l1", x), exact)


@pytest.mark.skipif(not can_measure(), reason="no high-water mark of memory on this system")
def test_memory_of_l1_is_linear() -> None:
    """cdist holds (B, H, T, T) several times; the kernel, little more than its gradients."""
    length, heads, width = 1024, 2, 16
    square = heads * length * length * 4
    plain, own = (peak_bytes(kind, 1, heads, length, width, 1) for kind in ("cdist", "l1"))
    assert plain > 2 * square
    assert own < square / 2
