"""Precedence, paths, and plain data of a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinito.config.document import init_document
from infinito.config.keys import value_keys
from infinito.config.loading import (
    config_from_plain,
    diff,
    load_config,
    override_config,
    to_plain,
    to_yaml,
)
from infinito.config.schema import Config
from infinito.config.yaml_loader import parse_document
from infinito.errors import ConfigError


def test_no_file_means_the_embedded_corpus_unless_another_is_named(tmp_path: Path) -> None:
    assert load_config(None).data.source == "python-docs"
    assert load_config(None, ["data.sequence_length=32"]).data.resolved_source == "python-docs"
    assert load_config(None, ["data.train_file=a.txt"]).data.resolved_source == "text"
    assert load_config(None, ["data.path=a"]).data.resolved_source == "wikitext-2"
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError):  # a file that names no corpus gets none
        load_config(path)


def test_flags_beat_settings_beat_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "data: {source: python-docs}\nseed: 1\ntraining: {epochs: 1}\n", encoding="utf-8"
    )
    settings = ["seed=2", "seed=3", "training.epochs=3"]
    config = load_config(path, settings, {"training.epochs": 4, "seed": None})
    assert (config.seed, config.training.epochs) == (3, 4.0)
    assert load_config(str(path)).seed == 1
    with pytest.raises(ConfigError, match=r"^command line: training\.epochs = -1: must be greater"):
        load_config(path, (), {"training.epochs": -1})
    with pytest.raises(ConfigError, match=r"^command line: training\.epoch = 1: unknown key"):
        load_config(path, (), {"training.epoch": 1})


def rates(config: Config) -> tuple[float, float]:
    return config.training.learning_rate, config.training.muon_learning_rate


def test_the_flag_moves_both_rates_under_muon_in_proportion(tmp_path: Path) -> None:
    """--lr is the one rate of a run; a setting names one key, and what is given is what counts."""
    lr = {"training.learning_rate": 0.003}
    muon = ["training.optimizer=muon"]
    assert rates(load_config(None, (), lr)) == (0.003, 0.02)
    assert rates(load_config(None, muon, lr)) == (0.003, 0.06)
    assert rates(load_config(None, [*muon, "training.muon_learning_rate=0.5"], lr)) == (0.003, 0.5)
    assert rates(load_config(None, [*muon, "training.learning_rate=0.003"])) == (0.003, 0.02)
    path = tmp_path / "c.yaml"
    path.write_text(
        "data: {source: python-docs}\n"
        "training: {optimizer: muon, learning_rate: 0.004, muon_learning_rate: 0.01}\n"
    )
    for config in (load_config(path, (), lr), override_config(load_config(path), (), lr)):
        assert rates(config) == (0.003, 0.0075)
    assert rates(override_config(load_config(path), (), {"seed": 3})) == (0.004, 0.01)
    assert rates(override_config(load_config(None), (), lr, path)) == (0.003, 0.0075)
    with pytest.raises(ConfigError) as caught:
        load_config(path, (), {"training.learning_rate": -1.0})
    assert "muon" not in caught.value.message


def test_null_takes_a_value_away(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {train_file: a}\nmodel: {d_ff: 64}\n", encoding="utf-8")
    config = load_config(path, ["model.d_ff=null", "data.train_file=null", "data.path=b"])
    assert config.model.d_ff is None
    assert config.data.resolved_source == "wikitext-2"


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "c.yaml"  # not where the file lies: where the program runs
    path.write_text(
        "output_dir: run\n"
        "data: {train_file: '../t/*.txt', valid_file: ~/v.txt, test_file: /abs.gz}\n",
        encoding="utf-8",
    )
    config = load_config(path)
    assert config.data.train_file == str(tmp_path / "t" / "*.txt")
    assert config.data.valid_file == str(tmp_path / "home" / "v.txt")
    assert config.data.test_file == "/abs.gz"
    assert config.output_dir == str(tmp_path / "work" / "run")
    assert load_config(None, ["data.path=w"]).data.path == str(tmp_path / "work" / "w")
    hub = load_config(None, ["data.dataset=owner/name"])
    assert hub.data.dataset == "owner/name"
    local = load_config(None, ["data.dataset=rows"])
    assert local.data.dataset == str(tmp_path / "work" / "rows")


def test_stored_paths_are_not_resolved_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored = to_plain(load_config(None)) | {"output_dir": "as-stored"}
    monkeypatch.chdir(tmp_path)
    assert config_from_plain(stored, "x").output_dir == "as-stored"


def test_plain_data_holds_every_key_and_plain_types() -> None:
    from infinito.config.keys import flatten

    flat = flatten(to_plain(load_config(None, ["training.epochs=3"])))
    assert tuple(flat) == value_keys()
    assert {type(value) for value in flat.values()} <= {int, float, str, bool, type(None)}
    assert type(flat["training.epochs"]) is float


def test_yaml_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(None, ["training.learning_rate=1e-7", "data.text_field='3e-4'", "seed=0"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


def test_diff_lists_changed_keys_in_schema_order() -> None:
    old = load_config(None)
    new = load_config(None, ["training.epochs=3", "seed=5", "model.d_ff=64"])
    assert diff(old, load_config(None, ["training.learning_rate=1.0e-3"])) == []
    assert diff(old, new) == [
        ("seed", 1234, 5),
        ("model.d_ff", None, 64),
        ("training.epochs", 10.0, 3.0),
    ]


def test_the_starting_document_has_every_key_and_means_the_defaults(tmp_path: Path) -> None:
    from infinito.config.keys import flatten

    text = init_document()
    assert tuple(flatten(parse_document(text, "init").values)) == value_keys()
    assert max(map(len, text.splitlines())) <= 100
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path) == load_config(None)


def test_changes_go_on_top_of_a_stored_config(tmp_path: Path) -> None:
    stored = load_config(None, ["training.epochs=3", "model.n_layers=2", "seed=5"])
    path = tmp_path / "c.yaml"
    path.write_text("training: {epochs: 4, batch_size: 8}\nseed: 6\n", encoding="utf-8")
    new = override_config(stored, ["seed=7"], {"training.batch_size": 9}, path)
    assert diff(stored, new) == [
        ("seed", 5, 7),
        ("training.epochs", 3.0, 4.0),
        ("training.batch_size", 16, 9),
    ]
    assert override_config(stored) == stored
    path.write_text("seed: 6\nseed: 7\nepochs: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        override_config(stored, ["modle.n_layers=3"], None, path)
    assert caught.value.message.splitlines()[1:] == [
        f"  {path}:2: seed = 7: given twice: first in line 1",
        f"  {path}:3: epochs = 3: unknown key; did you mean 'training.epochs'?",
        "  --set modle.n_layers=3: modle.n_layers = 3: unknown key; did you mean 'model.n_layers'?",
    ]
