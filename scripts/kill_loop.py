#!/usr/bin/env python3
"""Kill a training run again and again with SIGKILL, and check that nothing finished is ever lost.

    .venv/bin/python scripts/kill_loop.py [--kills 50] [--seed 0] [--directory DIR]

A tiny model with dropout and accumulation is trained through the program's own entry point, with
evaluations, saves, rotation and log lines every few steps. Each life of it runs in a fork (all is
imported once) and is killed at a random moment, or while a save is under way. After each kill:

- every step file, last.pt and best.pt verifies, and so does every entry of the manifest;
- all that the rotation keeps at the highest finished step is there, and that step never falls;
- the log is whole up to a last line that was cut, and says what an unbroken run's log says.

Then the run is resumed. When it ends, its files equal those of the unbroken run, which had a
process of its own, byte for byte (both use the same path, one after the other), and the next round
begins, until enough kills are done. Progress is on stderr, one JSON summary on stdout; exit 0 only
if every check held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from run_checks import (
    BrokenPromiseError,
    compare,
    final_files,
    log_size,
    names,
    read_log,
    verify,
)

STEPS, SAVE_EVERY, EVAL_EVERY, KEEP_LAST = 90, 4, 3, 2
LONGEST_DELAY = 0.05  # seconds between what a kill waits for and the kill; most are far shorter
LOG_BYTES_BEFORE = (0, 0, 1000, 4000)  # how far the run goes on before; a line has about 300
LONGEST_START = 0.8  # seconds after the start within which a kill without a target comes
TIMEOUT = 120.0
CONFIG = f"""\
seed: 5
device: cpu
output_dir: run
data: {{train_file: text.txt, sequence_length: 16}}
tokenizer: {{kind: byte}}
model: {{d_model: 16, n_layers: 2, n_heads: 2, dropout: 0.2}}
training:
  max_steps: {STEPS}
  batch_size: 2
  gradient_accumulation_steps: 2
  warmup_steps: 5
  ema_decay: 0.9
  eval_every: {EVAL_EVERY}
  save_every: {SAVE_EVERY}
  log_every: 1
  keep_last: {KEEP_LAST}
"""


@dataclass
class Tally:
    """What happened so far; printed as the summary."""

    kills: Counter[str] = field(default_factory=Counter)
    inside_a_save: int = 0
    rounds: int = 0
    files_verified: int = 0
    steps_lost_at_most: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Reference:
    """The unbroken run: its files, its log, and the steps that it saved."""

    files: dict[str, bytes]
    log: list[dict[str, Any]]

    def kept_at(self, step: int) -> set[int]:
        """Steps whose files must exist once that of ``step`` does."""
        best, best_step, saved = float("inf"), 0, list[int]()
        for at in range(1, step + 1):
            loss = self._valid_losses.get(at, float("inf"))
            if loss < best:
                best, best_step = loss, at
            if at % SAVE_EVERY == 0 or best_step == at or at == STEPS:
                saved.append(at)
        return {*saved[-KEEP_LAST:], best_step} - {0}

    @property
    def _valid_losses(self) -> dict[int, float]:
        return {line["step"]: line["valid_loss"] for line in self.log if "valid_loss" in line}


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def start(*arguments: str, log: Path) -> int:
    """Run the program in a fork with its output in ``log``; return the pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        from infinito.cli.main import main as program

        sys.argv = ["infinito", *arguments]
        os._exit(program(list(arguments)))
    finally:
        os._exit(99)


def ended(pid: int) -> int | None:
    """The exit code of a child that has ended, None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def finish(pid: int) -> int:
    """Wait for a child to end by itself; its exit code."""
    deadline = time.monotonic() + TIMEOUT
    while (code := ended(pid)) is None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise BrokenPromiseError(f"no end after {TIMEOUT:.0f} s")
        time.sleep(0.01)
    return code


def targets(run: Path) -> dict[str, Callable[[], bool]]:
    """What a kill can wait for, as seen from now."""
    steps, size = _step_files(run), log_size(run)
    return {
        "anywhere": lambda: True,
        "during a save": lambda: any(name.endswith(".tmp") for name in names(run)),
        "after a step file": lambda: bool(_step_files(run) - steps),
        "after a log line": lambda: log_size(run) > size,
    }


def _step_files(run: Path) -> set[str]:
    return {name for name in names(run) if name.startswith("step-") and name.endswith(".pt")}


def kill_at(pid: int, run: Path, target: str, generator: random.Random) -> int | None:
    """Kill ``pid`` some time after ``target`` is seen; its exit code where it ended before."""
    anywhere = target == "anywhere"
    seen, longest = targets(run)[target], LONGEST_START if anywhere else LONGEST_DELAY
    not_before = 0 if anywhere else log_size(run) + generator.choice(LOG_BYTES_BEFORE)
    deadline = time.monotonic() + TIMEOUT
    while log_size(run) < not_before or not seen():
        if (code := ended(pid)) is not None:
            return code
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise BrokenPromiseError(f"nothing to kill {target!r} after {TIMEOUT:.0f} s")
        time.sleep(0.0005)
    time.sleep(longest * generator.random() ** (1 if anywhere else 4))
    if (code := ended(pid)) is not None:
        return code
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def check(run: Path, reached: int, reference: Reference, tally: Tally) -> int:
    """All that must hold after a kill; returns the highest finished step."""
    step, files = verify(run)
    tally.files_verified += files
    if step < reached:
        raise BrokenPromiseError(f"step {reached} was finished, and now the highest is {step}")
    lost = {at for at in reference.kept_at(step) if not (run / f"step-{at:06d}.pt").exists()}
    if lost:
        raise BrokenPromiseError(f"at step {step} the files of steps {sorted(lost)} are gone")
    lines = read_log(run)
    if [line for line in lines if line["step"] <= step] != reference.log[:step]:
        raise BrokenPromiseError(f"the log up to step {step} is not that of the unbroken run")
    if lines:
        tally.steps_lost_at_most = max(tally.steps_lost_at_most, lines[-1]["step"] - step)
    return step


def train_unbroken(place: Path) -> Reference:
    """The run that nobody kills. It leaves the path free for the others."""
    run = place / "run"
    command = [sys.executable, "-m", "infinito", "train", "--config", "tiny.yaml"]
    with (place / "program.log").open("ab") as log:
        code = subprocess.run(command, stdout=log, stderr=log, timeout=TIMEOUT, check=False)
    if code.returncode:
        raise BrokenPromiseError(f"the unbroken run exits {code.returncode}: see program.log")
    reference = Reference(final_files(run), read_log(run))
    expected = {f"step-{step:06d}.pt" for step in reference.kept_at(STEPS)}
    found = {name for name in reference.files if name.startswith("step-")}
    if len(reference.log) != STEPS or found != expected:
        raise BrokenPromiseError(f"the unbroken run kept {sorted(found)}, not {sorted(expected)}")
    run.rename(place / "unbroken")
    return reference


def warm_up(place: Path) -> None:
    """Import here, by taking one step, all that the forks would import each for itself."""
    from infinito.cli.main import main as program

    target = place / "warm-up"
    with (place / "program.log").open("a") as log, contextlib.redirect_stderr(log):
        code = program(
            ["train", "--config", "tiny.yaml", "--output-dir", str(target), "--max-steps", "1"]
        )
    shutil.rmtree(target)
    threads = len(os.listdir("/proc/self/task"))
    if code or threads > 1:
        raise BrokenPromiseError(f"cannot fork: exit {code} of a first step, {threads} threads")


def lives(place: Path, plan: Iterator[str], generator: random.Random, reference: Reference,
          tally: Tally) -> None:  # fmt: skip
    """One round: train, kill, check and resume, while ``plan`` has kills; then to the end."""
    run, reached = place / "run", 0
    shutil.rmtree(run, ignore_errors=True)
    while True:
        if reached == 0:  # nothing was saved yet: there is nothing to resume
            shutil.rmtree(run, ignore_errors=True)
        command = ["resume", "run"] if reached else ["train", "--config", "tiny.yaml"]
        pid = start(*command, log=place / "program.log")
        target = next(plan, None)
        code = finish(pid) if target is None else kill_at(pid, run, target, generator)
        if code == 0:
            break
        if code is not None:
            raise BrokenPromiseError(f"`infinito {' '.join(command)}` exits {code}")
        assert target is not None
        tally.kills[target] += 1
        tally.inside_a_save += any(name.endswith(".tmp") for name in names(run))
        reached = check(run, reached, reference, tally)
        say(f"kill {tally.kills.total()}: {target}; highest finished step {reached}")
    compare(run, reference.files, reference.log)
    tally.rounds += 1
    say(f"round {tally.rounds}: equal to the unbroken run, byte for byte")


def loop(place: Path, kills: int, seed: int) -> Tally:
    """Rounds until ``kills`` kills are done, or until a check fails."""
    generator, tally = random.Random(seed), Tally()
    kinds = list(targets(place / "run"))

    def plan() -> Iterator[str]:
        while tally.kills.total() < kills:
            yield kinds[tally.kills.total() % len(kinds)]

    os.chdir(place)
    os.environ["INFINITO_CACHE"] = str(place / "cache")
    words = ["the cat", "a dog", "sees", "likes", "the river", "some bread", "nothing", "\n"]
    Path("text.txt").write_text(" ".join(generator.choices(words, k=400)), encoding="utf-8")
    Path("tiny.yaml").write_text(CONFIG, encoding="utf-8")
    try:
        reference = train_unbroken(place)
        warm_up(place)
        while tally.rounds == 0 or tally.kills.total() < kills:
            lives(place, plan(), generator, reference, tally)
    except BrokenPromiseError as error:
        tally.problems.append(f"after {tally.kills.total()} kills (seed {seed}): {error}")
    return tally


def main() -> int:
    """Parse, loop, print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="kept at the end; absent: a temporary one")
    arguments = parser.parse_args()
    # Before torch is imported: threads do not survive a fork.
    os.environ |= {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    began = time.monotonic()
    place = arguments.directory or Path(tempfile.mkdtemp(prefix="infinito-kills-"))
    place.mkdir(parents=True, exist_ok=True)
    tally = loop(place.resolve(), arguments.kills, arguments.seed)
    for problem in tally.problems:
        say(f"PROBLEM {problem}; see {place}")
    if not tally.problems and arguments.directory is None:
        shutil.rmtree(place)
    summary = vars(tally) | {"kills": tally.kills.total(), "kills_by_target": dict(tally.kills)}
    print(json.dumps(summary | {"seed": arguments.seed, "seconds": time.monotonic() - began}))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
