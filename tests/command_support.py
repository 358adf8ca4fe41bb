"""Commands run in this process, as the program's own entry point runs them, and what they leave."""

from __future__ import annotations

import contextlib
import io
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from infinito.cli.main import main
from infinito.telemetry.sinks import JsonLines
from tests.support import tiny_settings

TIMING_FIELDS = {"seconds", "tokens_per_second", "memory_mb", "eta_seconds"}


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    def refused(self, code: int) -> str:
        """An expected failure: its exit code, a short message, no traceback. Returns stderr."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        assert "error: " in self.err
        assert "weights_only" not in self.err
        return self.err


@contextlib.contextmanager
def memory_at_most(n_bytes: int) -> Iterator[None]:
    """Let this process take ``n_bytes`` more of address space than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def infinito(*arguments: object) -> Outcome:
    """Run a command here: the same code as the program, without a second import of torch."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, arguments)))
    return Outcome(code, out.getvalue(), err.getvalue())


def write_config(place: Path, **changes: object) -> Path:
    """A tiny run in ``place``/run that logs every step."""
    settings = tiny_settings(place, **{"training__log_every": 1, **changes})
    path = place / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Call ``action`` once, after ``step`` was logged and before it is saved."""
    real, done = JsonLines.write, list[int]()

    def write(sink: JsonLines, record: Any) -> None:
        real(sink, record)
        if record["step"] == step and not done:
            done.append(step)
            action()

    monkeypatch.setattr(JsonLines, "write", write)


def result_files(run: Path) -> dict[str, bytes]:
    """What equal runs have in common, byte for byte."""
    return {path.name: path.read_bytes() for path in [*run.glob("*.pt"), run / "MANIFEST.json"]}


def all_files(directory: Path) -> dict[str, bytes]:
    """Every file below ``directory`` but the lock, which names the last process."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics without what depends on speed."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in TIMING_FIELDS} for x in lines]


def flip(path: Path, position: int | None = None) -> None:
    """Flip a bit of a file, of its middle byte unless told; its hard links keep the good bytes."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.unlink()
    path.write_bytes(data)
