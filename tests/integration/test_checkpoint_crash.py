"""kill -9 and a file size limit while saving: what was finished stays, what was not has no name."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infinito.checkpoint.format import read_checkpoint
from infinito.checkpoint.manifest import read_manifest
from infinito.checkpoint.run_directory import RunDirectory
from infinito.checkpoint.verify import sha256_of
from infinito.errors import ResourceError
from tests.checkpoint_support import make_content

KILLS = 12


def in_child(work: Callable[[], None]) -> int:
    """Run ``work`` in a fork (no second import of torch); return its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.row("C-01")
def test_kills_around_saving_and_rotation(tmp_path: Path) -> None:
    generator = random.Random(3)
    run = tmp_path / "run"
    RunDirectory.create(run, "x").close()
    (run / "config.yaml").write_text("seed: 1\n")
    finished = tmp_path / "finished"  # the child notes each step whose save returned
    reached = 0

    def save_for_ever() -> None:
        with RunDirectory.open_existing(run, keep_last=2) as directory:
            step = reached
            while True:
                step += 1
                directory.save(step, make_content(step), is_best=step % 5 == 0)
                finished.write_text(str(step))

    for kill in range(KILLS):
        finished.unlink(missing_ok=True)
        pid = in_child(save_for_ever)
        # Every third child gets to finish a save before its kill, so that the run moves on.
        while kill % 3 == 0 and not finished.exists():
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 0.2))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with RunDirectory.open_existing(run) as directory:
            newest = directory.newest_verified()
            steps = directory.steps()
        assert newest is not None
        noted = finished.read_text() if finished.exists() else ""
        if noted:  # empty when the kill came while it was noted
            assert read_checkpoint(newest)["step"] >= int(noted)
        for step, path in steps.items():
            assert read_checkpoint(path)["step"] == step
        for name in ("last.pt", "best.pt"):
            if (run / name).exists():
                read_checkpoint(run / name)
        for name, entry in read_manifest(run).items():
            assert sha256_of(run / name) == entry.sha256
        assert not list(run.glob("*.tmp"))
        assert max(steps) >= reached
        reached = max(steps)
    assert reached >= KILLS // 3


@pytest.mark.row("C-03")
def test_a_file_size_limit_leaves_earlier_checkpoints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunDirectory.create(run, "x") as directory:
        directory.save(1, make_content(1), is_best=True)
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def save_with_a_limit() -> None:
        size = len(before["step-000001.pt"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1000, size - 1000))
        with RunDirectory.open_existing(run) as directory:
            try:
                directory.save(2, make_content(2), is_best=False)
            except ResourceError as error:
                message = error.message
            else:
                raise AssertionError("the save should have failed")
        assert "step-000002.pt" in message
        assert "File too large" in message
        assert "needed" in message

    _, status = os.waitpid(in_child(save_with_a_limit), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
