"""Every attention back end against the float64 reference: values and all four gradients."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import pytest
import torch

from infinito.attention import distance_attention, sdpa
from infinito.attention.call import prepare_call
from infinito.kernels import native
from tests.attention_support import (
    ALL_KINDS,
    DISTANCES,
    assert_matches_reference,
    make_inputs,
    needs_kernel,
    outputs,
)

TOLERANCE = 3e-5
KERNELS = [pytest.param("cpu", marks=needs_kernel), "chunked"]
FUSED = ("dot", "l2sq", "cosine")
ISAS = ("portable", "avx2", "avx512")


def shifted(x: torch.Tensor) -> torch.Tensor:
    """x + 100, on a grid where that loses nothing (but sums over D of it do)."""
    return (x * 2**14).round() / 2**14 + 100


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(
    "shape",
    [
        {"queries": 1, "width": 8},
        {"queries": 1, "keys": 77, "width": 40},
        {"queries": 67, "keys": 67, "width": 24, "heads": 4, "key_heads": 2},
        {"batch": 1, "queries": 70, "keys": 133, "width": 128, "heads": 2, "key_heads": 1},
    ],
)
def test_causal_matches_reference(kind: str, backend: str, shape: dict[str, int]) -> None:
    assert_matches_reference(make_inputs(**shape), kind, backend, TOLERANCE)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("backend", KERNELS)
def test_dropout_alibi_and_full_attention_match_reference(kind: str, backend: str) -> None:
    x = make_inputs(queries=37, keys=70, heads=4, key_heads=2, width=20)
    options = {"dropout_p": 0.3, "dropout_seed": 2**62 + 11, "alibi_slopes": torch.rand(4)}
    assert_matches_reference(x, kind, backend, TOLERANCE, causal=False, **options)
    assert_matches_reference(x, kind, backend, TOLERANCE, causal=True, **options)


@pytest.mark.parametrize("kind", FUSED)
@pytest.mark.parametrize("causal", [True, False])
def test_fused_matches_reference(kind: str, causal: bool) -> None:
    x = make_inputs(queries=40, heads=4, key_heads=2, width=20)
    assert_matches_reference(x, kind, "sdpa", TOLERANCE, causal=causal, scale=0.3)
    one = make_inputs(queries=1, keys=40, width=20)
    assert_matches_reference(one, kind, "sdpa", TOLERANCE, causal=causal)


@pytest.mark.parametrize("queries", [1, 5, 16])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("slopes", [None, torch.rand(4)])
def test_torchs_own_function_is_plain_dot_attention(
    queries: int, causal: bool, slopes: torch.Tensor | None
) -> None:
    """What runs off the CPU, run on it: any number of new queries, with or without ALiBi."""
    x = make_inputs(queries=queries, keys=16, heads=4, key_heads=2, width=20)
    options = (causal, 0.0, None, None, slopes)
    own = sdpa.run(prepare_call(x.q, x.k, x.v, "dot", 1.0, *options, plain=True))
    expected = distance_attention(
        x.q, x.k, x.v, "dot", 1.0, causal=causal, alibi_slopes=slopes, backend="reference"
    )
    torch.testing.assert_close(own, expected, atol=TOLERANCE, rtol=TOLERANCE)


@needs_kernel
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_instruction_set(kind: str, isa: str) -> None:
    if isa not in native.available_isas():
        pytest.skip(f"this processor has no {isa}")
    x = make_inputs(batch=1, queries=70, width=72)
    with native.forced_isa(isa):
        assert_matches_reference(x, kind, "cpu", TOLERANCE, dropout_p=0.2, dropout_seed=1)
        full = [out.clone() for out in outputs(x, kind, "cpu")]
    for own, best in zip(full, outputs(x, kind, "cpu"), strict=True):
        torch.testing.assert_close(own, best, rtol=1e-4, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_key_splits_of_few_heads(kind: str) -> None:
    """Fewer heads than threads: the backward splits the keys and adds query gradients."""
    threads = torch.get_num_threads()
    x = make_inputs(batch=1, heads=2, key_heads=1, queries=150, width=33)
    torch.set_num_threads(3)
    try:
        assert_matches_reference(x, kind, "cpu", TOLERANCE)
        assert_matches_reference(x, "cosine", "cpu", TOLERANCE)
    finally:
        torch.set_num_threads(threads)


@needs_kernel
def test_posix_threads_give_the_same_bits() -> None:
    library, threads = native._loaded, torch.get_num_threads()
    assert not isinstance(library, str)
    x = make_inputs(queries=90)
    torch.set_num_threads(2)
    pooled = outputs(x, "l1", "cpu")
    library.infinito_set_gomp(None)
    try:
        own = outputs(x, "l1", "cpu")
    finally:
        library.infinito_set_gomp(ctypes.c_void_p(native.gomp_address()))
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(pooled, own, strict=True))


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("change", ["offset", "large", "ties"])
def test_hard_numbers(kind: str, backend: str, change: str) -> None:
    """A common offset of 100, inputs times 100, queries equal to keys."""
    x = make_inputs(queries=70, width=128 if change == "offset" else 32)
    if change == "offset":
        x = replace(x, q=shifted(x.q), k=shifted(x.k))
    elif change == "large":
        factor = 10 if kind == "l2sq" else 100  # its logits grow with the square
        x = replace(x, q=x.q * factor, k=x.k * factor)
    else:
        x = replace(x, q=x.q.round(), k=x.q.round())
    # Where logits are thousands, float32 itself leaves 1e-3 of them, whatever the method.
    coarse = change == "large" or (change == "offset" and kind == "cosine")
    assert_matches_reference(x, kind, backend, 3e-2 if coarse else 1e-4)


CAUSAL_ROUTES = [  # and the number of keys before the first query
    *(pytest.param("cpu", kind, n, marks=needs_kernel) for kind in ALL_KINDS for n in (0, 3)),
    *(("chunked", kind, n) for kind in ALL_KINDS for n in (0, 3)),
    *(("sdpa", kind, 0) for kind in FUSED),
]


@pytest.mark.parametrize(("backend", "kind", "earlier"), CAUSAL_ROUTES)
def test_later_tokens_do_not_change_even_the_rounding(
    backend: str, kind: str, earlier: int
) -> None:
    """Numbers far from zero: what is taken off them may not come from later tokens."""
    x = make_inputs(queries=20, keys=20 + earlier, heads=4, key_heads=2, width=24)
    x = replace(x, q=3 + x.q / 10, k=3 + x.k / 10)
    with torch.no_grad():
        before = distance_attention(x.q, x.k, x.v, kind, x.lam, backend=backend)
        for row in (1, 7, 19):
            q, k, v = x.q.clone(), x.k.clone(), x.v.clone()
            for changed, place in ((q, row), (k, row + earlier), (v, row + earlier)):
                changed[:, :, place] = -50.0
            after = distance_attention(q, k, v, kind, x.lam, backend=backend)
            assert torch.equal(before[:, :, :row], after[:, :, :row])


OFFSET_ROUTES = [pytest.param("cpu", "l1", marks=needs_kernel), ("sdpa", "l2sq")]
OFFSET_BOUND = {"l1": lambda r: 3e-6 * r, "l2sq": lambda r: 1e-6 * r**2}  # docs/determinism.md


@pytest.mark.parametrize(("outlier", "offset"), [(0, 1e3), (7, 1e3), (1, 1e1), (1, 1e2)])
@pytest.mark.parametrize(("backend", "kind"), OFFSET_ROUTES)
def test_an_offset_that_one_token_lacks(
    backend: str, kind: str, outlier: int, offset: float
) -> None:
    """Models often give their first token a key far from all others."""
    x = make_inputs(queries=70, width=64)
    q, k = ((t * 2**13).round() / 2**13 + offset for t in (x.q, x.k))  # loses nothing
    q[:, :, outlier], k[:, :, outlier] = x.q[:, :, outlier], x.k[:, :, outlier]
    x = replace(x, q=q, k=k)
    expected, found = outputs(x, kind, "float64")[0], outputs(x, kind, backend)[0]
    bound = OFFSET_BOUND[kind](offset) if outlier == 1 else 2e-6
    assert (found - expected).norm() < bound * expected.norm()


@needs_kernel
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("factor", [2.0**-90, 2.0**90])
def test_signs_of_tiny_and_huge_differences(factor: float, isa: str) -> None:
    """L1 of inputs times a power of two, with lambda divided by it, has the same weights."""
    if isa not in native.available_isas():
        pytest.skip(f"this processor has no {isa}")
    x = make_inputs(queries=70)
    far = replace(x, q=x.q * factor, k=x.k * factor)
    with native.forced_isa(isa):
        expected = outputs(x, "l1", "cpu", scale=0.2)
        found = outputs(far, "l1", "cpu", scale=0.2 / factor)
    for power, own, right in zip((0, 1, 1, 0, 0), found, expected, strict=True):
        torch.testing.assert_close(own * factor**power, right)


def test_fused_squared_distance_survives_an_offset() -> None:
    x = make_inputs(queries=70, width=32)
    x = replace(x, q=shifted(x.q), k=shifted(x.k))
    assert_matches_reference(x, "l2sq", "sdpa", 1e-4)


def test_fused_squared_distance_keeps_large_key_norms_in_bfloat16() -> None:
    """|k|^2 near 1000 has steps of 4 in bfloat16: it needs its second column."""
    x = make_inputs(queries=80, width=128).to(torch.bfloat16)
    x = replace(x, k=x.k * 3)
    exact, own = outputs(x, "l2sq", "float64")[0], outputs(x, "l2sq", "sdpa")[0]
    assert (own - exact).abs().max() < 0.03 * exact.abs().max()


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("backend", [*KERNELS, "sdpa"])
def test_bfloat16_rounds_only_inputs_and_results(kind: str, backend: str) -> None:
    if backend == "sdpa" and kind not in FUSED:
        pytest.skip("not a dot product")
    x = make_inputs(queries=80, width=32).to(torch.bfloat16)
    assert outputs(x, kind, backend)[0].dtype == torch.bfloat16
    # sdpa computes with q times lambda, or unit vectors, rounded to bfloat16.
    assert_matches_reference(x, kind, backend, 6e-2 if backend == "sdpa" else 2e-2)


@pytest.mark.parametrize("backend", KERNELS)
def test_sign_of_zero_is_zero(backend: str) -> None:
    """Where q_d = k_d exactly, that pair adds nothing to the gradient of L1."""
    x = make_inputs(batch=1, heads=1, queries=5, width=8)
    x = replace(x, k=x.q.clone())
    x.k[..., :4] += 1
    dq = outputs(x, "l1", backend)[1]
    assert dq[0, 0, 0, 4:].abs().max() == 0  # the first row sees the key that ties with it only
    assert dq[0, 0, 1:].abs().max() > 0
    same = replace(x, q=torch.zeros_like(x.q), k=torch.zeros_like(x.k))
    assert outputs(same, "l1", backend)[1].abs().max() == 0


@needs_kernel
def test_memory_layouts_and_order() -> None:
    """Heads split from one projection, as a model does it; the output keeps the order of q."""
    x = make_inputs(queries=33)
    wide = torch.randn(2, 33, 3, 2, 16)
    q, k, v = (wide[:, :, i].transpose(1, 2) for i in range(3))
    expected = outputs(
        replace(x, q=q.contiguous(), k=k.contiguous(), v=v.contiguous()), "l1", "cpu"
    )
    found = outputs(replace(x, q=q, k=k, v=v), "l1", "cpu")
    for own, right in zip(found, expected, strict=True):
        assert torch.equal(own, right)
    turned = x.q.mT.contiguous().mT  # D is not the contiguous dimension
    assert torch.equal(outputs(replace(x, q=turned), "l1", "cpu")[0], outputs(x, "l1", "cpu")[0])
