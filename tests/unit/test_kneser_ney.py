"""Kneser-Ney n-grams against the definition, spelt out with dictionaries and sets."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from infinito.evaluate.kneser_ney import KneserNey
from infinito.evaluate.perplexity import score
from tests.evaluation_support import byte_tokenizer, store_of

TOKENIZER = byte_tokenizer()
SIZE = TOKENIZER.vocab_size
Gram = tuple[int, ...]


def sample(length: int, letters: int, seed: int) -> list[int]:
    """A text in which some n-grams are frequent and many occur once, twice and thrice."""
    generator = np.random.default_rng(seed)
    steps = generator.geometric(0.5, length)
    return [int(97 + value % letters) for value in np.cumsum(steps)]


class Twin:
    """Chen & Goodman's recursion on counts of tuples, one probability at a time."""

    def __init__(self, tokens: list[int], order: int) -> None:
        self.counts: dict[int, dict[Gram, int]] = {}
        for n in range(1, order + 1):
            grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
            if n == order:
                self.counts[n] = Counter(grams)
                continue
            before = defaultdict(set)
            for place, gram in enumerate(grams):
                if place:
                    before[gram].add(tokens[place - 1])
            self.counts[n] = {gram: len(found) for gram, found in before.items()}

    def discount(self, n: int, count: int) -> float:
        n1, n2, n3, n4 = (list(self.counts[n].values()).count(i) for i in (1, 2, 3, 4))
        if 0 in (n1, n2, n3):
            return (0.5, 1.0, 1.5)[min(count, 3) - 1]
        y = n1 / (n1 + 2 * n2)
        values = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if not all(0 < value <= k for k, value in enumerate(values, 1)):
            values = (0.5, 1.0, 1.5)
        return values[min(count, 3) - 1]

    def probability(self, context: Gram, token: int) -> float:
        n = len(context) + 1
        lower = 1 / SIZE if n == 1 else self.probability(context[1:], token)
        followers = {g: c for g, c in self.counts[n].items() if g[:-1] == context}
        total = sum(followers.values())
        if not total:
            return lower
        left = sum(self.discount(n, c) for c in followers.values())
        own = followers.get((*context, token), 0)
        kept = own - self.discount(n, own) if own else 0.0
        return (kept + left * lower) / total


@pytest.mark.parametrize(("length", "letters", "order"), [(400, 7, 5), (300, 12, 3), (12, 3, 5)])
def test_probabilities_are_those_of_the_definition(length: int, letters: int, order: int) -> None:
    tokens = sample(length, letters, seed=length)
    twin = Twin(tokens, order)
    model = KneserNey(np.array(tokens, dtype=np.uint16), TOKENIZER, 8, order)
    text = [256, *tokens[5:25], 97, 98, 120, 97, 97, *sample(30, letters, seed=1)]
    inputs, targets = torch.tensor([text[:-1]]), torch.tensor([text[1:]])
    found = model.nats(inputs, targets)[0].neg().exp()
    for place, token in enumerate(text[1:]):
        context = tuple(text[max(0, place + 2 - order) : place + 1])
        assert float(found[place]) == pytest.approx(twin.probability(context, token), rel=1e-9)


@pytest.mark.parametrize("context", [[256], [97, 98, 99], [98, 98, 98, 98, 98], [5, 6, 97, 99]])
def test_probabilities_sum_to_one(context: list[int]) -> None:
    model = KneserNey(np.array(sample(500, 9, seed=3)), TOKENIZER, 8)
    inputs = torch.tensor([context]).expand(SIZE, -1)
    targets = torch.full_like(inputs, -100)
    targets[:, -1] = torch.arange(SIZE)
    assert float(model.nats(inputs, targets).neg().exp()[:, -1].sum()) == pytest.approx(1)


def test_what_is_scored_and_what_is_not() -> None:
    store = store_of(["abcabd" * 9, "xyz" * 5], TOKENIZER)
    model = KneserNey(store.tokens, TOKENIZER, 8)
    assert score(model, store).token_perplexity < 3
    targets = torch.tensor([[98, -100, 97]])
    nats = model.nats(torch.tensor([[97, 98, 99]]), targets)
    assert (nats[0, 1], len(model.states)) == (0, 2)
    assert not model.nats(torch.tensor([[97, 98, 99]]), targets.fill_(-100)).any()
