"""The keys of the model: its shape, its attention, its experts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from infinito.config.section import Fraction, Section


class AttentionConfig(Section):
    """How a query scores the keys it may see."""

    kind: Literal["dot", "l1", "l2", "l2sq", "cosine"] = Field(
        "dot",
        description="Score of a key: dot (scaled product), or minus lambda times a distance: l1, "
        "l2, l2sq (squared L2) or cosine.",
    )
    learnable_lambda: bool | None = Field(
        None,
        description="Train one positive lambda a head; absent: true for distances, false for dot.",
    )
    lambda_init: float = Field(
        1.0, gt=0, description="Lambda at the start; 1 gives logits of unit spread for every kind."
    )
    backend: Literal["auto", "cpu", "sdpa", "triton", "chunked", "reference"] = Field(
        "auto",
        description="auto, or force: cpu (compiled kernel), sdpa (torch's fused kernel), triton "
        "(CUDA kernels), chunked (memory-linear torch), reference (full matrices).",
    )

    @property
    def has_lambda(self) -> bool:
        """Whether lambda is a parameter."""
        return self.kind != "dot" if self.learnable_lambda is None else self.learnable_lambda


class MoeConfig(Section):
    """Several feed-forward networks a layer, of which each token passes a few."""

    n_experts: int = Field(
        0, ge=0, le=1024, description="Experts a layer, each of hidden width d_ff; 0 or 1: dense."
    )
    top_k: int = Field(
        2, ge=1, le=64, description="Experts that each token passes; all get their tokens."
    )
    n_shared: int = Field(0, ge=0, le=64, description="Experts more that every token passes.")
    balance_weight: float = Field(
        0.01, ge=0, description="Weight of the load-balancing loss of each layer, in nats a token."
    )
    z_weight: float = Field(
        0.001, ge=0, description="Weight of the router z-loss of each layer, in nats a token."
    )

    @model_validator(mode="after")
    def _experts_suffice(self) -> MoeConfig:
        if self.n_experts and self.top_k > self.n_experts:
            raise ValueError(f"top_k {self.top_k} is more than n_experts {self.n_experts}")
        if self.n_shared and self.n_experts < 2:
            raise ValueError("n_shared needs at least 2 n_experts to be shared beside")
        return self


class ModelConfig(Section):
    """The decoder-only transformer."""

    d_model: int = Field(256, ge=8, le=16384, description="Width of the residual stream.")
    n_layers: int = Field(6, ge=1, le=256, description="Number of blocks.")
    n_heads: int = Field(4, ge=1, le=256, description="Query heads; divides d_model.")
    n_kv_heads: int | None = Field(
        None, ge=1, le=256, description="Key/value heads (grouped-query); absent: n_heads."
    )
    head_width: int | None = Field(
        None, ge=1, le=1024, description="Width of a head; absent: d_model / n_heads."
    )
    d_ff: int | None = Field(
        None,
        ge=8,
        le=65536,
        description="Hidden width of the feed-forward network, of each expert; absent: 4 d_model, "
        "for swiglu 8/3 d_model rounded up to a multiple of 32 (equal parameters).",
    )
    block: Literal["standard", "double"] = Field(
        "standard",
        description="standard, or double: the legacy shape of TruthGPT with two feed-forward "
        "networks, biases, LayerNorms and one lambda a layer.",
    )
    second_d_ff: int | None = Field(
        None, ge=8, le=65536, description="Hidden width of a double block's second network."
    )
    activation: Literal["relu2", "gelu", "swiglu"] = Field(
        "relu2", description="Feed-forward nonlinearity: squared ReLU, GELU (tanh form) or SwiGLU."
    )
    position: Literal["rope", "alibi", "learned"] | None = Field(
        None,
        description="Position information: rope (rotary), alibi (linear attention bias) or learned "
        "(table). Absent: rope, and alibi under l1, which rotations do not leave alone.",
    )
    learned_positions: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        description="Rows of a learned position table; absent: the training sequence length, "
        "beyond which rows are never trained.",
    )
    rope_theta: float = Field(
        10_000.0, gt=1, le=1e9, description="Base of the rotary wave lengths, in tokens."
    )
    norm_epsilon: float = Field(
        1e-6, gt=0, le=0.1, description="What normalisations add to the mean square."
    )
    embedding_norm: bool = Field(True, description="RMS-normalise the embedded tokens.")
    qk_norm: bool = Field(True, description="RMS-normalise queries and keys of each head.")
    tie_embeddings: bool = Field(True, description="Use the token embedding as the output matrix.")
    dropout: Fraction = Field(
        0.0, description="Dropout on embedding output, residual branches and attention weights."
    )
    input_dropout: Fraction | None = Field(
        None, description="Dropout on the embedding output; absent: `dropout`."
    )
    residual_dropout: Fraction | None = Field(
        None, description="Dropout on each residual branch; absent: `dropout`."
    )
    attention_dropout: Fraction | None = Field(
        None, description="Dropout on attention weights; absent: `dropout`."
    )
    output_dropout: Fraction = Field(0.0, description="Dropout before the output matrix.")
    word_dropout: Fraction = Field(
        0.0,
        description="Share of the vocabulary whose embedding is zeroed in a whole forward pass.",
    )
    attention: AttentionConfig = Field(
        default_factory=AttentionConfig, description="Attention kind and its options."
    )
    moe: MoeConfig = Field(
        default_factory=MoeConfig, description="Mixture of experts: token choice, nothing dropped."
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.head_width is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.n_heads % self.resolved_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.resolved_kv_heads}"
            )
        if self.position == "rope" and self.attention.kind == "l1":
            raise ValueError(
                "position rope cannot go with attention kind l1: rotating both sides changes an "
                "L1 distance, so scores would depend on absolute position; use alibi or learned"
            )
        if self.resolved_position == "rope" and self.d_head % 2:
            raise ValueError(f"rope needs an even head width, and d_model/n_heads is {self.d_head}")
        return self

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> ModelConfig:
        if (self.block == "double") != (self.second_d_ff is not None):
            raise ValueError("second_d_ff is the width that block double needs, and only it has")
        if self.learned_positions is not None and self.resolved_position != "learned":
            raise ValueError("learned_positions has no effect unless position is learned")
        fixed = self.embedding_norm and self.norm_epsilon == 1e-6
        if self.block == "double" and not fixed:
            raise ValueError("block double has norms of its own: leave embedding_norm and epsilon")
        if self.rope_theta != 10_000 and self.resolved_position != "rope":
            raise ValueError("rope_theta has no effect unless position is rope")
        if self.block == "double" and self.moe.n_experts > 1:
            raise ValueError("block double has no experts: moe.n_experts must be 0 or 1")
        return self

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.head_width or self.d_model // self.n_heads

    def dropout_on(self, place: Literal["input", "residual", "attention"]) -> float:
        """Dropout in force on the embedding output, residual branches or attention weights."""
        own: float | None = getattr(self, f"{place}_dropout")
        return self.dropout if own is None else own

    @property
    def resolved_position(self) -> str:
        """Position information in force."""
        return self.position or ("alibi" if self.attention.kind == "l1" else "rope")

    @property
    def resolved_kv_heads(self) -> int:
        """Key/value heads in force."""
        return self.n_kv_heads or self.n_heads

    @property
    def resolved_d_ff(self) -> int:
        """Feed-forward width in force."""
        if self.d_ff is None and self.activation == "swiglu":
            return -(-self.d_model * 8 // 3 // 32) * 32
        return self.d_ff or 4 * self.d_model
