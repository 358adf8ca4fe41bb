"""Signals, full disks, damage and a second process, through the commands (rows C-02 to C-17)."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.checkpoint import atomic
from infinito.checkpoint.run_directory import RunDirectory
from infinito.train.trainer import Evaluation, Trainer
from tests.command_support import (
    all_files,
    at_step,
    flip,
    infinito,
    memory_at_most,
    read_log,
    result_files,
    write_config,
)
from tests.support import ROOT

EVERYTHING = {
    "model__dropout": 0.2,
    "training__gradient_accumulation_steps": 2,
    "training__ema_decay": 0.9,
}


class Place:
    """A directory in which every run is ``run``: equal runs then have equal bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, path / "run"
        self.config = write_config(path, **EVERYTHING)
        assert infinito("train", "--config", self.config).code == 0
        self.unbroken = path / "unbroken"
        self.run.rename(self.unbroken)

    def trained(self) -> Path:
        """A fresh copy of the finished run at ``run``."""
        shutil.copytree(self.unbroken, self.run)
        return self.run

    def assert_equal_to_the_unbroken_run(self) -> None:
        assert result_files(self.run) == result_files(self.unbroken)
        assert read_log(self.run) == read_log(self.unbroken)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("place")
        patch.setenv("INFINITO_CACHE", str(path / "cache"))
        yield Place(path)


@pytest.fixture
def place(shared: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(shared.path)
    yield shared
    shutil.rmtree(shared.run, ignore_errors=True)


def no_leftovers(run: Path) -> bool:
    return not list(run.glob("*.tmp"))


@pytest.mark.row("C-02")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_and_the_rest_has_the_same_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), number))
        stopped = infinito("train", "--config", place.config)
    assert stopped.code == code
    assert "stopped at step 5 of 8; everything is saved" in stopped.err
    assert "help: infinito resume run\n" in stopped.err
    assert no_leftovers(place.run)
    assert torch.load(place.run / "last.pt", weights_only=True)["step"] == 5
    assert infinito("resume", "run").code == 0
    assert (place.run / "last.pt").read_bytes() == (place.unbroken / "last.pt").read_bytes()
    assert read_log(place.run) == read_log(place.unbroken)


def refusing(number: int) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.row("C-03")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("stage", ["open", "sync", "rename"])
def test_a_disk_that_refuses_a_save(
    place: Place, monkeypatch: pytest.MonkeyPatch, stage: str, number: int
) -> None:
    before = result_files(place.trained())

    def break_down() -> None:
        targets = {"open": (atomic, "_new_file"), "sync": (os, "fsync"), "rename": (os, "replace")}
        monkeypatch.setattr(*targets[stage], refusing(number))

    with monkeypatch.context():
        at_step(monkeypatch, 12, break_down)
        message = infinito("resume", "run", "--max-steps", 12).refused(6)
    monkeypatch.undo()
    assert "step-000012.pt" in message
    assert os.strerror(number) in message
    assert no_leftovers(place.run)
    assert result_files(place.run) == before


@pytest.mark.row("C-03")
def test_a_file_size_limit_below_the_checkpoint(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = result_files(place.trained())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = len(before["last.pt"])
    limit = (size // 2, hard)
    at_step(monkeypatch, 9, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    try:
        message = infinito("resume", "run", "--max-steps", 9).refused(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "step-000009.pt: File too large" in message
    assert "needed" in message
    assert "free" in message
    assert no_leftovers(place.run)
    assert result_files(place.run) == before


@pytest.mark.row("C-03")
def test_a_log_that_cannot_be_written_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, log = result_files(place.trained()), place.run / "metrics.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(
        monkeypatch,
        9,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard)),
    )
    try:
        message = infinito("resume", "run", "--max-steps", 12).refused(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {log}: File too large" in message
    assert result_files(place.run) == before


def empty(run: Path) -> None:
    """What ``rm -rf run/*`` does: names with a dot stay."""
    for path in run.glob("[!.]*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


LOSSES: dict[str, Callable[[Path], object]] = {
    "deleted": shutil.rmtree,
    "emptied": empty,
    "moved": lambda run: run.rename(run.with_name("moved")),
    "deleted and made": lambda run: (shutil.rmtree(run), run.mkdir()),
    "without its lock": lambda run: (run / ".lock").unlink(),
}


@pytest.mark.row("C-21")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("is_new", [True, False])
def test_a_directory_that_vanishes_while_training_is_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, loss: str, is_new: bool
) -> None:
    command = ["train", "--config", place.config]
    if not is_new:
        place.trained()
        command = ["resume", "run/step-000004.pt"]
    with monkeypatch.context() as patch:
        at_step(patch, 2 if is_new else 5, lambda: LOSSES[loss](place.run))
        done = infinito(*command)
    shutil.rmtree(place.path / "moved", ignore_errors=True)
    assert done.code == 0, done.err
    assert "deleted while training, made again: run" in done.err
    for name in ("last.pt", "best.pt", "config.yaml"):
        assert (place.run / name).read_bytes() == (place.unbroken / name).read_bytes()
    assert read_log(place.run) == read_log(place.unbroken)
    assert json.loads((place.run / "run.json").read_text())["pid"] == os.getpid()
    assert infinito("resume", "run").code == 0


@pytest.mark.row("C-21")
def test_the_working_directory_may_vanish_with_the_run(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    at_step(monkeypatch, 2, lambda: shutil.rmtree(work))
    done = infinito("train", "--config", place.config, "--set", "output_dir=null")
    assert done.code == 0, done.err
    assert read_log(work / "checkpoints" / "tiny-1") == read_log(place.unbroken)


@pytest.mark.row("C-10", "C-21")
def test_divergence_after_the_directory_vanished_is_told_as_that(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 1, lambda: shutil.rmtree(place.run))
    settings = (
        "training.max_grad_norm=0",
        "training.warmup_steps=0",
        "training.learning_rate=1e30",
    )
    options = [word for setting in settings for word in ("--set", setting)]
    infinito("train", "--config", place.config, *options).refused(5)


@pytest.mark.row("C-21")
def test_the_summary_names_no_best_that_was_deleted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = Trainer.validate

    def never_better_again(trainer: Trainer) -> Evaluation | None:
        found = validate(trainer)
        assert found is not None
        return replace(found, is_best=trainer.progress.step == 4)

    monkeypatch.setattr(Trainer, "validate", never_better_again)
    at_step(monkeypatch, 6, lambda: shutil.rmtree(place.run))
    done = infinito("train", "--config", place.config)
    assert "saved:      run/last.pt\n" in done.err


@pytest.mark.row("C-21")
def test_a_directory_that_vanishes_during_a_save_is_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "step-000004.pt":
            monkeypatch.setattr(os, "replace", real)
            shutil.rmtree(place.run)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    done = infinito("train", "--config", place.config)
    assert done.code == 0, done.err
    place.assert_equal_to_the_unbroken_run()


COMMANDS = {
    "evaluate": ["evaluate", "{}"],
    "generate": ["generate", "{}", "--prompt", "x", "--max-new-tokens", "1"],
    "resume": ["resume", "{}"],
}


def give(command: str, path: Path) -> str:
    """The message with which ``command`` refuses the checkpoint ``path``."""
    message = infinito(*(part.format(path) for part in COMMANDS[command])).refused(4)
    assert str(path) in message
    return message


@pytest.mark.row("C-04")
@pytest.mark.parametrize("command", COMMANDS)
def test_cut_files_are_refused_by_every_command(place: Place, command: str) -> None:
    good = (place.unbroken / "last.pt").read_bytes()
    path = place.path / "cut.pt"
    for length in (0, 1, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert any(word in give(command, path) for word in ("truncated", "empty"))


@pytest.mark.row("C-05")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_flipped_bit_is_refused_by_every_command(place: Place, command: str) -> None:
    path = place.path / "flipped.pt"
    path.write_bytes((place.unbroken / "last.pt").read_bytes())
    flip(path)
    assert "checksum mismatch" in give(command, path)


@pytest.mark.row("C-06")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_checkpoint_is_named_by_every_command(place: Place, command: str) -> None:
    assert "there is no checkpoint" in give(command, place.path / "nowhere.pt")


@pytest.mark.row("C-07")
def test_a_directory_that_cannot_be_is_refused_before_anything_slow(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: Any) -> None:
        raise AssertionError("the data was prepared first")

    monkeypatch.setattr("infinito.train.session.prepare", prepare)
    below = place.config / "run"
    for target in (below, place.config, Path("/proc/none/run")):
        message = infinito("train", "--config", place.config, "--output-dir", target).refused(6)
        assert f"cannot write {target}" in message
        assert "a file is in the way" in message or "/proc" in message
    # What a directory without permission or a read-only file system answers, also to root.
    for number in (errno.EACCES, errno.EROFS):
        monkeypatch.setattr(os, "open", refusing(number))
        message = infinito("train", "--config", place.config).refused(6)
        monkeypatch.undo()
        monkeypatch.setattr("infinito.train.session.prepare", prepare)
        monkeypatch.chdir(place.path)
        assert os.strerror(number) in message
        shutil.rmtree(place.run, ignore_errors=True)


@pytest.mark.row("C-08")
@pytest.mark.slow
def test_a_second_run_is_refused_and_the_first_ends_with_the_right_bits(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[tuple[int, str]] = []

    def intrude() -> None:
        commands = [["resume", "run"], ["train", "--config", str(place.config)]]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "infinito", *command],
                cwd=place.path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for command in commands
        ]  # fmt: skip
        for process in processes:
            _, err = process.communicate(timeout=120)
            ended.append((process.returncode, err))

    at_step(monkeypatch, 6, intrude)
    assert infinito("train", "--config", place.config).code == 0
    assert [code for code, _ in ended] == [6, 6]
    for _, err in ended:
        assert f"in use by another process (pid {os.getpid()})" in err
        assert "Traceback" not in err
    place.assert_equal_to_the_unbroken_run()


def kill_before_the_first_checkpoint(place: Place) -> None:
    """``train`` in a process of its own that ends by SIGKILL after two records."""
    program = (
        "import os, signal, sys\n"
        "from infinito.cli.main import main\n"
        "from infinito.telemetry.sinks import JsonLines\n"
        "write = JsonLines.write\n"
        "def killed(sink, record):\n"
        "    write(sink, record)\n"
        "    if record['step'] == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "JsonLines.write = killed\n"
        "sys.exit(main(['train', '--config', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, place.config], cwd=place.path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.row("C-20")
@pytest.mark.slow
def test_a_start_that_was_killed_is_started_again_in_its_directory(place: Place) -> None:
    kill_before_the_first_checkpoint(place)
    (place.run / "step-000004.pt.tmp").write_bytes(b"half")  # what a save leaves that was killed
    resumed = infinito("resume", "run").refused(4)
    assert "infinito train --config run/config.yaml" in resumed
    again = infinito("train", "--config", "run/config.yaml")
    assert again.code == 0, again.err
    assert "starting over in run, which holds no checkpoint" in again.err
    place.assert_equal_to_the_unbroken_run()
    assert no_leftovers(place.run)
    aside = (place.run / "set-aside-1" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in aside.splitlines()] == [1, 2]


@pytest.mark.row("C-20")
def test_a_failure_while_starting_over_leaves_what_can_be_started_again(place: Place) -> None:
    run = place.trained()
    for path in (*run.glob("*.pt"), run / "MANIFEST.json"):
        path.unlink()
    bad = ["train", "--config", "run/config.yaml", "--set", "data.train_file=none.txt"]
    infinito(*bad).refused(3)
    assert infinito("train", "--config", "run/config.yaml").code == 0
    place.assert_equal_to_the_unbroken_run()


@pytest.mark.row("C-09")
@pytest.mark.parametrize(
    "kept", ["step-000004.pt", "best.pt", "last.pt", "set-aside-1/step-000004.pt", "mine.pt"]
)
def test_where_any_checkpoint_is_nothing_starts_over(place: Place, kept: str) -> None:
    run = place.trained()
    checkpoint = (run / "last.pt").read_bytes()
    for path in (*run.glob("*.pt"), run / "MANIFEST.json"):
        path.unlink()
    (run / kept).parent.mkdir(exist_ok=True)
    (run / kept).write_bytes(checkpoint)
    before = all_files(run)
    message = infinito("train", "--config", place.config).refused(6)
    assert "run already holds a run" in message
    assert all_files(run) == before


@pytest.mark.row("C-09")
@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_files_of_the_user_that_are_named_like_a_run_s_are_kept(place: Place, name: str) -> None:
    place.run.mkdir()
    (place.run / name).write_text("mine")
    message = infinito("train", "--config", place.config).refused(6)
    assert "choose another --output-dir, or move the files away" in message
    assert all_files(place.run) == {name: b"mine"}


@pytest.mark.row("C-11", "C-13")
def test_neither_clocks_nor_stray_names_decide_what_is_newest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = place.trained()
    for path in run.glob("*.pt"):
        path.unlink()
    with monkeypatch.context() as patch:  # a clock that runs backwards, and no other
        now = iter(range(2_000_000_000, 0, -86_400))
        patch.setattr(time, "time", lambda: float(next(now)))
        shutil.rmtree(run)
        assert infinito("train", "--config", place.config, "--max-steps", 5).code == 0
        for age, path in enumerate(sorted(run.glob("step-*.pt"))):
            os.utime(path, (4e9 - age * 1e9, 4e9 - age * 1e9))
        for name in ("step-9999", "step-8-tmp", "step-x"):
            (run / name).mkdir()
        resumed = infinito("resume", "run", "--max-steps", 8)
    assert resumed.code == 0, resumed.err
    assert "resuming run/step-000005.pt at step 5" in resumed.err
    for name in ("step-9999", "step-8-tmp", "step-x"):
        assert f"run/{name} is not a checkpoint file; ignored" in resumed.err
        assert (run / name).is_dir()
    steps = [line["step"] for line in read_log(run)]
    assert steps == sorted(set(steps)) == list(range(1, 9))


@pytest.mark.row("C-12")
@pytest.mark.slow
def test_a_second_interrupt_during_a_save_exits_at_once(place: Place) -> None:
    run = place.trained()
    before = result_files(run)
    program = (
        "import os, signal, sys, time\n"
        "from infinito.cli.main import main\n"
        "from infinito.telemetry.sinks import JsonLines\n"
        "write = JsonLines.write\n"
        "def interrupted(sink, record):\n"
        "    write(sink, record)\n"
        "    os.fsync = lambda _: (print('saving', flush=True), time.sleep(600))\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "JsonLines.write = interrupted\n"
        "sys.exit(main(['resume', 'run', '--max-steps', '20']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=place.path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "saving\n"
        assert (run / "step-000009.pt.tmp").exists()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)  # half of what the save takes
    assert process.returncode == 130
    assert "second SIGINT: exiting at once" in err
    assert result_files(run) == before
    resumed = infinito("resume", "run", "--max-steps", 9)
    assert resumed.code == 0, resumed.err
    assert "removed" in resumed.err
    assert no_leftovers(run)


@pytest.mark.row("C-14")
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(place: Place) -> None:
    run = place.trained()
    for name in ("step-000008.pt", "last.pt", "best.pt"):
        flip(run / name)
    resumed = infinito("resume", "run")
    assert resumed.code == 0, resumed.err
    assert "step-000008.pt: checksum mismatch" in resumed.err
    assert "trying the one before" in resumed.err
    assert "resuming run/step-000004.pt at step 4 of 8" in resumed.err
    place.assert_equal_to_the_unbroken_run()
    assert (run / "set-aside-1" / "step-000008.pt").exists()


@pytest.mark.row("C-15")
def test_the_order_of_the_system_calls_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is whole (its size is final) when it is synced, and synced when it is renamed."""
    from tests.checkpoint_support import make_content

    run, calls = tmp_path / "run", list[str]()
    directory = RunDirectory.create(run, "x", keep_last=1)
    directory.save(2, make_content(2), is_best=True)
    directory.save(4, make_content(4), is_best=True)
    real_fsync, real_replace, real_link, real_unlink = os.fsync, os.replace, os.link, os.unlink

    def fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)
        size = "" if name == run else f" {os.fstat(descriptor).st_size}"
        calls.append(f"sync {name.name}{size}")

    def replace(source: Any, target: Any) -> None:
        calls.append(f"rename {Path(source).name} {Path(target).name}")
        real_replace(source, target)

    def link(source: Any, target: Any, **how: Any) -> None:
        calls.append(f"link {Path(source).name} {Path(target).name}")
        real_link(source, target, **how)

    def unlink(path: Any, *how: Any, **more: Any) -> None:
        real_unlink(path, *how, **more)
        calls.append(f"delete {Path(path).name}")

    for name, hook in (("fsync", fsync), ("replace", replace), ("link", link), ("unlink", unlink)):
        monkeypatch.setattr(os, name, hook)
    directory.save(6, make_content(6), is_best=True)
    monkeypatch.undo()
    directory.close()
    size = (run / "step-000006.pt").stat().st_size
    assert [call for call in calls if ".tmp" not in call or "delete" not in call] == [
        f"sync step-000006.pt.tmp {size}",
        "rename step-000006.pt.tmp step-000006.pt",
        "sync run",
        "link step-000006.pt last.pt.tmp",
        "rename last.pt.tmp last.pt",
        "sync run",
        "link step-000006.pt best.pt.tmp",
        "rename best.pt.tmp best.pt",
        "sync run",
        f"sync MANIFEST.json.tmp {(run / 'MANIFEST.json').stat().st_size}",
        "rename MANIFEST.json.tmp MANIFEST.json",
        "sync run",
        "delete step-000004.pt",
        "sync run",
    ]


@pytest.mark.row("C-17")
@pytest.mark.parametrize("counted", [True, False])
def test_a_step_beyond_memory_is_refused_before_the_first_checkpoint(
    place: Place, monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    """Once by counting, and once (the count left out) by the batch that is tried first."""
    if not counted:
        monkeypatch.setattr("infinito.train.automatic.available_bytes", lambda _: None)
        # the step is not cut to the text, which is short
        monkeypatch.setattr("infinito.train.session.fit_step", lambda config, _: config)
    with memory_at_most(400 << 20):
        outcome = infinito("train", "--config", place.config, "--batch-size", 60_000)
    message = outcome.refused(6)
    assert "60000 x" in message
    assert "--batch-size" in message
    assert not place.run.exists()
