"""What a user reads about a wrong config: catalogue rows K-01, K-02 and K-05."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infinito.config.explain import MAX_PROBLEMS
from infinito.config.keys import nearest_key, value_keys
from infinito.config.loading import config_from_plain, load_config, to_plain
from infinito.errors import CheckpointError, ConfigError


def write(path: Path, **sections: Any) -> Path:
    """JSON is YAML; one line a section, the data section first, so that lines are known."""
    data = {"data": {"source": "python-docs"}} | sections
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in data.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def message_of(path: Path | None, *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, settings)
    return caught.value.message


@pytest.mark.row("K-01")
def test_a_typo_names_line_value_and_the_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", seed=1, training={"lerning_rate": 0.1})
    assert message_of(path) == (
        f"{path}:3: training.lerning_rate = 0.1: unknown key; "
        "did you mean 'training.learning_rate'?"
    )


@pytest.mark.row("K-01")
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("devise", "device"),
        ("trainin", "training"),
        ("learning_rate", "training.learning_rate"),
        ("model.lr", "training.learning_rate"),
        ("lr", "training.learning_rate"),
        ("model.n_layer", "model.n_layers"),
        ("model.attention.knd", "model.attention.kind"),
        ("tokenizer.knd", "tokenizer.kind"),
        ("data.sequence-length", "data.sequence_length"),
        ("training.Batch_Size", "training.batch_size"),
        ("qqqqqqqq", None),
        ("", None),
    ],
)
def test_nearest_key(wrong: str, right: str | None) -> None:
    assert nearest_key(wrong) == right


WRONG = {
    "seed": [True, -1, 1.5, "x", 2**63, None],
    "device": ["gpu", 3],
    "data.sequence_length": [1, 10**9, "256"],
    "model.d_model": [0, 64.5, False],
    "model.dropout": [1.0, -0.1, True, "0.1"],
    "model.qk_norm": [1, "true", None],
    "model.d_ff": [True, 1],
    "tokenizer.kind": ["bppe", 3],
    "tokenizer.vocab_size": [5],
    "training.learning_rate": [0, True, "fast", [1], {"a": 1}],
    "training.epochs": [0, None],
    "training.max_steps": [0, 3.0],
    "training.optimizer": ["sgd"],
    "training.adam_beta1": [1],
    "output_dir": [3, ""],
}


@pytest.mark.row("K-02")
@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_a_wrong_value_is_refused_by_key(tmp_path: Path, key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    changes = {section: {name: value}} if section else {name: value}
    if section == "data":
        changes["data"]["source"] = "python-docs"
    path = write(tmp_path / "c.yaml", **changes)
    message = message_of(path)
    assert f"{path}:{1 if section == 'data' else 2}: {key} = " in message
    assert "\n" not in message


@pytest.mark.row("K-02")
def test_all_problems_are_told_at_once_in_file_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.yaml",
        seed=True,
        modle={"n_layers": 3},
        model={"n_heads": 3},
        tokenizer=5,
        training={"epochs": -1, "batch_size": "4", "lr": 1},
    )
    lines = message_of(path, "training.max_steps=no", "devic=cpu").splitlines()
    assert lines[0] == f"9 problems in {path}"
    assert [line.split(" = ")[0].strip() for line in lines[1:]] == [
        f"{path}:2: seed",
        f"{path}:3: modle",
        f"{path}:4: model: d_model 256 is not a multiple of n_heads 3",
        f"{path}:5: tokenizer",
        f"{path}:6: training.epochs",
        f"{path}:6: training.batch_size",
        f"{path}:6: training.lr",
        "--set devic=cpu: devic",
        "--set training.max_steps=no: training.max_steps",
    ]


def test_rules_between_keys_are_told_by_section(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", model={"d_model": 30, "n_heads": 4})
    assert message_of(path) == f"{path}:2: model: d_model 30 is not a multiple of n_heads 4"
    path.write_text("data: {train_file: a.txt, path: b}\n", encoding="utf-8")
    assert f"{path}:1: data: path cannot be used with source text" in message_of(path)
    path.write_text("seed: 1\n", encoding="utf-8")
    assert f"{path}: data: required and missing" in message_of(path)


def test_a_rule_broken_by_a_setting_alone_names_the_setting() -> None:
    message = message_of(None, "model.n_heads=3")
    assert message == "--set model.n_heads=3: model: d_model 256 is not a multiple of n_heads 3"


@pytest.mark.row("K-05")
@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.n_layers", "--set model.n_layers: model.n_layers: expected KEY=VALUE"),
        ("", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("model.n_layers=", "no value after '='"),
        ("model.n_layers=  ", "no value after '='"),
        ("model=3", "model: is a section: set one of its keys, such as model.d_model"),
        ("model.attention=dot", "is a section"),
        ("model.layers=3", "unknown key; did you mean 'model.n_layers'?"),
        ("seed.x=3", "seed.x = 3: unknown key"),
        ("model..n_layers=3", "unknown key"),
        (
            "training.learning_rate=fast",
            "--set training.learning_rate=fast: training.learning_rate",
        ),
        ("training.learning_rate=[1, 2]", "= [...]: must be a number"),
        ("training.learning_rate=[1", "did not find expected"),
        ("model.qk_norm=yes", "must be true or false"),
        ("seed=010", "must be a whole number, and this is text: write it without the leading zero"),
        ("training.epochs=1e400", "must be a finite number"),
        ("output_dir=''", "must not be empty"),
        ("seed=\x1b[31m3", "\\x1b[31m3"),
    ],
)
def test_wrong_settings(setting: str, expected: str) -> None:
    message = message_of(None, setting)
    assert expected.split("did not")[0] in message
    assert "\x1b" not in message


def test_a_flood_of_problems_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("".join(f"key{i}: 1\n" for i in range(3000)), encoding="utf-8")
    lines = message_of(path).splitlines()
    assert lines[0] == f"3001 problems in {path}"
    assert len(lines) == MAX_PROBLEMS + 2
    assert lines[-1] == f"  ... and {3001 - MAX_PROBLEMS} more"


def test_hostile_stored_data_ends_in_the_error_asked_for() -> None:
    good = to_plain(load_config(None))
    hostile: list[dict[Any, Any]] = [
        {},
        good | {1: 2},
        good | {"seed": object()},
        good | {"model": [good]},
        good | {"x" * 100_000: "y" * 100_000},
        good | {"seed": 10**3000},
    ]
    for data in hostile:
        with pytest.raises(CheckpointError) as caught:
            config_from_plain(data, "run/step-000001.pt", CheckpointError)
        assert "run/step-000001.pt: " in caught.value.message
        assert len(caught.value.message) < 400
    assert config_from_plain(good, "x") == load_config(None)


def test_every_value_key_can_be_set_to_its_own_value() -> None:
    config = load_config(None)
    from infinito.config.keys import flatten

    flat = flatten(to_plain(config))
    assert tuple(flat) == value_keys()
    words = {None: "null", True: "true", False: "false"}
    for key, value in flat.items():
        text = words.get(value, value) if value is None or isinstance(value, bool) else value
        assert load_config(None, ["data.source=python-docs", f"{key}={text}"]) == config
