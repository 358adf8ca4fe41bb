"""Config to YAML and back, for every legal config; and no text crashes the loader."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinito.config.loading import dump_yaml, load_config
from infinito.config.yaml_loader import parse_document, parse_value, plain_scalar
from infinito.errors import ConfigError

TRICKY = [
    "3e-4",
    "no",
    "true",
    "null",
    "~",
    "010",
    "1:30",
    "*a",
    "&a",
    "!a",
    "-",
    "?",
    "",
    " a",
    "a #b",
]
TRICKY += [
    "a: b",
    "%x",
    "@x",
    "`x",
    "'",
    '"',
    "\t",
    "\n",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x00",
    "é地",
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(TRICKY)
    | st.text(max_size=20)
)
names = st.text(min_size=1, max_size=8) | st.sampled_from(TRICKY)
documents = st.dictionaries(
    names,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=25, deadline=None)
@given(documents)
def test_plain_data_survives_yaml(data: dict[str, object]) -> None:
    found = parse_document(dump_yaml(data), "y").values
    assert found == data
    assert repr(found) == repr(data)  # 1 and 1.0 and True are not the same


@settings(max_examples=25, deadline=None)
@given(
    st.floats(min_value=1e-300, max_value=1e300),
    st.integers(0, 2**63 - 1),
    st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and "\0" not in text),
    st.booleans(),
)
def test_a_config_survives_its_own_yaml(
    tmp_path_factory: pytest.TempPathFactory, rate: float, seed: int, text: str, flag: bool
) -> None:
    from infinito.config.loading import config_from_plain, to_plain, to_yaml

    plain = to_plain(load_config(None, [f"training.learning_rate={rate!r}", f"seed={seed}"]))
    plain["data"]["text_field"], plain["model"]["qk_norm"] = text, flag
    config = config_from_plain(plain, "made here")
    path = tmp_path_factory.mktemp("round") / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8", newline="")
    assert load_config(path) == config


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="a:-[]{}'\"#&*!|> \n\t?,0", max_size=60))
def test_any_text_is_a_document_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):  # nothing else may come out of any text
        assert isinstance(parse_document(text, "y").values, dict)
    with suppress(ValueError):
        parse_value(text)


@settings(max_examples=25, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers())
def test_numbers_read_as_python_writes_them(number: float, whole: int) -> None:
    assert plain_scalar(repr(number)) == number
    assert plain_scalar(repr(whole)) == whole
