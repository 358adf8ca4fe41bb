"""Parameters, FLOPs and memory of a model, counted from its config alone. No model is built.

B batch, T positions, C model width, F feed-forward width, H heads, K key/value heads, D head
width, V vocabulary, L layers. A matrix product of (m, k) and (k, n) is 2 m k n FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass

from infinito.config.schema import ModelConfig


@dataclass(frozen=True)
class ParameterCount:
    """Trainable numbers by part; the output head is 0 where it is the embedding."""

    embedding: int
    positions: int
    attention: int
    feed_forward: int
    norms: int
    lambdas: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        inner = self.attention + self.feed_forward + self.norms + self.lambdas
        return self.embedding + self.positions + inner + self.head


def _attention_parameters(config: ModelConfig) -> int:
    """Query, key, value and output matrices of one layer."""
    kv_width = config.resolved_kv_heads * config.d_head
    return 2 * config.d_model**2 + 2 * config.d_model * kv_width


def _feed_forward_parameters(config: ModelConfig) -> int:
    """Matrices of one layer's feed-forward networks."""
    matrices = 3 if config.activation == "swiglu" else 2
    return matrices * config.d_model * (config.resolved_d_ff + (config.second_d_ff or 0))


def _biases(config: ModelConfig) -> tuple[int, int]:
    """Biases of one layer's attention and feed-forward networks; only double blocks have them."""
    if config.block != "double":
        return 0, 0
    kv_width = config.resolved_kv_heads * config.d_head
    hidden = config.resolved_d_ff + (config.second_d_ff or 0)
    inner = 2 if config.activation == "swiglu" else 1
    return 2 * (config.d_model + kv_width), inner * hidden + 2 * config.d_model


def _norms(config: ModelConfig) -> int:
    """Gains of all layers and of the model's ends; LayerNorms have a bias too."""
    of_heads = 2 * config.d_head if config.qk_norm else 0
    if config.block == "double":
        return 2 * config.d_model * (3 * config.n_layers + 1) + config.n_layers * of_heads
    return 2 * config.d_model * (config.n_layers + 1) + config.n_layers * of_heads


def count_parameters(config: ModelConfig, vocab_size: int, max_positions: int) -> ParameterCount:
    """Count the parameters of ``Transformer(config, vocab_size, max_positions)``."""
    width, layers = config.d_model, config.n_layers
    attention_biases, feed_forward_biases = _biases(config)
    rows = config.learned_positions or max_positions
    return ParameterCount(
        embedding=vocab_size * width,
        positions=rows * width if config.resolved_position == "learned" else 0,
        attention=layers * (_attention_parameters(config) + attention_biases),
        feed_forward=layers * (_feed_forward_parameters(config) + feed_forward_biases),
        norms=_norms(config),
        lambdas=layers * config.n_lambdas if config.attention.has_lambda else 0,
        head=0 if config.tie_embeddings else vocab_size * width,
    )


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of matrix products in one forward pass, by part; the rest of the work is not counted.

    Attention is counted in full, as torch's counter does, although half of it is masked.
    """

    projections: int
    attention: int
    feed_forward: int
    head: int

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.projections + self.attention + self.feed_forward + self.head

    @property
    def backward(self) -> int:
        """One backward pass: each product has two gradients of its own cost."""
        return 2 * self.forward

    @property
    def training(self) -> int:
        """Forward and backward, nothing recomputed."""
        return self.forward + self.backward


def count_flops(config: ModelConfig, vocab_size: int, batch: int, sequence: int) -> FlopCount:
    """Count the FLOPs of a forward pass over (batch, sequence) tokens, loss included."""
    tokens, layers = batch * sequence, config.n_layers
    return FlopCount(
        projections=2 * tokens * layers * _attention_parameters(config),
        attention=4 * tokens * sequence * config.d_model * layers,
        feed_forward=2 * tokens * layers * _feed_forward_parameters(config),
        head=2 * tokens * vocab_size * config.d_model,
    )
