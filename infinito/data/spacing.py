"""Whether a text puts spaces between its words; where it does not, counting words says nothing."""

from __future__ import annotations

import re

from infinito.data.token_store import TokenStore
from infinito.tokenizer.tokenizer import Tokenizer

#: Thai, Lao, Tibetan and Burmese; Khmer; Japanese and Chinese with their punctuation.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff]"
)
_SAMPLES, _SAMPLE_TOKENS = 16, 512


def lacks_spaces(store: TokenStore, tokenizer: Tokenizer) -> bool:
    """Whether most characters are of scripts without spaces, by samples from all of the text."""
    length = len(store.tokens)
    places = range(0, length, max(_SAMPLE_TOKENS, length // _SAMPLES))
    samples = (store.tokens[place : place + _SAMPLE_TOKENS].tolist() for place in places)
    visible = "".join("".join(map(tokenizer.decode, samples)).split())
    return 2 * len(_UNSPACED.findall(visible)) > len(visible)
