"""Cases of the fused operations in Triton: on a GPU as they are, without one in the interpreter.

Not collected by itself: ``test_triton_interpreter.py`` runs it in a process of its own, because the
interpreter is chosen before Triton is imported; ``scripts/gpu_check`` runs it on the device.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.attention.dropout import dropout_keeps
from infinito.config.loading import config_from_plain
from infinito.distributed.rows import Share, computing
from infinito.kernels import on_gpu
from infinito.kernels.fusion import OPERATIONS, TORCH, StepShape
from infinito.train.trainer import Trainer
from tests.support import tiny_settings
from tests.unit.test_fused_operations import SHAPES, assert_like, fresh, results

pytest.importorskip("triton")
DEVICE = "cpu" if on_gpu.interpreted else "cuda"
TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}
#: Around the rows of a tile and of a block, the numbers of a tile, and those of a flat program.
BORDERS = {
    "one over": StepShape(
        batch=3, length=11, width=129, hidden=32, d_head=40, heads=3, key_heads=1, vocabulary=1025
    ),
    "a block": StepShape(
        batch=1, length=32, width=128, hidden=33, d_head=16, heads=2, key_heads=2, vocabulary=1024
    ),
    "wide": StepShape(
        batch=1, length=2, width=4097, hidden=341, d_head=256, heads=1, key_heads=1,
        vocabulary=9000,
    ),
}  # fmt: skip
ALL = {**SHAPES, **BORDERS}


def run(name: str, variant: str, *arguments: Any) -> Any:
    return OPERATIONS[name].variants[variant].run(*arguments)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(name, torch.float32) for name in ALL]
    + [(name, half) for name in ("odd", "one over") for half in (torch.bfloat16, torch.float16)],
    ids=str,
)
def test_values_and_gradients_are_the_twins(shape: str, dtype: torch.dtype) -> None:
    for name, operation in OPERATIONS.items():
        torch.manual_seed(0)
        made = replace(ALL[shape], dtype=dtype, device=DEVICE)
        assert operation.variants["triton"].objection(made) is None
        arguments = operation.inputs(made)
        expected = results(name, TORCH, fresh(arguments))
        assert_like(results(name, "triton", fresh(arguments)), expected, TOLERANCES[dtype], name)


def test_no_norm_no_rotation_and_a_target_that_is_ignored() -> None:
    shape = replace(SHAPES["odd"], device=DEVICE)
    joined, *gains, cosines, sines, heads, key_heads, epsilon = OPERATIONS["heads"].inputs(shape)
    sizes = heads, key_heads, epsilon
    x, branch, p, _, epsilon = OPERATIONS["residual"].inputs(shape)
    logits, targets, _ = OPERATIONS["loss"].inputs(shape)
    targets[::2] = -100
    for name, arguments in (
        ("heads", (joined, None, None, None, None, *sizes)),
        ("heads", (joined, None, None, cosines, sines, *sizes)),
        ("heads", (joined, *gains, None, None, *sizes)),
        ("residual", (x, branch, p, None, epsilon)),
        ("loss", (logits, targets, 0.5)),
    ):
        found = results(name, "triton", fresh(arguments))
        assert_like(found, results(name, TORCH, fresh(arguments)), 4e-6, name)
    assert not found[0][::2].any()
    assert not found[1][::2].any()


def test_layouts_do_not_matter() -> None:
    for name in set(OPERATIONS) - {"loss"}:  # its logits come from a product
        arguments = OPERATIONS[name].inputs(replace(SHAPES["usual"], device=DEVICE))
        scattered = tuple(
            x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(x.requires_grad)
            if isinstance(x, torch.Tensor) and x.dim() == 3
            else x
            for x in arguments
        )
        expected = results(name, TORCH, fresh(arguments))
        assert_like(results(name, "triton", scattered), expected, 4e-6, name)


def test_extreme_numbers() -> None:
    gate = torch.tensor([-200.0, -90.0, 0.0, 90.0, 200.0, float("nan")], device=DEVICE)
    out = run("swiglu", "triton", gate, torch.ones_like(gate)).cpu()
    torch.testing.assert_close(out[:5], torch.tensor([0.0, 0.0, 0.0, 90.0, 200.0]))
    assert out[5].isnan()
    logits = torch.tensor([[300.0, -300.0, 0.0], [0.0, float("nan"), 1.0]], device=DEVICE)
    nats, slope = run("loss", "triton", logits, torch.tensor([1, 0], device=DEVICE), 1.0)
    torch.testing.assert_close(nats[0].cpu(), torch.tensor(600.0))
    torch.testing.assert_close(slope[0].cpu(), torch.tensor([1.0, -1.0, 0.0]))
    assert nats[1].isnan()
    assert run("squared_relu", "triton", gate)[5].isnan()


def test_the_counter_keeps_what_is_documented_forward_and_backward() -> None:
    """Also where the rows are the last of a batch that several processes share."""
    rows, width, p = 45, 37, 0.3
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, (1,), device=DEVICE)
    keeps = dropout_keeps(seed, 1, 1, range(rows), width, p)[0, 0] / (1 - p)
    for first in (0, 9):
        x = torch.zeros(rows - first, width, device=DEVICE)
        branch = torch.ones_like(x, requires_grad=True)
        torch.manual_seed(5)
        with computing(Share(first, rows, rows)):
            out, _ = run("residual", "triton_counter", x, branch, p, None, 0.0)
        out.sum().backward()
        torch.testing.assert_close(out.detach(), keeps[first:])
        torch.testing.assert_close(branch.grad, keeps[first:])


def test_the_counter_drops_alike_in_the_norm_and_its_gradient() -> None:
    x = torch.randn(6, 40, device=DEVICE, requires_grad=True)
    gain = torch.ones(40, device=DEVICE)
    y = run("norm", "triton_counter", x, 0.5, gain, 1e-6)
    kept = y.detach() != 0
    assert 0.3 < kept.float().mean() < 0.7
    expected = torch.nn.functional.rms_norm(x, (40,), gain, 1e-6) * kept * 2
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn(6, 40, device=DEVICE)
    (found,) = torch.autograd.grad((y * weight).sum(), x, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weight).sum(), x)[0])


def test_a_second_run_gives_the_same_bits() -> None:
    for name, operation in OPERATIONS.items():
        arguments = operation.inputs(replace(SHAPES["usual"], device=DEVICE))
        variant = "triton_counter" if "triton_counter" in operation.variants else "triton"
        first, second = (results(name, variant, fresh(arguments)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name


def test_a_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Every operation of a step by Triton, masks by the counter."""
    changes = {"model__dropout": 0.2, "model__n_layers": 1, "training__optimizer": "muon"}
    changes |= {"training__batch_size": 1, "data__sequence_length": 8}
    plain = tiny_settings(tmp_path, device=DEVICE, training__fusion="moderate", **changes)
    whole = Trainer(config_from_plain(plain, "test"))
    assert whole.model.plan.variants["residual"] == "triton_counter"
    whole.train_step()
    whole.save(tmp_path / "step.pt")
    rest = whole.train_step().loss
    again = Trainer.load(tmp_path / "step.pt")
    assert again.model.plan == whole.model.plan
    assert again.train_step().loss == rest
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
