"""``infinito bench fusion``: variants by themselves, then together in a real training step.

Which variants are best together is searched with whole steps, since they interact: they share
caches, memory and the shape of what lies between them. What wins is kept for ``fusion: auto``.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from infinito.bench.fused_operations import bench_operations
from infinito.bench.machine import interleaved_seconds, median_interval, median_ratio
from infinito.bench.training import training_action
from infinito.config.schema import Config
from infinito.kernels.fusion import COMPILED, LEVELS, OPERATIONS, TORCH, Plan, StepShape, make_plan
from infinito.runtime.events import note
from infinito.runtime.memory import keep_freed_memory
from infinito.search.joint import search_jointly
from infinito.search.space import Assignment, Parameter, Space
from infinito.train.automatic import resolve, step_shape
from infinito.train.fusion_choice import (
    LevelSpeed,
    device_name,
    fastest,
    keep_speeds,
    require_writable_cache,
)

#: Sequences and tokens a sequence: two of a first system of this kind, and the reference step.
SHAPES = ((4, 16), (4, 32), (16, 256))
#: Plans that the search may measure beside each variant alone: all there are, up to so many.
PLANS = 16
#: Rounds of a comparison of steps: as many as fit in so many seconds, at least, at most.
_SECONDS, _FEWEST, _MOST = 3.0, 8, 100
_OF_MUON = {"momentum", "move"}
Step = Callable[[], object]


def bench_fusion(configs: Sequence[Config], vocab_size: int, rounds: int) -> dict[str, Any]:
    """Measure the operations and the levels for the steps of each config, and keep the levels."""
    require_writable_cache()
    keep_freed_memory()  # as `infinito train` does
    found = [_bench_shape(_plain(config), vocab_size, rounds) for config in configs]
    return {"threads": torch.get_num_threads(), "shapes": found}


def _plain(config: Config) -> Config:
    return resolve(config.with_training(fusion="none", fusion_plan=None))


def _bench_shape(config: Config, vocab_size: int, rounds: int) -> dict[str, Any]:
    shape = step_shape(config)
    note(f"{shape.batch} x {shape.length} tokens of width {shape.width}")
    measured = replace(shape, vocabulary=vocab_size)
    operations = bench_operations(measured, rounds)
    timer = StepTimer(config, vocab_size)
    search = search_plans(shape, timer.operations(), timer.ratio)
    speeds = level_speeds(timer, shape, search[0].plan)
    path = keep_speeds(speeds, shape, config.device)
    return {
        "shape": {**asdict(measured), "dtype": str(shape.dtype).removeprefix("torch.")},
        "device": device_name(config.device),
        "operations": operations,
        "plans": [{"plan": str(p.plan), "time_ratio": p.time_ratio} for p in search],
        "levels": {level: asdict(speed) for level, speed in speeds.items()},
        "fastest": fastest(speeds),
        "kept_in": str(path),
    }


@dataclass(frozen=True)
class PlanTrial:
    """A plan, and the time of its step over that of plain torch."""

    plan: Plan
    time_ratio: float


def search_plans(
    shape: StepShape, operations: Collection[str], ratio: Callable[[Plan], float]
) -> list[PlanTrial]:
    """Plans of ``moderate`` for a step of some operations, the fastest first, by tree search.

    ``ratio`` is the time of a step with a plan over that of plain torch.
    """
    space = Space(
        Parameter(name, "choice", (TORCH, *(v for v in some if _serves(name, v, shape))))
        for name, some in LEVELS["moderate"].items()
        if name in operations
    )

    def plan(values: Assignment) -> Plan:
        return Plan("moderate", {name: str(variant) for name, variant in values.items()})

    def measure(values: Assignment) -> float:
        return ratio(plan(values)) if set(values.values()) - {TORCH} else 1.0

    return [PlanTrial(plan(v), r) for r, v in search_jointly(space, measure, PLANS)]


def _serves(operation: str, variant: str, shape: StepShape) -> bool:
    return OPERATIONS[operation].variants[variant].objection(shape) is None


@dataclass(frozen=True)
class _Watching(Plan):
    """Plain torch, and what was asked of it."""

    asked: set[str] = field(default_factory=set)

    def fuses(self, operation: str) -> bool:
        self.asked.add(operation)
        return False

    def run(self, operation: str, *arguments: Any) -> Any:
        self.asked.add(operation)
        return super().run(operation, *arguments)


class StepTimer:
    """Times training steps under plans against steps of plain torch."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        self._config, self._vocab_size = config, vocab_size
        self._device = torch.device(config.device)
        self._plain = self.step("none", Plan())

    def operations(self) -> set[str]:
        """What a step is asked to do by a plan; the rest of the table is of other models."""
        watching = _Watching()
        training_action(self._config, self._vocab_size, watching)()
        muon = self._config.training.optimizer == "muon"  # which has its plan from the config
        return watching.asked | (_OF_MUON if muon else set())

    def step(self, level: str, plan: Plan) -> Step:
        """A training step at a level."""
        fused = self._config.with_training(fusion=level, fusion_plan=str(plan))
        return training_action(fused, self._vocab_size)

    def ratio(self, plan: Plan) -> float:
        """Time of a step with ``plan`` over that of plain torch."""
        times = self.times({"plan": self.step("moderate", plan)})
        found = median_ratio(times["plan"], times["none"])
        note(f"{plan}: {1 / found:.3f}x as fast as plain torch")
        return found

    def times(self, steps: Mapping[str, Step]) -> dict[str, list[float]]:
        """Seconds of each, and of plain torch as ``none``, in turns."""
        actions = {"none": self._plain, **steps}
        first = interleaved_seconds(actions, self._device, 1, warm_up=1)
        round_seconds = sum(times[0] for times in first.values())
        rounds = min(max(math.ceil(_SECONDS / round_seconds), _FEWEST), _MOST)
        return interleaved_seconds(actions, self._device, rounds, warm_up=0)


def level_speeds(timer: StepTimer, shape: StepShape, best: Plan) -> dict[str, LevelSpeed]:
    """Every level's step against that of plain torch, ``moderate`` by the best plan, in turns."""
    steps, plans, compile_seconds = dict[str, Step](), dict[str, Plan](), dict[str, float]()
    for level in [level for level in LEVELS if level != "none"]:
        plans[level] = best if level == "moderate" else make_plan(level, shape, Plan())[0]
        if level in COMPILED or set(plans[level].variants.values()) - {TORCH}:
            start = time.perf_counter()
            steps[level] = timer.step(level, plans[level])
            compile_seconds[level] = (time.perf_counter() - start) * (level in COMPILED)
    times = timer.times(steps)
    speeds = {}
    for level, plan in plans.items():  # what is plain torch need not be timed
        ratios = [
            a / b for a, b in zip(times["none"], times.get(level, times["none"]), strict=True)
        ]
        interval, seconds = median_interval(ratios), compile_seconds.get(level, 0.0)
        speeds[level] = LevelSpeed(str(plan), statistics.median(ratios), *interval, seconds)
    return speeds
