"""Where words are not separated by spaces, bits per byte leads; the fixed lines and fields stay."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from infinito.data.token_store import lacks_spaces, why_bits_lead
from infinito.runtime.events import Metrics
from infinito.telemetry.console import LiveConsole
from tests.command_support import infinito, read_log, write_config
from tests.evaluation_support import byte_tokenizer, store_of

CHINESE = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？\n"  # noqa: RUF001
POEM = "床前明月光\n疑是地上霜\n举头望明月\n低头思故乡\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
THAI = "ภาษาไทยเป็นภาษาที่ไม่มีการเว้นวรรคระหว่างคำ\n"
ENGLISH = "The master said: is it not a pleasure to learn, and to practise what one learnt?\n"
KOREAN = "나는 고양이다. 이름은 아직 없다. 어디서 태어났는지 도무지 짐작이 가지 않는다.\n"
FIGURES = ("loss:", "token perplexity:", "word perplexity:", "bits per byte:")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CHINESE, True), (POEM, True), (JAPANESE, True), (THAI, True),
        (ENGLISH, False), (KOREAN, False), (ENGLISH * 3 + CHINESE, False),
        ("x = [1, 2, 3]  # 注\n", False), ("\n \n", False),
        (ENGLISH + CHINESE * 2000, True), (CHINESE + ENGLISH * 2000, False),
    ],
)  # fmt: skip
def test_scripts_without_spaces_are_known(text: str, expected: bool) -> None:
    tokenizer = byte_tokenizer()
    assert lacks_spaces(store_of([text], tokenizer), tokenizer) is expected


@pytest.mark.parametrize(
    ("text", "source", "why"),
    [
        (ENGLISH, "text", ""), (ENGLISH, None, ""), (ENGLISH, "python-docs", "half code"),
        (CHINESE, "text", "no spaces"), (CHINESE, None, "no spaces"),
    ],
)  # fmt: skip
def test_bits_lead_for_a_reason(text: str, source: str | None, why: str) -> None:
    tokenizer = byte_tokenizer()
    found = why_bits_lead(store_of([text], tokenizer), tokenizer, source)
    assert why in found
    assert bool(found) is bool(why)


def trained(tmp_path: Path, line: str) -> tuple[Path, str]:
    """A run of two steps on a text of one line's kind, and what it said."""
    (tmp_path / "text.txt").write_text("".join(f"{n}{line}" for n in range(60)), encoding="utf-8")
    (tmp_path / "valid.txt").write_text(line * 3, encoding="utf-8")
    config = write_config(
        tmp_path, data__valid_file=str(tmp_path / "valid.txt"), training__max_steps=2
    )
    done = infinito("train", "--config", config)
    assert done.code == 0, done.err
    return tmp_path / "run", done.err


@pytest.mark.parametrize(("line", "leads"), [(CHINESE, True), (ENGLISH, False)])
def test_what_leads_in_training_and_evaluation(tmp_path: Path, line: str, leads: bool) -> None:
    run, told = trained(tmp_path, line)
    last = read_log(run)[-1]
    n_bytes = len((line * 3).encode())
    bits = last["valid_loss"] * (n_bytes + 1) / math.log(2) / n_bytes
    assert last["valid_bits_per_byte"] == pytest.approx(bits)
    assert last["valid_word_perplexity"] > 0
    if leads:
        assert f"valid bits/byte {bits:.4f}" in told
        assert f"bits per byte {bits:.4f} at step 2" in told
    assert ("valid word ppl" in told) is not leads
    assert (", word perplexity" in told) is not leads
    assert ("bits" in told) is leads
    shown = infinito("evaluate", run, "--context", 16, "--stride", 16).out
    starts = [line.split(":")[0] + ":" for line in shown.splitlines()]
    assert [name for name in starts if name in FIGURES] == (
        [FIGURES[3], *FIGURES[:3]] if leads else list(FIGURES)
    )
    assert f"{'bits per byte:':<18}{bits:.4f}" in shown
    assert ("no spaces between words" in shown) is leads


def test_a_resumed_runs_panel_knows_the_bits(tmp_path: Path) -> None:
    run, _ = trained(tmp_path, CHINESE)
    resumed = infinito("resume", run, "--max-steps", 3)
    assert resumed.code == 0, resumed.err
    values = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(("valid_bits_per_byte" in line) == ("valid_loss" in line) for line in values)


def test_the_panel_shows_bits_in_the_place_of_words(capsys: pytest.CaptureFixture[str]) -> None:
    record = {
        "step": 20, "epoch": 0.5, "valid_loss": 3.0,
        "valid_word_perplexity": 25789992844.0, "valid_bits_per_byte": 1.4427,
    }  # fmt: skip
    for bits_lead in (True, False):
        live = LiveConsole("my run", 100, bits_lead=bits_lead)
        live(Metrics(record))
        live.close()
        shown = capsys.readouterr().err
        assert ("valid bits per byte 1.4427" in shown) is bits_lead
        assert ("25789992844" in shown) is not bits_lead
