"""``infinito runs`` lists what the files say, damaged ones too, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infinito.checkpoint.run_directory import RunDirectory
from infinito.cli.runs import runs
from infinito.errors import CheckpointError
from tests.checkpoint_support import make_content
from tests.support import ROOT


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
    assert len(lines) == 4
    assert "step-000002.pt" in lines[1]
    assert "best" in lines[1]
    assert "damaged" in lines[2]
    assert "last" in lines[3]
    assert "99.50" in lines[3]
    assert "checksum" in printed.err


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
