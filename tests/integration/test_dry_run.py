"""--dry-run: nothing is written, and its time is that of whole steps, evaluations and saves."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infinito.data import prepare as prepare_module
from infinito.train import rehearsal
from infinito.train import trainer as trainer_module
from tests.command_support import all_files, infinito, write_config


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a cache and a directory for temporary files of its own."""
    place = tmp_path / "place"
    for name in ("place", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("INFINITO_CACHE", str(place / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return place


def everything(place: Path) -> tuple[set[Path], dict[str, bytes]]:
    """What is there; torch may leave an empty directory among temporary files on its first use."""
    assert not all_files(place.parent / "temporary")
    return set(place.rglob("*")), all_files(place)


@pytest.mark.parametrize("kind", ["byte", "word", "bpe"])
def test_train_writes_nothing(place: Path, kind: str) -> None:
    size = {"bpe": 300}.get(kind)
    tokenizer = {"kind": kind, **({"vocab_size": size} if size else {})}
    config = write_config(place, tokenizer=tokenizer)
    before = everything(place)
    outcome = infinito("train", "--config", config, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "nothing was written" in outcome.err
    assert "warning" not in outcome.err
    assert everything(place) == before


def test_resume_writes_nothing_and_changes_no_run(place: Path) -> None:
    assert infinito("train", "--config", write_config(place)).code == 0
    for path in (place / "cache").rglob("*.*"):
        path.unlink()
    before = everything(place)
    outcome = infinito("resume", "run", "--max-steps", 20, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert everything(place) == before


def test_what_is_in_the_cache_is_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(place)
    assert infinito("data", "prepare", "--config", config).code == 0

    def made_again(*_: Any) -> Any:
        raise AssertionError("it was tokenised again")

    monkeypatch.setattr(prepare_module, "write_store", made_again)
    assert infinito("train", "--config", config, "--dry-run").code == 0


class Clock:
    """Stands still but for what is told to take time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._patch = 1000.0, monkeypatch
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def costs(self, module: Any, name: str, seconds: Callable[..., float]) -> None:
        real = getattr(module, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            self.now += seconds(*arguments)
            return real(*arguments, **options)

        self._patch.setattr(module, name, timed)


def told_seconds(outcome: Any) -> float:
    assert outcome.code == 0, outcome.err
    found = re.search(r"time: +about (?:(\d+) h )?(\d+) min(?: (\d+) s)?:", outcome.err)
    assert found, outcome.err
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def test_the_time_is_that_of_whole_steps_evaluations_and_saves(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(
        place, data__valid_file=str(place / "text.txt"), training__max_steps=1000,
        training__gradient_accumulation_steps=2, training__eval_every=100, training__save_every=30,
    )  # fmt: skip
    clock = Clock(monkeypatch)
    # A step costs its optimizer too: 7 s, whatever its forward and backward passes are.
    clock.costs(trainer_module, "training_step", lambda *_: 7.0)
    clock.costs(trainer_module, "score", lambda _, store, *__: 0.01 * len(store.tokens))
    clock.costs(rehearsal, "write_nowhere", lambda *_: 0.5)
    outcome = infinito("train", "--config", config, "--dry-run")
    tokens = int(re.findall(r"valid (\d+) tokens", outcome.err)[0])
    saves = len({*range(30, 1000, 30), *range(100, 1001, 100)})
    expected = 1000 * 7 + 10 * 0.01 * tokens + saves * 2 * 0.5
    assert told_seconds(outcome) == pytest.approx(expected, abs=60)


def test_what_is_slow_at_first_only_is_no_measure(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(place, training__max_steps=500)
    clock, first = Clock(monkeypatch), iter([50.0])
    clock.costs(trainer_module, "training_step", lambda *_: next(first, 1.0))
    outcome = infinito("train", "--config", config, "--dry-run")
    assert told_seconds(outcome) == pytest.approx(500, abs=60)
