"""What counting alone achieves: interpolated modified Kneser-Ney n-grams of a model's own tokens.

Chen & Goodman 1998 ("An Empirical Study of Smoothing Techniques for Language Modeling", §4.1.6):

    p(w | h) = (c(h w) - D(c(h w))) / c(h .) + (sum of D(c(h v)) over v) / c(h .) * p(w | h')

where h' lacks the first token of h, c is the count at the highest order and below it the number
of different tokens seen before the n-gram, and D takes one of three values for c = 1, 2 and more.
The last h' is empty, and behind it stands the uniform distribution. An n-gram is the pair of its
first n - 1 tokens (their rank among all such) and its last one: one integer, in a sorted array.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infinito.errors import ResourceError
from infinito.evaluate.perplexity import Floats
from infinito.model.loss import IGNORED
from infinito.tokenizer.tokenizer import Tokenizer

Integers = NDArray[np.int64]
ORDER = 5
_MOST_TOKENS = 100_000_000
# Where counts of counts give no discount between 0 and the count (tiny texts): those of KenLM.
_FALLBACK = (0.5, 1.0, 1.5)


class _Order(NamedTuple):
    """The n-grams of one length, by rank, and what is left to the shorter ones, by context."""

    keys: Integers  # context rank * vocabulary + last token, ascending
    share: Floats
    backoff: Floats


class KneserNey:
    """A predictor by counts of ``tokens``; static, and a proper distribution over the vocabulary.

    Its ``states`` are empty: a cache over them is the unigram cache of Kuhn & De Mori 1990.
    """

    largest_context = None

    def __init__(
        self, tokens: NDArray[np.integer], tokenizer: Tokenizer, context: int, order: int = ORDER
    ) -> None:
        """Count; seconds a million tokens, and some 200 bytes a token while it lasts.

        Args:
            tokens: (N,) of the training text, at least 2.
            tokenizer: the one that made them.
            context: tokens of the windows to be scored with, where nobody says.
            order: longest n-gram.

        Raises:
            ResourceError: there are more than a hundred million tokens.
        """
        if len(tokens) > _MOST_TOKENS:
            raise ResourceError(
                f"the n-grams of {len(tokens)} training tokens do not fit the memory of most "
                f"machines (the limit is {_MOST_TOKENS})",
                "leave ngram out",
            )
        self.tokenizer, self.context = tokenizer, context
        self.states = torch.zeros(0, 1)
        self._size = tokenizer.vocab_size
        text = np.asarray(tokens, dtype=np.int64)
        ranks, keys, longer = text, np.arange(self._size), list[_Order]()
        for length in range(2, min(order, len(text)) + 1):
            pairs = ranks[:-1] * self._size + text[length - 1 :]
            next_keys, first, next_ranks = np.unique(pairs, return_index=True, return_inverse=True)
            preceded = np.bincount(ranks[first + 1], minlength=len(keys))
            longer.append(self._order(keys, preceded))
            ranks, keys = next_ranks, next_keys
        longer.append(self._order(keys, np.bincount(ranks)))
        (_, share, backoff), self._longer = longer[0], longer[1:]
        self._unigram = share + backoff / self._size

    def _order(self, keys: Integers, counts: Integers) -> _Order:
        discount = _discounts(counts)[np.minimum(counts, 3)]
        contexts = keys // self._size
        total = np.bincount(contexts, counts)
        with np.errstate(invalid="ignore"):  # a context at the very end is followed by nothing
            backoff = np.bincount(contexts, discount) / total
        share = (counts - discount) / np.maximum(total[contexts], 1)
        return _Order(keys, share, np.where(total > 0, backoff, 1.0))

    def restart(self) -> None:
        """Nothing: a static model."""

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> (B, T)."""
        read, wanted = inputs.numpy(), targets.clamp_min(0).numpy()
        contexts, probability = read, self._unigram[wanted]
        for keys, share, backoff in self._longer:
            known = (contexts >= 0) & (contexts < len(backoff))
            rank = _find(keys, np.where(known, contexts * self._size + wanted, -1))
            own = np.where(rank >= 0, share[rank], 0.0)
            left = np.where(known, backoff[np.where(known, contexts, 0)], 1.0)
            probability = own + left * probability
            before = np.pad(contexts[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
            contexts = _find(keys, np.where(before >= 0, before * self._size + read, -1))
        self.states = torch.zeros(int((targets != IGNORED).sum()), 1)
        return torch.from_numpy(-np.log(probability)).masked_fill(targets == IGNORED, 0.0)

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Nothing: a static model."""


def _discounts(counts: Integers) -> Floats:
    """What is taken from n-grams of count 0, 1, 2 and more: (4,), equation 26 of the source."""
    ones, twos, threes, fours = (int((counts == value).sum()) for value in (1, 2, 3, 4))
    if not (ones and twos and threes):
        return np.array([0.0, *_FALLBACK])
    share = ones / (ones + 2 * twos)
    parts = zip((1, 2, 3), (ones, twos, threes), (twos, threes, fours), strict=True)
    found = [n - (n + 1) * share * more / fewer for n, fewer, more in parts]
    usable = all(0 < value <= n for n, value in enumerate(found, 1))
    return np.array([0.0, *(found if usable else _FALLBACK)])


def _find(keys: Integers, wanted: Integers) -> Integers:
    """The place of each of ``wanted`` in ``keys`` (ascending), -1 where it lacks."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
