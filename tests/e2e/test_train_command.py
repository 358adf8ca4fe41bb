"""``infinito train`` and ``resume`` as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.support import tiny_settings, write_text

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


Result = subprocess.CompletedProcess[str]


def infinito(*arguments: object, cwd: Path) -> Result:
    """Run the program as its own process."""
    command = [sys.executable, "-m", "infinito", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=120, check=False
    )


def write_config(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(tmp_path, **changes)))
    return path


def clean(result: Result, code: int) -> str:
    """An expected failure: its exit code, a short message, no traceback. Returns stderr."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    return result.stderr


def metrics(run: Path) -> list[dict[str, object]]:
    timing = {"seconds", "tokens_per_second", "memory_mb", "eta_seconds"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]


def test_train_writes_the_files_of_the_contract(tmp_path: Path) -> None:
    result = infinito("train", "--config", write_config(tmp_path), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    run = tmp_path / "run"
    names = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "MANIFEST.json",
        "last.pt",
        "best.pt",
    } <= names
    assert {"step-000004.pt", "step-000008.pt"} <= names
    fields = set().union(*(json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()))
    promised = "step epoch tokens loss learning_rate grad_norm tokens_per_second seconds memory_mb"
    assert {*promised.split(), "valid_loss", "valid_word_perplexity"} <= fields
    content = torch.load(run / "last.pt", weights_only=True)
    assert content["step"] == 8
    assert "\x1b[" not in result.stderr


@pytest.mark.row("R-01", "R-02", "R-12")
def test_resume_by_command_equals_the_unbroken_run(tmp_path: Path) -> None:
    config = write_config(tmp_path, model__dropout=0.1, output_dir="run")
    whole, part = tmp_path / "a", tmp_path / "b"
    whole.mkdir()
    part.mkdir()
    assert infinito("train", "--config", config, cwd=whole).returncode == 0
    assert infinito("train", "--config", config, "--max-steps", 8, cwd=part).returncode == 0
    # Rewind to step 4, twice, once by each command: later files are set aside, not deleted.
    for command in (["resume"], ["train", "--resume"]):
        result = infinito(*command, "run/step-000004.pt", cwd=part)
        assert result.returncode == 0, result.stderr
        assert "set aside" in result.stderr
    contents = [torch.load(at / "run" / "last.pt", weights_only=True) for at in (whole, part)]
    for content in contents:
        del content["config"]["output_dir"]
    first, second = (at / "x.pt" for at in (whole, part))
    for path, content in zip((first, second), contents, strict=True):
        torch.save(content, path.open("wb"))
    assert contents[0].keys() == contents[1].keys()
    for name, weight in contents[0]["model"].items():
        assert torch.equal(weight, contents[1]["model"][name]), name
    assert contents[0]["evaluations"] == contents[1]["evaluations"]
    assert metrics(whole / "run") == metrics(part / "run")


@pytest.mark.row("C-02")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_names_the_resume_command(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    config = write_config(tmp_path, training__max_steps=100000, training__save_every=0)
    command = [sys.executable, "-m", "infinito", "train", "--config", str(config)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE
    ) as process:
        metrics_file = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics_file.exists() and metrics_file.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "infinito resume" in stderr
    assert not list((tmp_path / "run").glob("*.tmp"))
    step = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"]
    assert f"step {step}" in stderr
    resumed = infinito("resume", "run", "--max-steps", step + 2, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.row("R-04", "R-06", "R-10")
def test_overrides_are_shown_and_shapes_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert infinito("train", "--config", config, cwd=tmp_path).returncode == 0
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    refused = infinito("resume", "run", "--set", "model.d_model=64", cwd=tmp_path)
    message = clean(refused, 4)
    assert "model.d_model" in message
    assert "32" in message
    assert "64" in message
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == before
    done = infinito("resume", "run", cwd=tmp_path)
    assert done.returncode == 0
    assert "already at step 8" in done.stderr
    longer = infinito(
        "resume", "run", "--max-steps", 12, "--lr", "5e-5", "--batch-size", 8, cwd=tmp_path
    )
    assert longer.returncode == 0, longer.stderr
    assert "training.learning_rate: 0.001 -> 5e-05" in longer.stderr
    assert "training.batch_size: 4 -> 8" in longer.stderr
    assert "learning rate" in longer.stderr
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert content["sequences"] == 8 * 4 + 4 * 8


@pytest.mark.row("R-10")
def test_the_rates_of_both_optimizers_are_told(tmp_path: Path) -> None:
    config = write_config(tmp_path, training__optimizer="muon", training__max_steps=4)
    first = infinito("train", "--config", config, "--lr", "0.002", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "peak rate 0.002, of the matrices 0.04" in first.stderr
    again = infinito("resume", "run", "--max-steps", 6, "--lr", "5e-4", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "training.learning_rate: 0.002 -> 0.0005" in again.stderr
    assert "training.muon_learning_rate: 0.04 -> 0.01" in again.stderr
    table = again.stderr.partition("learning rate  ")[2].partition("data:")[0]
    assert "of the matrices" in table
    adamw, muon = table.split("of the matrices")
    pairs = zip(adamw.splitlines()[1:3], muon.splitlines()[1:3], strict=True)
    for rest, matrices in pairs:
        assert float(matrices.split()[-1]) == pytest.approx(20 * float(rest.split()[-1]), rel=2e-3)


def test_what_there_is_to_note_of_the_data_is_said_on_resume_too(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the very same line of text .\n" * 400)
    config = write_config(tmp_path)
    first = infinito("train", "--config", config, cwd=tmp_path)
    again = infinito("resume", "run", "--max-steps", 10, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for words in ("is held out for it", "of the validation text"):
        assert words in first.stderr
        assert words in again.stderr


@pytest.mark.row("R-09")
def test_changed_text_is_refused_unless_allowed(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert infinito("train", "--config", config, cwd=tmp_path).returncode == 0
    write_text(tmp_path / "text.txt", seed=5)
    message = clean(infinito("resume", "run", "--max-steps", 10, cwd=tmp_path), 3)
    assert "--allow-data-change" in message
    allowed = infinito("resume", "run", "--max-steps", 10, "--allow-data-change", cwd=tmp_path)
    assert allowed.returncode == 0, allowed.stderr


def test_a_copied_checkpoint_goes_on_alone_and_elsewhere(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert infinito("train", "--config", config, cwd=tmp_path).returncode == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "mine.pt").write_bytes((tmp_path / "run" / "step-000004.pt").read_bytes())
    result = infinito("resume", alone / "mine.pt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (alone / "step-000008.pt").exists()
    other = infinito("resume", "run", "--output-dir", "other", "--max-steps", 10, cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert [line["step"] for line in metrics(tmp_path / "other")][-1] == 10
    assert [line["step"] for line in metrics(tmp_path / "run")][-1] == 8


@pytest.mark.row("K-01", "K-06", "D-01")
def test_bad_starts_leave_nothing_behind(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    run = tmp_path / "run"
    clean(infinito("train", cwd=tmp_path), 2)
    clean(infinito("train", "--config", config, "--lr", "-1", cwd=tmp_path), 2)
    assert "model.n_layers" in clean(
        infinito("train", "--config", config, "--set", "model.n_layer=3", cwd=tmp_path), 2
    )
    setting = ["train", "--config", config, "--set"]
    assert "no.txt" in clean(infinito(*setting, "data.train_file=no.txt", cwd=tmp_path), 3)
    clean(infinito(*setting, "data.sequence_length=60000", cwd=tmp_path), 3)
    clean(infinito("resume", "nothing.pt", cwd=tmp_path), 4)
    below = tmp_path / "file"
    below.write_text("x")
    clean(infinito("train", "--config", config, "--output-dir", below / "run", cwd=tmp_path), 6)
    assert not run.exists()
    no_name = infinito(
        "train", "--config", config, "--set", "output_dir=null", "--lr", "nan", cwd=tmp_path
    )
    clean(no_name, 2)
    unnamed = infinito(
        "train", "--config", config, "--set", "output_dir=null",
        "--set", "data.train_file=no.txt", cwd=tmp_path,
    )  # fmt: skip
    clean(unnamed, 3)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.row("C-10")
def test_divergence_stops_with_five_and_names_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = write_config(tmp_path, training__max_grad_norm=0.0, training__warmup_steps=0)
    assert infinito("train", "--config", config, cwd=tmp_path).returncode == 0
    result = infinito("resume", "run", "--max-steps", 60, "--lr", "1e30", cwd=tmp_path)
    message = clean(result, 5)
    assert "step-" in message
    for path in (tmp_path / "run").glob("step-*.pt"):
        weights = torch.load(path, weights_only=True)["model"].values()
        assert all(bool(w.isfinite().all()) for w in weights)


def test_dry_run_tells_and_writes_nothing(tmp_path: Path) -> None:
    result = infinito("train", "--config", write_config(tmp_path), "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("tokens", "steps:", "parameters", "memory:", "time:", "nothing was written"):
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.row("C-09")
def test_two_runs_in_one_directory_are_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert infinito("train", "--config", config, cwd=tmp_path).returncode == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert "infinito resume" in clean(infinito("train", "--config", config, cwd=tmp_path), 6)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


@pytest.mark.row("R-08")
def test_early_stopping_ends_at_the_same_evaluation_after_a_resume(tmp_path: Path) -> None:
    """R-08: a learning rate that ruins the model makes every later evaluation a bad one."""
    changes = {
        "training__max_steps": 60, "training__eval_every": 2,
        "training__early_stopping_patience": 3,
        "training__learning_rate": 3.0, "training__warmup_steps": 8, "training__keep_last": 50,
        "training__save_every": 2,
    }  # fmt: skip
    config = write_config(tmp_path, **changes)
    first = infinito("train", "--config", config, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "early stopping" in first.stderr
    run = tmp_path / "run"
    end = torch.load(run / "last.pt", weights_only=True)
    assert end["step"] < 60
    earlier = run / f"step-{end['step'] - 2:06d}.pt"
    again = infinito("resume", earlier, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    resumed = torch.load(run / "last.pt", weights_only=True)
    assert resumed["step"] == end["step"]
    assert resumed["best"] == end["best"]
    assert resumed["evaluations"] == end["evaluations"]
