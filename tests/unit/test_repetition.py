"""Repetition figures against texts whose figures can be counted by hand."""

import pytest

from infinito.evaluate import repetition

LOOP = ["a", "b", "a", "b", "a", "b"]


def test_seq_rep_is_one_minus_the_share_of_distinct_ngrams() -> None:
    assert repetition.seq_rep(LOOP, 1) == pytest.approx(1 - 2 / 6)
    assert repetition.seq_rep(LOOP, 2) == pytest.approx(1 - 2 / 5)
    assert repetition.seq_rep(LOOP, 4) == pytest.approx(1 - 2 / 3)
    assert repetition.seq_rep(LOOP[:3], 4) is None


def test_diversity_is_the_product_over_two_to_four() -> None:
    assert repetition.diversity(LOOP) == pytest.approx((2 / 5) * (2 / 4) * (2 / 3))
    assert repetition.diversity(list("abcdefgh")) == 1
    assert repetition.diversity([]) is None


def test_rep_counts_words_found_within_the_span_before_them() -> None:
    words = ["x", "y", "z", "x", "x"]
    assert repetition.rep(words, 3) == pytest.approx(2 / 5)
    assert repetition.rep(words, 2) == pytest.approx(1 / 5)
    assert repetition.rep([], 16) is None


def test_distinct_is_over_all_samples_together() -> None:
    assert repetition.distinct([["a", "b"], ["a", "b"]], 1) == pytest.approx(0.5)
    assert repetition.distinct([["a", "b"], ["a", "b"]], 2) == pytest.approx(0.5)
    assert repetition.distinct([[]], 2) is None


def test_line_ends_are_words() -> None:
    assert repetition.words_of(" the cat\nsat \n") == ["the", "cat", "<eos>", "sat", "<eos>"]


@pytest.mark.parametrize(
    ("n_words", "window"), [(49, None), (50, 100), (112, 100), (114, 128), (600, 512), (9000, 1024)]
)
def test_human_reference_is_that_of_the_nearest_length(n_words: int, window: int | None) -> None:
    reference = repetition.human_reference(n_words)
    assert (reference and reference.words) == window


def test_loops_are_flagged_and_plain_text_is_not() -> None:
    assert repetition.above_human(LOOP * 20) is True
    assert repetition.above_human([str(i) for i in range(120)]) is False
    assert repetition.above_human(LOOP) is None


def test_report_of_an_empty_text_is_plain_data() -> None:
    report = repetition.repetition_report("")
    assert report["words"] == 0
    assert report["seq_rep_4"] is None
    assert report["human"] is None
