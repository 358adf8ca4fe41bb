"""Strict YAML: catalogue rows K-03, K-04 and K-09."""

from __future__ import annotations

from pathlib import Path

import pytest

from infinito.config.keys import all_keys
from infinito.config.loading import load_config
from infinito.config.yaml_loader import MAX_BYTES, parse_document, parse_value, plain_scalar
from infinito.errors import ConfigError

GOOD = b"data: {source: python-docs}\n"

MALFORMED = {
    "empty": (b"", "the file is empty"),
    "blank": (b"\n  \n# only a comment\n", "the file is empty"),
    "tab": (b"training:\n\tepochs: 3\n", ":2: a tab"),
    "alias bomb": (b"a: &a [x]\nb: [*a, *a]\n", ":1: an anchor"),
    "alias": (b"a: 1\nb: *a\n", ":2: an alias"),
    "recursion": (b"a: &a [*a]\n", ":1: an anchor"),
    "merge key": (b"seed: 1\n<<: {seed: 2}\n", ":2: << = {...}: unknown key"),
    "tag": (b"seed: 1\na: !!python/object/apply:os.getcwd []\n", ":2: a tag"),
    "local tag": (b"a: !x 3\n", ":1: a tag"),
    "standard tag": (b"seed: !!int '3'\n", ":1: a tag"),
    "nul": (b"seed: 1\na: \0\n", ":2: NUL byte"),
    "binary": (bytes(range(128, 256)), ":1: byte 0x80 at offset 0 is not UTF-8"),
    "bad utf-8": (b"seed: 1\na: caf\xe9\n", ":2: byte 0xe9"),
    "utf-16": ("seed: 1".encode("utf-16"), "UTF-16"),
    "control": (b"seed: 1\na: \x07\n", ":2: character U+0007"),
    "two documents": (GOOD + b"---\nseed: 3\n", ":2: a second document"),
    "list": (b"- 1\n- 2\n", ":1: expected `key: value`"),
    "scalar": (b"seed\n", ":1: expected `key: value`"),
    "deep flow": (b"a: " + b"[" * 20_000, ":1: nested more than 20 levels"),
    "deep mapping": (b"{a: " * 500, ":1: nested more than 20 levels"),
    "open quote": (b'a: "x\n', "quoted scalar"),
    "open bracket": (b"a: [1\nb: 2\n", "y.yaml:2: "),
    "key is a list": (b"? [1]\n: 2\n", ":1: a key must be a plain name"),
    "two colons": (b"a: b: c\n", ":1: a second `: `"),
    "indentation": (b"training:\n    epochs: 3\n  seed: 3\n", "y.yaml:3: "),
    "huge number": (b"seed: " + b"9" * 5000 + b"\n", ":1: a number of 5000 characters"),
    "too large": (GOOD + b"#" * MAX_BYTES, "larger than 1000000 bytes"),
}


@pytest.mark.row("K-03")
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_with_their_line(tmp_path: Path, name: str) -> None:
    content, expected = MALFORMED[name]
    path = tmp_path / "y.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.remedy


@pytest.mark.row("K-03")
def test_a_duplicate_key_is_reported_beside_the_other_problems(tmp_path: Path) -> None:
    path = tmp_path / "y.yaml"
    path.write_bytes(
        GOOD + b"training:\n  epochs: 3\n  epochs: 4\n  batch_size: x\nseed: 1\nseed: 2\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert f"{path}:4: training.epochs = 4: given twice: first in line 3" in caught.value.message
    assert f"{path}:5: training.batch_size = 'x'" in caught.value.message
    assert f"{path}:7: seed = 2: given twice: first in line 6" in caught.value.message


@pytest.mark.row("K-03")
def test_byte_order_mark_and_crlf_are_read(tmp_path: Path) -> None:
    path = tmp_path / "y.yaml"
    path.write_bytes(b"\xef\xbb\xbfdata: {source: python-docs}\r\nseed: 3\r\n")
    assert load_config(path).seed == 3


def test_a_directory_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match="cannot read the config"):
            load_config(path)


@pytest.mark.row("K-04", "K-09")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("3e-4", 0.0003),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-2.", -2.0),
        ("+3", 3),
        ("0", 0),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        # everything below stays text
        *((text, text) for text in ("no", "yes", "on", "off", "True", "FALSE", "Null", "y")),
        *(
            (text, text)
            for text in ("010", "1:30", "1_000", "0x10", "0o7", ".nan", ".inf", "-.inf")
        ),
        *(
            (text, text)
            for text in ("2024-01-01", "2024-01-01T00:00:00Z", "1e", "e5", ".", "1.2.3")
        ),
    ],
)
def test_plain_scalars(text: str, value: object) -> None:
    found = plain_scalar(text)
    assert found == value
    assert type(found) is type(value)
    if text:
        assert parse_document(f"a: {text}", "y").values == {"a": value}


def test_quoted_numbers_are_text() -> None:
    values = parse_document("a: '3'\nb: \"true\"\nc: |\n  4\n", "y").values
    assert values == {"a": "3", "b": "true", "c": "4\n"}


@pytest.mark.row("K-04")
def test_exponents_are_numbers_in_a_config(tmp_path: Path) -> None:
    path = tmp_path / "y.yaml"
    path.write_bytes(GOOD + b"training: {learning_rate: 1e-4, weight_decay: 1}\n")
    training = load_config(path).training
    assert training.learning_rate == 0.0001
    assert training.weight_decay == 1.0
    assert type(training.weight_decay) is float


ODD_VALUES = ("no", "010", "1:30", ".nan", "2024-01-01", "0x10", "1_000")


@pytest.mark.row("K-09")
@pytest.mark.parametrize("text", [*ODD_VALUES, "~"])
@pytest.mark.parametrize(
    "key", ["seed", "training.learning_rate", "model.qk_norm", "training.optimizer", "device"]
)
def test_odd_values_are_refused_in_every_type_but_text(tmp_path: Path, key: str, text: str) -> None:
    section, _, name = key.rpartition(".")
    path = tmp_path / "y.yaml"
    body = f"{section}:\n  {name}: {text}\n" if section else f"{name}: {text}\n"
    path.write_bytes(GOOD + body.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    shown = "null" if text == "~" else f"'{text}'"
    assert f"{key} = {shown}: must be" in caught.value.message


@pytest.mark.row("K-09")
@pytest.mark.parametrize("text", ODD_VALUES)
def test_odd_values_are_kept_as_written_in_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "y.yaml"
    path.write_text(f"data: {{source: python-docs, text_field: {text}}}\n", encoding="utf-8")
    assert load_config(path).data.text_field == text


@pytest.mark.row("K-09")
def test_null_is_a_value_only_where_the_schema_has_it(tmp_path: Path) -> None:
    path = tmp_path / "y.yaml"
    path.write_bytes(GOOD + b"model:\n  d_ff: ~\n  n_kv_heads:\n")
    assert load_config(path).model.d_ff is None
    path.write_bytes(GOOD + b"model:\n")
    with pytest.raises(ConfigError, match=r"model = null: is a section.*leave the line out"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 0.0003),
        ("*.txt", "*.txt"),
        ("a: b #c", "a: b #c"),
        ("&x", "&x"),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        ("'12'", "12"),
        ('"a\\tb"', "a\tb"),
        (" 3 ", 3),
    ],
)
def test_values_of_settings(text: str, value: object) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["[1", "'x", "[a]b", "'a' b", "[*x]", "[!!int 3]", "9" * 5000])
def test_broken_values_of_settings(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_value(text)


def test_a_setting_cannot_smuggle_in_another_key() -> None:
    with pytest.raises(ValueError, match="more than one value"):
        parse_value('"a"\nseed: 3')


def test_every_key_is_described() -> None:
    assert [key for key, field in all_keys().items() if not field.description] == []
