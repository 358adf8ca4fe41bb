"""A resume has its run's directory for itself before it chooses or reads a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from infinito.checkpoint.lock import RunLock
from infinito.train import resumption
from tests.command_support import all_files, infinito, write_config


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, as ``run`` of the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFINITO_CACHE", str(tmp_path / "cache"))
    assert infinito("train", "--config", write_config(tmp_path)).code == 0
    return tmp_path / "run"


@pytest.mark.row("C-08")
def test_a_run_in_use_is_refused_before_anything_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*_: Any) -> Any:
        raise AssertionError("it was read before it was locked")

    for name in ("resolve_checkpoint", "open_checkpoint"):
        monkeypatch.setattr(resumption, name, too_early)
    holder = RunLock(run)
    for reference in ("run", "run/step-000004.pt"):
        message = infinito("resume", reference, "--max-steps", 20).refused(6)
        assert "in use by another process" in message
    holder.release()


@pytest.mark.row("C-08")
@pytest.mark.parametrize("reference", ["run", "run/last.pt"])
def test_a_run_that_ends_just_before_the_resume_is_not_rewound(
    run: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    whole = run.rename(run.parent / "whole")
    infinito("train", "--config", run.parent / "tiny.yaml", "--max-steps", 4)
    take = RunLock.__init__

    def ended_meanwhile(lock: RunLock, directory: Path) -> None:
        monkeypatch.undo()
        shutil.rmtree(run)
        shutil.copytree(whole, run)
        take(lock, directory)

    monkeypatch.setattr(RunLock, "__init__", ended_meanwhile)
    outcome = infinito("resume", run.parent / reference, "--max-steps", 8)
    assert outcome.code == 0, outcome.err
    assert "already at step 8 of 8" in outcome.err
    assert all_files(run) == all_files(whole)


def test_elsewhere_a_run_in_use_can_go_on_too(run: Path) -> None:
    holder = RunLock(run)
    before = all_files(run)
    outcome = infinito("resume", "run", "--max-steps", 10, "--output-dir", "other")
    holder.release()
    assert outcome.code == 0, outcome.err
    assert all_files(run) == before
    assert (run.parent / "other" / "step-000010.pt").exists()


def test_the_run_s_own_directory_by_another_name_or_none_is_its_own(run: Path) -> None:
    (run.parent / "link").symlink_to(run)
    for number, target in enumerate(("output_dir=link", "output_dir=null"), start=9):
        outcome = infinito("resume", "run", "--max-steps", number, "--set", target)
        assert outcome.code == 0, outcome.err
        assert "output_dir" not in outcome.err
        assert (run / f"step-{number:06d}.pt").exists()


@pytest.mark.parametrize("reference", ["nowhere", "nowhere/last.pt", "empty"])
def test_what_is_no_run_is_refused_without_a_trace(run: Path, reference: str) -> None:
    (run.parent / "empty").mkdir()
    infinito("resume", reference).refused(4)
    assert not list(run.parent.glob("[en]*/.lock"))
