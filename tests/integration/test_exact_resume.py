"""A run that is saved, dropped and rebuilt ends with the same bits as one that never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from infinito.config.loading import config_from_plain
from infinito.errors import InfinitoError
from infinito.train.trainer import Trainer
from tests.support import tiny_settings

# Several epochs, accumulation, every kind of dropout, an average, evaluations, an open log window.
EVERYTHING = {
    "model__dropout": 0.2,
    "model__output_dropout": 0.1,
    "model__word_dropout": 0.1,
    "training__gradient_accumulation_steps": 2,
    "training__max_steps": 14,
    "training__ema_decay": 0.9,
    "training__optimizer": "muon",
    "training__log_every": 4,
}


def build(tmp_path: Path, **changes: object) -> Trainer:
    plain = tiny_settings(tmp_path, **{**EVERYTHING, **changes})
    return Trainer(config_from_plain(plain, "test"))


def advance(trainer: Trainer, until: int) -> Trainer:
    """The loop without a directory: step, and evaluate every fifth."""
    while trainer.progress.step < min(until, trainer.total_steps):
        trainer.train_step()
        if trainer.progress.step % 5 == 0:
            trainer.validate()
    return trainer


def small_text(tmp_path: Path) -> None:
    """So little text that a few steps are several epochs."""
    from tests.support import write_text

    write_text(tmp_path / "text.txt", paragraphs=8)


@pytest.mark.row("R-01", "R-03")
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stops=st.lists(st.integers(1, 13), min_size=1, max_size=3, unique=True).map(sorted))
def test_any_stops_end_with_the_same_file(tmp_path: Path, stops: list[int]) -> None:
    small_text(tmp_path)
    whole, path = tmp_path / "whole.pt", tmp_path / "hop.pt"
    if not whole.exists():
        unbroken = advance(build(tmp_path), 14)
        assert unbroken.epoch > 2
        unbroken.save(whole)
    trainer = build(tmp_path)
    for stop in stops:
        advance(trainer, stop).save(path)
        torch.rand(7)  # whatever happens in between must not matter
        trainer = Trainer.load(path)
    advance(trainer, 14).save(path)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.row("R-01")
@pytest.mark.parametrize(
    "changes",
    [
        {"training__optimizer": "adamw"},
        {"training__precision": "bfloat16"},
        {"training__precision": "float16"},
        {"model__attention__kind": "l1"},
        {"model__moe": {"n_experts": 4, "n_shared": 1}},
        {"model__moe": {"n_experts": 3, "top_k": 1}, "training__activation_checkpointing": True},
        {"model__attention__kind": "cosine", "training__activation_checkpointing": True},
    ],
)
def test_other_settings_resume_exactly_too(tmp_path: Path, changes: dict[str, object]) -> None:
    whole = advance(build(tmp_path, **changes), 9)
    whole.save(tmp_path / "whole.pt")
    advance(build(tmp_path, **changes), 4).save(tmp_path / "part.pt")
    advance(Trainer.load(tmp_path / "part.pt"), 9).save(tmp_path / "part.pt")
    assert (tmp_path / "part.pt").read_bytes() == (tmp_path / "whole.pt").read_bytes()


@pytest.mark.row("R-07", "R-14")
@pytest.mark.parametrize(
    "field",
    ["step", "epoch", "tokens", "sequences", "config", "tokenizer", "vocab_size", "data", "model",
     "average", "optimizers", "scaler", "random", "best", "evaluations", "log", "versions"],
)  # fmt: skip
def test_a_missing_field_is_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "part.pt"
    advance(build(tmp_path), 1).save(path)
    content = read_checkpoint(path)
    del content[field]
    write_checkpoint(path, content)
    with pytest.raises(InfinitoError) as caught:
        Trainer.load(path)
    assert caught.value.exit_code == 4
    assert field in caught.value.message


@pytest.mark.row("R-05")
def test_evaluating_and_saving_change_no_bit(tmp_path: Path) -> None:
    plain = build(tmp_path)
    for _ in range(6):
        plain.train_step()
    busy = build(tmp_path)
    for _ in range(6):
        busy.train_step()
        busy.validate()
        busy.save(tmp_path / "busy.pt")
    for a, b in zip(plain.model.parameters(), busy.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.row("X-02")
def test_same_seed_same_bits_and_other_seed_other_bits(tmp_path: Path) -> None:
    states = []
    for seed in (7, 7, 8):
        trainer = advance(build(tmp_path, seed=seed), 3)
        states.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.row("X-03")
def test_a_batch_split_another_way_takes_the_same_sequences(tmp_path: Path) -> None:
    """X-03: with neither dropout nor clipping only rounding differs, in weights and in moments."""
    quiet = {"model__dropout": 0.0, "model__output_dropout": 0.0, "model__word_dropout": 0.0,
             "training__max_grad_norm": 0.0, "training__optimizer": "adamw"}  # fmt: skip
    one = build(tmp_path, **quiet, training__batch_size=8, training__gradient_accumulation_steps=1)
    other = build(
        tmp_path, **quiet, training__batch_size=2, training__gradient_accumulation_steps=4
    )
    advance(one, 8)
    advance(other, 8)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    for name, fields in one.optimizers.state().items():
        theirs = other.optimizers.state()[name]
        torch.testing.assert_close(fields["exp_avg"], theirs["exp_avg"], rtol=1e-2, atol=1e-6)
        torch.testing.assert_close(fields["exp_avg_sq"], theirs["exp_avg_sq"], rtol=1e-2, atol=1e-9)


@pytest.mark.row("R-14")
@pytest.mark.parametrize(
    "measurements",
    [{}, {"loss": [1.0]}, {"expert_load": [[1.0, 2.0]]}, {"expert_load": [[1.0], [1.0, 2.0]]},
     {"expert_load": "much"}, [1.0]],
)  # fmt: skip
def test_measurements_that_the_model_does_not_make_are_refused(
    tmp_path: Path, measurements: object
) -> None:
    path = tmp_path / "part.pt"
    advance(build(tmp_path, model__moe={"n_experts": 3}), 1).save(path)
    content = read_checkpoint(path)
    content["log"]["measurements"] = measurements
    write_checkpoint(path, content)
    with pytest.raises(InfinitoError) as caught:
        advance(Trainer.load(path), 2)
    assert caught.value.exit_code == 4
