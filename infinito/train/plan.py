"""What a run would do, said before it does it: tokens, steps, parameters, memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from infinito.distributed.ranks import world_size
from infinito.model.count import count_parameters
from infinito.model.step_memory import count_memory
from infinito.runtime.memory import memory_errors_explained

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
    active = f", {parts.active} of them active a token" if parts.inactive else ""
    muon = matrices if training.optimizer == "muon" else ""
    processes = (
        f"processes:  {world_size()} share each forward pass ({config.distributed.strategy})"
    )
    return [
        *([processes] if world_size() > 1 else []),
        f"data:       {config.data.resolved_source}: {texts}",
        f"tokenizer:  {trainer.tokenizer.kind}, {trainer.tokenizer.vocab_size} ids",
        f"model:      {parts.total} parameters{active} (embedding {parts.embedding}, "
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


def memory_explained(trainer: Trainer) -> AbstractContextManager[None]:
    """A context in which a failed allocation names the batch, and what to lower."""
    training, data = trainer.config.training, trainer.config.data
    return memory_errors_explained(
        f"training.batch_size {training.batch_size} x data.sequence_length {data.sequence_length}",
        f"lower --batch-size (and raise training.gradient_accumulation_steps to keep the step's "
        f"{training.sequences_per_step} sequences), or set training.activation_checkpointing=true",
    )
