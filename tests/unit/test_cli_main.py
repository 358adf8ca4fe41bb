"""The frame of the program: exit codes, messages, closed streams, and what is not imported."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from infinito.cli import main as program
from infinito.cli.main import Command, build_app, main
from infinito.errors import DataError, Interrupted
from tests.support import ROOT, tiny_settings

INFINITO = [sys.executable, "-m", "infinito"]
# Buffered, as for users: what is left in the buffer at the end is what these tests are about.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*INFINITO, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options,
    )  # type: ignore[call-overload,no-any-return]  # fmt: skip


def raising(error: BaseException) -> Callable[[], None]:
    def boom() -> None:
        raise error

    return boom


def outcome_of(
    function: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[int, str, str]:
    monkeypatch.setattr(program, "app", build_app([Command("boom", function)]))
    code = main(["boom"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.row("K-06")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "error: No such command 'trian'."),
        (["config", "shwo"], "Did you mean 'show'?\nhelp: infinito config --help"),
        (["config", "show", "--confg", "x"], "error: No such option: --confg"),
        (["config", "show", "--set"], "error: Option '--set' requires an argument."),
        (
            ["config", "validate"],
            "error: there is no file to check\nhelp: infinito config validate",
        ),
        (["config", "show", "extra"], "extra"),
        (
            ["config", "show", "--config", "none.yaml"],
            "cannot read the config none.yaml: No such file",
        ),
        ([], "infinito train --data YOUR.txt"),
        (["config"], "Usage: infinito config"),
    ],
)
def test_usage_errors_are_short_and_exit_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (DataError("no text in x", "name a file"), 3, "error: no text in x\nhelp: name a file\n"),
        (DataError("no text"), 3, "error: no text\n"),
        (
            Interrupted("stopped at step 3", "resume x", 15),
            143,
            "stopped at step 3\nhelp: resume x\n",
        ),
        (
            MemoryError(),
            6,
            "error: out of memory: the request was refused\nhelp: lower training.batch",
        ),
        (
            RuntimeError("[enforce] can't allocate memory: 9 bytes"),
            6,
            "error: out of memory: [enforce",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "a.pt"), 6, "error: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "a.pt"), 6, "denied (a.pt)\nhelp: "),
        (OSError(errno.EROFS, "Read-only file system"), 6, "error: Read-only file system\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (BrokenPipeError(), 0, ""),
        (typer.Exit(4), 4, ""),
        (EOFError(), 130, "\ninterrupted\n"),
    ],
)
def test_expected_failures(
    error: BaseException,
    code: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(program, "discard", lambda stream: None)
    found, out, err = outcome_of(raising(error), monkeypatch, capsys)
    assert (found, out) == (code, "")
    assert expected in err if expected else err == ""
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "error", [ValueError("oops"), RuntimeError("oops"), FileNotFoundError(errno.ENOENT, "oops")]
)
def test_a_bug_shows_its_traceback_and_exits_1(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = outcome_of(raising(error), monkeypatch, capsys)
    assert code == 1
    assert err.startswith("Traceback")
    assert "oops" in err
    assert "this is a bug in infinito" in err


def test_an_alias_works_and_is_not_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate() -> None:
        """Evaluate."""
        print("evaluated")

    table = [Command("evaluate", evaluate), Command("eval", evaluate, hidden=True)]
    monkeypatch.setattr(program, "app", build_app(table))
    assert main(["eval"]) == main(["evaluate"]) == 0
    assert capsys.readouterr().out == "evaluated\n" * 2
    assert main(["--help"]) == 0
    assert "  eval " not in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="asks as bash does")
def test_keys_are_completed() -> None:
    words = "infinito config show --set training.le"
    environment = os.environ | {
        "_INFINITO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"
    }  # fmt: skip
    assert run(env=environment).stdout.split() == ["training.learning_rate="]


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        assert main([flag]) == 0
        out = capsys.readouterr().out
        assert out.startswith("Usage: infinito")
        assert out.isascii()
        assert "\x1b" not in out
        for command in program.COMMANDS:
            assert (f"  {command.name} " in out) is not command.hidden
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("infinito ")


def test_help_and_a_refused_config_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("seeed: 3\n", encoding="utf-8")
    script = (
        "import sys; from infinito.cli.main import main; code = main(sys.argv[1:]);"
        "print([m for m in ('torch','numpy','datasets','tokenizers','matplotlib','rich',"
        "'infinito.config.schema')"
        " if m in sys.modules], code)"
    )
    for arguments, expected in (
        (["--help"], "[] 0"),
        (["config", "--help"], "[] 0"),
        (
            ["config", "show", "--config", str(tmp_path / "bad.yaml")],
            "['infinito.config.schema'] 2",
        ),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True, text=True, timeout=60, check=True, cwd=ROOT,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == expected


def with_deaf(streams: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run with ``streams`` (of "out", "err", "out err") going to a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        return subprocess.run(
            [*INFINITO, *arguments],
            stdout=write_end if "out" in streams else subprocess.PIPE,
            stderr=write_end if "err" in streams else subprocess.PIPE,
            cwd=ROOT, text=True, timeout=60, check=False, env=ENVIRONMENT,
        )  # fmt: skip
    finally:
        os.close(write_end)


@pytest.mark.row("C-18")
@pytest.mark.parametrize("streams", ["out", "err", "out err"])
@pytest.mark.parametrize("command", ["config init", "--version", "--help", "config show"])
def test_a_reader_that_left_is_no_failure(command: str, streams: str) -> None:
    done = with_deaf(streams, *command.split())
    assert done.returncode == 0
    assert not done.stderr
    assert done.stdout if streams == "err" else not done.stdout


@pytest.mark.row("C-18")
@pytest.mark.parametrize("streams", ["out", "err", "out err"])
def test_an_error_that_nobody_reads_keeps_its_code(streams: str) -> None:
    done = with_deaf(streams, "nonsense")
    assert done.returncode == 2
    assert not done.stdout
    assert "Exception ignored" not in (done.stderr or "")


@pytest.mark.slow
@pytest.mark.row("C-18")
def test_training_goes_on_when_nobody_reads_its_lines(tmp_path: Path) -> None:
    """`infinito train ... 2>&1 | head` must not end a run in the middle, and with exit code 0."""
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(tiny_settings(tmp_path, training__log_every=1)), encoding="utf-8")
    with subprocess.Popen(
        [*INFINITO, "train", "--config", str(path)],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=240) == 0
    assert (tmp_path / "run" / "step-000008.pt").exists()


def in_shell(command: str, redirection: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m infinito {command} {redirection}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.row("C-18")
@pytest.mark.skipif(os.name == "nt", reason="closes descriptors with a POSIX shell")
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors(redirection: str) -> None:
    good, bad = in_shell("config init", redirection), in_shell("nonsense", redirection)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout.startswith("#") if redirection == "2>&-" else good.stdout == ""
    assert (bad.returncode, bad.stdout) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["config init", "--version"])
def test_a_full_disk_behind_stdout_is_a_resource_error(command: str) -> None:
    done = in_shell(command, "> /dev/full")
    assert done.returncode == 6
    assert done.stderr.startswith("error: No space left on device (standard output)\nhelp: ")
    assert len(done.stderr.splitlines()) == 2
    assert in_shell("nonsense", "2> /dev/full").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_failure_keeps_its_code_when_earlier_output_is_lost(tmp_path: Path) -> None:
    assert main(["config", "init", str(tmp_path / "good.yaml")]) == 0
    done = in_shell(f"config validate '{tmp_path}/good.yaml' none.yaml", "> /dev/full")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2


def test_output_that_the_terminal_cannot_encode_is_escaped() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run("config", "show", "--set", "data.text_field=地", env=environment)
    assert done.returncode == 0
    assert "text_field: \\u5730" in done.stdout


def test_config_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, worse = (tmp_path / name for name in ("good.yaml", "bad.yaml", "worse.yaml"))
    assert main(["config", "init", str(good)]) == 0
    assert f"wrote {good}" in capsys.readouterr().err
    bad.write_text("seed: x\n", encoding="utf-8")
    worse.write_text("seed: [\n", encoding="utf-8")

    assert main(["config", "validate", str(good)]) == 0
    assert capsys.readouterr().out == f"{good}: ok\n"
    assert main(["config", "validate", str(bad), str(good), str(worse)]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"{good}: ok\n"
    assert f"{bad}:1: seed = 'x'" in captured.err
    assert f"{worse}:2: " in captured.err

    for given in (["--config", str(good)], [str(good)], [str(good), "--config", str(good)]):
        assert main(["config", "show", *given, "--set", "seed=9"]) == 0
        assert capsys.readouterr().out.startswith("seed: 9\n")
        assert main(["config", "validate", *given]) == 0
        assert capsys.readouterr().out == f"{good}: ok\n"
    assert main(["config", "show", str(good), "--config", str(bad)]) == 2
    assert f"two configs were given: {good} and --config {bad}" in capsys.readouterr().err
    assert main(["config", "validate", str(good), "--config", str(bad)]) == 2
    captured = capsys.readouterr()
    assert (captured.out, f"{bad}:1: seed = 'x'" in captured.err) == (f"{good}: ok\n", True)
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["seed"]["minimum"] == 0
    assert main(["config", "init"]) == 0
    assert capsys.readouterr().out == good.read_text(encoding="utf-8")


def test_config_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious", encoding="utf-8")
    assert main(["config", "init", str(path)]) == 6
    assert path.read_text(encoding="utf-8") == "precious"
    assert main(["config", "init", str(tmp_path / "no" / "x.yaml")]) == 6
    assert main(["config", "init", str(path / "x.yaml")]) == 6
    assert main(["config", "init", str(tmp_path)]) == 6
    assert "Traceback" not in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.yaml"]


def test_doctor_names_every_fact_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    names = [finding["name"] for finding in findings]
    assert len(set(names)) == len(names)
    for wanted in (
        "device",
        "precision",
        "dtype bfloat16",
        "torch attention",
        "attention cpu",
        "decode step torch",
        "memory",
        "disk",
    ):
        assert wanted in names
    for wanted in ("threads", "C++ compiler", "python", "torch", "datasets", "extra tensorboard"):
        assert wanted in names
    assert all(finding["value"] and finding["reason"] for finding in findings)
    assert all(f["remedy"] for f in findings if f["value"] in ("missing", "none"))

    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(findings) + 1
    assert lines[0].split() == ["what", "value", "reason", "remedy"]
