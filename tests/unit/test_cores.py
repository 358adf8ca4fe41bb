"""Shared cores: OpenMP is told to wait briefly, and a shortage of cores is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from infinito.runtime.cores import SPIN_TURNS, CoreWatch

_LOAD = "import infinito, torch; torch.ones(2).sum()"


def _openmp_settings(**extra: str) -> str:
    """What the OpenMP of torch says of itself when it is loaded after infinito."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))}
    environment = {**kept, "OMP_DISPLAY_ENV": "verbose", **extra}
    return subprocess.run(
        [sys.executable, "-c", _LOAD], env=environment, capture_output=True, text=True, check=True
    ).stderr


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP comes with torch on Linux")
@pytest.mark.row("O-01")
def test_openmp_hears_how_long_to_wait() -> None:
    assert f"GOMP_SPINCOUNT = '{SPIN_TURNS}'" in _openmp_settings()


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP comes with torch on Linux")
@pytest.mark.parametrize("own", [{"GOMP_SPINCOUNT": "77"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_what_the_user_asks_of_openmp_stays(own: dict[str, str]) -> None:
    shown = _openmp_settings(**own)
    assert f"GOMP_SPINCOUNT = '{SPIN_TURNS}'" not in shown
    assert all(f"{name} = '{value}'" in shown for name, value in own.items())


def _work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no processor affinity here")
@pytest.mark.row("O-01")
def test_a_core_shared_with_another_program_is_noticed() -> None:
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    os.sched_setaffinity(0, one)
    try:
        rivals = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
        try:
            watch = CoreWatch()
            _work(1.0)
            note = watch.busy_note()
        finally:
            for rival in rivals:
                rival.kill()
                rival.wait()
    finally:
        os.sched_setaffinity(0, allowed)
    assert note is not None
    assert "the cores are busy" in note
