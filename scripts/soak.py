#!/usr/bin/env python3
"""Train for long with other commands beside it, and see that memory, files and disk stay flat.

    .venv/bin/python scripts/soak.py [--minutes 60] [--directory DIR] [--every 5] [--stop-every 150]

A small model trains with the real command and saves every few seconds. Beside it, one after the
other, run `evaluate`, `generate` and `runs` on its directory; now and then, twice an hour by
default, the training gets a SIGTERM instead, must say so with exit code 143, and is resumed (a
process that lives for a minute says nothing about growth). Every few seconds the training's memory,
open files and threads and the directory's size are noted. At the end the run is stopped, every
checkpoint is verified, and a line is fitted over the last 80 % of the samples, with a level of its
own for each process. DIR keeps samples.jsonl, soak.png and the run. Exit 0 only if every command
ended as it must, every checkpoint verifies, and nothing grows beyond the limits below; fewer than
some ten minutes cannot tell.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from run_checks import BrokenPromiseError, log_size, verify

SAMPLE_SECONDS = 2.0
SETTLE_SHARE = 0.2  # of the samples, left out of the fit
# Growth an hour that counts as flat: allocators and page tables are never quite still.
MEMORY_LIMIT_MB, FILES_LIMIT, DISK_LIMIT_MB = 20.0, 2.0, 5.0
SHORTEST_FIT_SECONDS = 300.0  # a shorter stretch, or life, says nothing about an hour
CONFIG = """\
seed: 3
device: cpu
output_dir: run
data: {source: python-docs, sequence_length: 64}
tokenizer: {kind: bpe, vocab_size: 512}
model: {d_model: 64, n_layers: 2, n_heads: 2, dropout: 0.1}
training:
  max_steps: 100000000
  batch_size: 8
  schedule: constant
  ema_decay: 0.99
  eval_every: 100
  save_every: 50
  log_every: 10
  keep_last: 3
"""
BESIDE = (
    ("evaluate", "run", "--json", "--split", "valid"),
    ("generate", "run", "--prompt", "The for statement", "--max-new-tokens", "32", "--seed", "1"),
    ("runs", "run", "--json"),
)


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


class Soak:
    """The run under way, what was seen of it, and what went wrong."""

    def __init__(self, place: Path, every: float, stop_every: int) -> None:
        self.place, self.run = place, place / "run"
        self.every, self.stop_every = every, stop_every
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1",
                            "INFINITO_CACHE": str(place / "cache")}  # fmt: skip
        self.began = time.monotonic()
        self.samples: list[dict[str, Any]] = []
        self.ended: Counter[str] = Counter()
        self.problems: list[str] = []
        self.lives = 0
        self.log_at_start = 0
        self.log = (place / "program.log").open("ab")

    def command(self, *arguments: str) -> list[str]:
        """A command of the program."""
        return [sys.executable, "-m", "infinito", *arguments]

    def begin(self) -> subprocess.Popen[bytes]:
        """Start the training, or resume it."""
        self.lives += 1
        self.log_at_start = log_size(self.run)
        arguments = ("resume", "run") if self.lives > 1 else ("train", "--config", "soak.yaml")
        return subprocess.Popen(
            self.command(*arguments), cwd=self.place, env=self.environment,
            stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def stop(self, training: subprocess.Popen[bytes]) -> None:
        """Ask the training to stop once it has taken steps; it must save and exit 143."""
        deadline = time.monotonic() + 120
        while log_size(self.run) <= self.log_at_start and time.monotonic() < deadline:
            time.sleep(0.1)
        training.send_signal(signal.SIGTERM)
        code = training.wait(timeout=120)
        self.ended[f"SIGTERM {code}"] += 1
        if code != 143:
            self.problems.append(f"SIGTERM in life {self.lives}: exit {code}, not 143")

    def beside(self, turn: int) -> subprocess.Popen[bytes]:
        """Start the next command beside the training."""
        return subprocess.Popen(
            self.command(*BESIDE[turn % len(BESIDE)]), cwd=self.place, env=self.environment,
            stdout=subprocess.DEVNULL, stderr=self.log,
        )  # fmt: skip

    def note_end(self, turn: int, code: int) -> None:
        """Count how a command beside the training ended."""
        name = BESIDE[turn % len(BESIDE)][0]
        self.ended[f"{name} {code}"] += 1
        if code != 0:
            self.problems.append(f"{name} beside the training exits {code}")

    def sample(self, training: subprocess.Popen[bytes]) -> None:
        """Note what the training holds, and what its directory takes."""
        process = Path("/proc", str(training.pid))
        try:
            status = (process / "status").read_text(encoding="ascii", errors="replace")
            open_files = len(os.listdir(process / "fd"))
        except OSError:  # it has just ended, which is noticed elsewhere
            return
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "VmRSS" not in fields:  # a zombie
            return
        sizes = _sizes(self.run)
        metrics = sizes.pop("metrics.jsonl", 0)
        self.samples.append(
            {
                "seconds": time.monotonic() - self.began, "life": self.lives,
                "rss_mb": int(fields["VmRSS"].split()[0]) / 1024,
                "open_files": open_files, "threads": int(fields["Threads"]),
                "disk_mb": sum(sizes.values()) / 1e6, "files": len(sizes),
                "metrics_mb": metrics / 1e6,
            }
        )  # fmt: skip


def _sizes(run: Path) -> dict[str, int]:
    """Bytes of each file of the run; hard links of one file count once."""
    seen, sizes = set[int](), dict[str, int]()
    for path in sorted(run.rglob("*")) if run.exists() else []:
        try:
            status = path.lstat()
        except FileNotFoundError:  # rotated away meanwhile
            continue
        if path.is_file() and status.st_ino not in seen:
            seen.add(status.st_ino)
            sizes[str(path.relative_to(run))] = status.st_size
    return sizes


def soak(state: Soak, minutes: float) -> None:
    """Train, disturb, sample, until the time is over; then stop and verify."""
    training, other, turn = state.begin(), None, 0
    next_turn = next_sample = time.monotonic()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        now = time.monotonic()
        if (code := training.poll()) is not None:
            state.problems.append(f"the training ended by itself with {code}: see program.log")
            return
        if now >= next_sample:
            state.sample(training)
            next_sample = now + SAMPLE_SECONDS
        if other is not None and (code := other.poll()) is not None:
            state.note_end(turn, code)
            other, turn, next_turn = None, turn + 1, now + state.every
            say(f"{now - state.began:6.0f} s  {_shown(state)}")
        ready = other is None and now >= next_turn and (state.run / "last.pt").exists()
        if ready and turn % state.stop_every == state.stop_every - 1:
            state.stop(training)
            training, turn, next_turn = state.begin(), turn + 1, now + state.every
        elif ready:
            other = state.beside(turn)
        time.sleep(0.1)
    if other is not None:
        state.note_end(turn, other.wait(timeout=300))
    state.stop(training)


def _shown(state: Soak) -> str:
    last = state.samples[-1] if state.samples else {}
    return ", ".join(f"{name} {value:.5g}" for name, value in last.items() if name != "seconds")


def growth_per_hour(samples: list[dict[str, Any]]) -> dict[str, float | None]:
    """Slopes over the last 80 % of the samples. Each process has a level of its own.

    What grows in a process shows as a slope within its life, so that is what is fitted for
    memory, open files and threads (least squares, one slope and a level a life); what grows
    on the disk outlives processes and gets one line.
    """
    settled = samples[int(SETTLE_SHARE * len(samples)) :]
    names = ("rss_mb", "open_files", "threads", "disk_mb", "files", "metrics_mb")
    if len(settled) < 3 or settled[-1]["seconds"] - settled[0]["seconds"] < SHORTEST_FIT_SECONDS:
        return dict.fromkeys(names)
    return {
        name: _slope(settled, name, by_life=name in ("rss_mb", "open_files", "threads"))
        for name in names
    }


def _slope(samples: list[dict[str, Any]], name: str, by_life: bool) -> float | None:
    """Growth of ``name`` an hour; None where no life was long enough to show any."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault(sample["life"] if by_life else 0, []).append(sample)
    above = below = 0.0
    for group in groups.values():
        # The first samples of a life are imports and the first step, no growth.
        used = [s for s in group if not by_life or s["seconds"] >= group[0]["seconds"] + 60]
        if len(used) < 2 or used[-1]["seconds"] - used[0]["seconds"] < SHORTEST_FIT_SECONDS:
            continue
        time_mean = sum(s["seconds"] for s in used) / len(used)
        mean = sum(s[name] for s in used) / len(used)
        above += sum((s["seconds"] - time_mean) * (s[name] - mean) for s in used)
        below += sum((s["seconds"] - time_mean) ** 2 for s in used)
    return 3600 * above / below if below else None


def draw(samples: list[dict[str, Any]], target: Path) -> None:
    """Memory, open files and disk use over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [sample["seconds"] / 60 for sample in samples]
    figure, panels = plt.subplots(3, 1, sharex=True, figsize=(8, 8))
    rows = [
        (("rss_mb",), "memory of the training, MB"),
        (("open_files", "threads"), "open files, threads"),
        (("disk_mb", "metrics_mb"), "disk, MB (metrics apart)"),
    ]
    for panel, (names, label) in zip(panels, rows, strict=True):
        for name in names:
            panel.plot(minutes, [sample[name] for sample in samples], ".-", label=name, ms=3)
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
        panel.legend(loc="lower right")
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def judge(state: Soak) -> dict[str, Any]:
    """Verify and fit; complete ``state.problems``."""
    highest, verified = 0, 0
    try:
        highest, verified = verify(state.run)
    except BrokenPromiseError as error:
        state.problems.append(str(error))
    if not verified:
        state.problems.append("no checkpoint was saved")
    growth = growth_per_hour(state.samples)
    limits = {"rss_mb": MEMORY_LIMIT_MB, "open_files": FILES_LIMIT, "threads": FILES_LIMIT,
              "disk_mb": DISK_LIMIT_MB, "files": FILES_LIMIT}  # fmt: skip
    for name, limit in limits.items():
        slope = growth[name]
        if slope is None:
            state.problems.append(f"{name}: nothing lived long enough to tell its growth")
        elif slope > limit:
            state.problems.append(f"{name} grows by {slope:.2f} an hour, more than {limit:g}")
    return {
        "growth_per_hour": growth, "highest_step": highest, "checkpoints_verified": verified,
        "commands": dict(state.ended), "lives": state.lives, "samples": len(state.samples),
        "last_sample": state.samples[-1] if state.samples else None,
        "minutes": (time.monotonic() - state.began) / 60, "problems": state.problems,
    }  # fmt: skip


def main() -> int:
    """Parse, soak, print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--directory", type=Path, help="absent: a new temporary one, kept")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between turns")
    parser.add_argument("--stop-every", type=int, default=150, help="turns from SIGTERM to SIGTERM")
    arguments = parser.parse_args()
    place = (arguments.directory or Path(tempfile.mkdtemp(prefix="infinito-soak-"))).resolve()
    place.mkdir(parents=True, exist_ok=True)
    (place / "soak.yaml").write_text(CONFIG, encoding="utf-8")
    state = Soak(place, arguments.every, arguments.stop_every)
    soak(state, arguments.minutes)
    lines = "".join(json.dumps(sample) + "\n" for sample in state.samples)
    (place / "samples.jsonl").write_text(lines, encoding="utf-8")
    if state.samples:
        draw(state.samples, place / "soak.png")
    summary = judge(state) | {"directory": str(place)}
    for problem in state.problems:
        say(f"PROBLEM {problem}")
    print(json.dumps(summary))
    return 1 if state.problems else 0


if __name__ == "__main__":
    sys.exit(main())
