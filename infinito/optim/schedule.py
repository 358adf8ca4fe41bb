"""The learning rate as a pure function of the step: nothing to save, nothing to drift."""

from __future__ import annotations

import math

from infinito.config.training_config import TrainingConfig


def learning_rate_factor(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Factor on the peak learning rate for update number ``step`` (0-based) of ``total_steps``.

    Linear warm-up over ``warmup_steps``, then: cosine (Loshchilov & Hutter 2017), linear, or
    constant down to ``final_learning_rate_ratio``; wsd stays at the peak and decays linearly
    over the last ``decay_fraction`` of the run (Hu et al. 2024).
    """
    warmup = min(training.warmup_steps, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    if training.schedule == "constant":
        return 1.0
    decay_start = warmup
    if training.schedule == "wsd":
        decay_start = max(warmup, round(total_steps * (1.0 - training.decay_fraction)))
    progress = _progress(step, decay_start, total_steps)
    remaining = 1.0 - progress
    if training.schedule == "cosine":
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    floor = training.final_learning_rate_ratio
    return floor + (1.0 - floor) * remaining


def _progress(step: int, start: int, end: int) -> float:
    """How far ``step`` is between start (0) and end (1); the last update is short of 1."""
    return min(max(step - start, 0) / max(end - start, 1), 1.0)
