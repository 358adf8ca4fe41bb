"""The fast processors against slow plain ones, on random logits."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infinito.generate import processors
from infinito.generate.constraints import ForbiddenText, RepeatedNgrams, StopScanner
from infinito.generate.sampling_config import SamplingConfig

INF = float("inf")
quick = settings(max_examples=25, deadline=None)
rows = st.lists(
    st.floats(-20, 20, width=32) | st.sampled_from([-1.0, 0.0, 2.0]), min_size=1, max_size=40
)
share = st.floats(0, 1)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


def possible(logits: torch.Tensor) -> set[int]:
    return {i for i, value in enumerate(logits[0].tolist()) if value > -INF}


@quick
@given(rows, share)
def test_top_p_keeps_a_minimal_set(values: list[float], p: float) -> None:
    left = possible(processors.top_p(torch.tensor([values]), p))
    probabilities = softmax(values)
    assert left
    assert sum(probabilities[i] for i in left) >= p - 1e-6
    assert sum(probabilities[i] for i in left) - min(probabilities[i] for i in left) <= p + 1e-6
    assert min(values[i] for i in left) >= max(
        (v for i, v in enumerate(values) if i not in left), default=-INF
    )


@quick
@given(rows, st.integers(1, 50))
def test_top_k_twin(values: list[float], k: int) -> None:
    threshold = sorted(values, reverse=True)[min(k, len(values)) - 1]
    expected = {i for i, value in enumerate(values) if value >= threshold}
    assert possible(processors.top_k(torch.tensor([values]), k)) == expected


@quick
@given(rows, st.floats(0.1, 5), st.sets(st.integers(0, 39)))
def test_penalty_twin(values: list[float], penalty: float, ids: set[int]) -> None:
    seen = torch.tensor([[i in ids for i in range(len(values))]])
    result = processors.repetition_penalty(torch.tensor([values]), seen, penalty)[0]
    expected = [
        value if i not in ids else value * penalty if value < 0 else value / penalty
        for i, value in enumerate(values)
    ]
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-5, atol=0)
    neutral = processors.repetition_penalty(torch.tensor([values]), seen, 1.0)
    assert torch.equal(neutral, torch.tensor([values]))


@quick
@given(
    rows,
    st.integers(0, 50),
    share,
    share,
    st.floats(0, 1e300, exclude_min=True),
    st.floats(0, 0.99999),
)
def test_some_token_is_always_left_and_the_drawn_one_is_among_them(
    values: list[float], k: int, p: float, smallest: float, temperature: float, point: float
) -> None:
    config = SamplingConfig(top_k=k, top_p=p, min_p=smallest, temperature=temperature)
    warped = processors.warp(torch.tensor([values]), config)
    assert not warped.isnan().any()
    assert int(processors.draw(warped, [point])) in possible(warped)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 40).flatmap(
        lambda n: st.lists(
            st.lists(
                st.floats(-20, 20, width=32) | st.sampled_from([-INF, 0.0, 2.0]),
                min_size=n,
                max_size=n,
            ).map(lambda row: [*row[1:], 1.0]),
            min_size=1,
            max_size=4,
        )
    ),
    st.integers(0, 41),
    share,
    share,
    st.sampled_from([1e-30, 0.3, 0.8, 1.0, 40.0, 1e30]),
    st.floats(0, 0.99999),
)
def test_the_short_way_to_a_token_draws_what_the_long_one_draws(
    values: list[list[float]], k: int, p: float, smallest: float, temperature: float, point: float
) -> None:
    config = SamplingConfig(top_k=k, top_p=p, min_p=smallest, temperature=temperature)
    logits, points = torch.tensor(values), [point, 0.99999 - point, 0.0, 0.5][: len(values)]
    expected = processors.draw(processors.warp(logits, config), points)
    assert torch.equal(processors.sample(logits, config, points), expected)


@quick
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4))
def test_repeated_ngrams_twin(history: list[int], size: int) -> None:
    grams = {tuple(history[i : i + size]) for i in range(len(history) - size + 1)}
    tail = tuple(history[len(history) - size + 1 :])
    expected = {x for x in range(4) if len(tail) == size - 1 and (*tail, x) in grams}
    assert set(RepeatedNgrams(size, history).banned()) == expected


token = st.text("aab", min_size=0, max_size=3).map(str.encode)


@quick
@given(st.lists(token, min_size=1, max_size=12), st.lists(st.integers(0, 11), max_size=30))
def test_forbidden_text_bans_exactly_the_tokens_that_complete_it(
    vocabulary: list[bytes], path: list[int]
) -> None:
    forbidden = b"aaba"  # overlaps itself
    automaton, state, text = ForbiddenText(vocabulary, forbidden), 0, b""
    for identifier in path:
        mask = automaton.mask([state])
        banned = [False] * len(vocabulary) if mask is None else mask[0].tolist()
        assert banned == [forbidden in text + piece for piece in vocabulary]
        identifier %= len(vocabulary)
        if not banned[identifier]:
            text += vocabulary[identifier]
            state = automaton.state_after(state, identifier)


@quick
@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_scanner_cuts_where_the_whole_text_would_be_cut(
    pieces: list[str], stops: list[str]
) -> None:
    scanner, shown = StopScanner(stops), ""
    for piece in pieces:
        shown += scanner.push(piece)
        if scanner.found:
            break
    shown += "" if scanner.found else scanner.flush()
    text = "".join(pieces)
    assert scanner.found == any(stop in text for stop in stops)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if not scanner.found:
        assert shown == text
