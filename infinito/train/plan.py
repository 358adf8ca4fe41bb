"""What a run would do, said before it does it: tokens, steps, parameters, memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from infinito.errors import ResourceError
from infinito.model.count import count_parameters
from infinito.model.step_memory import MemoryCount, count_memory
from infinito.runtime.memory import available_bytes

if TYPE_CHECKING:
    from infinito.train.trainer import Trainer


def plan_lines(trainer: Trainer) -> list[str]:
    """The plan of a run in a few lines."""
    config, model, training = trainer.config, trainer.model, trainer.config.training
    parts = count_parameters(model.config, model.vocab_size, model.max_positions)
    length, stores = config.data.sequence_length, trainer.dataset.splits
    texts = ", ".join(f"{name} {store.n_tokens} tokens" for name, store in stores.items())
    tokens_per_step = training.sequences_per_step * length
    steps = trainer.total_steps
    epochs = steps * training.sequences_per_step / trainer.order.sequences_per_epoch
    return [
        f"data:       {config.data.resolved_source}: {texts}",
        f"tokenizer:  {trainer.tokenizer.kind}, {trainer.tokenizer.vocab_size} ids",
        f"model:      {parts.total} parameters (embedding {parts.embedding}, "
        f"attention {parts.attention}, feed-forward {parts.feed_forward})",
        f"steps:      {steps} of {tokens_per_step} tokens ({training.sequences_per_step} sequences "
        f"of {length}) = {epochs:.2f} epochs",
        f"memory:     about {memory(trainer).total / 1e6:.0f} MB for a step "
        f"({training.precision} on {trainer.device})",
    ]


def memory(trainer: Trainer) -> MemoryCount:
    """Counted bytes of a training step."""
    config = trainer.config
    return count_memory(
        config.model, config.training, trainer.model.vocab_size, config.data.sequence_length
    )


def require_memory(trainer: Trainer) -> None:
    """Refuse a run whose step cannot fit, before a system without memory kills it.

    Raises:
        ResourceError: More is needed than the device has left.
    """
    free = available_bytes(trainer.config.device)
    needed = memory(trainer).transient
    if free is None or needed <= free:
        return
    training = trainer.config.training
    fitting = max(1, math.floor(training.batch_size * free / needed / 2))
    raise ResourceError(
        f"a step needs about {needed / 1e9:.1f} GB more memory and {free / 1e9:.1f} GB are left "
        f"(batch {training.batch_size} x {trainer.config.data.sequence_length} tokens)",
        f"try --batch-size {fitting}, or training.activation_checkpointing=true",
    )


def checkpoint_bytes(trainer: Trainer) -> int:
    """Size of one checkpoint: weights, two moments and the average, in float32."""
    copies = 3 + (trainer.average is not None)
    return 4 * copies * sum(p.numel() for p in trainer.model.parameters())
