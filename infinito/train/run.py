"""The training loop. All that is not the algorithm is a callback, and all that is told an event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from infinito.train.step import StepResult
from infinito.train.trainer import Evaluation, Trainer


@dataclass
class Turn:
    """One turn of the loop, as its callbacks see it and pass it on.

    Attributes:
        step: what the step saw.
        evaluation: of the validation text, where one was made after this step.
        sample: what the model wrote then, after ``training.sample_prompt`` where there is one.
        stop: why the run ends here although steps are left; empty to go on.
    """

    step: StepResult
    evaluation: Evaluation | None = None
    sample: str | None = None
    stop: str = ""


class Callback(Protocol):
    """Something that happens beside training."""

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """Act after a step; later callbacks of the same turn see what was put in ``turn``."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        step: steps taken in all.
        tokens: target tokens seen in all.
        best: the evaluation of the lowest validation loss (``step``, ``valid_loss``, ...), if any.
        stopped: why it ended before its last step; empty where it did not.
    """

    step: int
    tokens: int
    best: dict[str, Any] | None
    stopped: str = ""


def run(trainer: Trainer, callbacks: Sequence[Callback]) -> RunResult:
    """Train to the end of the run, or until a callback asks to stop.

    Needs no directory, no terminal and no main thread: what is wanted of these, the callbacks
    bring (:mod:`infinito.train.callbacks`).
    """
    stopped = ""
    while not trainer.finished and not stopped:
        turn = Turn(trainer.train_step())
        for callback in callbacks:
            callback.after_step(trainer, turn)
        stopped = turn.stop
    progress = trainer.progress
    if not stopped and progress.step < trainer.total_steps:
        stopped = "early stopping"
    return RunResult(progress.step, progress.tokens, progress.best, stopped)
