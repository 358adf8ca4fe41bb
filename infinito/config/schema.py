"""Every key a config may hold: type, range, default, unit and meaning. No torch here.

The schema is the single source for validation, ``config init``, ``config schema`` and the
README's key table. A key appears here when it works, never before.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from infinito.config.model_config import ModelConfig
from infinito.config.section import Section
from infinito.config.training_config import TrainingConfig

LONGEST_SEQUENCE = 65536
SplitName = Literal["train", "valid", "test"]


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
        "text",
        min_length=1,
        description="Field of the text in rows: .jsonl, .parquet, the hub.",
    )
    train_file: str | None = Field(
        None, description="Training text: a file, directory, glob, .gz, .jsonl or .parquet."
    )
    valid_file: str | None = Field(None, description="Validation text, in the same forms.")
    test_file: str | None = Field(None, description="Test text, in the same forms.")
    sequence_length: int = Field(
        256, ge=2, le=LONGEST_SEQUENCE, description="Tokens a training sequence."
    )

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

    kind: Literal["bpe", "word", "byte", "imported"] = Field(
        "bpe",
        description="bpe: byte-level pair encoding; word: the closed vocabulary of "
        "space-separated words with <unk> and one <eos> a line; byte: the 256 byte values; "
        "imported: that of the checkpoint in training.init_from.",
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
        if self.kind in ("byte", "imported") and self.vocab_size is not None:
            ids = "always has 257 ids" if self.kind == "byte" else "brings its ids"
            raise ValueError(f"kind {self.kind} {ids}: vocab_size has no effect")
        return self


class DistributedConfig(Section):
    """Several processes that train one model (--nproc, torchrun). One alone is not concerned."""

    strategy: Literal["none", "ddp", "fsdp2"] = Field(
        "ddp",
        description="ddp: each process holds all weights; fsdp2: each holds a part; none: several "
        "processes are refused.",
    )
    checkpoint: Literal["auto", "gathered", "sharded"] = Field(
        "auto",
        description="How shards (fsdp2) become a checkpoint. gathered: in the memory of the first "
        "process; sharded: all write their parts in the background, which are put together on the "
        "disk; auto: sharded on several machines, where it takes half of the memory left to one.",
    )

    @model_validator(mode="after")
    def _shards_are_there(self) -> DistributedConfig:
        if self.checkpoint == "sharded" and self.strategy != "fsdp2":
            raise ValueError("checkpoint sharded needs strategy fsdp2: only there are shards")
        return self


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
    distributed: DistributedConfig = Field(
        default_factory=DistributedConfig, description="Several processes."
    )

    def with_training(self, **changes: Any) -> Config:
        """A copy with other values in its training section; nothing is checked again."""
        return self.model_copy(update={"training": self.training.model_copy(update=changes)})

    @model_validator(mode="after")
    def _positions_suffice(self) -> Config:
        rows, length = self.model.learned_positions, self.data.sequence_length
        if rows is not None and rows < length:
            raise ValueError(
                f"model.learned_positions {rows} is less than data.sequence_length {length}"
            )
        return self

    @model_validator(mode="after")
    def _shards_suffice(self) -> Config:
        if self.distributed.strategy == "fsdp2":
            if self.training.ema_decay:
                raise ValueError("training.ema_decay needs distributed.strategy ddp: whole weights")
            if self.training.precision == "float16":
                raise ValueError("training.precision float16 needs distributed.strategy ddp")
        return self
