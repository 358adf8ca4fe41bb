"""The scripts that hurt runs, each for a few seconds; the long runs are started by hand."""

from __future__ import annotations

import json
import os
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


@pytest.mark.row("S-09")
@pytest.mark.slow
def test_a_few_seconds_of_fuzzing() -> None:
    summary = script("fuzz.py", "--cases", 105, "--seed", 11)
    assert summary["cases"] == 105
    assert summary["problems"] == []
    refused = sum(count for name, count in summary["outcomes"].items() if name[-1] in "234")
    assert refused > 60
