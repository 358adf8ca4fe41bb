"""The keys of the optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from infinito.config.section import Fraction, Section


class TrainingConfig(Section):
    """The optimisation: how long, in which batches, with which schedule, saved how often."""

    init_from: str | None = Field(
        None,
        description="Checkpoint or run whose weights and tokenizer a new run starts from; keys of "
        "model and tokenizer that are absent are taken from it.",
    )
    epochs: float = Field(10.0, gt=0, le=100_000, description="Passes over the training text.")
    max_steps: int | None = Field(
        None, ge=1, description="Number of optimizer steps; wins over epochs."
    )
    batch_size: int = Field(
        16, ge=1, le=65536, description="Sequences of one forward pass, all processes together."
    )
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
    fusion: Literal["auto", "none", "conservative", "moderate", "aggressive"] = Field(
        "none",
        description="none: plain torch; conservative: fused operations with the same draws and the "
        "same results within rounding; moderate: all fused operations; aggressive: those, and "
        "torch.compile on top, probed, else announced eager; auto: the fastest that `bench fusion` "
        "measured here, else moderate where fused operations serve the device.",
    )
    fusion_plan: str | None = Field(
        None,
        description="LEVEL OPERATION=VARIANT ...: by which code (`infinito doctor` lists it) that "
        "level runs; null: decided at the start of a run, and kept.",
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
    sample_prompt: str | None = Field(
        None,
        description="Show a short continuation of this text at each evaluation (an empty text "
        "starts a document), and keep it in the metrics; absent: none.",
    )
    save_every: int = Field(200, ge=0, description="Steps between checkpoints; 0: at the end only.")
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.")
    keep_last: int = Field(
        2, ge=1, description="Step checkpoints kept; the best and the last always are."
    )
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = Field(
        "none", description="Also keep the metrics there (an extra of its name is needed)."
    )

    @model_validator(mode="before")
    @classmethod
    def _as_written_before(cls, values: Any) -> Any:
        # Configs of version 0.1 had tensorboard: true or false.
        if isinstance(values, dict) and isinstance(values.get("tensorboard"), bool):
            old = {"tracker": "tensorboard"} if values["tensorboard"] else {}
            return old | {key: value for key, value in values.items() if key != "tensorboard"}
        return values

    @field_validator("sample_prompt")
    @classmethod
    def _is_unicode(cls, text: str | None) -> str | None:
        # Met at the first evaluation, half a surrogate pair would end a run that went well.
        if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("is not valid Unicode: give it as UTF-8 text")
        return text

    def out_of_patience(self, losses: Sequence[float]) -> bool:
        """Whether early stopping ends a run whose evaluations had these losses."""
        since_best = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        return 0 < self.early_stopping_patience <= since_best

    @property
    def sequences_per_step(self) -> int:
        """Sequences that one optimizer step takes."""
        return self.batch_size * self.gradient_accumulation_steps
