"""The table of records at toy scale: every row, the table, the picture and the page of samples."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_support import infinito, write_config
from tests.support import ROOT, write_text

sys.path.insert(0, str(ROOT / "benchmarks"))
import record
import record_table


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two seeds, an ensemble of them with n-grams, and the floor, all evaluated here."""
    place = tmp_path_factory.mktemp("record")
    texts = {
        f"data__{split}_file": str(write_text(place / f"{split}.txt", paragraphs=3, seed=seed))
        for seed, split in enumerate(("valid", "test"), 1)
    }
    config = write_config(place, training__max_steps=4, **texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "infinito", _here)
        patch.setattr(record, "PROMPTS", record.PROMPTS[-2:])
        row = ("row", "toy", "--config", str(config), "--adapt", "cache", "--seed")
        for seed in ("1", "2"):
            _run(*row, seed, at=place)
        _run("ensemble", "both", "toy-1", "toy-2", "ngram", "--adapt", "cache", at=place)
        _run("floor", "n-grams", "toy-1", at=place)
        calls.clear()
        _run(*row, "1", at=place)
        assert not calls  # all of it is there
        _run("samples", "toy-1", "--file", str(place / "samples.md"), at=place)
    return place / "rows"


calls: list[tuple[object, ...]] = []


def _here(*arguments: object, output: Path | None = None) -> None:
    calls.append(arguments)
    outcome = infinito(*arguments)
    assert outcome.code == 0, outcome.err
    if output is not None:
        output.write_text(outcome.out)


def _run(*arguments: str, at: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["record.py", *arguments, "--output", str(at / "rows")])
        record.main()


def row_of(output: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"{name}.row.json").read_text())
    return found


def test_a_row_is_what_evaluate_says_and_test_text_tunes_nothing(output: Path) -> None:
    row = row_of(output, "toy-1")
    told = json.loads(
        infinito(
            "evaluate",
            output / "toy-1",
            "--split",
            "test",
            "--stride",
            4,
            "--exact-words",
            "--json",
        ).out
    )
    assert row["test"]["word_perplexity"] == told["word_perplexity"]
    assert row["test"]["interval"] == told["word_perplexity_interval"]
    assert row["test"]["closed_word_perplexity"] < row["test"]["word_perplexity"]
    assert row["test"]["text_sha256"] != row["valid"]["text_sha256"]
    adapted = {split: row[split]["adaptive"]["cache"] for split in ("valid", "test")}
    assert adapted["valid"]["settings_from"] is None
    assert adapted["test"]["settings_from"] == str(output / "toy-1" / "tuned.json")
    assert adapted["test"]["settings"] == adapted["valid"]["settings"]
    assert row["tokens"] == 4 * 4 * 16
    # Width 32, two layers, byte vocabulary: 6 FLOPs a number and token, and the attention.
    per_token = 6 * (2 * (4 * 32 * 32 + 2 * 4 * 32 * 32) + 257 * 32) + 3 * 2 * 4 * 16 * 32
    assert row["training_flops"] == pytest.approx(row["tokens"] * per_token)


def test_an_ensemble_costs_what_its_members_cost_and_uses_the_weights_of_validation(
    output: Path,
) -> None:
    mixed, members = row_of(output, "both"), [row_of(output, f"toy-{i}") for i in (1, 2)]
    assert mixed["training_flops"] == sum(member["training_flops"] for member in members)
    weights = [
        [member["weight"] for member in mixed[split]["members"]] for split in ("valid", "test")
    ]
    assert weights[0] == weights[1]
    floor = row_of(output, "n-grams")["valid"]["word_perplexity"]
    best = min(floor, *(member["valid"]["word_perplexity"] for member in members))
    assert mixed["valid"]["word_perplexity"] < best * 1.001


def test_the_table_follows_from_the_rows(output: Path) -> None:
    lines = record_table.markdown(record.rows_in(output)).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {8}
    assert [line[0] for line in cells[2:]] == ["toy", "n-grams", "both"]
    values = [row_of(output, f"toy-{i}")["test"]["word_perplexity"] for i in (1, 2)]
    spread = f"{sum(values) / 2:.2f} ± {statistics.stdev(values):.2f}"
    assert (cells[2][1], cells[2][5]) == ("1, 2", spread)
    adapted = [
        row_of(output, f"toy-{i}")["test"]["adaptive"]["cache"]["word_perplexity"] for i in (1, 2)
    ]
    assert cells[2][7].startswith(f"{sum(adapted) / 2:.2f} ± ")
    assert cells[2][7].endswith("(cache)")
    assert cells[3][1:4] == ["-", "-", "-"]


def test_the_picture_names_what_was_published(output: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    record_table.draw(record.rows_in(output), tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(f"{name}: {valid:g}" in drawn for name, (valid, _) in record_table.ANCHORS.items())
    assert "#ffffff" not in drawn  # nothing that a dark page would show as a white sheet


def test_samples_are_what_generate_writes(output: Path) -> None:
    page = (output.parent / "samples.md").read_bytes().decode()  # with every line end as it is
    text = infinito(
        "generate", output / "toy-1", "--prompt", "The song was", "--temperature", 1, "--top-k", 0,
        "--top-p", 0.95, "--repetition-penalty", 1, "--max-new-tokens", 160, "--seed", 2,
    ).out  # fmt: skip
    assert text.rstrip("\n") in page
