"""Several processes train one model as one does: row X-04, signals, deaths, other numbers.

Each start of a process imports torch, so three starts hold all of it; what one process does is
the reference, and runs here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command_support import infinito, read_log, write_config
from tests.support import ROOT

# Muon and, for the rest, AdamW; every kind of dropout; parts of a step that two do not divide.
# Orthogonalisation in bfloat16 makes much of rounding: its rate is small here, and its momentum,
# a sum of gradients, says whether it had the right ones.
CONFIG: dict[str, Any] = {
    "model__dropout": 0.2, "model__attention_dropout": 0.2, "model__word_dropout": 0.1,
    "model__attention": {"kind": "l1", "learnable_lambda": True},
    "training__optimizer": "muon", "training__muon_learning_rate": 5e-6,
    "training__learning_rate": 3e-4, "training__schedule": "constant",
    "training__batch_size": 5, "training__gradient_accumulation_steps": 2,
    "training__eval_every": 20, "training__save_every": 20, "training__keep_last": 1000,
}  # fmt: skip


#: Seconds, for what ends by itself: only a hang may fail, on however busy a machine.
PATIENCE = 500


def command(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "infinito", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rank(process: subprocess.Popen[str], number: int) -> int:
    """The process id of a rank: the launcher starts them in order."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(found[number])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def lines_of(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_text(encoding="utf-8").count("\n") if log.exists() else 0


def agree(run: Path, reference: Path, step: int) -> None:
    """Everything but ``output_dir`` and the strategy is that of one process, up to rounding."""
    one, two = (
        torch.load(at / f"step-{step:06d}.pt", weights_only=True) for at in (reference, run)
    )
    assert one.keys() == two.keys()
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=0, atol=1e-4)
    for name, fields in one["optimizers"].items():
        for field, tensor in fields.items():
            torch.testing.assert_close(two["optimizers"][name][field], tensor, rtol=0, atol=1e-5)
    assert torch.equal(one["random"]["torch"], two["random"]["torch"])
    assert (one["step"], one["tokens"], one["sequences"]) == (
        two["step"], two["tokens"], two["sequences"]
    )  # fmt: skip
    for ours, theirs in zip(read_log(reference), read_log(run), strict=True):
        assert ours.keys() >= theirs.keys()  # a run that ends is evaluated, one that stops is not
        for name in theirs.keys() & {"step", "tokens", "loss", "grad_norm", "valid_loss"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), (ours["step"], name)


@pytest.mark.row("X-04", "C-02")
def test_two_processes_are_stopped_and_go_on_as_four_and_as_one(tmp_path: Path) -> None:
    config, run = write_config(tmp_path, **CONFIG), tmp_path / "run"
    two = command("train", "--config", config, "--nproc", 2, "--max-steps", 100_000)
    wait_for(lambda: lines_of(run) >= 50, two)
    os.kill(rank(two, 1), signal.SIGTERM)
    out, err = two.communicate(timeout=PATIENCE)
    assert two.returncode == 143, err
    assert out == ""
    assert err.count("everything is saved") == 1
    assert err.count("infinito resume ") == 1
    assert "--nproc 2" in err
    step = len(read_log(run))
    assert (run / f"step-{step:06d}.pt").exists()
    assert not list(run.glob("*.tmp"))

    lone = tmp_path / "lone"
    arguments = ("--config", config, "--output-dir", lone, "--max-steps", step)
    assert infinito("train", *arguments).code == 0
    agree(run, lone, step)

    end, one, four = step + 6, tmp_path / "one", tmp_path / "four"
    assert infinito("resume", lone, "--max-steps", end).code == 0
    shutil.copytree(run, one)
    shutil.copytree(run, four)
    assert infinito("resume", one, "--max-steps", end).code == 0
    fsdp2 = ("--set", "distributed.strategy=fsdp2")
    more = command("resume", four, "--nproc", 4, "--max-steps", end, *fsdp2)
    _, err = more.communicate(timeout=PATIENCE)
    assert more.returncode == 0, err
    for at in (one, four):
        agree(at, lone, end)


@pytest.mark.row("X-04", "C-01")
def test_shards_of_one_process_run_die_and_leave_a_run_that_goes_on(tmp_path: Path) -> None:
    """Experts, fsdp2, loaded from and put together in the same file; a rank is killed."""
    changes = CONFIG | {"model__moe": {"n_experts": 4, "top_k": 2}, "training__optimizer": "adamw"}
    run, lone = tmp_path / "run", tmp_path / "lone"
    arguments = ("--config", write_config(tmp_path, **changes), "--max-steps", 4)
    assert infinito("train", *arguments).code == 0
    shutil.copytree(run, lone)
    assert torch.load(run / "last.pt", weights_only=True)["step"] == 4

    settings = ("strategy=fsdp2", "checkpoint=sharded")
    changed = [word for setting in settings for word in ("--set", f"distributed.{setting}")]
    changed += ["--set", "training.save_every=10"]
    two = command("resume", run, "--nproc", 2, *changed, "--max-steps", 100_000)
    wait_for(lambda: (run / "step-000020.pt").exists() and lines_of(run) > 22, two)
    os.kill(rank(two, 1), signal.SIGKILL)
    _, err = two.communicate(timeout=PATIENCE)
    assert two.returncode == 6
    assert "error: process 1 of 2 was killed by SIGKILL, and the run ends with it" in err
    assert f"help: infinito resume {run} --nproc 2" in err
    assert "Traceback" not in err

    end = lines_of(run) + 3
    for at in (run, lone):
        assert infinito("resume", at, "--max-steps", end).code == 0
    agree(run, lone, end)
    assert not list(run.glob("*.tmp"))
