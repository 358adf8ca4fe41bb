"""Each processor against a table worked out by hand (catalogue rows G-02, G-03, G-05, G-11)."""

import math

import pytest
import torch

from infinito.generate import processors
from infinito.generate.sampling_config import SamplingConfig

INF = float("inf")


def logits_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return torch.nonzero(logits[0] > -INF)[:, 0].tolist()


@pytest.mark.row("G-11")
def test_penalty_divides_positive_and_multiplies_negative_logits_of_seen_ids_only() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, 3.0, -1.0]])
    seen = torch.tensor([[True, True, True, False, False]])
    result = processors.repetition_penalty(logits, seen, 2.0)
    assert result.tolist() == [[1.0, -4.0, 0.0, 3.0, -1.0]]


@pytest.mark.row("G-11")
def test_penalty_below_one_rewards() -> None:
    result = processors.repetition_penalty(torch.tensor([[2.0, -2.0]]), torch.ones(1, 2) > 0, 0.5)
    assert result.tolist() == [[4.0, -1.0]]


@pytest.mark.parametrize("penalty", [1e-300, 1e6, 1e300])
def test_absurd_penalty_of_every_id_still_leaves_a_choice(penalty: float) -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0], [-2.0, -2.0, -3.0]])
    result = processors.repetition_penalty(logits, torch.ones(2, 3) > 0, penalty)
    warped = processors.warp(result, SamplingConfig())
    assert not warped.isnan().any()
    assert processors.draw(warped, [0.5, 0.5]).max() < 3


@pytest.mark.parametrize("penalty", [0.5, 1.2, 1e30])
def test_penalty_leaves_what_was_excluded_excluded(penalty: float) -> None:
    logits = torch.tensor([[-INF, 1.0, -INF, -1.0]])
    result = processors.repetition_penalty(
        logits, torch.tensor([[True, True, False, True]]), penalty
    )
    assert torch.equal(result == -INF, logits == -INF)


def test_temperature_divides_and_shifts_the_largest_to_zero() -> None:
    result = processors.temperature(torch.tensor([[1.0, 3.0, -INF]]), 0.5)
    assert result.tolist() == [[-4.0, 0.0, -INF]]


@pytest.mark.parametrize("value", [5e-324, 1e-45, 1e-6])
def test_tiny_temperature_is_greedy(value: float) -> None:
    result = processors.temperature(torch.tensor([[80.0, 80.5, -INF]]), value)
    assert torch.softmax(result, -1).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("value", [1e6, 1e40, 1e308])
def test_huge_temperature_is_uniform_over_what_is_allowed(value: float) -> None:
    result = processors.temperature(torch.tensor([[-80.0, 80.0, -INF]]), value)
    assert torch.softmax(result, -1)[0].tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-4)


@pytest.mark.row("G-03")
def test_top_k_keeps_ties_with_the_last_and_is_clamped_to_the_vocabulary() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert kept(processors.top_k(logits, 1)) == [1]
    assert kept(processors.top_k(logits, 2)) == [1, 2, 3]
    assert kept(processors.top_k(logits, 10**6)) == [0, 1, 2, 3, 4]


@pytest.mark.row("G-05")
@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.0, [1]),
        (1e-9, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.79, [1, 3]),
        (0.81, [1, 2, 3]),
        (0.999, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_token_that_crosses_p(p: float, expected: list[int]) -> None:
    assert kept(processors.top_p(logits_of([0.05, 0.5, 0.15, 0.3]), p)) == expected


def test_top_p_breaks_ties_by_the_lower_id() -> None:
    assert kept(processors.top_p(torch.zeros(1, 1000), 0.0)) == [0]
    assert kept(processors.top_p(torch.zeros(1, 1000), 0.0025)) == [0, 1, 2]


def test_top_p_of_rows_with_different_numbers_of_candidates() -> None:
    logits = torch.tensor([[0.0, -INF, -INF], [0.0, 0.0, 0.0]])
    assert processors.top_p(logits, 0.9).tolist() == [[0.0, -INF, -INF], [0.0, 0.0, 0.0]]


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = logits_of([0.5, 0.3, 0.15, 0.05])
    assert kept(processors.min_p(logits, 0.31)) == [0, 1]
    assert kept(processors.min_p(logits, 0.29)) == [0, 1, 2]
    assert kept(processors.min_p(logits, 1.0)) == [0]


def test_warpers_see_what_the_one_before_left() -> None:
    # After top-k 2 the first has 5/8 of the mass, so top-p 0.6 drops the second.
    logits = logits_of([0.5, 0.3, 0.2])
    config = SamplingConfig(temperature=1.0, top_k=2, top_p=0.6)
    assert kept(processors.warp(logits, config)) == [0]
    assert kept(processors.top_p(logits, 0.6)) == [0, 1]


def test_min_p_comes_after_temperature() -> None:
    logits = logits_of([0.6, 0.3, 0.1])
    hot = SamplingConfig(temperature=4.0, top_k=0, top_p=1.0, min_p=0.6)
    assert kept(processors.warp(logits, hot)) == [0, 1, 2]


def test_ngram_bans_give_way_when_nothing_would_be_left() -> None:
    logits = torch.tensor([[1.0, 2.0, -INF], [1.0, 2.0, 3.0]])
    result = processors.no_repeat_ngram(logits, [{0, 1}, {2}])
    assert result.tolist() == [[1.0, 2.0, -INF], [1.0, 2.0, -INF]]


def test_draw_inverts_the_distribution_function() -> None:
    logits = logits_of([0.25, 0.0, 0.5, 0.25])
    points = [0.0, 0.2499, 0.2501, 0.7499, 0.7501, math.nextafter(1.0, 0.0)]
    drawn = processors.draw(logits.expand(6, -1), points)
    assert drawn.tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_takes_an_excluded_token_at_the_edges() -> None:
    logits = torch.tensor([[-INF, 0.0, 0.1, -INF]])
    assert processors.draw(logits, [0.0]).item() == 1
    assert processors.draw(logits, [math.nextafter(1.0, 0.0)]).item() == 2


def test_with_few_candidates_the_rest_of_the_vocabulary_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.tensor([[float(n * 37 % 101) for n in range(100)]] * 5)
    points = [0.1, 0.3, 0.5, 0.7, 0.9]
    config = SamplingConfig(top_k=7, temperature=5.0)
    expected = processors.draw(processors.warp(logits, config), points)
    assert len(set(expected.tolist())) > 2
    widths, original = [], processors.draw

    def noted(logits: torch.Tensor, uniforms: list[float]) -> torch.Tensor:
        widths.append(logits.shape[-1])
        return original(logits, uniforms)

    monkeypatch.setattr(processors, "draw", noted)
    assert torch.equal(processors.sample(logits, config, points), expected)
    logits[:, 50] = logits[0].topk(7).values[-1]  # a tie behind the seventh: both are kept
    processors.sample(logits, config, points)
    assert widths == [7, 100]
