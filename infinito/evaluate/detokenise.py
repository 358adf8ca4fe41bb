"""WikiText's spaced-out text as ordinary prose: the rules of EleutherAI's ``wikitext`` task (v2).

The rules must be those of the task, whose numbers nobody could compare with otherwise; the order
matters in places.
"""

from __future__ import annotations

import re

_CONTRACTION = (("s '", "s'"),)
_NUMBERS = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
_PUNCTUATION = tuple((f" {mark} ", f"{mark} ") for mark in ":;.!?,")
_PAIRS = (r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"), ('"', '"'), ("'", "'")
_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (f" {chr(176)} ", chr(176)),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenise_wikitext(page: str) -> str:
    """Undo the spacing of a WikiText page."""
    page = re.sub(r"/' [0-9]/", "/'[0-9]/", page)  # to the letter, though hardly meant so
    for old, new in (*_CONTRACTION, *_NUMBERS, *_PUNCTUATION):
        page = page.replace(old, new)
    for opening, closing in _PAIRS:
        left, right = opening[-1], closing[-1]
        page = re.sub(
            rf"{opening}\s*([^{closing}]*?)\s*{closing}",
            lambda match, a=left, b=right: f"{a}{match[1]}{b}",  # type: ignore[misc]
            page,
        )
    for old, new in _REST:
        page = page.replace(old, new)
    return page
