"""The training loop."""

from __future__ import annotations

from infinito.checkpoint.run_directory import RunDirectory
from infinito.errors import Interrupted
from infinito.runtime.paths import command, shown
from infinito.runtime.signals import StopRequest
from infinito.train.recorder import Recorder
from infinito.train.trainer import Trainer


def due(step: int, every: int) -> bool:
    """Whether something that happens every ``every`` steps (0: never) happens after ``step``."""
    return every > 0 and step % every == 0


def run(trainer: Trainer, directory: RunDirectory, recorder: Recorder, stop: StopRequest) -> None:
    """Train to the end of the run: step, evaluate, record, save.

    The record precedes the checkpoint of the same step, so a resumed log continues without a gap.

    Raises:
        Interrupted: A signal came; the step was finished and its checkpoint saved.
    """
    training, progress = trainer.config.training, trainer.progress
    while not trainer.finished:
        trainer.train_step()
        at_end = progress.step >= trainer.total_steps
        evaluation = None
        if at_end or due(progress.step, training.eval_every):
            evaluation = trainer.validate()
        recorder.record(evaluation)
        is_best = evaluation is not None and evaluation.is_best
        if is_best or trainer.finished or stop.requested or due(progress.step, training.save_every):
            directory.save(progress.step, trainer.state(), is_best)
        if stop.requested and not trainer.finished:
            raise interruption(trainer, directory, stop)


def interruption(trainer: Trainer, directory: RunDirectory, stop: StopRequest) -> Interrupted:
    """The message that names the step and the exact resume command."""
    return Interrupted(
        f"stopped at step {trainer.progress.step} of {trainer.total_steps}; everything is saved",
        command("resume", shown(directory.path)),
        stop.signal_number,
    )
