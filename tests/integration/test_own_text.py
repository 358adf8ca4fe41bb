"""``infinito train --data``: a config from a text and a time, at a rate that is given here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from infinito.config.loading import load_config
from infinito.config.schema import Config
from infinito.data.cache import Cache
from infinito.model.count import count_flops, count_parameters
from infinito.train import own_text
from infinito.train.own_text import own_text_config, run_name
from tests.command_support import all_files, infinito
from tests.support import write_text

FLOPS_A_SECOND = 2e10


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory on a machine of a known speed."""

    def seconds(trainer: Any) -> float:
        config = trainer.config
        sequences, length = config.training.sequences_per_step, config.data.sequence_length
        vocabulary = trainer.tokenizer.vocab_size
        return count_flops(config.model, vocabulary, sequences, length).training / FLOPS_A_SECOND

    monkeypatch.setattr(own_text, "seconds_of_a_step", seconds)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_for(place: Path, path: Path, minutes: float, *settings: str) -> Config:
    config, rows = own_text_config(str(path), minutes, settings, {}, Cache(place / "cache"))
    assert all(row.reason for row in rows)
    return config


def training_seconds(config: Config, vocabulary: int) -> float:
    training, length = config.training, config.data.sequence_length
    flops = count_flops(config.model, vocabulary, training.sequences_per_step, length).training
    return (training.max_steps or 0) * flops / FLOPS_A_SECOND


def inner(config: Config) -> int:
    count = count_parameters(config.model, 512, config.data.sequence_length)
    return count.attention + count.feed_forward


def test_a_little_text_gets_a_small_model_and_few_passes_whatever_the_time(place: Path) -> None:
    text = write_text(place / "little.txt", 400)
    for minutes in (5, 5000):
        config = config_for(place, text, minutes, "tokenizer.kind=byte")
        n_tokens = 0.9 * text.stat().st_size  # the rest is held out
        assert inner(config) <= 4.1 * n_tokens
        shown = (config.training.max_steps or 0) * config.training.batch_size
        assert shown * config.data.sequence_length == pytest.approx(5 * n_tokens, rel=0.05)
        assert config.model.dropout > 0


def test_time_bounds_steps_and_model(place: Path) -> None:
    text = write_text(place / "much.txt", 3000)
    found = [config_for(place, text, m, "tokenizer.kind=byte") for m in (0.1, 1, 5)]
    seconds = [training_seconds(config, 257) for config in found]
    assert all(s <= 60 * m for s, m in zip(seconds, (0.1, 1, 5), strict=True))
    assert seconds[0] > 0.5 * 6
    assert inner(found[0]) <= inner(found[1]) <= inner(found[2])
    assert inner(found[0]) < inner(found[2])
    assert all(20 * (c.training.eval_every + 1) > (c.training.max_steps or 0) for c in found)


def test_what_the_user_sets_wins_and_the_rest_follows(place: Path) -> None:
    text = write_text(place / "text.txt", 800)
    config, rows = own_text_config(
        str(text), 1, ["model.d_model=96", "model.n_layers=1", "tokenizer.kind=byte"],
        {"training.batch_size": 3, "training.learning_rate": 0.006}, Cache(place / "cache"),
    )  # fmt: skip
    assert (config.model.d_model, config.model.n_layers, config.tokenizer.kind) == (96, 1, "byte")
    assert (config.training.batch_size, config.tokenizer.vocab_size) == (3, None)
    # As with a config: the flag is the one learning rate of a run, and Muon's follows it.
    assert config.training.muon_learning_rate == pytest.approx(0.04)
    assert training_seconds(config, 257) <= 60
    reasons = {row.setting: row.reason for row in rows}
    assert reasons["training.batch_size 3"] == "as you set it"
    assert not any("vocab_size" in setting for setting in reasons)


def test_what_follows_from_the_steps_follows_from_those_of_the_user(place: Path) -> None:
    text = str(write_text(place / "text.txt", 800))
    cache, settings = Cache(place / "cache"), ["tokenizer.kind=byte", "training.max_steps=null"]
    many, rows = own_text_config(text, 0.05, settings, {"training.epochs": 9}, cache)
    few, _ = own_text_config(text, 100, settings[:1], {"training.max_steps": 20}, cache)
    # Seen nine times; and a warm-up of 100 steps would be most of a run of twenty.
    assert (many.model.dropout, few.model.dropout) == (0.1, 0.0)
    assert few.training.warmup_steps < 20 < many.training.warmup_steps
    assert few.training.eval_every == 2
    assert ("training.epochs 9.0", "as you set it") in rows


def test_a_run_by_command_keeps_the_config_that_it_used(place: Path) -> None:
    text = write_text(place / "my book.v2.txt", 300)
    outcome = infinito("train", "--data", text, "--minutes", 0.5, "--max-steps", 3)
    assert outcome.code == 0, outcome.err
    assert outcome.out == ""
    assert "model.d_model 64, n_layers 2, n_heads 2" in outcome.err
    [run] = (place / "checkpoints").iterdir()
    assert run.name == "my book-1"
    stored = load_config(run / "config.yaml")
    assert (stored.data.train_file, stored.training.max_steps) == (str(text), 3)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["sample"].startswith(stored.training.sample_prompt)
    assert stored.training.sample_prompt


def test_dry_run_writes_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITO_CACHE", str(place / "cache"))
    (place / "text.txt.gz").write_bytes(gzip.compress(write_text(place / "x").read_bytes() * 5))
    before = all_files(place)
    outcome = infinito("train", "--data", "text.txt.gz", "--minutes", 1, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "nothing was written" in outcome.err
    assert all_files(place) == before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--data", "tiny.txt"], 3, "bytes of text to learn from, and 20000 are the least"),
        (["--data", "nowhere.txt"], 3, "--data: nowhere.txt does not exist\nhelp: correct"),
        (["--data", "larg.txt"], 3, "help: did you mean large.txt?"),
        (["--data", ""], 2, "--data must not be empty"),
        (["--data", "tiny.txt", "--config", "x.yaml"], 2, "--config cannot go with it"),
        (["--data", "tiny.txt", "--resume", "run"], 2, "--resume cannot go with it"),
        (["--minutes", "3"], 2, "--minutes 3 needs --data"),
        (["--data", "tiny.txt", "--minutes", "nan"], 2, "--minutes nan is no time"),
        (["--data", "tiny.txt", "--minutes", "0"], 2, "--minutes 0 is no time"),
        (["--data", "large.txt", "--minutes", "0.001"], 3, "scoring the held-out text takes"),
        (["--data", "large.txt", "--set", "model.n_heads=7"], 2, "n_heads"),
        (["--data", "large.txt", "--set", "nonsense=7"], 2, "nonsense"),
    ],
)
def test_refusals(place: Path, arguments: list[str], code: int, words: str) -> None:
    write_text(place / "tiny.txt", 5)
    write_text(place / "large.txt", 800)
    assert words in infinito("train", *arguments).refused(code)
    assert not (place / "checkpoints").exists()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/book.txt", "book"),
        ("a/book.jsonl.gz", "book"),
        ("books/*.txt", "books"),
        ("books/", "books"),
        ("/*", "text"),
        ("~/.notes", "text"),
    ],
)
def test_the_run_is_named_by_the_text(path: str, name: str) -> None:
    assert run_name(path) == name
