"""A tiny model and stores made by hand, for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from infinito.config.model_config import ModelConfig
from infinito.config.schema import Config, DataConfig, TokenizerConfig
from infinito.data.token_store import TokenStore
from infinito.evaluate.evaluation import EvaluationOptions, ScoredText, evaluate
from infinito.evaluate.members import model_subject
from infinito.evaluate.report import Report
from infinito.load import LoadedModel
from infinito.model.transformer import Transformer
from infinito.tokenizer.tokenizer import Tokenizer, train_tokenizer


def byte_tokenizer() -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="byte"), ["text"])


def tiny_model(context: int = 8, vocab_size: int = 257, **changes: Any) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(**{"d_model": 16, "n_layers": 2, "n_heads": 2, **changes})
    model = Transformer(config, vocab_size, context)
    with torch.no_grad():
        model.embedding.weight.mul_(20)  # far from uniform, so that mistakes show
    return model


def store_of(documents: list[str], tokenizer: Tokenizer) -> TokenStore:
    ids = [[*tokenizer.encode(document), tokenizer.eos_id] for document in documents]
    text = "".join(documents)
    return TokenStore(
        tokens=np.array([i for document in ids for i in document], dtype=np.uint16),
        document_starts=np.cumsum([0, *map(len, ids[:-1])]).astype(np.int64),
        n_words=len(text.split()) + text.count("\n"),
        n_lines=text.count("\n"),
        n_bytes=len(text.encode()),
        n_unknown=0,
        text_sha256="0" * 64,
    )


def loaded_tiny(**hashes: str) -> LoadedModel:
    """A tiny model as a checkpoint of step 40 gives it; ``hashes`` of the texts it knew."""
    config = Config(data=DataConfig(source="python-docs"))
    return LoadedModel(tiny_model(), byte_tokenizer(), config, 40, Path("run/best.pt"), hashes)


def evaluated(
    loaded: LoadedModel,
    store: TokenStore,
    split: str,
    corpus: str,
    request: EvaluationOptions,
    is_wikitext: bool = False,
) -> Report:
    """A report without adaptation, for which the same text is everything."""
    text = ScoredText(store, split, corpus, is_wikitext)
    return evaluate(model_subject(loaded), text, request, lambda _: store)
