"""What a run would do, said before it does it: tokens, steps, parameters, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infinito.model.count import count_parameters
from infinito.model.step_memory import count_memory

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
    memory = count_memory(config, model.vocab_size).total
    matrices = f", of the matrices {training.muon_learning_rate:g}"
    muon = matrices if training.optimizer == "muon" else ""
    return [
        f"data:       {config.data.resolved_source}: {texts}",
        f"tokenizer:  {trainer.tokenizer.kind}, {trainer.tokenizer.vocab_size} ids",
        f"model:      {parts.total} parameters (embedding {parts.embedding}, "
        f"attention {parts.attention}, feed-forward {parts.feed_forward})",
        f"steps:      {steps} of {tokens_per_step} tokens ({training.sequences_per_step} sequences "
        f"of {length}) = {epochs:.2f} epochs",
        f"optimizer:  {training.optimizer}, peak rate {training.learning_rate:g}{muon}",
        f"memory:     about {memory / 1e6:.0f} MB for a step "
        f"({training.precision} on {trainer.device})",
    ]


def checkpoint_bytes(trainer: Trainer) -> int:
    """Size of one checkpoint: weights, two moments and the average, in float32."""
    copies = 3 + (trainer.average is not None)
    return 4 * copies * sum(p.numel() for p in trainer.model.parameters())
