"""The step of a run, fitted to a small text."""

from __future__ import annotations

from infinito.config.schema import Config
from infinito.data.order import sequences_per_epoch
from infinito.data.prepare import Dataset
from infinito.runtime.events import note


def fit_step(config: Config, dataset: Dataset) -> Config:
    """``config``, whose step takes no more sequences than the training text has.

    A larger step would see the same sequences several times and end the run after few of them.
    """
    training, length = config.training, config.data.sequence_length
    available = sequences_per_epoch(dataset.splits["train"].n_tokens, length)
    asked = training.sequences_per_step
    if asked <= available:
        return config
    batch_size = min(training.batch_size, available)
    parts = available // batch_size
    update = {"batch_size": batch_size, "gradient_accumulation_steps": parts}
    fitted = training.model_copy(update=update)
    note(
        f"warning: the training text has {available} sequences of {length} tokens, and a step "
        f"wanted {asked}: training.batch_size is {batch_size} and "
        f"training.gradient_accumulation_steps {parts}; give more text, or a smaller "
        "data.sequence_length"
    )
    return config.model_copy(update={"training": fitted})
