"""Illegal sampling values (G-04): refused by name, before torch is imported."""

import subprocess
import sys

import pytest

from infinito.errors import ConfigError
from infinito.generate.sampling_config import SamplingConfig

NAN, INF = float("nan"), float("inf")


@pytest.mark.row("G-04")
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", NAN),
        ("temperature", INF),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", -0.1),
        ("top_p", 1.01),
        ("top_p", NAN),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", INF),
        ("no_repeat_ngram_size", -2),
        ("max_new_tokens", -1),
        ("max_new_tokens", True),
        ("num_samples", 0),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ("ok", "")),
    ],
)
def test_illegal_value_is_refused_and_named(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match="--" + option.replace("_", "-")):
        SamplingConfig(**{option: value})  # type: ignore[arg-type]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"--temperature .*--top-p "):
        SamplingConfig(temperature=-1.0, top_p=2.0)


@pytest.mark.row("G-05")
def test_off_values_are_legal() -> None:
    config = SamplingConfig(
        max_new_tokens=0, temperature=0, top_k=0, top_p=0, min_p=0, no_repeat_ngram_size=0
    )
    assert config.greedy


def test_options_and_command_import_no_torch() -> None:
    code = (
        "import sys, infinito.generate.sampling_config, infinito.cli.generate;"
        "import infinito.cli.prompts;"
        "sys.exit(bool({'torch', 'numpy', 'tokenizers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
