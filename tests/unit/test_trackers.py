"""Other programs' records of a run: one record however often it was resumed, no step twice."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infinito.config.loading import config_from_plain, load_config, to_plain
from infinito.errors import ConfigError
from infinito.runtime.events import Metrics
from infinito.telemetry.trackers import TensorBoard
from tests.command_support import infinito, write_config
from tests.support import tiny_settings


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not find_spec(package), reason=f"{package} is not installed")


class FakeTracker:
    """Stands in for wandb and trackio: what was logged, by run, in order."""

    def __init__(self) -> None:
        self.runs: dict[str, list[int]] = {}
        self.logged: dict[str, float] = {}
        self.finished = 0

    def init(self, name: str, resume: str, id: str | None = None, **_: Any) -> Any:
        print("a line for people")
        assert resume == "allow"
        steps = self.runs.setdefault(id or name, [])

        def log(metrics: dict[str, float], step: int) -> None:
            steps.append(step)
            self.logged = metrics

        return SimpleNamespace(log=log)

    def finish(self) -> None:
        print("a line for people")
        self.finished += 1

    def Settings(self, **_: Any) -> None:  # noqa: N802 - as wandb calls it
        pass


@pytest.fixture
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    """In the place of the package that a test names, of trackio unless told."""
    package = getattr(request, "param", "trackio")
    fake = FakeTracker()
    fake.errors = SimpleNamespace(Error=RuntimeError)  # type: ignore[attr-defined]
    fake.name = package  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package, fake)  # type: ignore[arg-type]
    return fake


def train(place: Path, tracker: str, *more: object) -> None:
    done = infinito(
        "train", "--config", write_config(place), "--set", f"training.tracker={tracker}", *more
    )
    assert (done.code, done.out) == (0, ""), done.err


def resume(run: Path, *more: object) -> str:
    done = infinito("resume", run, *more)
    assert (done.code, done.out) == (0, ""), done.err
    return done.err


@pytest.mark.parametrize("fake", ["wandb", "trackio"], indirect=True)
def test_a_rewound_run_goes_on_in_its_record_and_repeats_no_step(fake: Any, tmp_path: Path) -> None:
    train(tmp_path, fake.name)
    run = tmp_path / "run"
    said = resume(run / "step-000004.pt", "--max-steps", "10")
    assert f"{fake.name}: steps up to 8 are recorded already" in said
    assert list(fake.runs.values()) == [list(range(1, 11))]
    assert fake.finished == 2
    assert {"loss", "valid_loss", "learning_rate"} <= fake.logged.keys()
    assert all(type(value) is float for value in fake.logged.values())


def test_a_record_that_begins_late_gets_the_lines_before(fake: Any, tmp_path: Path) -> None:
    train(tmp_path, "none")
    resume(tmp_path / "run", "--max-steps", "10", "--set", f"training.tracker={fake.name}")
    assert list(fake.runs.values()) == [list(range(1, 11))]


def test_a_run_that_goes_on_elsewhere_has_a_record_of_its_own(fake: Any, tmp_path: Path) -> None:
    train(tmp_path, fake.name)
    resume(tmp_path / "run" / "step-000004.pt", "--output-dir", tmp_path / "fork")
    assert list(fake.runs.values()) == [list(range(1, 9))] * 2


@pytest.mark.parametrize("text", ["[]", '{"tracker": "trackio", "step": "9"}'])
def test_a_damaged_note_of_the_record_begins_a_new_one(
    fake: Any, tmp_path: Path, text: str
) -> None:
    train(tmp_path, fake.name)
    (tmp_path / "run" / "tracker.json").write_text(text)
    resume(tmp_path / "run", "--max-steps", "9")
    assert list(fake.runs.values()) == [list(range(1, 9)), list(range(1, 10))]


def test_no_checkpoint_knows_of_the_record(fake: Any, tmp_path: Path) -> None:
    contents = []
    for name in (fake.name, "none"):
        train(tmp_path, name)
        content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
        assert content["config"]["training"].pop("tracker") == name
        contents.append(content)
        shutil.rmtree(tmp_path / "run")
    assert str(contents[0]) == str(contents[1])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_without_its_package_the_extra_is_named_and_nothing_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    done = infinito(
        "train", "--config", write_config(tmp_path), "--set", f"training.tracker={name}"
    )
    assert f'pip install "infinito[{name}]"' in done.refused(2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fake", ["wandb"], indirect=True)
def test_a_login_that_is_missing_is_told(tmp_path: Path, fake: Any) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("No API key configured.")

    fake.init = refuse
    config = write_config(tmp_path)
    done = infinito("train", "--config", config, "--set", "training.tracker=wandb")
    assert "WANDB_MODE=offline" in done.refused(2)


def test_a_config_of_before_names_its_tracker(tmp_path: Path) -> None:
    plain = to_plain(load_config(None))
    del plain["training"]["tracker"]
    for old, new in ((True, "tensorboard"), (False, "none")):
        plain["training"]["tensorboard"] = old
        assert config_from_plain(plain, "old").training.tracker == new
    path = tmp_path / "old.yaml"
    path.write_text(json.dumps(tiny_settings(tmp_path, training__tensorboard=True)))
    assert load_config(path).training.tracker == "tensorboard"
    plain["training"]["tensorboard"] = 3
    with pytest.raises(ConfigError, match=r"training\.tensorboard"):
        config_from_plain(plain, "old")


@needs("trackio")
def test_trackio_keeps_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "records")
    train(tmp_path, "trackio")
    resume(tmp_path / "run" / "step-000004.pt", "--max-steps", "10")
    [file] = (tmp_path / "records").glob("*.db")
    rows = sqlite3.connect(file).execute("select run_name, step from metrics order by step")
    found = rows.fetchall()
    assert [step for _, step in found] == list(range(1, 11))
    assert len({name for name, _ in found}) == 1


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind the seven bytes that W&B begins its files with."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7 and left:  # a block's end too small for a header
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


@needs("wandb")
def test_wandb_offline_keeps_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    train(tmp_path, "wandb")
    resume(tmp_path / "run" / "step-000004.pt", "--max-steps", "10")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1  # the record's id
    steps = []
    for file in files:
        for data in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                steps.append(record.history.step.num)
    assert steps == list(range(1, 11))


@needs("tensorboard")
def test_tensorboard_shows_one_point_a_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, "tensorboard")
    resume(tmp_path / "run" / "step-000004.pt", "--max-steps", "10")
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    assert [point.step for point in read.Scalars("loss")] == list(range(1, 11))


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("is_noticed", [True, False])
def test_tensorboard_goes_on_where_its_directory_was_deleted(
    tmp_path: Path, is_noticed: bool
) -> None:
    sink = TensorBoard(tmp_path / "run", 0, {})
    sink(Metrics({"step": 20, "loss": 2.5}))
    sink._writer.flush()
    shutil.rmtree(tmp_path / "run")
    if is_noticed:  # by the thread that writes, at the end of its two minutes
        sink._writer.add_scalar("loss", 1.0, 21)
        with pytest.raises(FileNotFoundError):
            sink._writer.flush()
    sink(Metrics({"step": 40, "loss": 2.0}))
    sink.close()
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
