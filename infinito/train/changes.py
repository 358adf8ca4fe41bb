"""What changed settings do to a run that goes on: said before anything happens, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infinito.config.loading import diff
from infinito.config.schema import Config
from infinito.errors import CheckpointError

_REFUSED = {
    "tokenizer.": "the vocabulary is part of the weights",
    "data.sequence_length": "it fixes the order of the data and the size of the model's context",
    "training.init_from": "the run has weights of its own by now",
    "training.optimizer": "the other optimizer's moments cannot be used",
    "training.ema_decay": "the average belongs to the run from its first step",
}
_SCHEDULE = {
    "training.epochs", "training.max_steps", "training.learning_rate",
    "training.muon_learning_rate", "training.schedule", "training.warmup_steps",
    "training.decay_fraction", "training.final_learning_rate_ratio", "training.batch_size",
    "training.gradient_accumulation_steps",
}  # fmt: skip
_EFFECTS = {
    "seed": "order of the data and random streams start anew from here",
    "device": "numbers may differ in the last digits from here",
    "output_dir": "the run goes on in that directory",
    "data.": "accepted only if the text is the same",
    "training.precision": "numbers differ from here",
    "distributed.": "who holds the weights; the last digits may differ",
    "training.fusion": "same function, other rounding, and other dropout masks from here",
    "training.fusion_plan": "same function, other rounding, and other dropout masks from here",
    "training.activation_checkpointing": "memory and speed only",
    "training.eval_every": "evaluations only",
    "training.save_every": "checkpoints only",
    "training.sample_prompt": "samples only",
    "training.log_every": "lines of metrics only",
    "training.keep_last": "checkpoints kept only",
    "training.tracker": "logging only",
    "training.early_stopping_patience": "when the run ends",
}


@dataclass(frozen=True)
class Change:
    """One setting that differs from the checkpoint's."""

    key: str
    old: object
    new: object
    effect: str


def _match(table: dict[str, str], key: str) -> str | None:
    return next(
        (text for k, text in table.items() if key == k or (k[-1] == "." and key.startswith(k))),
        None,
    )


def _refusal(key: str) -> str | None:
    if key.startswith("model.") and not key.endswith("dropout"):
        return "it changes the shape or the meaning of the weights"
    return _match(_REFUSED, key)


def changes(stored: Config, wanted: Config) -> list[Change]:
    """Every difference with its effect.

    Raises:
        CheckpointError: Some change cannot be made on resume; all such are named.
    """
    differences = diff(stored, wanted)
    refused = [
        f"{key}: checkpoint {old}, asked for {new} ({reason})"
        for key, old, new in differences
        if (reason := _refusal(key))
    ]
    if refused:
        raise CheckpointError(
            "these settings cannot change on resume:\n  " + "\n  ".join(refused),
            "drop them, or start a new run",
        )
    return [Change(key, old, new, _effect(key)) for key, old, new in differences]


def _effect(key: str) -> str:
    if key in _SCHEDULE:
        return "changes the schedule, see below"
    return _match(_EFFECTS, key) or "changes the curve from here"


def touches_schedule(made: Sequence[Change]) -> bool:
    """Whether the learning-rate curve or the length of the run changes."""
    return any(change.key in _SCHEDULE for change in made)
