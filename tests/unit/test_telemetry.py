"""What a run says: lines, panels, files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from infinito.runtime.events import Metrics, progress, reading
from infinito.telemetry import console
from infinito.telemetry.console import (
    LiveConsole,
    PlainConsole,
    record_line,
    seconds_text,
    sparkline,
)
from infinito.telemetry.sinks import JsonLines

RECORD = {
    "step": 20, "epoch": 0.5, "tokens": 640, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 0.7,
    "tokens_per_second": 12345.6, "seconds": 61.0, "memory_mb": 321.0, "eta_seconds": 3700.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (90, "1:30"), (3700, "1:01:40"), (59.6, "1:00")]
)
def test_seconds_read_like_a_clock(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_a_line_holds_what_is_known_and_no_thousands_separators() -> None:
    line = record_line({**RECORD, "valid_loss": 3.0, "valid_word_perplexity": 120.25}, 100)
    assert line.startswith("step 20/100  epoch 0.50  loss 2.5000  lr 1.00e-03")
    assert "12346 tok/s" in line
    assert line.endswith("valid word ppl 120.25  eta 1:01:40")
    assert "valid" not in record_line(RECORD, 100)


def test_sparkline_spans_its_own_range() -> None:
    assert sparkline([1.0, 2.0, 3.0]) in ("▁▄█", "▁▅█")
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == ""


def test_plain_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    PlainConsole(100)(Metrics(RECORD))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_the_panel_shows_losses_speed_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveConsole("my run", 100)
    live(Metrics(RECORD))
    live(Metrics({**RECORD, "step": 40, "valid_loss": 3.0, "valid_word_perplexity": 120.25}))
    live.close()
    shown = capsys.readouterr().err
    for word in ("my run", "step 40/100", "2.5000", "120.25", "12346", "1:01:40", "321 MB"):
        assert word in shown


def test_the_panel_shows_how_far_an_evaluation_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_REDRAW_SECONDS", -1)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured stream for a terminal
    monkeypatch.setenv("COLUMNS", "120")
    live = LiveConsole("my run", 100)
    with reading(live), progress(200, "evaluating", "tokens") as advance:
        advance(10)  # nothing to show yet: no record has come
        live(Metrics(RECORD))
        advance(40)
    live(Metrics({**RECORD, "step": 40}))
    live.close()
    shown = capsys.readouterr().err
    assert "evaluating 25%" in shown
    assert "evaluating" not in shown.rsplit("step 40/100", 1)[-1]


def test_json_lines_are_flushed_and_hold_no_nan(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write({"step": 1, "loss": math.nan})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "loss": None}
    sink.close()
