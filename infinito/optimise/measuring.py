"""The measurer of :mod:`infinito.optimise.pipeline`: steps and trainings on this machine."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from infinito.bench.machine import interleaved_seconds, median_interval
from infinito.config.schema import Config
from infinito.data.prepare import Dataset
from infinito.errors import InfinitoError
from infinito.model.step_memory import count_memory
from infinito.optimise.pipeline import RefusedError, SpeedRatio
from infinito.runtime.cores import available_cores
from infinito.runtime.events import Note, progress, reading
from infinito.runtime.memory import keep_freed_memory, memory_errors_explained
from infinito.search.short_run import trained_figures
from infinito.train.automatic import resolve
from infinito.train.run import Turn
from infinito.train.trainer import Trainer

ROUNDS, WARM_UP = 12, 2
#: Steps of each training of the proof.
STEPS = 60


@dataclass
class TrainingMeasurer:
    """Measures on a dataset, from ``weights`` where there are some."""

    dataset: Dataset
    weights: dict[str, Tensor] | None = None

    def speed(self, before: Config, after: Config, threads: int | None = None) -> SpeedRatio:
        """Steps of two trainers in turns; the first rounds warm up and do not count."""
        keep_freed_memory()  # as `infinito train` does
        _forget_compiled()
        in_force = torch.get_num_threads()
        first, _ = self._stepper(before)
        with _refusals():
            second, notes = self._stepper(after)

        def step_before() -> None:
            torch.set_num_threads(in_force)
            first()
            advance(1)

        def step_after() -> None:
            torch.set_num_threads(threads or in_force)
            with _refusals():
                second()
            advance(1)

        actions = {"before": step_before, "after": step_after}
        try:
            with progress(2 * (ROUNDS + WARM_UP), "measuring", "steps") as advance:
                device = torch.device(before.device)
                times = interleaved_seconds(actions, device, ROUNDS, warm_up=WARM_UP)
        finally:
            torch.set_num_threads(in_force)
        memory = self._memory_mb(before), self._memory_mb(after)
        tokens = before.training.sequences_per_step * before.data.sequence_length
        return speed_ratio(times["before"], times["after"], tokens, memory, notes)

    def loss(self, config: Config, seed: int) -> float:
        """Validation loss at the end of ``STEPS`` steps (the run's own number if that is less)."""
        steps = min(STEPS, config.training.max_steps or STEPS)
        trainer, _ = self._trainer(short_training(config, seed, steps))
        with progress(steps, f"training, seed {seed}", "steps") as advance:
            return trained_figures(trainer, [_Advance(advance)])["valid_loss"]

    def _stepper(self, config: Config) -> tuple[Callable[[], object], tuple[str, ...]]:
        endless = config.with_training(max_steps=1_000_000, early_stopping_patience=0)
        trainer, notes = self._trainer(endless)
        return trainer.train_step, notes

    def _trainer(self, config: Config) -> tuple[Trainer, tuple[str, ...]]:
        heard: list[str] = []
        with reading(
            lambda event: heard.append(event.text) if isinstance(event, Note) else None, alone=True
        ):
            # Resolved anew: by which code a fusion level runs depends on the other settings.
            trainer = Trainer(resolve(config), self.dataset, self.weights)
        return trainer, tuple(text for text in heard if text.startswith("fusion"))

    def _memory_mb(self, config: Config) -> float:
        return count_memory(config, self.dataset.tokenizer.vocab_size).total / 1e6


def short_training(config: Config, seed: int, steps: int) -> Config:
    """``config`` as a training of so many steps, its warm-up at most a fifth of them."""
    warmup = min(config.training.warmup_steps, steps // 5)
    short = config.with_training(max_steps=steps, warmup_steps=warmup, early_stopping_patience=0)
    return short.model_copy(update={"seed": seed})


def other_thread_counts(config: Config) -> list[int]:
    """Numbers of threads worth trying: one, half of the cores, all of them; none on a GPU."""
    if torch.device(config.device).type != "cpu":
        return []
    cores = available_cores()
    return sorted({1, cores // 2, cores} - {0, torch.get_num_threads()})


def speed_ratio(
    before: Sequence[float],
    after: Sequence[float],
    tokens: int,
    memory: tuple[float, float],
    notes: tuple[str, ...] = (),
) -> SpeedRatio:
    """From the seconds of each round, of ``tokens`` tokens both."""
    ratios = [a / b for a, b in zip(before, after, strict=True)]
    low, high = median_interval(ratios)
    speeds = tokens / statistics.median(before), tokens / statistics.median(after)
    return SpeedRatio(statistics.median(ratios), low, high, *speeds, *memory, notes)


@contextmanager
def _refusals() -> Iterator[None]:
    """What goes wrong with an alternative is no failure of the measurement."""
    try:
        with memory_errors_explained("a step", ""):
            yield
    except InfinitoError as error:
        raise RefusedError(error.message) from error


class _Advance:
    """Tells how far a short training is."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def after_step(self, trainer: Trainer, turn: Turn) -> None:
        """One more."""
        self._advance(1)


def _forget_compiled() -> None:
    """What was compiled for trainers that are gone would count against torch's limit."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
