"""The contract of what is scored: nats first, learning after, and no knowledge of which it is."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from infinito.errors import ConfigError
from infinito.evaluate.perplexity import score
from infinito.model.loss import IGNORED
from tests.evaluation_support import byte_tokenizer, store_of

TOKENIZER = byte_tokenizer()
STORE = store_of(["abababab" * 4, "cdcd" * 6], TOKENIZER)


class Counts:
    """A unigram model that learns what it has scored, from a count of one of each of 257 ids."""

    tokenizer, context, largest_context = TOKENIZER, 8, 64

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.calls: list[tuple[str, int]] = []

    def restart(self) -> None:
        self.counts.clear()

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        total = self.counts.total() + 257
        self.calls.append(("nats", int((targets != IGNORED).sum())))
        values = [
            0.0 if t == IGNORED else math.log(total / (self.counts[t] + 1))
            for t in targets.flatten().tolist()
        ]
        return torch.tensor(values, dtype=torch.float64).view_as(targets)

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        kept = targets[targets != IGNORED].tolist()
        self.calls.append(("learn", len(kept)))
        self.counts.update(kept)


def test_every_token_is_scored_before_anything_learns_from_it() -> None:
    predictor = Counts()
    result = score(predictor, STORE, stride=8, batch_size=1)
    assert [name for name, _ in predictor.calls] == ["nats", "learn"] * (len(predictor.calls) // 2)
    assert [n for _, n in predictor.calls[::2]] == [n for _, n in predictor.calls[1::2]]
    assert predictor.counts.total() == STORE.n_tokens  # each token is learnt once
    # By hand: nothing is known of the first window, the second profits from the first alone.
    assert result.token_nll[:8] == pytest.approx([math.log(257)] * 8)
    assert result.token_nll[8:16] == pytest.approx([math.log(265 / 5)] * 8)


def test_a_predictor_says_how_much_it_can_read() -> None:
    assert score(Counts(), STORE).context == 8
    with pytest.raises(ConfigError, match="exceeds the 64"):
        score(Counts(), STORE, context=65)
