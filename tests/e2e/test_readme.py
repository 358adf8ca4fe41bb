"""What the README says, works: its Python runs, its commands exist, its files are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
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
