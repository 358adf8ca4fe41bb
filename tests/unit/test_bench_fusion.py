"""``bench fusion`` finds the best plan of a listed table, and runs take what it kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from infinito.bench import fused_operations
from infinito.bench import fusion_plans as fusion
from infinito.bench.fused_operations import bench_operations, peak_bytes
from infinito.bench.fusion_plans import level_speeds, search_plans
from infinito.cli.main import main
from infinito.config.loading import load_config
from infinito.config.schema import Config
from infinito.kernels import fusion as table
from infinito.kernels.fusion import TORCH, FusedOperation, Plan, StepShape
from infinito.kernels.table import Variant, no_objection
from infinito.load import open_checkpoint
from infinito.runtime.events import Note, reading
from infinito.train import automatic, fusion_choice
from infinito.train.automatic import resolve, step_shape
from infinito.train.fusion_choice import LevelSpeed, fastest, keep_speeds, kept_speeds
from tests.command_support import infinito, write_config

SHAPE = StepShape(batch=2, length=8, width=16, hidden=32)


def twice(x: Tensor) -> Tensor:
    return x * 2


def operation(name: str, *others: str) -> FusedOperation:
    """It doubles; by ``c`` on a CPU, by ``gpu`` never."""
    variants: dict[str, Variant[StepShape]] = {
        other: Variant(lambda: "", (lambda _: "no gpu") if other == "gpu" else no_objection, twice)
        for other in (*others, TORCH)
    }
    return FusedOperation(
        name, variants, StepShape, lambda shape: (torch.randn(1000, requires_grad=True),)
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, FusedOperation]:
    """Operations of the test in place of the real ones; 16 plans serve, and nothing compiles."""
    others = {"norm": ("c", "gpu"), "act": ("c",), "rope": ("gpu", "c"), "loss": ("c",)}
    operations = {name: operation(name, *some) for name, some in others.items()}
    for module in (table, fusion, fused_operations, automatic):
        monkeypatch.setattr(module, "OPERATIONS", operations)
    monkeypatch.setitem(table.LEVELS, "conservative", {"norm": ("gpu", "c")})
    monkeypatch.setitem(table.LEVELS, "moderate", others)
    monkeypatch.setitem(table.LEVELS, "aggressive", {})
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return operations


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_of_the_search_is_the_exhaustive_best(
    made: dict[str, FusedOperation], seed: int
) -> None:
    random, asked = Random(seed), list[str]()
    names = list(made)
    costs = {v: random.random() for v in itertools.product(("c", TORCH), repeat=len(names))}
    costs[TORCH, TORCH, TORCH, TORCH] = 1.0  # what all others are measured against

    def ratio(plan: Plan) -> float:
        asked.append(str(plan))
        return costs[tuple(plan.variants[name] for name in names)]

    found = search_plans(SHAPE, [*names, "of another model"], ratio)
    best = min(costs, key=costs.__getitem__)
    assert found[0].time_ratio == min(costs.values())
    assert found[0].plan == Plan("moderate", dict(zip(names, best, strict=True)))
    assert len(found) == len(costs) == 16
    assert len(set(asked)) == len(asked) == 15  # plain torch is what it is


def test_of_the_real_operations_all_plans_are_measured_where_they_are_few() -> None:
    serving = [
        1 + sum(table.OPERATIONS[name].variants[v].objection(SHAPE) is None for v in some)
        for name, some in table.LEVELS["moderate"].items()
    ]
    count = torch.tensor(serving).prod().item()
    found = search_plans(SHAPE, table.OPERATIONS, lambda plan: float(len(str(plan))))
    assert len(found) == count if count <= 16 else len(found) > 16
    assert found[0].time_ratio == min(trial.time_ratio for trial in found)


def test_only_what_a_model_asks_for_is_searched(base: Config) -> None:
    asked = fusion.StepTimer(resolve(base), 300).operations()
    assert {"residual", "squared_relu"} <= asked <= set(table.OPERATIONS)
    assert not {"swiglu", "momentum"} & asked
    training = base.training.model_copy(update={"optimizer": "muon"})
    muon = resolve(base.model_copy(update={"training": training}))
    asked_by_muon = fusion.StepTimer(muon, 300).operations()
    assert asked < asked_by_muon <= set(table.OPERATIONS)
    found = search_plans(SHAPE, {"squared_relu"}, lambda plan: 1.0)
    assert {tuple(trial.plan.variants) for trial in found} == {("squared_relu",)}


class Timer(fusion.StepTimer):
    """Steps that take as long as the test says."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self._seconds, self.steps = seconds, dict[str, Plan]()

    def step(self, level: str, plan: Plan) -> Callable[[], object]:
        self.steps[level] = plan
        return lambda: None

    def times(self, steps: Mapping[str, object]) -> dict[str, list[float]]:
        return {name: [self._seconds[name]] * 9 for name in ("none", *steps)}


@pytest.mark.usefixtures("made")
def test_levels_are_held_against_plain_torch() -> None:
    timer = Timer({"none": 3.0, "conservative": 4.0, "moderate": 2.0, "aggressive": 1.0})
    best = Plan("moderate", {"norm": "c", "act": TORCH})
    speeds = level_speeds(timer, SHAPE, best)
    ratios = {level: (s.low, s.ratio, s.high) for level, s in speeds.items()}
    assert ratios == {"conservative": (0.75,) * 3, "moderate": (1.5,) * 3, "aggressive": (3.0,) * 3}
    assert timer.steps["conservative"] == Plan("conservative", {"norm": "c"})
    assert timer.steps["moderate"] == best
    assert fastest(speeds) == "aggressive"
    assert speeds["aggressive"].compile_seconds > speeds["moderate"].compile_seconds == 0
    # A level that is plain torch all over is not timed.
    timer.steps.clear()
    speeds = level_speeds(timer, SHAPE, Plan("moderate", {"norm": TORCH}))
    assert "moderate" not in timer.steps
    assert speeds["moderate"].ratio == 1


def test_every_variant_has_its_row(made: dict[str, FusedOperation]) -> None:
    rows = bench_operations(SHAPE, 5)
    of_norm = {row["variant"]: row for row in rows if row["operation"] == "norm"}
    assert list(of_norm) == ["c", TORCH, fused_operations.COMPILED, "gpu"]
    assert of_norm["gpu"] == {"operation": "norm", "variant": "gpu", "objection": "no gpu"}
    row = of_norm["c"]
    assert row["low"] <= row["milliseconds"] <= row["high"]
    assert row["against_eager"] > 0 < row["against_compiled"]
    # 2 x of 1000 float32, its gradient, and no more: what it is given is not counted.
    assert row["peak_mb"] == pytest.approx(0.008, abs=0.0005)
    assert of_norm[fused_operations.COMPILED]["compile_seconds"] > 0
    assert len(rows) == sum(len(o.variants) + 1 for o in made.values())


@pytest.mark.usefixtures("made")
def test_a_twin_that_does_not_compile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", fail)
    told: list[str] = []
    with reading(lambda e: told.append(e.text) if isinstance(e, Note) else None, alone=True):
        rows = bench_operations(SHAPE, 1)
    assert told[0] == "norm: not compared with torch.compile, which failed (no compiler)"
    assert not any("against_compiled" in row for row in rows)


def test_the_peak_is_what_was_held_at_once() -> None:
    def act() -> None:
        for _ in range(3):
            torch.zeros(1000)  # one after the other
        a = torch.zeros(2000)
        b = torch.zeros(500)
        del a, b

    assert peak_bytes(act, torch.device("cpu")) == pytest.approx(10_000, rel=0.02)


# -- what a run makes of it --------------------------------------------------------------------


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    monkeypatch.setenv("INFINITO_CACHE", str(tmp_path / "cache"))
    settings = ["device=cpu", "training.precision=float32", "model.d_model=32", "model.n_layers=1"]
    return load_config(None, settings)


def resolved(config: Config, fusion: str, plan: str | None = None) -> tuple[str, str | None, str]:
    """Level, plan, and what was told of it."""
    given = {"fusion": fusion, "fusion_plan": plan}
    config = config.model_copy(update={"training": config.training.model_copy(update=given)})
    told: list[str] = []
    with reading(lambda e: told.append(e.text) if isinstance(e, Note) else None, alone=True):
        training = resolve(config).training
    return training.fusion, training.fusion_plan, "\n".join(t for t in told if "fusion" in t)


def keep(config: Config, **ratios: float) -> Path:
    speeds = {
        level: LevelSpeed(f"{level} act=c norm={TORCH}", r, r - 0.05, r + 0.05)
        for level, r in ratios.items()
    }
    return keep_speeds(speeds, step_shape(resolve(config)), "cpu")


@pytest.mark.usefixtures("made")
def test_auto_takes_what_was_measured_to_be_fastest(base: Config) -> None:
    keep(base, conservative=1.2, moderate=1.5, aggressive=1.04)
    level, plan, told = resolved(base, "auto")
    assert (level, plan) == ("moderate", f"moderate norm={TORCH} act=c rope=c loss=c")
    assert "auto: the fastest step measured here, 1.500x [1.450, 1.550]" in told
    keep(base, moderate=1.04, aggressive=0.9)
    assert resolved(base, "auto")[:2] == ("none", "none")
    assert "no level's step was measured to be faster" in resolved(base, "auto")[2]


@pytest.mark.usefixtures("made")
def test_auto_without_a_measurement_goes_by_capability(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    level, plan, told = resolved(base, "auto")
    assert (level, plan) == ("moderate", "moderate norm=c act=c rope=c loss=c")
    assert "not measured here" in told
    monkeypatch.setitem(table.LEVELS, "moderate", {"norm": ("gpu",)})
    level, _, told = resolved(base, "auto")
    assert (level, "no fused operation serves" in told) == ("none", True)


@pytest.mark.usefixtures("made")
def test_a_level_that_is_slower_here_is_not_used_and_says_so(base: Config) -> None:
    keep(base, conservative=0.8, moderate=1.02, aggressive=0.9)
    level, plan, told = resolved(base, "conservative")
    assert (level, plan) == ("none", "none")
    assert "conservative is not used: its step was measured here, 0.800x" in told
    assert resolved(base, "moderate")[0] == "moderate"  # not known to be slower
    assert resolved(base, "none") == ("none", None, "")


@pytest.mark.usefixtures("made")
def test_what_was_chosen_once_is_chosen_for_good(base: Config) -> None:
    level, plan, _ = resolved(base, "auto")
    keep(base, moderate=0.5)
    assert resolved(base, level, plan)[:2] == (level, plan)
    assert resolved(base, "auto", plan)[:2] == (level, plan)
    assert resolved(base, "none", "none")[:2] == ("none", "none")
    assert resolved(base, "auto", "none")[:2] == ("none", "none")


@pytest.mark.usefixtures("made")
def test_figures_are_those_of_one_shape_device_and_version(
    base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep(base, moderate=2.0)
    shape = step_shape(resolve(base))
    assert kept_speeds(shape, "cpu")["moderate"].ratio == 2
    wider = base.model_copy(update={"model": base.model.model_copy(update={"d_model": 64})})
    assert kept_speeds(step_shape(resolve(wider)), "cpu") == {}
    with monkeypatch.context() as changed:  # of two processes each computes half of a batch
        changed.setattr(automatic, "world_size", lambda: 2)
        assert kept_speeds(step_shape(base.with_training(batch_size=2 * shape.batch)), "cpu")
        assert kept_speeds(step_shape(base.with_training(batch_size=2 * shape.batch - 1)), "cpu")
        assert not kept_speeds(step_shape(base), "cpu")
    for name in ("device_name", "library_versions"):
        with monkeypatch.context() as changed:
            changed.setattr(fusion_choice, name, lambda *_: "another")
            assert kept_speeds(shape, "cpu") == {}
    path.write_bytes(path.read_bytes()[:-3])  # what is damaged is not there
    assert kept_speeds(shape, "cpu") == {}


def test_from_the_command_to_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(fusion, "SHAPES", ((1, 4),))
    monkeypatch.setattr(fusion, "_MOST", 8)
    monkeypatch.setattr(fusion, "COMPILED", ())
    config = write_config(tmp_path, training__fusion="auto")
    done = infinito(
        "bench", "fusion", "--config", config, "--rounds", 3, "--vocab-size", 300, "--json"
    )
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = json.loads(done.out)["shapes"]
    base = resolve(load_config(config))
    assert [s["shape"]["width"] for s in found] == [256, base.model.d_model]
    assert all({o["operation"] for o in s["operations"]} == set(table.OPERATIONS) for s in found)
    assert {s["shape"]["vocabulary"] for s in found} == {300}
    done = infinito("train", "--config", config)
    assert done.code == 0, done.err
    assert f"fusion {found[1]['fastest']}: auto" in done.err
    stored = open_checkpoint(tmp_path / "run" / "last.pt").config.training
    assert stored.fusion == found[1]["fastest"]
    Path(found[1]["kept_in"]).unlink()
    done = infinito("resume", tmp_path / "run", "--max-steps", 40)
    assert done.code == 0, done.err
    assert "auto" not in done.err
    assert open_checkpoint(tmp_path / "run" / "last.pt").config.training.fusion == stored.fusion
    assert infinito("bench", "fusion", "--config", tmp_path / "no.yaml").code == 2
    monkeypatch.setenv("INFINITO_CACHE", str(config / "no-folder"))
    monkeypatch.setattr(fusion, "bench_operations", None)  # refused before any work
    assert "INFINITO_CACHE" in infinito("bench", "fusion").refused(6)


def test_main_is_what_the_command_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "fusion", "--rounds", "0"]) == 2
    assert "rounds" in capsys.readouterr().err
