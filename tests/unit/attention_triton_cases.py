"""Cases of the Triton kernels: on a GPU as they are, without one in Triton's interpreter.

Not collected by itself: ``test_triton_interpreter.py`` runs it in a process of its own, because the
interpreter is chosen before Triton is imported; ``scripts/gpu_check`` runs it on the device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from infinito.attention import ATTENTION, Request, distance_attention
from infinito.attention.dropout import drop_threshold, dropout_keeps
from infinito.kernels import on_gpu
from tests.attention_support import ALL_KINDS, Inputs, assert_matches_reference, make_inputs

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from infinito.kernels import triton_passes as passes  # noqa: E402

DEVICE = "cpu" if on_gpu.interpreted else "cuda"
TOLERANCE = {torch.float32: 3e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
SHAPES = [
    {"batch": 1, "queries": 1, "width": 8},
    {"batch": 1, "queries": 21, "keys": 37, "width": 24, "heads": 2, "key_heads": 1},
    {"batch": 1, "queries": 40, "keys": 70, "width": 64, "heads": 2},
]


def on_device(x: Inputs, dtype: torch.dtype = torch.float32) -> Inputs:
    if on_gpu.interpreted and dtype == torch.bfloat16:
        pytest.skip("the interpreter of Triton does not compute in bfloat16")
    x = x.to(dtype)
    return Inputs(*(t.to(DEVICE) for t in (x.q, x.k, x.v, x.lam, x.grad)))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("shape", SHAPES, ids=["row", "grouped", "ragged"])
def test_matches_reference(kind: str, shape: dict[str, int], dtype: torch.dtype) -> None:
    x = on_device(make_inputs(**shape), dtype)
    assert_matches_reference(x, kind, "triton", TOLERANCE[dtype])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_dropout_and_alibi_match_reference(kind: str, causal: bool) -> None:
    x = on_device(make_inputs(batch=2, queries=19, keys=35, heads=2, key_heads=1, width=8))
    slopes = torch.tensor([0.5, 0.1], device=DEVICE)
    options: dict[str, Any] = {"dropout_p": 0.3, "dropout_seed": 2**62 + 11}
    options |= {"causal": causal, "alibi_slopes": slopes}
    assert_matches_reference(x, kind, "triton", TOLERANCE[torch.float32], **options)


def test_dropout_mask_is_the_defined_one_bit_for_bit() -> None:
    batch, heads, rows, keys, probability = 2, 3, 16, 64, 0.4
    seed = torch.tensor([-(2**63) + 12345], device=DEVICE)
    found = torch.zeros(batch * heads, rows, keys, dtype=torch.int32, device=DEVICE)
    _write_mask[(batch * heads,)](seed, found, drop_threshold(probability), rows, keys)
    right = dropout_keeps(seed, batch, heads, range(rows), keys, probability)
    assert torch.equal(found.view_as(right).bool(), right)


@triton.jit
def _write_mask(seed, found, threshold, ROWS: tl.constexpr, KEYS: tl.constexpr):  # noqa: N803
    head = tl.program_id(0)
    rows, keys = tl.arange(0, ROWS), tl.arange(0, KEYS)
    states = passes.dropout_rows(seed, head + 1, rows)
    keeps = passes.dropout_keeps(states[:, None], keys[None, :], threshold)
    place = found + head * ROWS * KEYS + rows[:, None] * KEYS + keys[None, :]
    tl.store(place, keeps.to(tl.int32))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_sign_of_zero_is_zero(dtype: torch.dtype) -> None:
    x = on_device(make_inputs(batch=1, heads=1, queries=5, width=8), dtype)
    x = replace(x, k=x.q.clone())
    x.k[..., :4] += 1
    q = x.q.clone().requires_grad_()
    distance_attention(q, x.k, x.v, "l1", 1.0, backend="triton").backward(x.grad)
    assert q.grad is not None
    assert q.grad[0, 0, 0, 4:].abs().max() == 0  # this row sees only the key that ties with it
    assert q.grad[0, 0, 1:].abs().max() > 0


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_ties_and_a_common_offset(kind: str) -> None:
    x = make_inputs(batch=1, heads=1, queries=20, width=32)
    tied = on_device(replace(x, q=x.q.round(), k=x.q.round()))
    assert_matches_reference(tied, kind, "triton", 1e-4)
    q, k = ((t * 2**14).round() / 2**14 + 100 for t in (x.q, x.k))
    assert_matches_reference(on_device(replace(x, q=q, k=k)), kind, "triton", 1e-4)
    q[:, :, 0], k[:, :, 0] = x.q[:, :, 0], x.k[:, :, 0]  # a first token unlike the others
    assert_matches_reference(on_device(replace(x, q=q, k=k)), kind, "triton", 1e-4)
    q, k = ((t * 8).round() / 8 + 64 for t in (x.q, x.k))
    far = on_device(replace(x, q=q, k=k), torch.float16)
    assert_matches_reference(far, kind, "triton", TOLERANCE[torch.float16])


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_future_does_not_matter(kind: str) -> None:
    x = on_device(make_inputs(batch=1, heads=1, queries=24, keys=40, width=8))
    changed = 30  # position of the first key that changes; query i stands at 16 + i

    def out(key: Tensor, value: Tensor) -> Tensor:
        return distance_attention(x.q, key, value, kind, 1.0, backend="triton")  # type: ignore[arg-type]

    noise = torch.zeros_like(x.k)
    noise[:, :, changed:] = 5
    before, after = out(x.k, x.v), out(x.k + noise, x.v + noise)
    visible = changed - 16
    torch.testing.assert_close(after[:, :, :visible], before[:, :, :visible], rtol=0, atol=1e-6)
    assert (after - before)[:, :, visible:].abs().amax(-1).min() > 1e-5


def test_layouts_and_order() -> None:
    """Heads split from one projection; the output keeps the order of q."""
    wide = torch.randn(1, 18, 3, 2, 16, device=DEVICE)
    split = [wide[:, :, i].transpose(1, 2).requires_grad_() for i in range(3)]
    same = [t.detach().contiguous().requires_grad_() for t in split]
    found = distance_attention(*split, "l1", 1.0, backend="triton")
    right = distance_attention(*same, "l1", 1.0, backend="triton")
    assert torch.equal(found, right)
    grads = torch.autograd.grad(found.square().sum(), split)
    wanted = torch.autograd.grad(right.square().sum(), same)
    assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))


def test_chosen_for_distances_on_cuda() -> None:
    kinds = {kind: ATTENTION.choose(Request(kind, device="cuda")).value for kind in ALL_KINDS}
    fused = dict.fromkeys(("dot", "l2sq", "cosine"), "sdpa")
    assert kinds == {**fused, "l1": "triton", "l2": "triton"}
    assert ATTENTION.choose(Request("cosine", device="cuda", dropout=True)).value == "triton"
