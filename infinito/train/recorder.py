"""From steps to records: windows of loss, speed, memory, time to come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from infinito.runtime.memory import peak_memory_mb
from infinito.telemetry.sinks import Sink
from infinito.train.progress import LogWindow
from infinito.train.trainer import Evaluation, Trainer


class Recorder:
    """Writes one record per log interval or evaluation to every sink."""

    def __init__(
        self, trainer: Trainer, sinks: Sequence[Sink], seconds_before: float = 0.0
    ) -> None:
        self.trainer = trainer
        self.sinks = sinks
        self._started = time.monotonic() - seconds_before

    def record(self, evaluation: Evaluation | None) -> None:
        """Write what is due after this step, if anything is."""
        progress = self.trainer.progress
        fields: dict[str, Any] = {}
        log_due = progress.step % self.trainer.config.training.log_every == 0
        if log_due or self.trainer.finished:
            fields |= self._window_fields()
        if evaluation is not None:
            fields["valid_loss"] = evaluation.score.loss
            fields["valid_word_perplexity"] = evaluation.score.word_perplexity
        if fields:
            self._write(fields)

    def _write(self, fields: dict[str, Any]) -> None:
        progress, trainer = self.trainer.progress, self.trainer
        head = {"step": progress.step, "epoch": trainer.epoch, "tokens": progress.tokens}
        tail = {
            "seconds": time.monotonic() - self._started,
            "memory_mb": peak_memory_mb(trainer.config.device),
            "eta_seconds": self.eta_seconds,
        }
        for sink in self.sinks:
            sink.write(head | fields | tail)

    def _window_fields(self) -> dict[str, Any]:
        window = self.trainer.progress.window
        if not window.targets:
            return {}
        fields = {
            "loss": window.loss_sum / window.targets,
            "learning_rate": self.trainer.last_learning_rate,
            "grad_norm": window.grad_norm,
            "tokens_per_second": self.trainer.speed.take_window(),
        }
        self.trainer.progress.window = LogWindow()
        return fields

    @property
    def eta_seconds(self) -> float:
        """Training time still to come, in seconds."""
        left = self.trainer.total_steps - self.trainer.progress.step
        return max(left, 0) * self.trainer.speed.seconds_per_step
