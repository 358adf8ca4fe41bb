"""Every key a config may hold: type, range, default, unit and meaning. No torch here.

The schema is the single source for validation, ``config init``, ``config schema`` and the
README's key table. A key appears here when it works, never before.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
SplitName = Literal["train", "valid", "test"]


class Section(BaseModel):
    """A frozen group of keys that refuses unknown names, wrong types and non-finite numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


class DataConfig(Section):
    """Where the text comes from and how it is cut into sequences."""

    source: Literal["wikitext-2", "hub", "text", "python-docs"] | None = Field(
        None,
        description="Corpus: wikitext-2 (hub, or the directory in `path`), hub (any dataset), "
        "text (your own files) or python-docs (embedded, needs no network). Inferred from "
        "train_file, dataset or path when absent.",
    )
    path: str | None = Field(
        None, description="Directory with a local WikiText-2 (train.txt or wiki.train.tokens, ...)."
    )
    dataset: str | None = Field(None, description="Hub dataset name or local dataset directory.")
    dataset_config: str | None = Field(None, description="Configuration name of the hub dataset.")
    text_field: str = Field(
        "text", min_length=1, description="Field holding the text in .jsonl and hub rows."
    )
    train_file: str | None = Field(
        None, description="Training text: a file, directory, glob, .gz or .jsonl."
    )
    valid_file: str | None = Field(None, description="Validation text, in the same forms.")
    test_file: str | None = Field(None, description="Test text, in the same forms.")
    sequence_length: int = Field(256, ge=2, le=65536, description="Tokens a training sequence.")

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        given = {
            "text": [k for k in ("train_file", "valid_file", "test_file") if getattr(self, k)],
            "hub": [k for k in ("dataset", "dataset_config") if getattr(self, k)],
            "wikitext-2": ["path"] if self.path else [],
        }
        source = self.resolved_source
        if source is None:
            raise ValueError("give `source`, or one of `train_file`, `dataset` and `path`")
        foreign = [k for owner, keys in given.items() if owner != source for k in keys]
        if foreign:
            raise ValueError(f"{', '.join(foreign)} cannot be used with source {source}")
        needed = {"text": "train_file", "hub": "dataset"}.get(source)
        if needed and not getattr(self, needed):
            raise ValueError(f"source {source} needs `{needed}`")
        return self

    @property
    def resolved_source(self) -> str | None:
        """The source in force: the one given, or the one its other keys imply."""
        if self.source is not None:
            return self.source
        implied = {"text": self.train_file, "hub": self.dataset, "wikitext-2": self.path}
        return next((name for name, value in implied.items() if value), None)


class TokenizerConfig(Section):
    """How text becomes token ids. Trained on the training split only."""

    kind: Literal["bpe", "word", "byte"] = Field(
        "bpe",
        description="bpe: byte-level pair encoding; word: the closed vocabulary of "
        "space-separated words with <unk> and one <eos> a line; byte: the 256 byte values.",
    )
    vocab_size: int | None = Field(
        None,
        ge=258,
        le=1_000_000,
        description="Size of the vocabulary, special tokens included. Absent: 8192 for bpe, every "
        "word of the training text for word, 257 for byte.",
    )

    @model_validator(mode="after")
    def _bytes_are_given(self) -> TokenizerConfig:
        if self.kind == "byte" and self.vocab_size is not None:
            raise ValueError("kind byte always has 257 ids: vocab_size has no effect")
        return self


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
        if self.d_model % self.n_heads:
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
        if self.block == "double" and self.moe.n_experts > 1:
            raise ValueError("block double has no experts: moe.n_experts must be 0 or 1")
        return self

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

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


class TrainingConfig(Section):
    """The optimisation: how long, in which batches, with which schedule, saved how often."""

    epochs: float = Field(10.0, gt=0, le=100_000, description="Passes over the training text.")
    max_steps: int | None = Field(
        None, ge=1, description="Number of optimizer steps; wins over epochs."
    )
    batch_size: int = Field(16, ge=1, le=65536, description="Sequences of one forward pass.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=65536, description="Forward passes a step; a step takes their product."
    )
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="adamw, or muon for hidden matrices with adamw for the rest."
    )
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate of AdamW groups.")
    muon_learning_rate: float = Field(
        0.02, gt=0, description="Peak learning rate of the matrices under muon."
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled decay of matrices.")
    adam_beta1: Fraction = Field(0.9, description="AdamW first-moment decay.")
    adam_beta2: Fraction = Field(0.95, description="AdamW second-moment decay.")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine",
        description="Learning rate after warm-up; wsd is constant, then linear to the end.",
    )
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warm-up.")
    decay_fraction: float = Field(
        0.3, gt=0, le=1, description="Share of the steps that wsd spends decaying."
    )
    final_learning_rate_ratio: float = Field(
        0.0, ge=0, le=1, description="Learning rate at the end over its peak (not for constant)."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient norm here; 0 is off.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Arithmetic of matrix products; auto: float32 on CPU, bfloat16 on CUDA."
    )
    fusion: Literal["none", "aggressive"] = Field(
        "none", description="none: eager; aggressive: torch.compile, probed, else announced eager."
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute block activations in the backward pass to save memory."
    )
    ema_decay: Fraction = Field(
        0.0, description="Decay a step of the averaged weights used for evaluation; 0 is off."
    )
    early_stopping_patience: int = Field(
        0, ge=0, description="Stop after this many evaluations without a new best; 0 is off."
    )
    eval_every: int = Field(200, ge=0, description="Steps between validations; 0: at the end only.")
    save_every: int = Field(200, ge=0, description="Steps between checkpoints; 0: at the end only.")
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.")
    keep_last: int = Field(
        2, ge=1, description="Step checkpoints kept; the best and the last always are."
    )
    tensorboard: bool = Field(False, description="Also write TensorBoard events (extra needed).")

    @property
    def sequences_per_step(self) -> int:
        """Sequences that one optimizer step takes."""
        return self.batch_size * self.gradient_accumulation_steps


class Config(Section):
    """A whole run."""

    seed: int = Field(
        1234, ge=0, lt=2**63, description="Seed of initialisation, order and dropout."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="auto, cpu, cuda, cuda:N or mps.",
    )
    output_dir: str | None = Field(
        None, description="The run's own directory; absent: checkpoints/<config name>-<number>."
    )
    data: DataConfig = Field(description="Text and sequences.")
    tokenizer: TokenizerConfig = Field(
        default_factory=TokenizerConfig, description="Text to token ids."
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="The transformer.")
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="The optimisation."
    )

    @model_validator(mode="after")
    def _positions_suffice(self) -> Config:
        rows, length = self.model.learned_positions, self.data.sequence_length
        if rows is not None and rows < length:
            raise ValueError(
                f"model.learned_positions {rows} is less than data.sequence_length {length}"
            )
        return self
