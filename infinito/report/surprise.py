"""How much each token of a text surprised a model, and what it expected instead."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infinito.evaluate.windows import sliding_windows
from infinito.load import LoadedModel
from infinito.model.mode import evaluation_mode

#: Alternatives that are shown.
LIKELIEST = 5


def surprise(loaded: LoadedModel, tokens: Sequence[int]) -> list[dict[str, Any]]:
    """Pieces of the text of ``tokens``, in order, each with its nats and what was likeliest.

    A token is predicted from those before it, half a context at the least (all there are, at the
    beginning, after one eos). A piece is a token, or as many as it takes to complete a character:
    ``text``, ``nats`` (their sum) and ``likeliest`` [[text, probability], ...] of the first. The
    end of a document has the text "".
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    token_bytes = loaded.tokenizer.token_bytes()
    pieces: list[dict[str, Any]] = []
    is_open = False
    for token, log_probabilities in zip(tokens, _predictions(loaded, tokens), strict=True):
        text = decoder.decode(token_bytes[token])
        if not is_open:
            likeliest = _likeliest(log_probabilities, token_bytes)
            pieces.append({"text": "", "nats": 0.0, "likeliest": likeliest})
        pieces[-1]["text"] += text
        pieces[-1]["nats"] -= float(log_probabilities[token])
        is_open = bool(decoder.getstate()[0])
    if pieces:
        pieces[-1]["text"] += decoder.decode(b"", final=True)
    for piece in pieces:
        piece["nats"] = round(piece["nats"], 3)
    return pieces


def _likeliest(log_probabilities: Tensor, token_bytes: Sequence[bytes]) -> list[list[Any]]:
    """[text, probability] of the likeliest tokens; broken characters as their bytes."""
    found = log_probabilities.topk(min(LIKELIEST, len(log_probabilities)))
    return [
        [token_bytes[token].decode(errors="backslashreplace"), round(math.exp(value), 4)]
        for token, value in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


@torch.no_grad()
def _predictions(loaded: LoadedModel, tokens: Sequence[int]) -> Tensor:
    """Log probabilities (N, V) float32 of what stands at each of N tokens."""
    model, eos = loaded.model, loaded.tokenizer.eos_id
    context = model.max_positions
    rows = []
    with evaluation_mode(model):
        for window in sliding_windows(0, len(tokens), context, max(1, context // 2)):
            before = [eos] if window.begin == 0 else [tokens[window.begin - 1]]
            inputs = torch.tensor([[*before, *tokens[window.begin : window.end - 1]]])
            hidden = model.hidden(inputs.to(model.device))[0, window.scored_from - window.begin :]
            rows.append(model.logits(hidden).float().log_softmax(-1).cpu())
    return torch.cat(rows)
