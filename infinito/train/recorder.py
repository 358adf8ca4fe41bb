"""From steps to records: windows of loss, speed without evaluation and saving, memory, ETA."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from infinito.telemetry.sinks import Sink
from infinito.train.progress import Window
from infinito.train.trainer import Evaluation, Trainer

_WARMUP_STEPS = 2


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of the device so far, of the process on a CPU, in MB (10^6 bytes)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class Recorder:
    """Times the steps of a run and writes one record per log interval or evaluation."""

    def __init__(
        self, trainer: Trainer, sinks: Sequence[Sink], seconds_before: float = 0.0
    ) -> None:
        self.trainer = trainer
        self.sinks = sinks
        self.step_seconds: list[float] = []
        self._window_seconds = 0.0
        self._window_tokens = 0
        self._started = time.monotonic() - seconds_before

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time one training step."""
        tokens, start = self.trainer.progress.tokens, time.monotonic()
        yield
        seconds = time.monotonic() - start
        self.step_seconds.append(seconds)
        self._window_seconds += seconds
        self._window_tokens += self.trainer.progress.tokens - tokens

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
            "memory_mb": peak_memory_mb(trainer.device),
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
            "tokens_per_second": self._window_tokens / max(self._window_seconds, 1e-9),
        }
        self.trainer.progress.window = Window()
        self._window_seconds, self._window_tokens = 0.0, 0
        return fields

    @property
    def seconds_per_step(self) -> float:
        """Median of the steps after the first ones, which allocate and warm caches."""
        steady = self.step_seconds[_WARMUP_STEPS:] or self.step_seconds
        return statistics.median(steady[-200:]) if steady else 0.0

    @property
    def eta_seconds(self) -> float:
        """Training time still to come, in seconds."""
        left = self.trainer.total_steps - self.trainer.progress.step
        return max(left, 0) * self.seconds_per_step

    @property
    def tokens_per_second(self) -> float:
        """Steady training speed."""
        training, data = self.trainer.config.training, self.trainer.config.data
        tokens = training.sequences_per_step * data.sequence_length
        return tokens / self.seconds_per_step if self.step_seconds else 0.0
