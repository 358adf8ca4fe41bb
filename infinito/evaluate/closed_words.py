"""The word perplexity that a closed vocabulary would have, of a model that spells words in pieces.

A bpe or byte model gives mass to strings that are no word of the training text, so its figure is
an upper bound. Here each token's probability is divided by the mass of all tokens with which the
text could go on in a unit of the training text: a word with the space before it, or a run of
line ends. At the end of a unit, those are the tokens that may begin the next one. So one pass
gives a distribution over the vocabulary's words alone: it sums to one over them. (Ends of
documents, which are no words, stay in the total.)

Each unit has one spelling, since no piece of the tokenizers goes beyond whitespace. Which kind of
unit may follow which (a word, bare or behind a space; line ends; the end of a document) is what
the training text shows. Two readings of the same tokens, where there are any, are followed both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from infinito.errors import DataError
from infinito.evaluate.predictor import ModelPredictor
from infinito.model.language_model import LanguageModel
from infinito.model.loss import IGNORED
from infinito.model.mode import evaluation_mode
from infinito.tokenizer.tokenizer import Tokenizer

_UNIT = re.compile(r" ?\S+|\s+(?!\S)|\s")
_BEGIN = "end of a document"
_OTHER_TEXT = "leave --exact-words out, or score a split of the same corpus"
_ROWS = 256
_State = frozenset[int]


def _kind(unit: str) -> str:
    return "line ends" if unit.isspace() else "spaced word" if unit[0] == " " else "bare word"


class Lexicon:
    """The units of a text as a trie of token ids, one below each kind of unit before them.

    Attributes:
        n_words: distinct words, and one for the line end.
    """

    def __init__(self, documents: Iterable[str], tokenizer: Tokenizer) -> None:
        units, followers = dict[str, None](), dict[str, set[str]]()
        for document in documents:
            found = _UNIT.findall(document)
            units |= dict.fromkeys(found)
            kinds = [_BEGIN, *map(_kind, found), _BEGIN]
            for before, after in set(pairwise(kinds)):
                followers.setdefault(before, set()).add(after)
        self._units = units.keys()
        self.n_words = len({unit.strip() for unit in units})
        spellings = list(zip(map(_kind, units), tokenizer.encode_batch(list(units)), strict=True))
        spellings.append((_BEGIN, [tokenizer.eos_id]))
        self._children: list[dict[int, int]] = []
        self._ends: dict[int, str] = {}  # node -> kind of the unit that it completes
        self._roots = {before: self._grow(spellings, after) for before, after in followers.items()}
        self._allowed: dict[_State, tuple[int, Tensor]] = {}
        self._vocab_size = tokenizer.vocab_size
        self.start: _State = frozenset([self._roots[_BEGIN]])

    def require(self, documents: Iterable[str]) -> None:
        """Raises DataError, with an example, where a text has a unit that this one lacks."""
        found = {unit for document in documents for unit in _UNIT.findall(document)}
        other = sorted(found - self._units)
        if other:
            words = ", ".join(repr(unit.strip() or unit) for unit in other[:3])
            raise DataError(
                f"--exact-words: the training text lacks {len(other)} words of this text: "
                f"{words}{', ...' * (len(other) > 3)}",
                _OTHER_TEXT,
            )

    def _grow(self, spellings: list[tuple[str, list[int]]], kinds: set[str]) -> int:
        """A trie of the units of ``kinds``; the number of its root."""
        root = self._node()
        for kind, ids in spellings:
            if kind in kinds:
                node = root
                for token in ids:
                    if token not in self._children[node]:
                        self._children[node][token] = self._node()
                    node = self._children[node][token]
                self._ends[node] = kind
        return root

    def _node(self) -> int:
        self._children.append({})
        return len(self._children) - 1

    def after(self, state: _State, token: int) -> _State:
        """What may have been read once ``token`` follows; empty where it may not."""
        nodes = state | {self._roots[self._ends[node]] for node in state if node in self._ends}
        return frozenset(
            self._children[node][token] for node in nodes if token in self._children[node]
        )

    @cached_property
    def masks(self) -> Tensor:
        """(R, V) float64, one where a token may begin a unit after each kind, by its rank."""
        masks = torch.zeros(len(self._roots), self._vocab_size, dtype=torch.float64)
        for mask, root in zip(masks, self._roots.values(), strict=True):
            mask[list(self._children[root])] = 1
        return masks

    def allowed(self, state: _State) -> tuple[int, Tensor]:
        """What may follow, as the rank of a mask, -1 for none, and the further tokens."""
        if state not in self._allowed:
            kinds = [self._ends[node] for node in state if node in self._ends]
            rank = list(self._roots).index(kinds[0]) if kinds else -1
            nodes = state | {self._roots[kind] for kind in kinds[1:]}
            begun = self._children[self._roots[kinds[0]]] if kinds else {}
            more = {token for node in nodes for token in self._children[node]} - begun.keys()
            self._allowed[state] = rank, torch.tensor(sorted(more), dtype=torch.int64)
        return self._allowed[state]


class ClosedWords(ModelPredictor):
    """A model that can say nothing but the units of a lexicon; it follows one stream of text."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, lexicon: Lexicon) -> None:
        super().__init__(model, tokenizer)
        self.lexicon = lexicon
        self.restart()

    def restart(self) -> None:
        """A text begins."""
        self._state = self._reached = self.lexicon.start

    def learn(self, inputs: Tensor, targets: Tensor) -> None:
        """Where in a unit the text has come to."""
        self._state = self._reached

    def nats(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> (B, T); targets, row by row, go on where the last learnt ended.

        Raises:
            DataError: a target cannot follow: the text has a word that the lexicon lacks.
        """
        device, scored = self.model.device, targets != IGNORED
        wanted = targets[scored]
        nats = torch.zeros(targets.shape, dtype=torch.float64)
        with evaluation_mode(self.model):
            states = self.model.hidden(inputs.to(device))[scored.to(device)]
            parts = [
                self._renormalised(self.model.logits(part).cpu().double().softmax(-1), ids)
                for part, ids in zip(states.split(_ROWS), wanted.split(_ROWS), strict=True)
            ]
        nats[scored] = torch.cat(parts)
        return nats

    def _renormalised(self, probabilities: Tensor, wanted: Tensor) -> Tensor:
        """Nats (N,) of tokens (N,) with probabilities (N, V), in the mass of what may follow."""
        ranks, further, state = [], [], self._reached
        for token in wanted.tolist():
            rank, more = self.lexicon.allowed(state)
            ranks.append(rank)
            further.append(more)
            state = self.lexicon.after(state, token)
            if not state:
                text = repr(self.tokenizer.decode([token]) or "the end of a document")
                raise DataError(
                    f"--exact-words: {text} stands where no word of the training text goes on "
                    "with it: this text has other words",
                    _OTHER_TEXT,
                )
        self._reached = state
        begun = torch.nn.functional.pad(probabilities @ self.lexicon.masks.t(), (0, 1))
        places = torch.arange(len(wanted))
        rows = places.repeat_interleave(torch.tensor([len(more) for more in further]))
        mass = begun[places, torch.tensor(ranks)]
        mass.index_add_(0, rows, probabilities[rows, torch.cat(further)])
        return (mass / probabilities[places, wanted]).log()
