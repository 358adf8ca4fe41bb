"""Where a run stands: counters, evaluations, and the log window that is still open."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from infinito.errors import CheckpointError
from infinito.train.step import StepResult

OTHER_CHECKPOINT = "use another checkpoint of the run (`infinito runs` lists them)"


def _shapes(measurements: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in measurements.items()}


@dataclass
class LogWindow:
    """Sums since the last line of metrics; saved, so a resumed line equals the unbroken one."""

    loss_sum: float = 0.0
    targets: int = 0
    grad_norm: float = 0.0
    measurements: dict[str, Tensor] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        """Take in one step. Raises CheckpointError if a loaded window is of another model."""
        if self.targets and _shapes(self.measurements) != _shapes(result.measurements):
            raise CheckpointError(
                "the checkpoint's open log window holds measurements that its model does not make",
                OTHER_CHECKPOINT,
            )
        self.loss_sum += result.loss_sum
        self.targets += result.targets
        self.grad_norm = result.grad_norm
        for name, value in result.measurements.items():
            self.measurements[name] = value + self.measurements.get(name, 0.0)

    def to_plain(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        lists = {name: value.tolist() for name, value in self.measurements.items()}
        return asdict(self) | {"measurements": lists}

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> LogWindow:
        """Rebuild from what a checkpoint kept."""
        lists = content.get("measurements", {})
        sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in lists.items()}
        return cls(**content | {"measurements": sums})


@dataclass
class Progress:
    """Counters of a run. ``sequences`` is its position in the order of the data."""

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    window: LogWindow = field(default_factory=LogWindow)

    def add(self, result: StepResult, sequences: int) -> None:
        """Count one step of ``sequences`` sequences."""
        self.step += 1
        self.sequences += sequences
        self.tokens += result.targets
        self.window.add(result)

    def add_evaluation(self, evaluation: dict[str, Any]) -> bool:
        """Keep a validation result; True if its loss is the lowest so far."""
        best = self.best
        self.evaluations.append(evaluation)
        return best is None or evaluation["valid_loss"] < best["valid_loss"]

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the lowest validation loss, the earliest on ties."""
        return min(self.evaluations, key=lambda e: float(e["valid_loss"]), default=None)

    def to_plain(self) -> dict[str, Any]:
        """The parts of a checkpoint that belong to progress."""
        return {
            "step": self.step,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "evaluations": [dict(e) for e in self.evaluations],
            "best": dict(self.best) if self.best else None,
            "log": self.window.to_plain(),
        }

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> Progress:
        """Rebuild from a checkpoint's content."""
        return cls(
            step=content["step"],
            sequences=content["sequences"],
            tokens=content["tokens"],
            evaluations=[dict(e) for e in content["evaluations"]],
            window=LogWindow.from_plain(content["log"]),
        )


def require_agreement(content: dict[str, Any], derived: dict[str, Any]) -> None:
    """Refuse a checkpoint whose redundant fields say something else than the rest of it.

    Raises:
        CheckpointError: ``content`` differs from ``derived``; the fields are named.
    """
    wrong = [name for name, value in derived.items() if content[name] != value]
    if wrong:
        raise CheckpointError(
            f"the checkpoint contradicts itself in: {', '.join(wrong)}",
            OTHER_CHECKPOINT,
        )
