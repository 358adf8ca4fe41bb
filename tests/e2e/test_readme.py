"""What the README says, works: its Python runs, its commands exist, its files are there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_support import infinito
from tests.support import ROOT, write_text

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path: Path) -> None:
    """As it stands, with a smaller model in the config."""
    small = {"d_model": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 512}
    config = (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
    for key, value in small.items():
        config, found = re.subn(rf"(?m)^  {key}: \d+$", f"  {key}: {value}", config)
        assert found == 1, key
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text(config, encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True, capture_output=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) >= 2


def test_every_command_that_it_lists_exists() -> None:
    from infinito.cli.main import COMMANDS

    listed = set(re.findall(r"^\| `infinito ([a-z-]+)", README, re.MULTILINE))
    offered = {command.name for command in COMMANDS if not command.hidden}
    assert listed == offered


@pytest.mark.parametrize("group", ["bench", "config", "data"])
def test_every_part_of_a_command_is_listed(group: str) -> None:
    row = re.search(rf"^\| `infinito {group} ([^`]+)`", README, re.MULTILINE)
    assert row is not None
    helps = (ROOT / "tests" / "golden").glob(f"help-{group}-*.txt")
    offered = {path.stem.removeprefix(f"help-{group}-") for path in helps}
    assert set(row[1].split(r"\|")) == offered


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:tests|docs|configs|scripts)/[\w./*-]+)`", README)))
)
def test_every_file_that_it_names_exists(path: str) -> None:
    assert list(ROOT.glob(path)), path


def test_its_tree_names_every_part() -> None:
    parts = {
        p.name for p in (ROOT / "infinito").iterdir() if p.is_dir() and p.name != "__pycache__"
    }
    tree = README[README.index("## The tree") :]
    assert parts <= set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))


#: What is added to a command of the README, so that it takes a second: a smaller model, few steps.
SMALL = {
    "train": ["--set", "model.d_model=32", "--set", "model.n_layers=1", "--set", "model.n_heads=2",
              "--set", "tokenizer.vocab_size=300", "--set", "training.precision=float32",
              "--set", "training.batch_size=2", "--set", "data.sequence_length=32",
              "--max-steps", "4"],
    "resume": ["--max-steps", "6"],
    "generate": ["--max-new-tokens", "4"],
}  # fmt: skip


def test_its_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, except for sizes and the name of WikiText-2's directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("my-texts/text.txt", "DIRECTORY/train.txt", "DIRECTORY/valid.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_text(tmp_path / name, 300, seed=len(name))
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    lines = [
        words[1:]
        for line in "".join(blocks).splitlines()
        if line.startswith(("infinito ", "$ infinito "))
        and (words := shlex.split(line.removeprefix("$ "), comments=True))
    ]
    assert {words[0] for words in lines} == {"train", "generate", "report", "resume", "evaluate"}
    done = set[str]()
    for words in lines:
        if (said := " ".join(words)) in done:
            continue  # shown again with what it prints
        done.add(said)
        outcome = infinito(*words, *SMALL.get(words[0], []))
        assert outcome.code == 0, (said, outcome.err)
