"""Which tokens come when: a pure function of (seed, epoch, index), so resuming costs nothing.

Each epoch permutes the documents, drops a random number of tokens (fewer than the sequence
length) from the head of the permuted stream, cuts the rest into sequences and permutes those.
So no two epochs show the same cuts, and no token is a target twice in an epoch. Any position can
be asked for at any time: nothing is replayed, and nothing but three integers need be stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infinito.data.token_store import TokenStore
from infinito.errors import DataError

if TYPE_CHECKING:
    import torch

_KEPT_EPOCHS = 2

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Epoch:
    documents: Integers  # (n_documents,) document numbers in the order of the epoch
    ends: Integers  # (n_documents,) where each ends in the permuted stream, in tokens
    windows: Integers  # (sequences_per_epoch,) where each sequence starts in that stream


class SequenceOrder:
    """The sequences of a training run, numbered from its start over all epochs."""

    def __init__(self, store: TokenStore, sequence_length: int, seed: int) -> None:
        """Order the tokens of ``store`` in sequences of ``sequence_length`` + 1 tokens.

        Raises:
            DataError: the text is shorter than one sequence.
        """
        require_sequence(store.n_tokens, sequence_length)
        self._store = store
        self._length = sequence_length
        self._seed = seed
        self.sequences_per_epoch = sequences_per_epoch(store.n_tokens, sequence_length)
        self._document_ends = np.append(store.document_starts[1:], store.n_tokens)
        self._epochs: dict[int, _Epoch] = {}

    def sequence(self, position: int) -> Integers:
        """Tokens of the sequence at ``position`` (0 is the first of the run).

        Returns:
            ``(sequence_length + 1,)`` int64: inputs are all but the last, targets all but the
            first. Sequences that follow each other in the text share one token.
        """
        number, index = divmod(position, self.sequences_per_epoch)
        epoch = self._epoch(number)
        start = int(epoch.windows[index])
        return self._gather(epoch, start, start + self._length + 1)

    def batch(self, position: int, count: int) -> torch.Tensor:
        """``count`` sequences from ``position`` on: ``(count, sequence_length + 1)`` int64."""
        import torch

        rows = [self.sequence(position + row) for row in range(count)]
        return torch.from_numpy(np.stack(rows))

    def _gather(self, epoch: _Epoch, start: int, stop: int) -> Integers:
        """Tokens ``start`` to ``stop`` of the permuted stream, which may span documents."""
        result = np.empty(stop - start, dtype=np.int64)
        filled = 0
        slot = int(np.searchsorted(epoch.ends, start, side="right"))
        while filled < len(result):
            document = epoch.documents[slot]
            left = int(epoch.ends[slot]) - start - filled  # tokens to the end of this document
            taken = min(left, len(result) - filled)
            end = int(self._document_ends[document]) - left + taken
            result[filled : filled + taken] = self._store.tokens[end - taken : end]
            filled += taken
            slot += 1
        return result

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            while len(self._epochs) >= _KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[number] = self._make_epoch(number)
        return self._epochs[number]

    def _make_epoch(self, number: int) -> _Epoch:
        source = np.random.PCG64(np.random.SeedSequence(self._seed, spawn_key=(number,)))
        documents = _permutation(source, self._store.n_documents)
        lengths = self._document_ends - self._store.document_starts
        count = self.sequences_per_epoch
        # The last sequence must still find its last token, however much is dropped.
        spare = min(self._length, self._store.n_tokens - count * self._length)
        dropped = int(source.random_raw()) % spare
        windows = dropped + self._length * _permutation(source, count)
        return _Epoch(documents, np.cumsum(lengths[documents]), windows)


def _permutation(source: np.random.PCG64, count: int) -> Integers:
    """0 to ``count`` - 1, shuffled.

    Sorting raw numbers, because NumPy promises the stream of its bit generators for ever (NEP
    19) and not that of ``Generator.permutation``: a run must resume alike under a later NumPy.
    """
    return np.argsort(source.random_raw(count), kind="stable").astype(np.int64)


def sequences_per_epoch(n_tokens: int, sequence_length: int) -> int:
    """The same in every epoch, whatever it drops; a text shorter than two sequences gives one."""
    return max(1, (n_tokens - sequence_length) // sequence_length)


def require_sequence(n_tokens: int, sequence_length: int, text: str = "the training text") -> None:
    """Raise ``DataError`` unless the tokens of ``text`` fill one sequence and the target after."""
    if n_tokens <= sequence_length:
        raise DataError(
            f"{text} has {n_tokens} tokens, and a sequence needs {sequence_length + 1}",
            "give more text, or a smaller data.sequence_length",
        )
