"""What the best checkpoint of a run shows: the model's sizes, where it looks, what surprises it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from infinito.analyze.attention_report import AttentionReport
from infinito.analyze.collect import analyze_attention, spread_windows
from infinito.checkpoint.discover import resolve_checkpoint
from infinito.data.prepare import prepare
from infinito.errors import InfinitoError
from infinito.load import load_model
from infinito.model.count import count_flops, count_parameters
from infinito.report.run_log import RunLog
from infinito.report.surprise import surprise
from infinito.runtime.events import reading

#: Tokens of the validation text that are coloured, and windows of it whose attention is read.
_TOKENS, _WINDOWS = 400, 8


@dataclass(frozen=True)
class ModelView:
    """What could be seen, and ``missing``: why the rest could not; empty where nothing is.

    Attributes:
        checkpoint, step, parameters, flops_per_token, vocabulary: of the model.
        tokens: the beginning of the validation text, a token each.
        pieces: the same with what surprised (``surprise``).
        attention: patterns of windows of the same text.
    """

    missing: str = ""
    checkpoint: str = ""
    step: int = 0
    parameters: int = 0
    flops_per_token: float | None = None
    vocabulary: int = 0
    tokens: list[str] = field(default_factory=list, repr=False)
    pieces: list[dict[str, Any]] = field(default_factory=list, repr=False)
    attention: AttentionReport | None = None


def view_model(run: RunLog) -> ModelView:
    """Load the best checkpoint of ``run`` (on the CPU) and let it read the validation text."""
    known: dict[str, Any] = {}
    try:
        loaded = load_model(resolve_checkpoint(str(run.path), "best"), "cpu")
        config, vocabulary = loaded.config, loaded.tokenizer.vocab_size
        length = config.data.sequence_length
        known = {
            "checkpoint": loaded.path.name,
            "step": loaded.step,
            "parameters": count_parameters(config.model, vocabulary, length).total,
            "flops_per_token": count_flops(config.model, vocabulary, 1, length).training / length,
            "vocabulary": vocabulary,
        }
        with reading(alone=True):  # the run has told what there is to say of its data
            store = prepare(config, tokenizer=loaded.tokenizer, splits=("valid",)).splits["valid"]
        tokens, table = store.tokens[:_TOKENS].tolist(), loaded.tokenizer.token_bytes()
        known["tokens"] = [table[token].decode(errors="backslashreplace") for token in tokens]
        known["pieces"] = surprise(loaded, tokens)
        known["attention"] = analyze_attention(
            loaded, spread_windows(store.tokens, _WINDOWS, length)
        )
    except InfinitoError as error:
        known["missing"] = error.message
    return ModelView(**known)
