#!/usr/bin/env python3
"""Give the program damaged and hostile files, and see that it only ever refuses them.

    .venv/bin/python scripts/fuzz.py [--seconds 60 | --cases N] [--seed 0] [--case K]

Each case damages one good file: a checkpoint (its bytes; its members or its pickle with checksums
made right again; its content; its tokenizer), a config, or the small files of a run directory.
Then it runs a command of the program on it, in a process that is watched. A case holds when the
command ends with an exit code of the contract and without a traceback, in time, in little memory,
and leaves no file elsewhere; damaged bytes must also be noticed or change nothing.
What does not hold is printed with the command that repeats it; exit 0 only if all held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import mutations

CODES = {0, 2, 3, 4, 5, 6}
SECONDS_A_CASE = 60.0
MEMORY_MB = 96.0  # beyond eight times the size of the file
ADDRESS_SPACE_MB = 3000  # what a worker may map beyond what it has: a machine of its own
CASES_A_WORKER = 500
KINDS = ("bytes", "members", "program", "content", "tokenizer", "config", "directory")
TOKENIZERS = ("byte", "bpe", "word")


@dataclass(frozen=True)
class Seeds:
    """The good files, and what the program prints for each undamaged checkpoint."""

    place: Path
    checkpoints: dict[str, bytes]
    config: bytes
    printed: dict[tuple[str, str], str]


@dataclass(frozen=True)
class Case:
    """One damaged file and the command that is given it."""

    kind: str
    arguments: list[str]
    size: int
    expected: str | None  # stdout where the damage had no effect; None: anything may be printed


def settings(place: Path, tokenizer: str) -> dict[str, object]:
    """The config of a tiny run."""
    vocabulary = {} if tokenizer != "bpe" else {"vocab_size": 280}
    return {
        "seed": 1, "device": "cpu", "output_dir": str(place / "run"),
        "data": {"train_file": str(place / "text.txt"), "sequence_length": 16},
        "tokenizer": {"kind": tokenizer, **vocabulary},
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2},
        "training": {"max_steps": 2, "batch_size": 2, "warmup_steps": 1},
    }  # fmt: skip


def make_seeds(place: Path) -> Seeds:
    """Train a step with each tokenizer, and note what undamaged checkpoints print."""
    import yaml

    from infinito.checkpoint.format import write_checkpoint
    from infinito.config.loading import config_from_plain
    from infinito.train.trainer import Trainer

    words = ["the cat", "a dog", "sees", "likes", "the river", "nothing", ".", "\n"]
    text = " ".join(random.Random(0).choices(words, k=600))
    (place / "text.txt").write_text(text, encoding="utf-8")
    checkpoints, printed = {}, {}
    for kind in TOKENIZERS:
        trainer = Trainer(config_from_plain(settings(place, kind), "fuzz"))
        trainer.train_step()
        trainer.validate()
        path = place / "seed.pt"
        write_checkpoint(path, trainer.state())
        checkpoints[kind] = path.read_bytes()
        for command in ("evaluate", "generate"):
            code, out, err = call(place, command_line(command, path, place))
            assert code == 0, err
            printed[kind, command] = comparable(out)
        path.unlink()
    config = yaml.safe_dump(settings(place, "bpe")).encode()
    return Seeds(place, checkpoints, config, printed)


def command_line(command: str, path: Path, place: Path) -> list[str]:
    """A short run of ``command`` on a checkpoint."""
    options = {
        "evaluate": ["--json", "--text", str(place / "text.txt"), "--device", "cpu"],
        "generate": ["--json", "--prompt", "the cat", "--max-new-tokens", "4", "--seed", "1"],
        "resume": ["--max-steps", "2", "--device", "cpu"],
    }
    return [command, str(path), *options[command]]


def call(place: Path, arguments: list[str]) -> tuple[int, str, str]:
    """Run the program in this process; exit code, stdout, stderr."""
    from infinito.cli.main import main as program

    with (place / "out").open("w+") as out, (place / "err").open("w+") as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = program(arguments)
            except SystemExit as request:
                code = request.code if isinstance(request.code, int) else 99
        return code, _content(out), _content(err)


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def comparable(out: str) -> str:
    """Printed JSON without the path and the time; other text as it is."""
    try:
        report = json.loads(out)
    except ValueError:
        return out
    volatile = {"checkpoint", "seconds", "tokens_per_second", "time", "prompt_tokens_per_second"}
    return json.dumps({k: v for k, v in report.items() if k not in volatile})


def make_case(seeds: Seeds, seed: int, number: int) -> Case:
    """Case ``number`` of ``seed``, its file written; the same for every call."""
    generator = random.Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    place = seeds.place / "case"
    place.mkdir()
    os.chdir(place)
    if kind == "config":
        path = place / "damaged.yaml"
        path.write_bytes(mutations.damaged_yaml(seeds.config, generator))
        options = generator.choice([["validate"], ["show", "--config"]])
        return Case(kind, ["config", *options, str(path)], path.stat().st_size, None)
    if kind == "directory":
        return _directory_case(seeds, place, generator)
    tokenizer = generator.choice(TOKENIZERS)
    data = _damaged_checkpoint(kind, seeds.checkpoints[tokenizer], generator)
    path = place / "step-000001.pt"
    path.write_bytes(data)
    command = generator.choice(["evaluate", "generate", "generate", "resume"])
    expected = seeds.printed.get((tokenizer, command)) if kind == "bytes" else None
    return Case(kind, command_line(command, path, seeds.place), len(data), expected)


def _damaged_checkpoint(kind: str, data: bytes, generator: random.Random) -> bytes:
    damage: dict[str, Callable[[bytes, random.Random], bytes]] = {
        "bytes": mutations.damaged_bytes,
        "members": mutations.damaged_members,
        "program": mutations.damaged_program,
        "content": _damaged_content,
        "tokenizer": _damaged_tokenizer,
    }
    return damage[kind](data, generator)


def _damaged_content(data: bytes, generator: random.Random) -> bytes:
    content = _loaded(data)
    if generator.random() < 0.4:
        section = generator.choice(["config", "optimizers", "random", "evaluations", "best", "log"])
        content[section] = mutations.damaged_value(content[section], generator)
        return _saved(content)
    return _saved(mutations.damaged_value(content, generator))


def _damaged_tokenizer(data: bytes, generator: random.Random) -> bytes:
    content = _loaded(data)
    content["tokenizer"] = mutations.damaged_tokenizer(content["tokenizer"], generator)
    return _saved(content)


def _loaded(data: bytes) -> Any:
    import io

    import torch

    return torch.load(io.BytesIO(data), weights_only=True)


def _saved(content: Any) -> bytes:
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _directory_case(seeds: Seeds, place: Path, generator: random.Random) -> Case:
    (place / "step-000001.pt").write_bytes(seeds.checkpoints["byte"])
    line = {"step": 1, "loss": 5.0, "seconds": 1.5, "valid_loss": 5.0}
    run = {"start_time": 1.7e9, "started": "2024-01-01T00:00:00+00:00", "pid": 3, "earlier": [{}]}
    entry = {"sha256": "ab" * 32, "size": 5}
    manifest = {"format": "infinito-manifest", "files": {"step-000001.pt": entry}}
    files = {"metrics.jsonl": line, "run.json": run, "MANIFEST.json": manifest, "config.yaml": line}
    for name, value in files.items():
        text = json.dumps(mutations.damaged_value(value, generator)).encode() + b"\n"
        if generator.random() < 0.3:
            text = mutations.damaged_bytes(text, generator)
        (place / name).write_bytes(text)
    arguments = generator.choice(
        [["runs", ".", "--json"], ["runs", "."], ["resume", ".", "--max-steps", "2"]]
    )
    return Case("directory", arguments, len(seeds.checkpoints["byte"]), None)


def judge(seeds: Seeds, case: Case) -> dict[str, Any]:
    """Run a case in this process; its exit code and what does not hold ('' where all does)."""
    around = set(os.listdir(seeds.place)) | {"out", "err"}
    before = _memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    code, out, err = call(seeds.place, case.arguments)
    grown = _memory_mb("VmHWM") - before
    allowed = MEMORY_MB + 8 * case.size / 1e6
    if code not in CODES or "Traceback" in err:
        problem = f"exit {code}: {err[-700:]}"
    elif grown > allowed:
        problem = f"took {grown:.0f} MB, more than {allowed:.0f}"
    elif code == 6 and "memory" in err:
        problem = f"asked for the memory of a machine: {err}"
    elif code == 0 and case.expected is not None and comparable(out) != case.expected:
        problem = "damage went unnoticed and changed what is printed"
    elif set(os.listdir(seeds.place)) - around:
        problem = f"left {set(os.listdir(seeds.place)) - around} outside its directory"
    else:
        problem = ""
    return {"kind": case.kind, "code": code, "grown_mb": round(grown, 1), "problem": problem}


def _memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def work(seeds: Seeds, seed: int, numbers: range, pipe: int) -> None:
    """In a fork: run cases and report each, before and after."""
    warnings.simplefilter("ignore")
    in_use = int(_memory_mb("VmSize")) << 20
    limit = in_use + (ADDRESS_SPACE_MB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        shutil.rmtree(seeds.place / "case", ignore_errors=True)
        os.write(pipe, f"{json.dumps({'case': number})}\n".encode())
        case = make_case(seeds, seed, number)
        verdict = {"case": number, "arguments": case.arguments} | judge(seeds, case)
        os.write(pipe, f"{json.dumps(verdict)}\n".encode())


def watched(seeds: Seeds, seed: int, numbers: range) -> Iterator[dict[str, Any]]:
    """Verdicts of ``numbers`` from forks; one that dies or hangs is a verdict too."""
    at = numbers.start
    while at < numbers.stop:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with contextlib.suppress(BrokenPipeError):
                work(seeds, seed, range(at, min(numbers.stop, at + CASES_A_WORKER)), writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as lines:
            try:
                for verdict in _verdicts(pid, lines):
                    at = verdict["case"] + 1
                    yield verdict
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _verdicts(pid: int, lines: IO[str]) -> Iterator[dict[str, Any]]:
    """What one worker reports, and how it ended where that was in the middle of a case."""
    current: dict[str, Any] | None = None
    while True:
        ready, _, _ = select.select([lines], [], [], SECONDS_A_CASE)
        line = lines.readline() if ready else ""
        if line:
            report = json.loads(line)
            current = None if "problem" in report else report
            if "problem" in report:
                yield report
            continue
        if current is not None:
            how = "died in it" if ready else f"took more than {SECONDS_A_CASE:.0f} s"
            yield current | {"kind": KINDS[current["case"] % len(KINDS)], "code": -1,
                             "grown_mb": 0.0, "problem": how}  # fmt: skip
        return


def run(arguments: argparse.Namespace, place: Path) -> tuple[Counter[str], list[dict[str, Any]]]:
    """All cases asked for: how many by kind and exit code, and those that do not hold."""
    seeds, tally, problems = make_seeds(place), Counter[str](), list[dict[str, Any]]()
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would lose them"
    first = arguments.case or 0
    last = first + 1 if arguments.case is not None else arguments.cases or 10**9
    deadline = time.monotonic() + arguments.seconds
    for verdict in watched(seeds, arguments.seed, range(first, last)):
        tally[f"{verdict['kind']} {verdict['code']}"] += 1
        tally["cases"] += 1
        if arguments.case is not None:
            say(json.dumps(verdict, indent=1))
        if verdict["problem"]:
            problems.append(verdict)
            say(f"PROBLEM in case {verdict['case']} ({verdict['kind']}): {verdict['problem']}")
            say(f"  again: scripts/fuzz.py --seed {arguments.seed} --case {verdict['case']}")
        elif tally["cases"] % 500 == 0:
            say(f"{tally['cases']} cases, {len(problems)} problems")
        if arguments.cases is None and time.monotonic() > deadline:
            break
    return tally, problems


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Parse, fuzz, print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after; see --cases")
    parser.add_argument("--cases", type=int, help="this many cases, however long they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run only this case of the seed, and show it")
    arguments = parser.parse_args()
    # Before torch is imported: forks lose threads. Names in checkpoints must not reach a network.
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "NO_COLOR": "1",
                   "HF_HUB_OFFLINE": "1"}  # fmt: skip
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="infinito-fuzz-") as name:
        os.environ["INFINITO_CACHE"] = str(Path(name, "cache"))
        tally, problems = run(arguments, Path(name))
        os.chdir("/")
    cases = tally.pop("cases")
    print(
        json.dumps(
            {"cases": cases, "seed": arguments.seed, "problems": problems,
             "outcomes": dict(sorted(tally.items())), "seconds": time.monotonic() - began}
        )
    )  # fmt: skip
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
