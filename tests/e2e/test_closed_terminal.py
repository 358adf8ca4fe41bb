"""A terminal that goes away, by a closed window or a lost connection, while a run draws on it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.support import ROOT, tiny_settings

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
# The tests themselves may run where hangups are ignored, which a child inherits.
AS_IN_A_SHELL = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
# The program that a terminal starts leads its session: closing the terminal hangs it up.
ON_A_TERMINAL = (
    "import fcntl, os, sys, termios\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'infinito', *sys.argv[1:]])\n"
)


def hang_up_after_the_first_record(arguments: list[str], metrics: Path, before: str = "") -> int:
    """Run a command on a terminal of its own and close that; the exit code."""
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", AS_IN_A_SHELL + before + ON_A_TERMINAL, *arguments], env=ENVIRONMENT,
        stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(inside)
        shown = b""
        while not (metrics.exists() and metrics.stat().st_size):
            try:
                shown += os.read(terminal, 1 << 16)
            except OSError:  # the program has ended
                break
        assert metrics.exists(), shown.decode()
        os.close(terminal)
        try:
            return process.wait(timeout=120)
        finally:
            process.kill()  # a run that does not stop must not outlive its test


def write_config(tmp_path: Path, max_steps: int) -> Path:
    path = tmp_path / "tiny.yaml"
    changes = {
        "training__max_steps": max_steps,
        "training__save_every": 0,
        "training__log_every": 1,
    }
    path.write_text(yaml.safe_dump(tiny_settings(tmp_path, **changes)), encoding="utf-8")
    return path


@pytest.mark.row("C-19")
def test_a_closed_terminal_stops_a_run_after_its_step_and_saves(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, 100_000), tmp_path / "run"
    arguments = ["train", "--config", str(config), "--set", "training.eval_every=0"]
    code = hang_up_after_the_first_record(arguments, run / "metrics.jsonl")
    assert code == 128 + signal.SIGHUP
    assert torch.load(run / "last.pt", weights_only=True)["step"] >= 1
    assert not list(run.glob("*.tmp"))


@pytest.mark.row("C-19")
def test_a_run_that_ignores_the_hangup_goes_on_without_a_terminal(tmp_path: Path) -> None:
    """What ``nohup`` asks for: the signal is passed over, and the panel has nowhere to go."""
    config, run = write_config(tmp_path, 60), tmp_path / "run"
    nohup = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    arguments = ["train", "--config", str(config)]
    code = hang_up_after_the_first_record(arguments, run / "metrics.jsonl", nohup)
    assert code == 0
    assert torch.load(run / "last.pt", weights_only=True)["step"] == 60
