"""A run's directory: saving order, rotation, discovery, rewinding, locks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from infinito.checkpoint import atomic as checkpoint_files
from infinito.checkpoint.discover import newest_verified, resolve_checkpoint
from infinito.checkpoint.format import read_checkpoint
from infinito.checkpoint.manifest import read_manifest
from infinito.checkpoint.run_directory import RunDirectory
from infinito.errors import CheckpointError, ResourceError
from tests.checkpoint_support import make_content, same, write_step


@pytest.fixture
def run(tmp_path: Path, notes: list[str]) -> Any:
    with RunDirectory.create(tmp_path / "run", "x", keep_last=2) as run:
        yield run


def save(run: RunDirectory, step: int, is_best: bool = False, best: int | None = None) -> Path:
    """Save ``step``; ``best`` is the step that its content calls the best so far."""
    best_step = step if is_best else best
    content = make_content(step) | {"best": {"step": best_step} if best_step else None}
    return run.save(step, content, is_best)


def flip(path: Path, position: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.unlink()  # hard links to the file keep the good bytes
    path.write_bytes(data)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_files_of_a_save(run: RunDirectory) -> None:
    path = save(run, 200, is_best=True)
    assert path.name == "step-000200.pt"
    assert names(run.path) == {".lock", "step-000200.pt", "last.pt", "best.pt", "MANIFEST.json"}
    assert path.samefile(run.path / "last.pt")
    assert path.samefile(run.path / "best.pt")
    entry = json.loads((run.path / "MANIFEST.json").read_text())["files"]["step-000200.pt"]
    assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry["size"] == path.stat().st_size


@pytest.mark.row("C-16")
def test_rotation_keeps_the_last_and_an_older_best(run: RunDirectory) -> None:
    for step in (2, 4, 6, 8, 10):
        save(run, step, is_best=step == 4)
    assert list(run.steps()) == [4, 8, 10]
    assert read_checkpoint(run.path / "best.pt")["step"] == 4
    assert read_checkpoint(run.path / "last.pt")["step"] == 10
    assert set(read_manifest(run.path)) == {path.name for path in run.steps().values()}


@pytest.mark.row("C-16")
def test_best_survives_rotation_after_reopening(run: RunDirectory) -> None:
    save(run, 2, is_best=True)
    run.close()
    with RunDirectory.open_existing(run.path, keep_last=1) as again:
        save(again, 4)
        save(again, 6)
        assert list(again.steps()) == [2, 6]


@pytest.mark.row("C-15")
def test_order_of_a_save_and_its_rotation(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 2)
    save(run, 4)
    calls: list[str] = []
    real_replace, real_unlink = os.replace, Path.unlink

    def replace(source: Any, target: Any) -> None:
        calls.append(f"rename {Path(target).name}")
        real_replace(source, target)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if not path.name.endswith(".tmp"):
            calls.append(f"delete {path.name}")
        real_unlink(path, missing_ok)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(Path, "unlink", unlink)
    save(run, 6, is_best=True)
    assert calls == [
        "rename step-000006.pt",
        "rename last.pt",
        "rename best.pt",
        "rename MANIFEST.json",
        "delete step-000002.pt",
    ]


@pytest.mark.row("C-16")
def test_nothing_is_deleted_while_the_successor_is_damaged(
    run: RunDirectory, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from infinito.checkpoint import format as checkpoint_format

    save(run, 2)
    save(run, 4)
    real = checkpoint_format.write_checkpoint

    def write_badly(path: Path, content: dict[str, Any]) -> str:
        sha256 = real(path, content)
        flip(path)
        return sha256

    monkeypatch.setattr(checkpoint_format, "write_checkpoint", write_badly)
    save(run, 6)
    assert list(run.steps()) == [2, 4, 6]
    assert any("older checkpoints are kept" in note for note in notes)


@pytest.mark.row("C-16")
def test_a_failed_delete_only_warns(
    run: RunDirectory, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("step-") and path.suffix == ".pt":
            raise PermissionError(1, "Operation not permitted")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    for step in (2, 4, 6):
        save(run, step)
    assert list(run.steps()) == [2, 4, 6]
    assert any("cannot remove" in note for note in notes)


def test_copies_where_links_fail(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    for step in (2, 4, 6, 8):
        path = save(run, step, is_best=step == 2)
    assert (run.path / "last.pt").read_bytes() == path.read_bytes()
    assert not path.samefile(run.path / "last.pt")
    assert list(run.steps()) == [2, 6, 8]
    run.close()
    with RunDirectory.open_existing(run.path, keep_last=1) as again:
        save(again, 10)
        assert list(again.steps()) == [2, 10]


def test_saving_a_step_again(run: RunDirectory) -> None:
    save(run, 2)
    run.save(2, make_content(2, seed=1), is_best=False)
    assert run.newest_verified() == run.path / "step-000002.pt"
    assert same(read_checkpoint(run.path / "last.pt"), make_content(2, seed=1))


def test_a_crash_while_saving_a_step_again(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(run, 2)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("infinito.checkpoint.run_directory.link_or_copy", crash)
    with pytest.raises(KeyboardInterrupt):
        run.save(2, make_content(2, seed=1), is_best=False)
    assert run.newest_verified() == run.path / "step-000002.pt"


@pytest.mark.row("S-08")
def test_rotation_does_not_follow_links(run: RunDirectory, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    (run.path / "step-000001.pt").symlink_to(victim / "precious")
    (run.path / "step-000000.pt").symlink_to(victim)
    (run.path / "last.pt").symlink_to(victim / "precious")
    for step in (2, 4, 6):
        save(run, step)
    assert (victim / "precious").read_text() == "x"
    assert (run.path / "step-000001.pt").is_symlink()
    assert not (run.path / "last.pt").is_symlink()


@pytest.mark.row("C-13")
def test_odd_names_are_noted_and_skipped(run: RunDirectory, notes: list[str]) -> None:
    good = save(run, 8)
    for name in ("step-9999", "step-8-tmp", "step-x", "step-000900.pt"):
        (run.path / name).mkdir()
    (run.path / "step-12.pt.bak").write_bytes(b"")
    (run.path / "step-000800.pt").symlink_to(good)
    assert run.newest_verified() == good
    for name in ("step-9999", "step-8-tmp", "step-x", "step-000900.pt", "step-000800.pt"):
        assert any(f"{name} is not a checkpoint" in note for note in notes)


@pytest.mark.row("C-14")
def test_a_damaged_newest_falls_back_and_says_so(run: RunDirectory, notes: list[str]) -> None:
    save(run, 2)
    flip(save(run, 4))
    assert run.newest_verified() == run.path / "step-000002.pt"
    assert any("step-000004.pt" in note and "trying the one before" in note for note in notes)


def test_whole_but_not_what_the_manifest_lists(run: RunDirectory) -> None:
    save(run, 2)
    path = save(run, 4)
    path.unlink()
    write_step(run.path, 4, tokens=5)
    assert run.newest_verified() == run.path / "step-000002.pt"


def test_a_renamed_file_does_not_count_as_its_name(run: RunDirectory) -> None:
    save(run, 2)
    save(run, 4).rename(run.path / "step-000900.pt")
    assert run.newest_verified() == run.path / "step-000002.pt"


def test_a_damaged_manifest_is_no_obstacle(run: RunDirectory) -> None:
    path = save(run, 2)
    for text in ("", "[]", '{"files": 3}', '{"files": {"step-000002.pt": 1}}', "[" * 5000):
        (run.path / "MANIFEST.json").write_text(text)
        assert run.newest_verified() == path


@pytest.mark.row("C-11")
def test_time_stamps_mean_nothing(run: RunDirectory) -> None:
    for age, step in enumerate((9, 10, 100)):
        run.keep_last = 5
        os.utime(save(run, step), (1e9, 4e9 - age * 1e9))
    assert run.newest_verified() == run.path / "step-000100.pt"


@pytest.mark.row("C-09")
def test_a_directory_that_holds_a_run_is_refused(run: RunDirectory) -> None:
    save(run, 2)
    run.close()
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(ResourceError, match="already holds a run") as caught:
        RunDirectory.create(run.path, "x")
    assert f"infinito resume {run.path}" in caught.value.remedy
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


@pytest.mark.row("C-07")
def test_directories_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self/run")):
        with pytest.raises(ResourceError, match="cannot write"):
            RunDirectory.create(path, "x")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / ".lock").symlink_to(tmp_path / "file")
    with pytest.raises(ResourceError, match="cannot write"):
        RunDirectory.create(tmp_path / "locked", "x")


@pytest.mark.row("C-08")
def test_a_second_process_is_refused_with_the_pid_of_the_first(run: RunDirectory) -> None:
    for take in (
        lambda: RunDirectory.create(run.path, "x"),
        lambda: RunDirectory.open_existing(run.path),
    ):
        with pytest.raises(ResourceError, match=f"pid {os.getpid()}"):
            take()
    run.close()
    RunDirectory.open_existing(run.path).close()


def test_numbered_directories(tmp_path: Path) -> None:
    made = [RunDirectory.create(None, "small", root=tmp_path / "runs") for _ in range(3)]
    (tmp_path / "runs" / "small-7").mkdir()
    made.append(RunDirectory.create(None, "small", root=tmp_path / "runs"))
    assert [run.path.name for run in made] == ["small-1", "small-2", "small-3", "small-8"]
    for run in made:
        run.close()


def test_abandoning_leaves_nothing(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "a" / "run", "x")
    run.write_text("config.yaml", "seed: 1\n")
    run.record_start(["infinito"], {})
    write_step(tmp_path, 4)
    run.adopt(tmp_path / "step-000004.pt", tmp_path)
    run.abandon()
    run.close()
    assert not (tmp_path / "a" / "run").exists()


def test_abandoning_keeps_what_was_there_before(run: RunDirectory, tmp_path: Path) -> None:
    save(run, 2)
    run.write_text("config.yaml", "seed: 1\n")
    run.abandon()
    assert (run.path / "config.yaml").exists()
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "config.yaml").write_text("seed: 1\n")
    RunDirectory.open_existing(lone).abandon()
    assert (lone / "config.yaml").exists()


def test_leftovers_of_dead_processes_are_removed(run: RunDirectory, notes: list[str]) -> None:
    save(run, 2)
    run.close()
    for name in ("step-000004.pt.tmp", "MANIFEST.json.tmp", "mine.tmp"):
        (run.path / name).write_bytes(b"x")
    (run.path / "shards.tmp").mkdir()
    (run.path / "shards.tmp" / "part").write_bytes(b"x")
    with RunDirectory.open_existing(run.path):
        assert "mine.tmp" in names(run.path)
        gone = {"step-000004.pt.tmp", "MANIFEST.json.tmp", "shards.tmp"}
        assert not gone & names(run.path)
    assert any("step-000004.pt.tmp" in note for note in notes)


@pytest.mark.row("C-03")
def test_space_is_asked_for_before(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    run.require_space(1000)
    monkeypatch.setattr(checkpoint_files, "free_bytes", lambda _: 5_000_000)
    with pytest.raises(ResourceError, match=r"84\.0 MB needed, 5\.0 MB free"):
        run.require_space(84_000_000)


def _log(run: Path, steps: list[int], tail: str = "") -> None:
    lines = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps]
    (run / "metrics.jsonl").write_text("".join(lines) + tail)


def test_rewinding_sets_aside_what_came_later(run: RunDirectory) -> None:
    run.keep_last = 9
    for step in (2, 4, 6, 8):
        save(run, step, is_best=step == 6, best=2)
    _log(run.path, [1, 2, 3, 4, 5, 8], tail='{"step": 9, "lo')
    contents = {step: path.read_bytes() for step, path in run.steps().items()}
    aside = run.rewind(4)
    assert list(run.steps()) == [2, 4]
    assert set(read_manifest(run.path)) == {"step-000002.pt", "step-000004.pt"}
    assert read_checkpoint(run.path / "last.pt")["step"] == 4
    assert read_checkpoint(run.path / "best.pt")["step"] == 2  # what was the best at step 4
    logged = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3, 4]
    put_away = run.path / "set-aside-1"
    assert aside.directory == put_away
    assert (put_away / "step-000008.pt").read_bytes() == contents[8]
    assert len((put_away / "metrics.jsonl").read_text().splitlines()) == 3
    assert "step-000008.pt" in aside.describe()
    assert "3 lines" in aside.describe()
    save(run, 6)
    assert run.newest_verified() == run.path / "step-000006.pt"
    assert run.rewind(2).directory == run.path / "set-aside-2"
    assert run.rewind(2).is_empty


def test_links_and_manifest_that_a_crash_left_behind_are_repaired(run: RunDirectory) -> None:
    save(run, 2, is_best=True)
    older = {name: (run.path / name).read_bytes() for name in ("last.pt", "best.pt")}
    manifest = (run.path / "MANIFEST.json").read_bytes()
    save(run, 4, is_best=True)
    for name, data in older.items():
        (run.path / name).unlink()
        (run.path / name).write_bytes(data)
    (run.path / "MANIFEST.json").write_bytes(manifest)
    assert run.rewind(4).is_empty
    for name in older:
        assert (run.path / name).samefile(run.path / "step-000004.pt")
    save(run, 6)
    assert set(read_manifest(run.path)) == {"step-000004.pt", "step-000006.pt"}


def test_an_earlier_best_stays_on_rewinding(run: RunDirectory) -> None:
    for step in (2, 4, 6):
        save(run, step, is_best=step == 2)
    run.rewind(4)
    assert read_checkpoint(run.path / "best.pt")["step"] == 2
    save(run, 8)
    save(run, 10)
    assert list(run.steps()) == [2, 8, 10]


def test_history_goes_along_to_another_directory(run: RunDirectory, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(run, step, is_best=step == 2)
    _log(run.path, [1, 2, 3, 4, 5, 6])
    source = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with RunDirectory.create(tmp_path / "new", "x") as new:
        new.adopt(run.path / "step-000004.pt", run.path)
        assert list(new.steps()) == [2, 4]
        assert new.newest_verified() == new.path / "step-000004.pt"
        assert resolve_checkpoint(str(new.path), "best") == new.path / "best.pt"
        assert read_checkpoint(new.path / "best.pt")["step"] == 2
        assert len((new.path / "metrics.jsonl").read_text().splitlines()) == 4
        assert set(read_manifest(new.path)) == {"step-000002.pt", "step-000004.pt"}
        save(new, 6)
        assert list(new.steps()) == [2, 4, 6]
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == source


def test_what_a_reference_means(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        resolve_checkpoint(None, "best")
    for name in ("b", "a"):
        with RunDirectory.create(None, name) as run:
            run.record_start(["infinito"], {})
            save(run, 2, is_best=name == "a")
            save(run, 4)
        time.sleep(0.002)
    a, b = Path("checkpoints/a-1"), Path("checkpoints/b-1")
    os.utime(b, (4e9, 4e9))
    assert resolve_checkpoint(None, "best") == a / "best.pt"
    assert any("most recent run" in note for note in notes)
    assert resolve_checkpoint(None, "newest") == a / "step-000004.pt"
    assert resolve_checkpoint(str(b), "best") == b / "step-000004.pt"
    assert resolve_checkpoint(str(b / "last.pt"), "best") == b / "last.pt"
    (tmp_path / "empty").mkdir()
    for reference in ("nowhere", "empty"):
        with pytest.raises(CheckpointError, match=reference):
            resolve_checkpoint(reference, "newest")
    flip(a / "best.pt")
    with pytest.raises(CheckpointError, match="checksum") as caught:
        resolve_checkpoint(str(a), "best")
    assert str(a / "step-000004.pt") in caught.value.remedy


def test_only_links_left(run: RunDirectory) -> None:
    save(run, 2).unlink()
    assert newest_verified(run.path) == run.path / "last.pt"


@pytest.mark.row("S-11")
def test_the_record_blanks_secrets(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2-hunter2")
    arguments = [
        "/home/someone/bin/infinito", "train", "--set", "tokenizer.vocab_size=300",
        "--set", "hub.token=abc", "--api-key", "qwerty", "x=hunter2-hunter2",
        "https://me:pass@host/x", "hf_ABCDEFGHIJKLMNOPQRST", "--max-new-tokens", "20",
    ]  # fmt: skip
    run.record_start(arguments, {"device": "cpu"})
    text = (run.path / "run.json").read_text()
    for secret in ("hunter2", "abc", "qwerty", "me:pass", "ABCDEFGH", "someone"):
        assert secret not in text
    record = json.loads(text)
    assert record["device"] == "cpu"
    assert "tokenizer.vocab_size=300" in record["command"]
    assert record["command"][-1] == "20"
    run.record_start(["infinito", "resume"], {})
    again = json.loads((run.path / "run.json").read_text())
    assert again["start_time"] >= record["start_time"]
    assert [earlier["command"] for earlier in again["earlier"]] == [record["command"]]


@pytest.mark.row("C-21")
def test_a_directory_made_again_is_locked_again(run: RunDirectory, notes: list[str]) -> None:
    run.write_text("config.yaml", "seed: 1\n")
    save(run, 2)
    shutil.rmtree(run.path)
    save(run, 4)
    assert names(run.path) == {
        ".lock", "step-000004.pt", "last.pt", "MANIFEST.json", "config.yaml"
    }  # fmt: skip
    assert notes == [f"deleted while training, made again: {run.path}, {run.path}/config.yaml"]
    with pytest.raises(ResourceError, match="in use by another process"):
        RunDirectory.open_existing(run.path)
    save(run, 6)
    assert len(notes) == 1


@pytest.mark.row("C-08")
@pytest.mark.parametrize("is_running", [True, False])
def test_another_run_that_took_the_place_is_not_written_into(
    run: RunDirectory, is_running: bool
) -> None:
    run.record_start(["infinito"], {})
    run.path.rename(run.path.with_name("moved"))
    other = RunDirectory.create(run.path, "x")
    other.record_start(["infinito", "train"], {})
    save(other, 8)
    if not is_running:
        other.close()
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(ResourceError, match="in use by" if is_running else "another run"):
        save(run, 2)
    before[".lock"] = (run.path / ".lock").read_bytes()
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
