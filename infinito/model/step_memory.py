"""Memory of a training step, counted from the config: what is kept for the backward pass.

C model width, F feed-forward width, K key/value heads, D head width, V vocabulary,
T sequence length. Activations are counted a token and then multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

from infinito.config.model_config import ModelConfig
from infinito.config.schema import Config
from infinito.distributed.ranks import world_size
from infinito.model.count import count_parameters
from infinito.model.loss import chunk_elements

_FLOAT32 = 4


@dataclass(frozen=True)
class MemoryCount:
    """Bytes of one training step by part."""

    weights: int
    gradients: int
    moments: int
    average: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """All parts."""
        state = self.weights + self.gradients + self.moments + self.average
        return state + self.activations + self.loss


def count_memory(config: Config, vocab_size: int, *, frozen: bool = False) -> MemoryCount:
    """Bytes that a process holds at the peak of a step of ``training.batch_size`` sequences.

    ``frozen``: hardly any parameter is trained.
    """
    model, training, length = config.model, config.training, config.data.sequence_length
    parameters = count_parameters(model, vocab_size, length).total
    trained = 0 if frozen else parameters
    size = _FLOAT32 if training.precision == "float32" else 2
    processes = world_size()
    tokens = -(-training.batch_size // processes) * length
    held = processes if config.distributed.strategy == "fsdp2" else 1
    layer = _layer_bytes_per_token(model, size)
    stream = _FLOAT32 * model.d_model
    if training.activation_checkpointing:  # the input of each block, and one block in full
        activations = tokens * (model.n_layers * stream + layer)
    else:
        activations = tokens * model.n_layers * layer
    return MemoryCount(
        weights=_FLOAT32 * parameters // held,
        gradients=_FLOAT32 * trained // held,
        moments=2 * _FLOAT32 * trained // held,
        average=_FLOAT32 * parameters if training.ema_decay else 0,
        activations=activations + 4 * tokens * stream,
        loss=3 * _FLOAT32 * chunk_elements(config.device) + _FLOAT32 * vocab_size * model.d_model,
    )


def _layer_bytes_per_token(config: ModelConfig, size: int) -> int:
    """Bytes a token that one block keeps; ``size`` is that of the matrix products' numbers."""
    width, moe = config.d_model, config.moe
    passed = moe.top_k + moe.n_shared if moe.n_experts > 1 else 1
    hidden = passed * config.resolved_d_ff + (config.second_d_ff or 0)
    # What enters and leaves each chosen expert, the router's input and its probabilities.
    routing = 2 * moe.top_k * size * width + _FLOAT32 * (width + 4 * moe.n_experts)
    kv_width = config.resolved_kv_heads * config.d_head
    stream = 4 * _FLOAT32 * width + 2 * size * width  # two inputs, two norms and their casts
    heads = config.n_heads * config.d_head + 2 * kv_width  # query, key, value
    projections = heads * (size + 2 * _FLOAT32 + size)  # raw, normalised, rotated, cast
    feed_forward = (4 if config.activation == "swiglu" else 3) * hidden * size
    masks = 2 * width if config.dropout_on("residual") else 0
    inner = projections + size * width + feed_forward
    return stream + inner + masks + (routing if moe.n_experts > 1 else 0)
