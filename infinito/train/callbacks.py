"""What happens beside training: evaluating, recording, stopping, saving, watching the cores."""

from __future__ import annotations

import signal
import time
from typing import Any

from infinito.checkpoint.run_directory import RunDirectory
from infinito.distributed.ranks import is_orphan, largest
from infinito.runtime.cores import CoreWatch
from infinito.runtime.events import Metrics, emit, note
from infinito.runtime.memory import peak_memory_mb
from infinito.runtime.signals import StopRequest
from infinito.train.progress import LogWindow
from infinito.train.run import Callback, Turn
from infinito.train.trainer import Trainer


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every ``every`` steps (0: never) happens after ``step``."""
    return every > 0 and step % every == 0


class Evaluate:
    """Scores the validation text every so many steps and at the end, and lets the model write."""

    def __init__(self, every: int) -> None:
        self._every = every

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """Evaluate if it is due."""
        step = trainer.progress.step
        if step >= trainer.total_steps or _is_due(step, self._every):
            turn.evaluation = trainer.validate()
            turn.sample = trainer.sample()


class Record:
    """Emits a line of metrics every ``training.log_every`` steps, and with each evaluation."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._started = time.monotonic() - seconds_before

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """Emit what is due after this step, if anything is."""
        step, fields = trainer.progress.step, dict[str, Any]()
        if _is_due(step, trainer.config.training.log_every) or trainer.finished:
            fields |= _window_fields(trainer)
        if turn.evaluation is not None:
            fields["valid_loss"] = turn.evaluation.score.loss
            fields["valid_word_perplexity"] = turn.evaluation.score.word_perplexity
            fields["valid_bits_per_byte"] = turn.evaluation.score.bits_per_byte
            if trainer.config.model.attention.learnable_lambda:
                fields["attention_lambda"] = turn.evaluation.lambdas
        if turn.sample is not None:
            fields["sample"] = turn.sample
        if fields:
            head = {"step": step, "epoch": trainer.epoch, "tokens": trainer.progress.tokens}
            left = max(trainer.total_steps - step, 0)
            tail = {
                "seconds": time.monotonic() - self._started,
                "memory_mb": peak_memory_mb(trainer.config.device),
                "eta_seconds": left * trainer.speed.seconds_per_step,
            }
            emit(Metrics(head | fields | tail))


def _window_fields(trainer: Trainer) -> dict[str, Any]:
    """Loss, rate and speed since the last line of metrics, which starts anew."""
    window = trainer.progress.window
    if not window.targets:
        return {}
    trainer.progress.window = LogWindow()
    return {
        "loss": window.loss_sum / window.targets,
        "learning_rate": trainer.last_learning_rate,
        "grad_norm": window.grad_norm,
        "tokens_per_second": trainer.speed.take_window(),
        **{name: (sums / window.targets).tolist() for name, sums in window.measurements.items()},
    }


class StopOnSignal:
    """Ends the run after the step in which a signal came, to whichever of its processes.

    Attributes:
        number: of the signal that ended it; 0 where none did.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self.number = 0

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """Pass the signal on; the end of the launcher counts as one."""
        own = self._request.signal_number or (signal.SIGTERM if is_orphan() else 0)
        number = largest(own)
        if number and not trainer.finished:
            turn.stop, self.number = "signal", number


class Save:
    """Writes a checkpoint every ``training.save_every`` steps, at each best, and at the end.

    It comes after ``Record``, so that a resumed log continues without a gap. Without a directory
    it takes part in gathering what the first process writes.

    Attributes:
        files_at_once: as many files of a checkpoint's size does it need for one.
    """

    files_at_once = 1

    def __init__(self, directory: RunDirectory | None) -> None:
        self._directory = directory

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """Save if it is due."""
        is_best = turn.evaluation is not None and turn.evaluation.is_best
        due = _is_due(trainer.progress.step, trainer.config.training.save_every)
        if is_best or due or trainer.finished or turn.stop:
            self.write(trainer, is_best)

    def write(self, trainer: Trainer, is_best: bool) -> None:
        """Write the checkpoint of this step."""
        content = trainer.state()
        if self._directory is not None:
            self._directory.save(trainer.progress.step, content, is_best)

    def wait(self) -> None:
        """Until nothing is being written; here it always is."""


class WatchCores:
    """Says once if other programs keep this one from its cores."""

    def __init__(self) -> None:
        self._watch: CoreWatch | None = CoreWatch()

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """Look with every line of metrics, until there was something to say."""
        due = _is_due(trainer.progress.step, trainer.config.training.log_every)
        if self._watch and due and (busy := self._watch.busy_note()):
            note(busy)
            self._watch = None


def standard_callbacks(trainer: Trainer) -> list[Callback]:
    """What a run without a directory does: evaluate and record as its config says."""
    return [Evaluate(trainer.config.training.eval_every), Record()]
