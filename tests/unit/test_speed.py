"""The speed that a run reports: recent steps without the first ones, in bounded memory."""

from __future__ import annotations

import pickle

import pytest

from infinito.train.speed import Speed


def test_the_first_steps_do_not_count() -> None:
    speed = Speed()
    assert speed.seconds_per_step == speed.tokens_per_second == 0.0
    speed.add(9.0, 10)
    assert speed.seconds_per_step == 9.0  # there is no better figure yet
    speed.add(9.0, 10)
    for _ in range(3):
        speed.add(2.0, 10)
    assert speed.seconds_per_step == 2.0
    assert speed.tokens_per_second == 5.0
    assert speed.training_seconds == 24.0


def test_a_change_of_speed_shows() -> None:
    speed = Speed()
    for seconds in (1.0,) * 500 + (4.0,) * 150:
        speed.add(seconds, 8)
    assert speed.tokens_per_second == 2.0


def test_a_window_is_what_came_since_the_last() -> None:
    speed = Speed()
    speed.add(1.0, 10)
    speed.add(3.0, 10)
    assert speed.take_window() == pytest.approx(5.0)
    speed.add(2.0, 10)
    assert speed.take_window() == pytest.approx(5.0)
    assert speed.take_window() == 0.0


def test_a_long_run_takes_no_more_memory() -> None:
    def size_after(steps: int) -> int:
        speed = Speed()
        for _ in range(steps):
            speed.add(0.1, 512)
        return len(pickle.dumps(speed))

    assert size_after(20_000) < size_after(1_000) + 10  # a counter grew
