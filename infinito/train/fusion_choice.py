"""Which fusion level a run takes: what ``infinito bench fusion`` measured here, else capability.

Figures are kept in the cache by device, dtype and shape of a step, for the versions that they
were taken with. A run looks at them once, at its start; what it takes stands in its config.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch

from infinito.checkpoint.record import library_versions
from infinito.data.cache import Cache, cache_key
from infinito.kernels.fusion import TORCH, Plan, StepShape, make_plan

_KIND = "fusion"


@dataclass(frozen=True)
class LevelSpeed:
    """A level's training step against that of plain torch, of rounds in which both took turns.

    Attributes:
        plan: the variants, as :class:`Plan` writes them.
        ratio, low, high: median of the speed over that of plain torch, and its 95 % interval.
        compile_seconds: what torch.compile took; 0 where the level does not compile.
    """

    plan: str
    ratio: float
    low: float
    high: float
    compile_seconds: float = 0.0

    def __str__(self) -> str:
        compiled = f", {self.compile_seconds:.0f} s to compile" if self.compile_seconds else ""
        return f"{self.ratio:.3f}x [{self.low:.3f}, {self.high:.3f}] of plain torch{compiled}"


Speeds = Mapping[str, LevelSpeed]


def device_name(device: str) -> str:
    """The processor or graphics card, as its maker calls it, where the system tells."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _key(shape: StepShape, device: str) -> str:
    numbers = [str(value) for value in astuple(shape)]
    return cache_key(
        _KIND, device_name(device), torch.get_num_threads(), library_versions(), numbers
    )


def require_writable_cache() -> None:
    """Raises ResourceError where figures could not be kept: before it takes minutes to get them."""
    Cache(required=True).require_writable(_KIND)


def keep_speeds(speeds: Speeds, shape: StepShape, device: str) -> Path:
    """Keep the figures of levels for runs of this shape; returns the file.

    Raises ResourceError where the cache cannot be written.
    """
    cache, key = Cache(required=True), _key(shape, device)
    cache.write_value(_KIND, key, {level: asdict(speed) for level, speed in speeds.items()})
    return cache.path(_KIND, key)


def kept_speeds(shape: StepShape, device: str) -> Speeds:
    """The figures that were kept; none where nothing was measured."""
    found = Cache(read_only=True).read_value(_KIND, _key(shape, device)) or {}
    return {level: LevelSpeed(**speed) for level, speed in found.items()}


def fastest(speeds: Speeds) -> str:
    """The level with the fastest step; ``none`` where no interval lies above 1."""
    faster = [level for level, speed in speeds.items() if speed.low > 1]
    return max(faster, key=lambda level: speeds[level].ratio, default="none")


def choose_level(asked: str, shape: StepShape, device: str) -> tuple[str, Plan, str]:
    """The level that serves what was asked for, the plan to prefer, and why if it is another."""
    speeds = kept_speeds(shape, device)
    level = fastest(speeds) if asked == "auto" else asked
    speed = speeds.get(level)
    if asked != "auto":
        if speed and speed.high < 1:
            return "none", Plan(), f"{asked} is not used: its step was measured here, {speed}"
        if speed:
            return level, Plan.from_text(speed.plan), f"as it was measured here, {speed}"
        return level, Plan(), ""
    if speed:
        return level, Plan.from_text(speed.plan), f"auto: the fastest step measured here, {speed}"
    if speeds:
        return "none", Plan(), "auto: no level's step was measured to be faster than plain torch"
    hint = "not measured here for such steps, which `infinito bench fusion --config FILE` does"
    if shape.device == "cuda":  # whether a pass pays there depends on the card and on its launch
        return "none", Plan(), f"auto: on a GPU only what was measured is used; {hint}"
    by = make_plan("moderate", shape, Plan())[0].variants.values()
    if set(by) <= {TORCH}:
        return "none", Plan(), f"auto: no fused operation serves this device; {hint}"
    return "moderate", Plan(), f"auto: fused operations serve this device; {hint}"
