"""``infinito data prepare|info|clean``: what they print, and that stdout is the result only."""

import json
from pathlib import Path

import pytest

from infinito.cli import data, main
from tests.support import write_text


@pytest.fixture(autouse=True)
def only_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(main, "app", main.build_app([main.Command("data", data.app)]))


def settings(tmp_path: Path) -> list[str]:
    text = write_text(tmp_path / "text.txt")
    values = [f"data.train_file={text}", "data.sequence_length=8", "tokenizer.vocab_size=300"]
    return [part for value in values for part in ("--set", value)]


def test_prepare_info_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["data", "prepare", *settings(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("split  tokens")
    assert "tokenizer: bpe, vocabulary" in printed.out
    assert f"cache: {tmp_path / 'cache'}" in printed.out
    assert "seconds: " in printed.out
    assert "a tenth of" in printed.err
    assert main.main(["data", "prepare", "--json", *settings(tmp_path)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["splits"]["train"]["cached"] is True
    assert summary["splits"]["train"]["bytes"] > 1000

    assert main.main(["data", "info", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["kind"] for entry in listed["entries"]} >= {"tokens", "tokenizer", "overlap"}
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert listed["bytes"] == sum(path.stat().st_size for path in files)
    assert len(listed["entries"]) == len(files)
    assert main.main(["data", "info"]) == 0
    assert "tokens of" in capsys.readouterr().out

    assert main.main(["data", "clean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == listed["bytes"]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert main.main(["data", "clean"]) == 0
    assert "bytes freed: 0" in capsys.readouterr().out
    assert main.main(["data", "info"]) == 0
    assert "entries: 0" in capsys.readouterr().out


def test_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["data", "prepare", "--set", f"data.train_file={tmp_path / 'none'}"]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "none does not exist" in printed.err
    assert "Traceback" not in printed.err
    short = [*settings(tmp_path), "--set", "data.sequence_length=60000"]
    assert main.main(["data", "prepare", *short]) == 3
    assert "a sequence needs 60001" in capsys.readouterr().err


def test_info_names_damaged_and_unfinished_entries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "cache" / "tokens"
    tokens.mkdir(parents=True)
    (tokens / "a.tokens").write_bytes(b"nonsense" * 9)
    (tokens / "b.tmp").write_bytes(b"x")
    assert main.main(["data", "info"]) == 0
    printed = capsys.readouterr().out
    assert "damaged" in printed
    assert "unfinished" in printed
    assert main.main(["data", "clean"]) == 0
    assert not list(tokens.iterdir())


def test_preparing_without_a_cache_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert main.main(["data", "prepare", *settings(tmp_path)]) == 6
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "cannot write the data cache" in printed.err
