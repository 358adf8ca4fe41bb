"""Fusion levels: what a plan holds, who decides, and that training by one is the same training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.config.loading import config_from_plain
from infinito.config.schema import Config
from infinito.errors import ConfigError
from infinito.kernels import compiled, on_gpu
from infinito.kernels.fusion import LEVELS, OPERATIONS, TORCH, Plan, StepShape, make_plan
from infinito.train import fusion_choice
from infinito.train.automatic import resolve
from infinito.train.trainer import Trainer
from tests.support import tiny_settings

needs_library = pytest.mark.skipif(bool(compiled.missing), reason=str(compiled.missing))
FUSED = [level for level in LEVELS if level not in ("none", "aggressive")]


def config(tmp_path: Path, level: str, **changes: Any) -> Config:
    plain = tiny_settings(tmp_path, training__fusion=level, **changes)
    return config_from_plain(plain, "test")


def trained(trainer: Trainer, steps: int) -> list[float]:
    torch.manual_seed(3)
    return [trainer.train_step().loss for _ in range(steps)]


def test_levels_name_operations_and_variants_that_exist() -> None:
    for level, allowed in LEVELS.items():
        for operation, variants in allowed.items():
            assert set(variants) <= set(OPERATIONS[operation].variants), level
    assert LEVELS["none"] == {}
    for variants in LEVELS["conservative"].values():
        assert "c_counter" not in variants


def test_a_plan_is_a_text_and_back() -> None:
    plan = Plan("moderate", {"norm": "c", "loss": TORCH})
    assert Plan.from_text(str(plan)) == plan
    assert Plan.from_text(None) == Plan()
    for wrong in ("extreme norm=c", "moderate norm", "norm=c"):
        with pytest.raises(ConfigError, match="is no plan"):
            Plan.from_text(wrong)


@needs_library
def test_a_wanted_plan_of_the_same_level_comes_first() -> None:
    wanted = Plan("moderate", {"norm": TORCH, "loss": "gone"})
    plan, told = make_plan("moderate", StepShape(), wanted)
    assert plan.variants["norm"] == TORCH
    assert plan.variants["loss"] == "c"
    assert plan.variants["residual"] == "c_counter"
    assert told == ["loss not by gone: unknown"]
    assert make_plan("conservative", StepShape(), wanted)[0].variants["norm"] == "c"
    assert make_plan("none", StepShape(), wanted)[0] == Plan()


def test_a_gpu_is_served_by_triton_and_auto_waits_for_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(on_gpu, "missing", None)
    for level, counting in (("moderate", "triton_counter"), ("conservative", "triton")):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            plan, told = make_plan(level, StepShape("cuda", dtype), Plan())
            assert plan.variants["residual"] == counting
            assert plan.variants["heads"] == plan.variants["loss"] == "triton"
            assert told == []
    monkeypatch.setattr(fusion_choice, "kept_speeds", lambda *_: {})
    assert fusion_choice.choose_level("auto", StepShape("cuda"), "cuda")[0] == "none"
    assert fusion_choice.choose_level("moderate", StepShape("cuda"), "cuda")[0] == "moderate"
    monkeypatch.setattr(on_gpu, "missing", "nobody installed it")
    plan, told = make_plan("moderate", StepShape("cuda"), Plan())
    assert set(plan.variants.values()) == {TORCH}
    assert "nobody installed it" in told[0]


def test_what_cannot_serve_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, told = make_plan("moderate", StepShape("mps"), Plan())
    assert set(plan.variants.values()) == {TORCH}
    assert "the tensors are on mps" in told[0]
    plan, told = make_plan("moderate", StepShape(dtype=torch.float16), Plan())
    assert set(plan.variants.values()) == {TORCH}
    monkeypatch.setattr(compiled, "missing", "nobody built it")
    assert "nobody built it" in make_plan("conservative", StepShape(), Plan())[1][0]


@needs_library
def test_a_level_is_announced_and_stored(tmp_path: Path, notes: list[str]) -> None:
    resolved = resolve(config(tmp_path, "moderate"))
    assert "residual by c_counter" in "\n".join(notes)
    assert Plan.from_text(resolved.training.fusion_plan).variants["residual"] == "c_counter"
    assert resolve(resolved).training == resolved.training
    assert resolve(config(tmp_path, "none")).training.fusion_plan is None


CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "swiglu": {"model__activation": "swiglu", "model__n_kv_heads": 1, "training__ema_decay": 0.9},
    "learned": {
        "model__position": "learned", "model__tie_embeddings": False, "model__qk_norm": False,
    },
    "double": {"model__block": "double", "model__second_d_ff": 48, "model__position": "alibi"},
    "experts": {"model__moe": {"n_experts": 3, "top_k": 2}},
    "l1": {"model__attention": {"kind": "l1", "learnable_lambda": True}},
    "muon": {"training__optimizer": "muon"},
}  # fmt: skip
UNFUSED = {
    "gelu": {"model__activation": "gelu"},
    "words": {"model__activation": "relu2", "model__word_dropout": 0.1},
    "bare": {"model__embedding_norm": False},
}


@needs_library
@pytest.mark.parametrize("name", [*CHANGES, *UNFUSED])
def test_only_what_a_step_computes_is_announced(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run, computed = Plan.run, set[str]()

    def counted(plan: Plan, operation: str, *arguments: Any) -> Any:
        computed.add(operation)
        return run(plan, operation, *arguments)

    trainer = Trainer(config(tmp_path, "moderate", **(CHANGES | UNFUSED)[name]))
    monkeypatch.setattr(Plan, "run", counted)
    trainer.train_step()
    [line] = [note for note in notes if note.startswith("fusion moderate: ")]
    by = line.removeprefix("fusion moderate: ").split("; ")
    assert {name for part in by for name in part.partition(" by ")[0].split(", ")} == computed


@needs_library
@pytest.mark.parametrize("level", FUSED)
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_training_is_the_same_training(tmp_path: Path, level: str, changes: dict[str, Any]) -> None:
    """Without dropout at every level, and with it where masks are drawn as without fusion."""
    rates = (0.0, 0.2) if level == "conservative" else (0.0,)
    for dropout in rates:
        losses, weights = [], []
        for fusion in ("none", level):
            made = config(tmp_path, fusion, model__dropout=dropout, **changes)
            trainer = Trainer(made)
            assert trainer.model.plan.fuses("norm") is (fusion != "none")
            losses.append(torch.tensor(trained(trainer, 4)))
            weights.append(dict(trainer.model.named_parameters()))
        torch.testing.assert_close(*losses, rtol=2e-5, atol=0)
        assert weights[0].keys() == weights[1].keys()


@needs_library
@pytest.mark.parametrize("level", FUSED)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_resume_is_exact(tmp_path: Path, level: str, checkpointing: bool) -> None:
    rates = {"model__dropout": 0.2, "model__output_dropout": 0.1, "training__optimizer": "muon"}
    made = config(tmp_path, level, **rates, training__activation_checkpointing=checkpointing)
    whole = Trainer(made)
    first = trained(whole, 3)
    path = tmp_path / "step.pt"
    whole.save(path)
    rest = [whole.train_step().loss for _ in range(3)]
    again = Trainer.load(path)
    assert again.model.plan == whole.model.plan
    assert [again.train_step().loss for _ in range(3)] == rest
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    if checkpointing:
        kept = Trainer(config(tmp_path, level, **rates))
        torch.testing.assert_close(trained(kept, 3), first, rtol=1e-5, atol=0)


@needs_library
def test_a_stored_plan_is_reused_and_a_new_level_makes_a_new_one(tmp_path: Path) -> None:
    stored = config(tmp_path, "moderate", training__fusion_plan="moderate norm=torch loss=torch")
    plan = Plan.from_text(resolve(stored).training.fusion_plan)
    assert (plan.variants["norm"], plan.variants["loss"]) == (TORCH, TORCH)
    assert plan.variants["residual"] == "c_counter"
    other = stored.training.model_copy(update={"fusion": "conservative"})
    plan = Plan.from_text(
        resolve(stored.model_copy(update={"training": other})).training.fusion_plan
    )
    assert set(plan.variants.values()) == {"c"}
