"""One optimizer step: independent of its split, honest about numbers that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed
from torch._ops import OpOverload
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from infinito.config.model_config import ModelConfig
from infinito.config.training_config import TrainingConfig
from infinito.errors import DivergedError
from infinito.model.language_model import TrainingLoss
from infinito.model.transformer import Transformer
from infinito.optim.optimizers import Optimizers
from infinito.train.step import StepResult, training_step


def step(
    batch_size: int, sequences: torch.Tensor, clip: float = 0.0
) -> tuple[StepResult, Transformer, Optimizers]:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(d_model=32, n_layers=2, n_heads=2), 50, 16)
    optimizers = Optimizers(model, TrainingConfig())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    result = training_step(model, optimizers, scaler, sequences, batch_size, "float32", clip)
    return result, model, optimizers


@settings(max_examples=10, deadline=None)
@given(batch_size=st.sampled_from([1, 2, 3, 4, 5, 6]))
def test_the_split_of_a_step_changes_nothing(batch_size: int) -> None:
    """4 and 5 leave a smaller last part, which a mean of means would notice."""
    torch.manual_seed(1)
    sequences = torch.randint(0, 50, (6, 17))
    whole, _, whole_optimizers = step(6, sequences)
    split, _, split_optimizers = step(batch_size, sequences)
    assert split.targets == 6 * 16
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert split.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    for name, fields in whole_optimizers.state().items():
        torch.testing.assert_close(
            split_optimizers.state()[name]["exp_avg"], fields["exp_avg"], rtol=1e-2, atol=1e-7
        )


def test_clipping_limits_the_norm_and_reports_it_unclipped() -> None:
    torch.manual_seed(1)
    sequences = torch.randint(0, 50, (4, 17))
    free, _, _ = step(4, sequences)
    clipped, model, _ = step(4, sequences, clip=free.grad_norm / 10)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm().item()
    assert clipped.grad_norm == pytest.approx(free.grad_norm)
    assert norm == pytest.approx(free.grad_norm / 10, rel=1e-4)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(poison: float) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(d_model=32, n_layers=1, n_heads=2), 50, 16)
    optimizers = Optimizers(model, TrainingConfig())
    with torch.no_grad():
        model.final_norm.weight[0] = poison
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sequences = torch.randint(0, 50, (2, 17))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(DivergedError, match="diverged"):
        training_step(model, optimizers, scaler, sequences, 2, "float32", 1.0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], equal_nan=True, rtol=0, atol=0)


@pytest.mark.row("C-23")
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["embedding.weight", "blocks.0.attention.query.weight"])
def test_an_overflow_in_one_optimizer_stops_both(name: str, poison: float, clip: float) -> None:
    """float16 under Muon: a step is taken by every parameter or by none, and then goes on."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(d_model=32, n_layers=1, n_heads=2), 50, 16)
    optimizers = Optimizers(model, TrainingConfig(optimizer="muon"))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def take() -> tuple[StepResult, list[torch.Tensor]]:
        sequences = torch.randint(0, 50, (4, 17))
        result = training_step(model, optimizers, scaler, sequences, 4, "float16", clip)
        moments = [v.clone() for fields in optimizers.state().values() for v in fields.values()]
        return result, [p.detach().clone() for p in model.parameters()] + moments

    result, before = take()
    assert not result.skipped
    hook = model.get_parameter(name).register_hook(lambda g: torch.full_like(g, poison))
    result, after = take()
    assert result.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert scaler.get_scale() == 128.0
    hook.remove()
    result, after = take()
    assert not result.skipped
    assert all(bool(a.isfinite().all()) for a in after)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_overflow_that_no_loss_scale_can_mend_is_told() -> None:
    """Finite gradients whose norm is not: no scale is lowered, so no later step would be taken."""
    model = Transformer(ModelConfig(d_model=32, n_layers=1, n_heads=2), 50, 16)
    optimizers = Optimizers(model, TrainingConfig(optimizer="muon"))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    model.embedding.weight.register_hook(lambda g: torch.full_like(g, 3e38))
    before = [p.detach().clone() for p in model.parameters()]
    sequences = torch.randint(0, 50, (4, 17))
    with pytest.raises(DivergedError, match="gradient norm inf; the update was not applied"):
        training_step(model, optimizers, scaler, sequences, 4, "float16", 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Synchronisations(TorchDispatchMode):
    """Counts the operations for which the host must wait until a device is done."""

    count = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        waits = "_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"
        self.count += func.overloadpacket.__name__ in waits
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_waits_for_the_device_once(optimizer: str, precision: str) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(d_model=32, n_layers=1, n_heads=2), 50, 16)
    optimizers = Optimizers(model, TrainingConfig(optimizer=optimizer))  # type: ignore[arg-type]
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "float16")
    with Synchronisations() as seen:
        sequences = torch.randint(0, 50, (4, 17))
        training_step(model, optimizers, scaler, sequences, 2, precision, 1.0)
    assert seen.count <= 1


class Regularised(Transformer):
    """A model with a second loss: a hundredth of the squared final states, summed over tokens."""

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> TrainingLoss:
        nats, _, _ = super().forward(tokens, targets)
        return TrainingLoss(nats, {"states": 0.01 * self.hidden(tokens).square().sum()}, {})


@pytest.mark.parametrize("batch_size", [6, 4])
def test_auxiliary_losses_are_trained_and_not_reported(batch_size: int) -> None:
    torch.manual_seed(1)
    sequences = torch.randint(0, 50, (6, 17))
    plain, _, _ = step(batch_size, sequences)
    torch.manual_seed(0)
    model = Regularised(ModelConfig(d_model=32, n_layers=2, n_heads=2), 50, 16)
    tokens, targets = sequences[:, :-1], sequences[:, 1:]
    logits = model.logits(model.hidden(tokens)).flatten(0, 1)
    loss = F.cross_entropy(logits, targets.flatten())
    penalty = 0.01 * model.hidden(tokens).square().sum() / targets.numel()
    wanted = torch.autograd.grad(loss + penalty, list(model.parameters()))
    optimizers = Optimizers(model, TrainingConfig())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    result = training_step(model, optimizers, scaler, sequences, batch_size, "float32", 0.0)
    assert result.loss == pytest.approx(plain.loss, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_model_wrapped_for_several_processes_takes_the_same_step(tmp_path: Path) -> None:
    """DDP sees what goes through ``forward``, and nothing else: training must go that way."""
    sequences = torch.randint(0, 50, (4, 17))
    _, alone, _ = step(4, sequences)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(d_model=32, n_layers=2, n_heads=2), 50, 16)
    optimizers = Optimizers(model, TrainingConfig())
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    reduced: list[torch.Tensor] = []

    def reduce(_, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations here
        reduced.extend(bucket.gradients())
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    try:
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, reduce)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        training_step(wrapped, optimizers, scaler, sequences, 4, "float32", 0.0)
    finally:
        distributed.destroy_process_group()
    assert len(reduced) == len(list(model.parameters()))
    for own, other in zip(alone.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, other)
