"""Our tokenizers as the ``tokenizers`` library has them, for programs that know only that.

They give the ids of :meth:`Tokenizer.encode` behind one ``eos_id``, which stood before every
document in training; no text becomes a special token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infinito.tokenizer.bpe import BytePairCoder
from infinito.tokenizer.coder import END, UNKNOWN
from infinito.tokenizer.imported import ImportedCoder
from infinito.tokenizer.tokenizer import Tokenizer
from infinito.tokenizer.word import WordCoder

if TYPE_CHECKING:
    import tokenizers

# What str.split() parts words at, but for the line feed, which is a token.
_SPACES = "\t\v\f\r\x1c-\x1f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def to_library(tokenizer: Tokenizer) -> tuple[tokenizers.Tokenizer, str]:
    """The library's tokenizer, and the text by which it calls ``eos_id``."""
    from tokenizers import AddedToken, processors

    coder = tokenizer._coder
    if isinstance(coder, WordCoder):
        library, end = _words(coder), "\n"
    elif isinstance(coder, ImportedCoder):
        library = coder.library
        end = library.id_to_token(coder.eos_id) or END
    else:  # single bytes are a byte-pair code that has learnt no pair
        library = (coder if isinstance(coder, BytePairCoder) else BytePairCoder([])).library()
        end = END
        while library.token_to_id(end) is not None:  # the text was about such tokens
            end += ">"
    library.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    library.encode_special_tokens = True
    library.post_processor = processors.TemplateProcessing(
        single=[end, "$A"], special_tokens=[(end, tokenizer.eos_id)]
    )
    return library, end


def _words(coder: WordCoder) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    ids = {word: identifier for identifier, word in enumerate(coder.words)}
    ids["\n"] = ids.pop(END)
    library = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"[{_SPACES}]+"), behavior="removed"),
            pre_tokenizers.Split("\n", behavior="isolated"),
        ]
    )
    library.decoder = decoders.Sequence([decoders.Replace(Regex(r"^(?!\n)"), " "), decoders.Fuse()])
    return library
