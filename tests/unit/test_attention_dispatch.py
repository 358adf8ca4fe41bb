"""The public function: back ends and their reasons, defaults, refusals, torch.compile, opcheck."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from infinito.attention import (
    ATTENTION,
    Request,
    default_scale,
    dispatch,
    distance_attention,
)
from infinito.attention import cpu as cpu_kernel
from infinito.attention.call import Call
from infinito.attention.dropout import dropout_keeps
from infinito.errors import ConfigError
from infinito.runtime.choice import Choice
from tests.attention_support import ALL_KINDS, DISTANCES, make_inputs, needs_kernel, reference


@needs_kernel
def test_auto_takes_the_kernel_and_says_so() -> None:
    route = ATTENTION.choose(Request("l1"))
    assert route.value == "cpu"
    assert "compiled kernel" in route.reason
    assert ATTENTION.available(Request("l1"))["sdpa"] == "l1 is not a dot product"


def test_without_the_kernel_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernel, "missing", "the compiled kernel is missing: nobody built it")
    assert ATTENTION.choose(Request("l2sq")).value == "sdpa"
    route = ATTENTION.choose(Request("l1"))
    assert route.value == "chunked"
    assert "nobody built it" in route.reason
    assert ATTENTION.choose(Request("cosine", dropout=True)).value == "chunked"
    with pytest.raises(ConfigError, match="nobody built it"):
        ATTENTION.choose(Request("l1"), "cpu")


@pytest.mark.parametrize(
    ("request_", "backend", "reason"),
    [
        (Request("l1"), "sdpa", "not a dot product"),
        (Request("l2sq", dropout=True), "sdpa", "dropout"),
        (Request("cosine", alibi=True), "sdpa", "ALiBi"),
        (Request("cosine", queries=3, keys=5), "sdpa", "aligns"),
        (Request("l1", dtype=torch.float64), "cpu", "float64"),
        (Request("l1", width=257), "cpu", "257"),
        (Request("l1", device="cuda"), "cpu", "cuda"),
        (Request("l1"), "nonsense", "unknown"),
    ],
)
def test_a_forced_backend_that_cannot_is_refused(
    request_: Request, backend: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        ATTENTION.choose(request_, backend)


def test_forced_backends_are_the_ones_that_run() -> None:
    assert ATTENTION.choose(Request("l1"), "chunked").reason.endswith("as asked for")
    answers = ATTENTION.available(Request("l1")).items()
    assert [name for name, answer in answers if isinstance(answer, Choice)][-2:] == [
        "chunked",
        "reference",
    ]


def test_plain_products_off_the_cpu_are_torchs_own() -> None:
    """With its dropout and any mask; whoever names a seed or a lambda gets the definition's."""
    rows = {"queries": 3, "keys": 5, "dropout": True, "alibi": True, "dtype": torch.float64}
    assert ATTENTION.choose(Request("dot", "cuda", plain=True, **rows)).value == "sdpa"  # type: ignore[arg-type]
    assert ATTENTION.choose(Request("dot", "cuda", **rows)).value == "chunked"  # type: ignore[arg-type]
    assert ATTENTION.choose(Request("dot", "cpu", plain=True, **rows)).value == "chunked"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"dropout_p": 0.5}, True),
        ({"dropout_p": 0.5, "dropout_seed": 1}, False),
        ({"scale": 0.5}, False),
        ({"lam": 2.0}, False),
        ({"lam": torch.ones(2, device="meta")}, False),
        ({"kind": "cosine"}, False),
    ],
)
def test_a_call_is_plain_when_all_is_left_to_torch(
    options: dict[str, Any], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Call] = []

    def note(call: Call) -> torch.Tensor:
        calls.append(call)
        return call.query

    for name, backend in dispatch.ATTENTION.variants.items():
        monkeypatch.setitem(dispatch.ATTENTION.variants, name, replace(backend, run=note))
    x = torch.zeros(1, 2, 4, 8, device="meta")
    distance_attention(x, x, x, **{"kind": "dot", "lam": 1.0, **options})
    assert [call.plain for call in calls] == [plain]


def test_float64_runs_chunked() -> None:
    x = make_inputs(queries=9).to(torch.float64)
    own = distance_attention(x.q, x.k, x.v, "l1", x.lam)
    torch.testing.assert_close(own, reference(x.q, x.k, x.v, "l1", x.lam), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_default_scale_gives_unit_spread(kind: str) -> None:
    x = make_inputs(batch=1, heads=1, queries=400, width=64)
    q, k = x.q[0, 0], x.k[0, 0]
    cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).T
    distance = {
        "dot": q @ k.T,
        "l1": torch.cdist(q, k, 1),
        "l2": torch.cdist(q, k),
        # The published constant: dot product with a key-norm penalty, spread sqrt(6)/2.
        "l2sq": torch.cdist(q, k).square() / (math.sqrt(6) / 2),
        "cosine": cosine,
    }[kind]
    spread = (default_scale(kind, 64) * distance).std(dim=1).mean()
    assert 0.9 < spread < 1.1


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "l3"},
        {"dropout_p": 1.0},
        {"lam": torch.ones(3)},
        {"alibi_slopes": torch.ones(2, 2)},
        {"q": torch.ones(1, 2, 9, 4)},
        {"q": torch.ones(1, 2, 5, 8)},
        {"q": torch.ones(1, 3, 4, 4)},
        {"v": torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)},
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {name: torch.ones(1, 2, 4, 4) for name in "qkv"}
    with pytest.raises(ConfigError):
        distance_attention(**{**good, "kind": "l1", "lam": 1.0, **change})


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_kernel), "chunked"])
def test_opcheck(backend: str) -> None:
    x = make_inputs(batch=1, queries=7, keys=9, width=5)
    leaves = [t.clone().requires_grad_() for t in (x.q, x.k, x.v, x.lam)]
    seed = torch.zeros(1, dtype=torch.int64)
    operator = getattr(torch.ops.infinito, f"distance_attention_{backend}")
    torch.library.opcheck(operator, (*leaves, None, seed, "l1", True, 0.0, 0.3))
    torch.library.opcheck(operator, (*leaves, torch.ones(2), seed, "l2", False, 0.5, 0.3))


@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_compile_does_not_break_the_graph(backend: str) -> None:
    x = make_inputs(queries=9)

    def run(q: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        return distance_attention(q, x.k, x.v, "l1", lam, dropout_p=0.2, backend=backend) * 2

    q, lam = x.q.clone().requires_grad_(), x.lam.clone().requires_grad_()
    results = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(3)
        out = function(q, lam)
        out.square().sum().backward()
        results.append((out.detach(), q.grad, lam.grad))
        q.grad = lam.grad = None
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("kind", DISTANCES)
def test_gradcheck_of_the_fallback(kind: str) -> None:
    x = make_inputs(batch=1, heads=2, key_heads=1, queries=5, keys=7, width=3).to(torch.float64)
    leaves = [t.double().requires_grad_() for t in (x.q, x.k, x.v, x.lam)]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        options = {"dropout_p": 0.2, "dropout_seed": 1, "alibi_slopes": torch.ones(2)}
        return distance_attention(q, k, v, kind, lam, backend="chunked", **options)

    assert torch.autograd.gradcheck(run, leaves)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_inputs(queries=13).to(torch.float64)
    whole = distance_attention(x.q, x.k, x.v, "l2", x.lam, backend="chunked")
    monkeypatch.setattr("infinito.attention.chunked._CHUNK_WEIGHTS", 2 * 2 * 13 * 3)
    torch.testing.assert_close(
        distance_attention(x.q, x.k, x.v, "l2", x.lam, backend="chunked"), whole
    )


def test_dropout_seed_comes_from_torchs_generator() -> None:
    x = make_inputs()

    def draw(seed: int | None = None) -> torch.Tensor:
        return distance_attention(x.q, x.k, x.v, "l1", 1.0, dropout_p=0.5, dropout_seed=seed)

    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), first)
    assert not torch.equal(first, second)
    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))


def test_dropout_mask_by_its_definition() -> None:
    """The published recurrence in Python integers, and the share and independence of its bits."""
    mask64, mask32 = 2**64 - 1, 2**32 - 1

    def mix64(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask64
        return x ^ (x >> 31)

    seed, heads, p = 2**63 - 5, 3, 0.25
    keeps = dropout_keeps(torch.tensor([seed]), 2, heads, range(4, 6), 7, p)
    for b, h, row, j in torch.cartesian_prod(*map(torch.arange, (2, 3, 2, 7))).tolist():
        head = mix64((seed + (b * heads + h + 1) * 0x9E3779B97F4A7C15) & mask64)
        key = mix64((head + (row + 4) * 0xD1B54A32D192ED03) & mask64)
        x = (j * 0x9E3779B9 + key) & mask32
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & mask32
        x ^= key >> 32
        x = ((x ^ (x >> 15)) * 0x846CA68B) & mask32
        x ^= x >> 16
        assert bool(keeps[b, h, row, j]) == (x >> 8 >= p * 2**24)
    many = dropout_keeps(torch.tensor([1]), 4, 4, range(128), 128, p).double()
    assert abs(many.mean() - (1 - p)) < 0.004  # five standard deviations
    bits = many.flatten(0, 1) - (1 - p)
    for left, right in ((bits[:, 1:], bits[:, :-1]), (bits[..., 1:], bits[..., :-1])):
        assert abs((left * right).mean()) < 0.002
    assert abs((bits[1:] * bits[:-1]).mean()) < 0.002
