"""The scripts that hurt runs, each for a few seconds; the long runs are started by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT


def script(name: str, *options: object, timeout: float = 280) -> dict[str, Any]:
    """Run a script of the repository; its summary. It must end with 0."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / name), *map(str, options)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.mark.row("C-01")
@pytest.mark.slow
def test_a_few_kills(tmp_path: Path) -> None:
    summary = script("kill_loop.py", "--kills", 5, "--seed", 1, "--directory", tmp_path / "kills")
    assert summary["kills"] == 5
    assert summary["rounds"] >= 1
    assert summary["files_verified"] > 0
    assert summary["problems"] == []


@pytest.mark.parametrize("part", ["attention", "model"])
def test_setup_builds_again_after_an_edit_of_any_c_source(tmp_path: Path, part: str) -> None:
    """In a checkout of two C files, with a ``python`` that only tells that it was called."""
    for name in ("attention", "model"):
        (tmp_path / "infinito" / name / "csrc").mkdir(parents=True)
        (tmp_path / "infinito" / name / "csrc" / "part.h").write_text("int x;")
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        (tmp_path / name).touch()
    python, calls = tmp_path / ".venv" / "bin" / "python", tmp_path / "calls"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >>"{calls}"\n')
    python.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    setup = shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts")

    def installs() -> bool:
        calls.write_text("")
        subprocess.run(["bash", setup], check=True, capture_output=True)
        return "--editable" in calls.read_text()

    assert [installs(), installs()] == [True, False]
    (tmp_path / "infinito" / part / "csrc" / "part.h").write_text("int y;")
    assert installs()


@pytest.mark.row("S-09")
@pytest.mark.slow
def test_a_few_seconds_of_fuzzing() -> None:
    summary = script("fuzz.py", "--cases", 105, "--seed", 11)
    assert summary["cases"] == 105
    assert summary["problems"] == []
    refused = sum(count for name, count in summary["outcomes"].items() if name[-1] in "234")
    assert refused > 60
