"""Events: who hears what, and that a run needs neither directory nor terminal nor main thread."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from infinito.config.loading import config_from_plain
from infinito.runtime.events import Event, Metrics, Note, Work, emit, note, progress, reading
from infinito.train.callbacks import standard_callbacks
from infinito.train.run import RunResult, Turn, run
from infinito.train.trainer import Trainer
from tests.support import tiny_settings


def test_without_a_reader_notes_go_to_stderr_and_the_rest_nowhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    note("a choice")
    emit(Metrics({"step": 1}))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a choice\n")


def test_readers_hear_beside_those_outside_or_alone() -> None:
    outer, inner, alone = list[Event](), list[Event](), list[Event]()
    with reading(outer.append, alone=True):
        with reading(inner.append):
            note("both")
        with reading(alone.append, alone=True):
            note("one")
        note("outer")
    assert outer == [Note("both"), Note("outer")]
    assert inner == [Note("both")]
    assert alone == [Note("one")]


def test_work_ends_also_where_it_fails() -> None:
    heard = list[Event]()

    def fail() -> None:
        with progress(10, "reading", "pages") as advance:
            advance(3)
            raise ValueError("broken")

    with reading(heard.append, alone=True), pytest.raises(ValueError, match="broken"):
        fail()
    work = [event for event in heard if isinstance(event, Work)]
    assert [(event.done, event.ended) for event in work] == [(0, False), (3, False), (3, True)]


def train_quietly(tmp_path: Path, heard: list[Event], seed: int = 7) -> RunResult:
    config = config_from_plain(tiny_settings(tmp_path, seed=seed, output_dir=None), "test")
    with reading(heard.append, alone=True):
        trainer = Trainer(config)
        return run(trainer, standard_callbacks(trainer))


def test_a_run_reports_by_events_and_leaves_nothing_on_disk(tmp_path: Path) -> None:
    heard = list[Event]()
    result = train_quietly(tmp_path, heard)
    assert (result.step, result.stopped) == (8, "")
    assert result.best is not None
    steps = [event.values["step"] for event in heard if isinstance(event, Metrics)]
    assert steps == [2, 4, 6, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_runs_in_threads_do_not_hear_each_other_and_equal_a_run_alone(tmp_path: Path) -> None:
    alone = list[Event]()
    train_quietly(tmp_path, alone)
    heard = list[Event]()
    thread = threading.Thread(target=train_quietly, args=(tmp_path, heard))
    with reading(lambda event: pytest.fail(f"the main thread heard {event}"), alone=True):
        thread.start()
        thread.join()

    def losses(events: list[Event]) -> list[float]:
        return [e.values["loss"] for e in events if isinstance(e, Metrics)]

    assert losses(heard) == losses(alone)


def test_a_callback_stops_a_run(tmp_path: Path) -> None:
    class StopAtThree:
        def after_step(self, trainer: Trainer, turn: Turn) -> None:
            if trainer.progress.step == 3:
                turn.stop = "enough"

    config = config_from_plain(tiny_settings(tmp_path), "test")
    result = run(Trainer(config), [StopAtThree()])
    assert (result.step, result.stopped) == (3, "enough")


@pytest.mark.slow
def test_twenty_runs_in_one_process_leave_nothing_behind(tmp_path: Path) -> None:
    import torch

    def living() -> int:
        gc.collect()
        return sum(
            1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor | Trainer)
        )

    train_quietly(tmp_path, [])
    before, threads = living(), threading.active_count()
    for seed in range(20):
        train_quietly(tmp_path, [], seed)
    assert living() <= before
    assert threading.active_count() == threads
