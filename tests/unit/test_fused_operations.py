"""Each fused operation against its plain twin: values, gradients, draws, odd shapes and layouts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from infinito.attention.dropout import dropout_keeps
from infinito.distributed.rows import Share, computing
from infinito.kernels import compiled, native
from infinito.kernels.fusion import OPERATIONS, TORCH, StepShape
from infinito.runtime.precision import autocast

pytestmark = pytest.mark.skipif(bool(compiled.missing), reason=str(compiled.missing))

SHAPES = {
    "usual": StepShape(batch=2, length=45, width=64, hidden=80, vocabulary=300),
    "odd": StepShape(
        batch=3, length=5, width=37, hidden=19, d_head=6, heads=3, key_heads=1, vocabulary=53,
        dropout=0.3,
    ),
    "one token, no dropout": StepShape(
        batch=1, length=1, width=2, hidden=1, d_head=2, heads=1, key_heads=1, vocabulary=2,
        dropout=0.0,
    ),
}  # fmt: skip
#: Of the largest element: float32 sums in another order, and one rounding to bfloat16 or a few.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-6}
CASES = [
    (name, variant)
    for name, operation in OPERATIONS.items()
    for variant in operation.variants
    if variant == "c"
]


def results(name: str, variant: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Outputs, what else was written, then the gradients of a random function of the outputs."""
    torch.manual_seed(1)
    device = next(tensors(arguments)).device
    found = {x.dtype for x in tensors(arguments)} & {torch.bfloat16, torch.float16}
    precision = str(found.pop()).removeprefix("torch.") if found else "float32"
    with autocast(precision, device.type):
        outputs = OPERATIONS[name].variants[variant].run(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if name in ("momentum", "move"):  # they write over their first argument
        outputs = tuple(x for x in (*outputs, arguments[0]) if x is not None)
    leaves = [x for x in tensors(arguments) if x.requires_grad]
    torch.manual_seed(2)
    total = sum((x.float() * torch.randn(x.shape, device=device)).sum() for x in outputs)
    gradients = torch.autograd.grad(total, leaves) if leaves else ()
    return [x.detach() for x in (*outputs, *gradients)]


def tensors(arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    return (x for x in arguments if isinstance(x, Tensor))


def fresh(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies, since the loss writes over its logits."""
    return tuple(
        x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
        for x in arguments
    )


def assert_like(
    found: list[Tensor], expected: list[Tensor], tolerance: float, name: str = ""
) -> None:
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape, name
        if torch.bfloat16 in (x.dtype, y.dtype):
            tolerance = TOLERANCES[torch.bfloat16]
        x, y = x.float(), y.float()
        allowed = tolerance * float(y.abs().max()) + 1e-7
        torch.testing.assert_close(x, y, rtol=0, atol=allowed, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_values_and_gradients_are_the_twins(dtype: torch.dtype, shape: StepShape, isa: str) -> None:
    for name, variant in CASES:
        torch.manual_seed(0)
        made = StepShape(**{**shape.__dict__, "dtype": dtype})
        arguments = OPERATIONS[name].inputs(made)
        expected = results(name, TORCH, fresh(arguments))
        with native.forced_isa(isa):
            found = results(name, variant, fresh(arguments))
        assert_like(found, expected, TOLERANCES[dtype])


def test_layouts_do_not_matter() -> None:
    """Inputs that do not lie row by row, and gradients that do not either."""
    for name, variant in CASES:
        if name == "loss":
            continue  # its logits come from a product
        arguments = OPERATIONS[name].inputs(SHAPES["usual"])
        scattered = tuple(
            x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(x.requires_grad)
            if isinstance(x, Tensor) and x.dim() == 3
            else x
            for x in arguments
        )
        expected = results(name, TORCH, fresh(arguments))
        assert_like(results(name, variant, scattered), expected, 2e-6)


def test_no_norm_no_rotation_and_a_target_that_is_ignored() -> None:
    shape = SHAPES["odd"]
    joined, _, _, cosines, sines, *sizes = OPERATIONS["heads"].inputs(shape)
    for tables in ((None, None), (cosines, sines)):
        arguments = (joined, None, None, *tables, *sizes)
        found = results("heads", "c", fresh(arguments))
        assert_like(found, results("heads", TORCH, fresh(arguments)), 2e-6)
    x, branch, p, _, epsilon = OPERATIONS["residual"].inputs(shape)
    arguments = (x, branch, p, None, epsilon)
    found = results("residual", "c", fresh(arguments))
    assert_like(found, results("residual", TORCH, fresh(arguments)), 2e-6)
    logits, targets, _ = OPERATIONS["loss"].inputs(shape)
    targets[::2] = -100
    found = results("loss", "c", (logits.clone(), targets, 0.5))
    assert_like(found, results("loss", TORCH, (logits.clone(), targets, 0.5)), 2e-6)
    assert not found[0][::2].any()
    assert not found[1][::2].any()


def test_extreme_numbers() -> None:
    """Sigmoids and exponentials at the ends of their range, and what is no number stays so."""
    gate = torch.tensor([-200.0, -90.0, 0.0, 90.0, 200.0, float("nan")])
    up = torch.ones(6)
    for variant in ("c", TORCH):
        out = OPERATIONS["swiglu"].variants[variant].run(gate, up)
        torch.testing.assert_close(out[:5], torch.tensor([0.0, 0.0, 0.0, 90.0, 200.0]))
        assert out[5].isnan()
    logits = torch.tensor([[300.0, -300.0, 0.0], [0.0, float("nan"), 1.0]])
    nats, slope = OPERATIONS["loss"].variants["c"].run(logits, torch.tensor([1, 0]), 1.0)
    torch.testing.assert_close(nats[0], torch.tensor(600.0))
    torch.testing.assert_close(slope[0], torch.tensor([1.0, -1.0, 0.0]))
    assert nats[1].isnan()
    assert OPERATIONS["squared_relu"].variants["c"].run(torch.tensor([float("nan")])).isnan()


@pytest.mark.parametrize("isa", native.available_isas())
def test_the_counter_keeps_what_is_documented(isa: str) -> None:
    rows, width, p = 45, 37, 0.3
    x, branch = torch.zeros(rows, width), torch.ones(rows, width, requires_grad=True)
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, (1,))
    keeps = dropout_keeps(seed, 1, 1, range(rows), width, p)[0, 0]
    torch.manual_seed(5)
    with native.forced_isa(isa):
        out, _ = OPERATIONS["residual"].variants["c_counter"].run(x, branch, p, None, 0.0)
        out.sum().backward()
    torch.testing.assert_close(out.detach(), keeps / (1 - p))
    assert branch.grad is not None
    torch.testing.assert_close(branch.grad, keeps / (1 - p))


def test_the_counter_drops_alike_in_the_norm_and_its_gradient() -> None:
    x = torch.randn(6, 40, requires_grad=True)
    gain = torch.ones(40)
    torch.manual_seed(3)
    y = OPERATIONS["norm"].variants["c_counter"].run(x, 0.5, gain, 1e-6)
    kept = y.detach() != 0
    assert 0.3 < kept.float().mean() < 0.7
    expected = torch.nn.functional.rms_norm(x, (40,), gain, 1e-6) * kept * 2
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn(6, 40)
    (found,) = torch.autograd.grad((y * weight).sum(), x, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), x)[0])


def test_a_mask_draws_what_the_twin_draws_and_a_counter_one_number() -> None:
    arguments = OPERATIONS["residual"].inputs(SHAPES["odd"])
    states = {}
    for variant in ("c_counter", "c", TORCH):
        torch.manual_seed(9)
        OPERATIONS["residual"].variants[variant].run(*arguments)
        states[variant] = torch.get_rng_state()
    assert torch.equal(states["c"], states[TORCH])
    torch.manual_seed(9)
    torch.randint(2**63 - 1, (1,))
    assert torch.equal(states["c_counter"], torch.get_rng_state())


@pytest.mark.parametrize("variant", ["c_counter", "c"])
def test_processes_that_share_a_batch_drop_what_one_would(variant: str) -> None:
    x, branch = torch.zeros(4, 3, 20), torch.ones(4, 3, 20)
    run = OPERATIONS["residual"].variants[variant].run
    torch.manual_seed(1)
    whole, _ = run(x, branch, 0.4, None, 0.0)
    for first, stop in ((0, 1), (1, 4)):
        torch.manual_seed(1)
        with computing(Share(first, stop, 4)):
            part, _ = run(x[first:stop], branch[first:stop], 0.4, None, 0.0)
        assert torch.equal(part, whole[first:stop])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_threads(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        shape = StepShape(batch=2, length=50, width=40, hidden=24, vocabulary=60)
        made = {name: OPERATIONS[name].inputs(shape) for name, _ in CASES}
        expected = [results(name, v, fresh(made[name])) for name, v in CASES]
        torch.set_num_threads(threads)
        for (name, variant), wanted in zip(CASES, expected, strict=True):
            found = results(name, variant, fresh(made[name]))
            assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True)), name
    finally:
        torch.set_num_threads(before)
