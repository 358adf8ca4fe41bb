"""SIGINT, SIGTERM, SIGHUP: asked politely once, obeyed at once the second time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from infinito.runtime.signals import StopRequest
from tests.support import ROOT


@pytest.fixture(autouse=True)
def hangups_count() -> Iterator[None]:
    """The tests themselves may run where hangups are ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_sets_a_flag(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.signal_number
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert signal.getsignal(number) is before
    assert signal.Signals(number).name in capfd.readouterr().err


@pytest.mark.row("C-12")
@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_the_second_ends_the_process(first: str, second: str) -> None:
    program = (
        "import sys, time\n"
        "from infinito.runtime.signals import StopRequest\n"
        "with StopRequest():\n"
        "    print('ready', flush=True)\n"
        "    try:\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('cleaned up')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, first))
    assert process.stderr is not None
    while "stopping" not in process.stderr.readline():
        pass
    process.send_signal(getattr(signal, second))
    out, _ = process.communicate(timeout=300)  # half of what it sleeps
    assert process.returncode == 128 + getattr(signal, second)
    assert "cleaned up" not in out


@pytest.mark.row("C-19")
def test_a_hangup_is_never_the_second_and_makes_no_other_the_second() -> None:
    """Closing a terminal sends SIGHUP twice, and SIGTERM beside it, in any order."""
    with StopRequest() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert stop.signal_number == signal.SIGTERM


def test_a_patient_one_takes_each_terminate_for_the_first() -> None:
    """A cluster and its launcher may send the same one each."""
    with StopRequest(patient=True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM


@pytest.mark.row("C-19")
def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.signal_number
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
