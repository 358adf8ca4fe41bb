"""The table of records: one command a row, each an ordinary run that is evaluated and written down.

    python benchmarks/record.py row NAME --config FILE --seed N --output DIR [--set KEY=VALUE ...]
    python benchmarks/record.py ensemble NAME MEMBER MEMBER ... --output DIR
    python benchmarks/record.py floor NAME MEMBER --output DIR
    python benchmarks/record.py table --output DIR
    python benchmarks/record.py plot --output DIR --file FILE.svg
    python benchmarks/record.py samples MEMBER --output DIR --file FILE.md

A row trains ``NAME-SEED`` in DIR (or goes on where it stood), then evaluates it: the validation
split static and over the closed vocabulary, and adapted in each of ``--adapt``, which finds the
settings; and the test split once, adapted in the way that was best on validation, with the settings
from there. What stands in DIR already is not computed again. A MEMBER is a row's ``NAME-SEED``, or
``ngram``; a floor is the n-grams of a row's training tokens. Threads are those of the environment.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record_table import draw, markdown

from infinito.checkpoint.atomic import write_text_atomic
from infinito.checkpoint.record import read_record
from infinito.load import load_model
from infinito.model.count import count_flops, count_parameters
from infinito.report.run_log import read_run

NGRAM = "ngram"
CLOSED = "word_perplexity_closed_vocabulary"
WAYS = ("dynamic", "cache", "both")
#: Of the context: new tokens a window of the headline scores (``docs/guide/evaluation.md``).
STRIDES = 4
PROMPTS = ("", "The city of", "In the early years of the", "The song was", "= History =")


def infinito(*arguments: object, output: Path | None = None) -> None:
    """Run a command, its result into ``output``; end where it fails, since it says why itself."""
    command = [sys.executable, "-m", "infinito", *map(str, arguments)]
    print("$ infinito", *arguments, file=sys.stderr, flush=True)
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise SystemExit(f"it ended with {ended.returncode}; the same command goes on from here")
    if output is not None:
        write_text_atomic(output, ended.stdout)


def evaluated(place: Path, what: str, *arguments: object) -> Any:
    """The result of an evaluation, of ``DIR/NAME-SEED.what.json`` where that is there."""
    file = place.with_name(f"{place.name}.{what}.json")
    if not file.exists():
        infinito("evaluate", *arguments, "--json", output=file)
    return json.loads(file.read_text())


def train(place: Path, config: str, settings: Sequence[str]) -> None:
    """To the end, from where it stood."""
    if (place / "best.pt").exists() and read_run(place).survey["state"] == "finished":
        return
    begun = any(place.glob("step-*.pt"))
    start = ["--resume", place] if begun else ["--config", config, "--output-dir", place]
    for setting in [] if begun else settings:
        start += ["--set", setting]
    infinito("train", *start)


def described(place: Path) -> dict[str, Any]:
    """What a run was and what it cost, as its directory tells it."""
    run, loaded = read_run(place), load_model(place / "last.pt", "cpu")
    length, last = loaded.config.data.sequence_length, run.lines[-1]
    flops = count_flops(loaded.config.model, loaded.tokenizer.vocab_size, 1, length).training
    shape = loaded.config.model, loaded.tokenizer.vocab_size, length
    facts = read_record(place)
    return {
        "parameters": count_parameters(*shape).total,
        "tokenizer": f"{loaded.tokenizer.kind} {loaded.tokenizer.vocab_size}",
        "tokens": last["tokens"],
        "training_flops": flops / length * last["tokens"],
        "minutes": last["seconds"] / 60,
        "device": {k: facts.get(k) for k in ("device", "threads", "host", "versions")},
        "curve": [
            [line["tokens"] * flops / length, line["seconds"] / 60, line["valid_word_perplexity"]]
            for line in run.evaluations
        ],
    }


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """What a row says of one evaluation."""
    closed = report["conventions"].get(CLOSED)
    word_level = "closed vocabulary" in report["convention"]
    return {
        "word_perplexity": report["word_perplexity"],
        "interval": report["word_perplexity_interval"],
        "convention": report["convention"],
        "context": report["context"],
        "stride": report["stride"],
        "closed_word_perplexity": report["word_perplexity"] if word_level else closed,
        "closed_interval": report["convention_intervals"].get(CLOSED),
        "bits_per_byte": report["bits_per_byte"],
        "members": report["members"],
        "text_sha256": report["text_sha256"],
    }


def scored(place: Path, names: Sequence[object], ways: Sequence[str]) -> dict[str, Any]:
    """Validation and test figures of what ``names`` are to ``infinito evaluate``."""
    first = load_model(Path(str(names[0])) / "best.pt", "cpu")
    length = first.config.data.sequence_length
    alone = len(names) == 1
    exact = ["--exact-words"] if alone and first.tokenizer.kind != "word" else []
    static: list[object] = [*names, "--stride", max(1, length // STRIDES), *exact]
    static += [] if alone else ["--ensemble"]
    adaptive: list[object] = [*names, *([] if alone else ["--ensemble"])]
    found = {"valid": figures(evaluated(place, "valid", *static))}
    tried = {
        way: evaluated(place, f"valid-{way}", *adaptive, "--adapt", way)["adaptive"] for way in ways
    }
    best = min(tried, key=lambda way: tried[way]["nll_total"], default=None)
    found["valid"]["adaptive"] = tried
    found["test"] = figures(evaluated(place, "test", *static, "--split", "test"))
    if best is not None:  # decided on validation: the test split is read once
        asked = (*adaptive, "--split", "test", "--adapt", best)
        found["test"]["adaptive"] = {best: evaluated(place, f"test-{best}", *asked)["adaptive"]}
    return found


def write_row(place: Path, row: dict[str, Any]) -> None:
    """``DIR/NAME-SEED.row.json``."""
    command = shlex.join(["python", "benchmarks/record.py", *sys.argv[1:]])
    text = json.dumps({**row, "command": command}, indent=1)
    write_text_atomic(place.with_name(f"{place.name}.row.json"), text + "\n")


def row(given: argparse.Namespace) -> None:
    """Train, evaluate, write down."""
    place = given.output / f"{given.name}-{given.seed}"
    settings = [*given.settings, f"seed={given.seed}"]
    train(place, given.config, settings)
    about = {"kind": "model", "name": given.name, "seed": given.seed, "config": given.config}
    found = scored(place, [place], given.adapt)
    write_row(place, {**about, "settings": settings, **described(place), **found})


def ensemble(given: argparse.Namespace) -> None:
    """Of rows that are there, with n-grams or without; its cost is theirs together."""
    rows = [read_row(given.output / name) for name in given.members if name != NGRAM]
    names = [name if name == NGRAM else given.output / name for name in given.members]
    ways = [way for way in given.adapt if way == "cache" or NGRAM not in given.members]
    place = given.output / given.name
    found = scored(place, names, ways)
    sums = {key: sum(row[key] for row in rows) for key in ("training_flops", "minutes")}
    parameters = sum(row["parameters"] for row in rows)
    about = {"kind": "ensemble", "name": given.name, "members": given.members}
    write_row(place, {**about, "parameters": parameters, **sums, **found})


def floor(given: argparse.Namespace) -> None:
    """The n-grams of a row's training tokens, which cost seconds."""
    place, [member] = given.output / given.name, given.members
    beside = given.output / member
    found = {
        split: figures(evaluated(place, split, beside, NGRAM, "--split", split)[1])
        for split in ("valid", "test")
    }
    write_row(place, {"kind": "floor", "name": given.name, "members": [member], **found})


def read_row(place: Path) -> dict[str, Any]:
    """A row that was written."""
    file = place.with_name(f"{place.name}.row.json")
    if not file.exists():
        raise SystemExit(f"{file} is not there: run its row first")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def rows_in(output: Path) -> list[dict[str, Any]]:
    """All rows of a directory; models, then floors, then ensembles, each by the validation."""
    found = [json.loads(file.read_text()) for file in sorted(output.glob("*.row.json"))]
    kinds = ("model", "floor", "ensemble")
    return sorted(
        found, key=lambda row: (kinds.index(row["kind"]), -row["valid"]["word_perplexity"])
    )


def samples(given: argparse.Namespace) -> None:
    """A page of what a row's model writes: fixed prompts and seeds, nothing chosen or changed."""
    [member] = given.members
    place = given.output / member
    figure = read_row(place)["valid"]["word_perplexity"]
    parts = [
        f"# What a model writes\n\n`{member}`, validation word perplexity {figure:.2f}. Each "
        "prompt with seeds 1 and 2, top-p 0.95, temperature 1, 160 tokens; nothing was chosen, "
        "cut or corrected.\n\n```\npython benchmarks/record.py samples "
        f"{member} --output DIR --file FILE\n```\n"
    ]
    for prompt in PROMPTS:
        parts.append(f"## {prompt or '(no prompt)'}\n")
        for seed in (1, 2):
            file = place.with_name(f"{place.name}.sample.json")
            infinito(
                "generate", place, "--prompt", prompt, "--temperature", 1, "--top-k", 0,
                "--top-p", 0.95, "--repetition-penalty", 1, "--max-new-tokens", 160,
                "--seed", seed, "--json", output=file,
            )  # fmt: skip
            told = json.loads(file.read_text())
            text = told["samples"][0]["text"]
            parts.append(f"Seed {seed}:\n\n~~~text\n{prompt}{text}\n~~~\n")
            file.unlink()
    write_text_atomic(given.file, "\n".join(parts))


def main() -> None:
    """One stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    stages = {"row": row, "ensemble": ensemble, "floor": floor, "samples": samples}
    parser.add_argument("stage", choices=[*stages, "table", "plot"])
    parser.add_argument("name", nargs="?", help="of the row")
    parser.add_argument("members", nargs="*", metavar="MEMBER")
    parser.add_argument("--config")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--adapt", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.stage == "row" and (given.config is None or given.seed is None):
        parser.error("a row needs --config and --seed")
    if given.stage == "samples":
        given.members = [given.name]
    if given.stage in ("plot", "samples") and given.file is None:
        parser.error(f"{given.stage} needs --file")
    if given.stage in stages and given.name is None:
        parser.error(f"{given.stage} needs a name")
    given.output.mkdir(parents=True, exist_ok=True)
    if given.stage == "table":
        print(markdown(rows_in(given.output)))
    elif given.stage == "plot":
        draw(rows_in(given.output), given.file)
    else:
        stages[given.stage](given)


if __name__ == "__main__":
    main()
