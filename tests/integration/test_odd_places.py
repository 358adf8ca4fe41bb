"""Names that no file can have, empty names and links to nowhere: refused by name, nothing made."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests.command_support import all_files, infinito, write_config

LONG = "x" * 300


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    assert infinito("train", "--config", write_config(place)).code == 0
    return place


@pytest.fixture
def place(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("train --config tiny.yaml --output-dir NAME", 6),
        ("train --config tiny.yaml --output-dir NAME/run", 6),
        ("train --config tiny.yaml --output-dir other --set data.train_file=NAME", 3),
        ("train --config NAME", 2),
        ("resume NAME", 4),
        ("resume run --max-steps 12 --output-dir NAME", 6),
        ("evaluate NAME", 4),
        ("evaluate run --text NAME", 3),
        ("generate NAME --prompt x", 4),
        ("generate run --prompt-file NAME", 3),
        ("analyze run --samples 1 --output-dir NAME", 6),
        ("fit-lambda run --output NAME", 6),
        ("runs NAME", 4),
        ("config init NAME", 6),
        ("config validate NAME", 2),
    ],
)
def test_a_name_longer_than_the_file_system_takes(place: Path, command: str, code: int) -> None:
    before = all_files(place)
    message = infinito(*command.replace("NAME", LONG).split()).refused(code)
    assert LONG in message
    assert "space" not in message
    assert "valid loss" not in message  # refused before anything slow
    assert all_files(place) == before
    assert {path.name for path in place.iterdir()} == {"run", "text.txt", "tiny.yaml"}


def test_a_cache_of_such_a_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITO_CACHE", str(place / LONG))
    for command in ("info", "clean"):
        assert LONG in infinito("data", command).refused(6)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("train --config tiny.yaml --output-dir", 2),
        ("resume run --max-steps 12 --output-dir", 2),
        ("analyze run --samples 1 --output-dir", 2),
        ("resume", 4),
        ("evaluate", 4),
    ],
)
def test_an_empty_name_is_not_the_working_directory(place: Path, command: str, code: int) -> None:
    """What a shell makes of ``"$DIRECTORY"`` where that is not set."""
    before = all_files(place)
    infinito(*command.split(), "").refused(code)
    assert all_files(place) == before


@pytest.mark.parametrize("target", ["link", "link/run"])
def test_a_link_to_nowhere_is_told_as_one(tmp_path: Path, target: str) -> None:
    config, nowhere = write_config(tmp_path), tmp_path / "nowhere"
    (tmp_path / "link").symlink_to(nowhere)
    message = infinito("train", "--config", config, "--output-dir", tmp_path / target).refused(6)
    assert f"{tmp_path / 'link'} is a link to {nowhere}, which is not there" in message
    assert "exists" not in message
    assert not nowhere.exists()
    nowhere.mkdir()
    done = infinito("train", "--config", config, "--output-dir", tmp_path / target)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("train --config tiny.yaml --output-dir new", "new/run.json"),
        ("config init new.yaml", "new.yaml"),
        ("fit-lambda run --max-steps 1 --output new.pt", "new.pt"),
        ("analyze run --samples 1 --output-dir new", "new/attention.json"),
    ],
)
def test_a_disk_that_takes_no_byte_is_told_by_the_name_of_the_file(
    place: Path, command: str, named: str
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        message = infinito(*command.split()).refused(6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{named}: File too large" in message
    assert not (place / "new" / ".lock").exists()
    assert not (place / named).exists()
