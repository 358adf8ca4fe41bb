"""The lm-eval figures against lm-evaluation-harness itself where it is installed, and a twin.

The twin restates the library's rule (``get_rolling_token_windows`` with a context of 1): a page
is scored in parts of ``context`` tokens after one eos; each part reads the ``context`` tokens that
precede its last token, so that a last, shorter part has a full context too.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from infinito.evaluate.detokenise import detokenise_wikitext
from infinito.evaluate.evaluation import EvaluationOptions
from infinito.load import LoadedModel
from tests.evaluation_support import byte_tokenizer, evaluated, loaded_tiny, store_of

TOKENIZER = byte_tokenizer()
PAGES = [
    " = One = \n \n It was @-@ it seems - number 1 , again : ' so ' .\n",
    " = Two = \n",
    'A page with 1 @,@ 000 words ; " none " of them long ( or so ) , and s \' done .\n' * 3,
]
Pairs = Iterator[tuple[list[int], list[int]]]


def twin_pairs(ids: list[int], eos: int, context: int) -> Pairs:
    """What is read, and the tokens predicted from its last positions, part by part."""
    stream = [eos, *ids]
    for first in range(0, len(ids), context):
        last = min(first + context, len(ids))
        yield stream[max(0, last - context) : last], ids[first:last]


def library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        reason = f"lm-eval is not installed ({error}): pip install lm_eval"
        print(reason, file=sys.stderr)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def library_windows() -> Callable[..., Pairs]:
    """(ids, eos, context, 1) -> what is read and what is predicted of it, part by part."""
    windows: Callable[..., Pairs] = library("lm_eval.utils").get_rolling_token_windows
    return windows


@pytest.fixture(scope="module")
def library_prose() -> Callable[[str], str]:
    task = library("lm_eval.tasks.wikitext.preprocess_wikitext")
    return lambda page: task.wikitext_detokenizer({"page": page})


def nats_of(loaded: LoadedModel, pairs: Pairs) -> float:
    """The loss of the predicted tokens, one forward pass a part."""
    total = 0.0
    for read, predicted in pairs:
        states = loaded.model.hidden(torch.tensor([read]))
        logits = loaded.model.logits(states[0, -len(predicted) :])
        rows = torch.arange(len(predicted))
        total -= logits.log_softmax(-1)[rows, torch.tensor(predicted)].double().sum().item()
    return total


def figures(loaded: LoadedModel, context: int) -> dict[str, float]:
    options = EvaluationOptions(context=context, all_conventions=True)
    report = evaluated(loaded, store_of(PAGES, TOKENIZER), "test", "x", options, True)
    found: dict[str, float] = report.to_plain()["conventions"]
    return found


def require_figures(found: dict[str, float], nats: float) -> None:
    words = sum(len(re.split(r"\s+", page)) for page in PAGES)
    n_bytes = sum(len(page.encode()) for page in PAGES)
    expected = {
        "lm_eval_word_perplexity": math.exp(nats / words),
        "lm_eval_byte_perplexity": math.exp(nats / n_bytes),
        "lm_eval_bits_per_byte": nats / n_bytes / math.log(2),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("context", [1, 7, 8, 64, 1000])
def test_figures_equal_the_restated_rule(context: int) -> None:
    loaded = loaded_tiny()
    encoded = [TOKENIZER.encode(detokenise_wikitext(page)) for page in PAGES]
    nats = sum(nats_of(loaded, twin_pairs(ids, TOKENIZER.eos_id, context)) for ids in encoded)
    require_figures(figures(loaded, context), nats)


@pytest.mark.parametrize("context", [1, 7, 8, 64, 1000])
def test_figures_equal_the_librarys_own_functions(
    context: int, library_windows: Callable[..., Pairs], library_prose: Callable[[str], str]
) -> None:
    loaded = loaded_tiny()
    encoded = [TOKENIZER.encode(library_prose(page)) for page in PAGES]
    nats = sum(
        nats_of(loaded, library_windows(ids, TOKENIZER.eos_id, context, 1)) for ids in encoded
    )
    require_figures(figures(loaded, context), nats)


@given(ids=st.lists(st.integers(0, 9), max_size=40), context=st.integers(1, 12))
def test_the_restated_rule_is_the_librarys(
    ids: list[int], context: int, library_windows: Callable[..., Pairs]
) -> None:
    assert list(twin_pairs(ids, 99, context)) == list(library_windows(ids, 99, context, 1))


@example(page="as in /' 5/ here")
@given(page=st.text(alphabet="ab .,:;!?()[]{}\"'=@-/5Ns°\n", max_size=60))
def test_detokenising_is_the_librarys(page: str, library_prose: Callable[[str], str]) -> None:
    assert detokenise_wikitext(page) == library_prose(page)
