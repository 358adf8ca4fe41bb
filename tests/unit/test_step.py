"""One optimizer step: independent of its split, honest about numbers that are not finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infinito.config.schema import ModelConfig, TrainingConfig
from infinito.errors import DivergedError
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
@given(batch_size=st.sampled_from([1, 2, 3, 4, 6]), ignored=st.sets(st.integers(0, 5), max_size=4))
def test_the_split_of_a_step_changes_nothing(batch_size: int, ignored: set[int]) -> None:
    torch.manual_seed(1)
    sequences = torch.randint(0, 50, (6, 17))
    # The last id is a target only. Unequal target counts: a mean of means would notice.
    sequences[list(ignored), -1] = -100
    whole, _, whole_optimizers = step(6, sequences)
    split, _, split_optimizers = step(batch_size, sequences)
    assert split.targets == 6 * 16 - len(ignored)
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
