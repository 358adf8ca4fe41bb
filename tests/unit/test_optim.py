"""Schedules, parameter groups, stored state and averages."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infinito.config.model_config import ModelConfig
from infinito.config.training_config import TrainingConfig
from infinito.errors import CheckpointError
from infinito.model.transformer import Transformer
from infinito.optim.average import Average
from infinito.optim.optimizers import Optimizers
from infinito.optim.schedule import learning_rate_factor


def small_model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(d_model=32, n_layers=2, n_heads=2), 50, 16)


def one_update(model: Transformer, optimizers: Optimizers) -> None:
    tokens = torch.randint(0, 50, (2, 16))
    optimizers.zero_grad()
    model(tokens, tokens).nats.backward()
    for part in optimizers.parts:
        part.optimizer.step()


@given(
    schedule=st.sampled_from(["cosine", "linear", "wsd", "constant"]),
    total=st.integers(1, 400),
    warmup=st.integers(0, 500),
    floor=st.floats(0, 1),
)
def test_schedule_rises_to_the_peak_and_never_again(
    schedule: str, total: int, warmup: int, floor: float
) -> None:
    training = TrainingConfig(
        schedule=schedule,  # type: ignore[arg-type]
        warmup_steps=warmup,
        final_learning_rate_ratio=floor,
    )
    factors = [learning_rate_factor(step, total, training) for step in range(total)]
    peak = min(warmup, total)
    assert all(0 < f <= 1 + 1e-12 for f in factors)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(factors[:peak]))
    after = factors[max(peak - 1, 0) :]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(after))
    assert max(factors) == pytest.approx(1.0)


def test_wsd_is_flat_until_its_decay() -> None:
    training = TrainingConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.3)
    factors = [learning_rate_factor(step, 100, training) for step in range(100)]
    assert factors[10:70] == [1.0] * 60
    assert factors[99] == pytest.approx(1 / 30)


def test_muon_takes_the_hidden_matrices_and_gains_never_decay() -> None:
    model = small_model()
    muon, adamw = Optimizers(model, TrainingConfig(optimizer="muon")).parts
    assert all(name.startswith("blocks.") and "norm" not in name for name in muon.parameters)
    assert "embedding.weight" in adamw.parameters
    decayed, gains = adamw.optimizer.param_groups
    assert decayed["weight_decay"] > 0
    assert gains["weight_decay"] == 0
    assert all(p.ndim == 1 for p in gains["params"])
    names = [*muon.parameters, *adamw.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stored_state_continues_with_the_same_bits(optimizer: str) -> None:
    training = TrainingConfig(optimizer=optimizer)  # type: ignore[arg-type]
    first, second = small_model(), small_model()
    one = Optimizers(first, training)
    torch.manual_seed(1)
    one_update(first, one)
    second.load_state_dict(first.state_dict())
    other = Optimizers(second, training)
    other.load_state(one.state())
    for model, optimizers in ((first, one), (second, other)):
        torch.manual_seed(2)
        one_update(model, optimizers)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_model_is_refused() -> None:
    model = small_model()
    optimizers = Optimizers(model, TrainingConfig())
    one_update(model, optimizers)
    state = optimizers.state()
    with pytest.raises(CheckpointError, match="nothing, unknown"):
        optimizers.load_state({**state, "nothing": {"step": 1}})
    state["final_norm.weight"]["exp_avg"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="final_norm"):
        optimizers.load_state(state)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stored_state_is_put_beside_its_parameter(optimizer: str) -> None:
    """A file is read into the CPU's memory; fused AdamW wants its step where its parameter is."""
    training = TrainingConfig(optimizer=optimizer)  # type: ignore[arg-type]
    model = small_model()
    optimizers = Optimizers(model, training)
    one_update(model, optimizers)
    elsewhere = Optimizers(small_model().to("meta"), training)
    elsewhere.load_state(optimizers.state())
    state = elsewhere.state()
    assert state.keys() == dict(model.named_parameters()).keys()
    assert any("step" in fields for fields in state.values())
    assert {v.device.type for fields in state.values() for v in fields.values()} == {"meta"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_that_is_missing_is_refused(optimizer: str) -> None:
    training = TrainingConfig(optimizer=optimizer)  # type: ignore[arg-type]
    model = small_model()
    optimizers = Optimizers(model, training)
    one_update(model, optimizers)
    state = optimizers.state()
    name = "blocks.0.attention.query.weight"
    without = {key: fields for key, fields in state.items() if key != name}
    for lacking in ({}, without, {**state, name: {}}):
        with pytest.raises(CheckpointError, match="lacks") as caught:
            optimizers.load_state(lacking)
        assert "another checkpoint" in (caught.value.remedy or "")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_that_no_update_has_touched_is_whole(optimizer: str) -> None:
    """A float16 run may save before its loss scale has let the first update through."""
    training = TrainingConfig(optimizer=optimizer)  # type: ignore[arg-type]
    fresh = Optimizers(small_model(), training)
    state = fresh.state()
    fresh.load_state(state)
    assert all(not value.any() for fields in state.values() for value in fields.values())
    assert state.keys() == {name for name, _ in small_model().named_parameters()}


def test_average_follows_its_definition_and_swaps_back() -> None:
    model = small_model()
    average = Average(model, decay=0.5)
    start = model.final_norm.weight.detach().clone()
    with torch.no_grad():
        model.final_norm.weight.add_(1.0)
    average.update(model, step=100)
    torch.testing.assert_close(average.weights["final_norm.weight"], start + 0.5)
    own = model.final_norm.weight.detach().clone()
    with average.swapped_into(model):
        torch.testing.assert_close(model.final_norm.weight.detach(), start + 0.5)
    assert torch.equal(model.final_norm.weight.detach(), own)
