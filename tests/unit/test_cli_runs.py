"""``infinito runs`` lists what the files say, damaged ones too, without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infinito.checkpoint.run_directory import RunDirectory
from infinito.cli.runs import runs
from infinito.errors import CheckpointError
from tests.checkpoint_support import make_content
from tests.support import ROOT
from tests.unit.test_cli_output import on_a_terminal


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two runs: one with an older best, a good last and a damaged file, one without checkpoints."""
    with RunDirectory.create(tmp_path / "one", "x", keep_last=3) as run:
        run.record_start(["infinito"], {})
        for step in (2, 4, 6):
            run.save(step, make_content(step), is_best=step == 2)
        data = bytearray((run.path / "step-000004.pt").read_bytes())
        data[len(data) // 2] ^= 4
        (run.path / "step-000004.pt").write_bytes(data)
        lines = [{"step": step, "loss": 10 - step} for step in (1, 2, 5)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.path / "metrics.jsonl").write_text(text + '{"step": 6, "lo')
    with RunDirectory.create(tmp_path / "two", "x") as run:
        run.record_start(["infinito"], {})
    return tmp_path


def test_json(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(directory, json=True)
    listed = {Path(run["run"]).name: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert listed["two"]["checkpoints"] == []
    first, damaged, last = listed["one"]["checkpoints"]
    assert (first["step"], first["loss"], first["best"], first["status"]) == (2, 8.0, True, "ok")
    assert (last["step"], last["loss"], last["last"], last["best"]) == (6, 5.0, True, False)
    assert last["valid_word_perplexity"] == 99.5
    assert last["epoch"] == 6 / 16
    assert last["bytes"] == (directory / "one" / "step-000006.pt").stat().st_size
    assert damaged["status"] == "damaged"
    assert "checksum" in damaged["reason"]


def test_text(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(directory / "one", json=False)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 5
    assert lines[0] == f"{directory / 'one'}: stopped"
    assert lines[2].startswith("step-000002.pt")
    assert "best" in lines[2]
    assert "damaged" in lines[3]
    assert "last" in lines[4]
    assert "99.50" in lines[4]
    assert "checksum" in printed.err
    runs(directory / "two", json=False)
    assert capsys.readouterr().out == f"{directory / 'two'}: stopped, no checkpoint yet\n"


def terminal_lines(run: Path, columns: str) -> list[str]:
    script = f"from infinito.cli.main import main; main(['runs', {str(run)!r}])"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(script, COLUMNS=columns))
    return [line.rstrip() for line in shown.splitlines()]


def test_on_a_terminal_a_checkpoint_is_one_line(directory: Path) -> None:
    long = directory.with_name("a-run-of-a-name-so-long-that-it-fills-the-line-all-by-itself")
    with RunDirectory.create(long, "x", keep_last=3) as run:
        values = {"step": 1234567, "valid_loss": 30.0, "valid_word_perplexity": 46659711409274448.0}
        run.save(1234567, make_content(1234567) | {"evaluations": [values]}, is_best=True)
    lines = terminal_lines(long, "80")
    assert lines[0] == f"{long}: stopped"
    assert max(map(len, lines[1:])) <= 80
    [row] = [line for line in lines if "step-1234567.pt" in line]
    assert row.split() == [
        "step-1234567.pt", "1234567", "77160.44", "-", "4.67e+16", *row.split()[5:7],
        "best", "last",
    ]  # fmt: skip


def test_a_narrow_terminal_gets_plain_lines(directory: Path) -> None:
    lines = terminal_lines(directory / "one", "20")
    assert max(map(len, lines[1:])) <= 20
    assert lines[1:].count("file: step-000002.pt") == 1
    for line in ("step: 6", "loss: 5.0000", "word ppl: 99.50", "status: damaged", "status: last"):
        assert line in lines


def test_a_run_in_use_is_running(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def states() -> dict[str, str]:
        runs(directory, json=True)
        listed = json.loads(capsys.readouterr().out)["runs"]
        return {Path(run["run"]).name: run["state"] for run in listed}

    with RunDirectory.open_existing(directory / "one", keep_last=3):
        assert states() == {"one": "running", "two": "stopped"}
        runs(directory / "one", json=False)
        assert capsys.readouterr().out.startswith(f"{directory / 'one'}: running\n")
    assert states() == {"one": "stopped", "two": "stopped"}
    # Killed: the name of the process is left in the file, and nobody holds it.
    (directory / "one" / ".lock").write_text("123\n")
    assert states() == {"one": "stopped", "two": "stopped"}
    (directory / "two" / ".lock").unlink()
    os.mkfifo(directory / "two" / ".lock")
    assert states() == {"one": "stopped", "two": "stopped"}


def test_a_best_whose_step_file_is_gone(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "one" / "step-000002.pt").unlink()
    runs(directory / "one", json=True)
    rows = json.loads(capsys.readouterr().out)["runs"][0]["checkpoints"]
    assert [(row["file"], row["best"]) for row in rows][-1] == ("best.pt", True)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        runs(tmp_path / "nowhere")


def test_torch_stays_out(directory: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from infinito.cli.runs import runs\n"
        "runs(Path(sys.argv[1]), json=True)\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(directory)], cwd=ROOT, capture_output=True
    )
    assert finished.returncode == 0
