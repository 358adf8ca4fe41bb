"""Files from strangers given to the commands (rows S-02, S-04 to S-08 and S-11)."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from tests.checkpoint_support import rebuilt
from tests.command_support import all_files, infinito, memory_at_most, write_config

COMMANDS = {
    "evaluate": ["evaluate", "{}"],
    "generate": ["generate", "{}", "--prompt", "x", "--max-new-tokens", "1"],
    "resume": ["resume", "{}", "--max-steps", "3"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a run of two steps at ``good``."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("hostile")
        patch.setenv("INFINITO_CACHE", str(place / "cache"))
        config = write_config(place, training__max_steps=2, training__save_every=1)
        assert infinito("train", "--config", config, "--output-dir", place / "good").code == 0
        yield place


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the run, to be made hostile."""
    monkeypatch.chdir(trained)
    run = trained / "run"
    shutil.copytree(trained / "good", run)
    yield run
    shutil.rmtree(run)


def give(command: str, path: Path) -> str:
    """The message with which ``command`` refuses the checkpoint ``path``."""
    return infinito(*(part.format(path) for part in COMMANDS[command])).refused(4)


class _RunsCommand:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.row("S-02")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_that_carries_a_command(run: Path, tmp_path: Path, command: str) -> None:
    canary, path = tmp_path / "canary", run / "strange.pt"
    program = pickle.dumps({"model": _RunsCommand(canary)}, protocol=2)
    good = (run / "last.pt").read_bytes()
    for data in (program, rebuilt(good, {"archive/data.pkl": program})):
        path.write_bytes(data)
        give(command, path)
        give(command, path.rename(run / "step-000009.pt"))
        assert not canary.exists()


@pytest.mark.row("S-04")
@pytest.mark.parametrize("command", COMMANDS)
def test_member_names_that_point_outside(run: Path, command: str) -> None:
    path, around = run / "strange.pt", all_files(run.parent)
    good = (run / "last.pt").read_bytes()
    for name in ("../../escaped", str(run.parent / "escaped")):
        path.write_bytes(rebuilt(good, {name: b"escaped"}))
        give(command, path)
    path.unlink()
    assert all_files(run.parent) == around


def _with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """An exported file whose header was changed."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    change(header)
    return _under(json.dumps(header).encode(), data[end:])


def _under(header: bytes, data: bytes, says: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if says is None else says) + header + data


def _move(name: str, by: int) -> Callable[[bytes], bytes]:
    def change(header: dict[str, Any]) -> None:
        header[name]["data_offsets"] = [x + by for x in header[name]["data_offsets"]]

    return lambda data: _with_header(data, change)


def _set(name: str, **entry: object) -> Callable[[bytes], bytes]:
    return lambda data: _with_header(data, lambda header: header[name].update(entry))


SAFETENSORS: dict[str, Callable[[bytes], bytes]] = {
    "of another program": lambda data: _with_header(data, lambda h: h.pop("__metadata__")),
    "header of 2^62 bytes": lambda data: _under(data[8:], b"", says=1 << 62),
    "header as long as it says, and huge": lambda data: _under(b"{" * (65 << 20), b""),
    "negative offsets": _move("final_norm.weight", -(1 << 20)),
    "overlapping tensors": _move("final_norm.weight", -4),
    "gap": _move("final_norm.weight", 4),
    "deep header": lambda data: _under(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
    "name twice": lambda data: _under(b'{"__metadata__": {}, "__metadata__": {}}', b""),
    "unknown dtype": _set("final_norm.weight", dtype="F4"),
    "another dtype": _set("final_norm.weight", dtype="I32"),
    "huge shape": _set("final_norm.weight", shape=[1 << 47, 1 << 47]),
    "other shape": _set("final_norm.weight", shape=[2, 16]),
    "bool in the shape": _set("final_norm.weight", shape=[32, True]),
    "entry more": _set("final_norm.weight", code="x"),
    "metadata of numbers": _set("__metadata__", infinito=1),
    "other config": _set("__metadata__", infinito="{}"),
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "a bit of data": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}


@pytest.mark.row("S-05")
@pytest.mark.parametrize("fault", SAFETENSORS)
def test_hostile_safetensors_are_refused_in_little_memory(run: Path, fault: str) -> None:
    good, path = run.parent / "good.safetensors", run / "strange.safetensors"
    if not good.exists():
        assert infinito("export", run, "--to", "safetensors", "--output", good).code == 0
        assert infinito("evaluate", good, "--device", "cpu").code == 0
    path.write_bytes(SAFETENSORS[fault](good.read_bytes()))
    shutil.copy(path, run / "step-000009.pt")  # whatever its name
    for command in COMMANDS:
        for name in (path, run / "step-000009.pt"):
            with memory_at_most(16 << 20):
                give(command, name)


@pytest.mark.row("S-06")
def test_programs_given_as_data_are_text(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    script = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
    (tmp_path / "evil").mkdir()
    for name in ("evil.py", "evil/evil.py", "evil/__init__.py", "evil/setup.py"):
        (tmp_path / name).write_text(script * 30, encoding="utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    as_text = infinito(
        "evaluate", run, "--text", tmp_path / "evil.py", "--device", "cpu"
    )  # fmt: skip
    assert as_text.code == 0, as_text.err
    trained = infinito(
        "train", "--output-dir", tmp_path / "new", "--max-steps", 1, "--config", "tiny.yaml",
        "--set", f"data.train_file={tmp_path / 'evil.py'}",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    as_dataset = infinito(
        "evaluate", run, "--set", f"data.dataset={tmp_path / 'evil'}",
        "--set", "data.source=hub", "--set", "data.train_file=null",
    )  # fmt: skip
    as_dataset.refused(3)
    assert not canary.exists()


def _ask_for_terabytes(content: dict[str, Any]) -> None:
    content["config"]["model"] |= {"d_model": 16384, "n_layers": 256, "n_heads": 2}


def _ask_for_a_table(content: dict[str, Any]) -> None:
    content["config"]["model"] |= {"position": "learned", "learned_positions": 1_000_000}


def _ask_for_width(content: dict[str, Any]) -> None:
    content["config"]["model"]["d_ff"] = 65536


@pytest.mark.row("S-07")
@pytest.mark.parametrize("command", ["evaluate", "generate"])
@pytest.mark.parametrize("change", [_ask_for_terabytes, _ask_for_a_table, _ask_for_width])
def test_a_config_that_asks_for_a_larger_model_than_the_weights(
    run: Path, command: str, change: Callable[[dict[str, Any]], None]
) -> None:
    """Refused for its shapes, and in less memory than the smallest of these models takes."""
    path = run / "strange.pt"
    content = read_checkpoint(run / "last.pt")
    change(content)
    write_checkpoint(path, content)
    with memory_at_most(16 << 20):
        message = give(command, path)
    assert "weights do not fit the config" in message


@pytest.mark.row("S-08")
def test_links_in_a_run_are_neither_written_nor_deleted_through(run: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious", encoding="utf-8")
    for name in ("last.pt", "best.pt", "run.json", "config.yaml", "MANIFEST.json"):
        (run / name).unlink()
        (run / name).symlink_to(precious)
    (run / "step-000003.pt.tmp").symlink_to(precious)
    (run / "step-000000.pt").symlink_to(precious)
    resumed = infinito("resume", "run", "--max-steps", 4)
    assert resumed.code == 0, resumed.err
    assert precious.read_text(encoding="utf-8") == "precious"
    for name in ("last.pt", "run.json", "config.yaml", "MANIFEST.json"):
        assert not (run / name).is_symlink()


@pytest.mark.row("S-08")
@pytest.mark.parametrize("target", ["precious", "nothing"])
def test_a_log_that_is_a_link_is_refused(run: Path, tmp_path: Path, target: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text('{"step": 1}\n', encoding="utf-8")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / target)
    message = infinito("resume", "run", "--max-steps", 3).refused(6)
    assert "metrics.jsonl is a link" in message
    assert "already holds a run" in infinito(
        "train", "--config", "tiny.yaml", "--output-dir", "run"
    ).refused(6)  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    assert precious.read_text(encoding="utf-8") == '{"step": 1}\n'


@pytest.mark.row("S-08")
def test_hard_links_of_the_log_and_the_lock(run: Path, tmp_path: Path) -> None:
    """A copy made with `cp -al` shares its files: going on in it changes nothing of the first."""
    shared = tmp_path / "shared"
    os.link(run / "metrics.jsonl", shared)
    before = shared.read_bytes()
    assert infinito("resume", "run", "--max-steps", 3).code == 0
    assert shared.read_bytes() == before
    assert (run / "metrics.jsonl").read_bytes().startswith(before)
    shared.unlink()
    shared.write_text("precious", encoding="utf-8")
    (run / ".lock").unlink()
    os.link(shared, run / ".lock")
    assert ".lock is a hard link" in infinito("resume", "run", "--max-steps", 4).refused(6)
    assert shared.read_text(encoding="utf-8") == "precious"


@pytest.mark.row("S-11")
def test_no_secret_of_the_environment_reaches_files_or_output(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
        "WANDB_API_KEY": "0123456789abcdef0123456789abcdef",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCY",
        "USER": "someone-with-a-name",
        "LOGNAME": "someone-with-a-name",
        "UNRELATED": "an-environment-dump-would-hold-this",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    outcomes = [
        infinito("resume", "run", "--max-steps", 3),
        infinito("evaluate", "run", "--json"),
        infinito("generate", "run", "--prompt", "x", "--max-new-tokens", 2),
        infinito("runs", "run", "--json"),
        infinito("resume", "run", "--max-steps", 2, "--set", "model.d_model=1"),
    ]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0, 0, 2]
    told = "".join(outcome.out + outcome.err for outcome in outcomes).encode()
    found = b"".join([told, *all_files(run).values()])
    for value in secrets.values():
        assert value.encode() not in found
