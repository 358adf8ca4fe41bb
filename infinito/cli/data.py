"""``infinito data``: prepare text ahead of a run, look at the cache of tokens, empty it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from infinito.cli.options import ConfigFile, Json, Settings

if TYPE_CHECKING:
    from infinito.data.cache import CacheEntry
    from infinito.data.prepare import Dataset

_COUNTS = ("tokens", "words", "bytes", "lines", "documents", "unknown")
_VALUES = {
    "inputs": "hash of input files, by their time stamps",
    "overlap": "share of validation text found in training text",
    "tokenizer": "a trained tokenizer",
}

app = typer.Typer(no_args_is_help=True, help="Prepare text, and manage the cache of tokens.")


@app.command()
def prepare(config: ConfigFile = None, settings: Settings = None, as_json: Json = False) -> None:
    """Read, check, tokenise and cache the text of a config, so that training starts at once."""
    from infinito.cli.output import print_json, table
    from infinito.config.loading import load_config
    from infinito.data.cache import Cache
    from infinito.data.prepare import prepare as prepare_data
    from infinito.runtime.events import Event, Note, reading

    resolved = load_config(config, settings or ())
    started = time.perf_counter()
    cache = Cache(required=True)
    cache.require_writable("tokens")
    notes = list[str]()

    def keep_note(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    with reading(keep_note):
        dataset = prepare_data(resolved, splits=None, cache=cache)
    summary = _summary(dataset, time.perf_counter() - started) | {"notes": notes}
    if as_json:
        print_json(summary)
        return
    headers = ("split", "tokens", "words", "bytes", "documents", "unknown", "sha256", "cached")
    rows = [
        [split, *(counts[name] for name in headers[1:6]), counts["sha256"][:16], counts["cached"]]
        for split, counts in summary["splits"].items()
    ]
    table(headers, rows)
    kind, fingerprint = summary["tokenizer"]["kind"], summary["tokenizer"]["sha256"][:16]
    print(f"tokenizer: {kind}, vocabulary {summary['vocab_size']}, sha256 {fingerprint}")
    print(f"cache: {summary['cache']}")
    print(f"seconds: {summary['seconds']:.2f}")


def _summary(dataset: Dataset, seconds: float) -> dict[str, Any]:
    from infinito.data.cache import cache_root

    splits = {
        split: {
            **{name: getattr(store, f"n_{name}") for name in _COUNTS},
            "sha256": store.text_sha256,
            "cached": dataset.cached[split],
        }
        for split, store in dataset.splits.items()
    }
    tokenizer = dataset.tokenizer
    return {
        "splits": splits,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": {"kind": tokenizer.kind, "sha256": tokenizer.fingerprint},
        "cache": str(cache_root()),
        "seconds": round(seconds, 3),
    }


@app.command()
def info(as_json: Json = False) -> None:
    """List what the cache holds: each entry with its size and what it was made from."""
    from infinito.cli.output import print_json, table
    from infinito.data.cache import Cache

    cache = Cache()
    headers = ("kind", "name", "bytes", "modified", "holds")
    rows = [(e.kind, e.path.name, e.size, _time(e), _holds(e)) for e in cache.entries()]
    total = sum(row[2] for row in rows)
    if as_json:
        listed = [dict(zip(headers, row, strict=True)) for row in rows]
        print_json({"cache": str(cache.root), "bytes": total, "entries": listed})
        return
    if rows:
        table(headers, [(kind, name[:12], *rest) for kind, name, *rest in rows])
    print(f"cache: {cache.root}")
    print(f"entries: {len(rows)}")
    print(f"bytes: {total}")


@app.command()
def clean(as_json: Json = False) -> None:
    """Empty the cache without asking: everything in it can be made again."""
    from infinito.cli.output import print_json
    from infinito.data.cache import Cache

    cache = Cache()
    entries = len(cache.entries())
    freed = cache.clear()
    if as_json:
        print_json({"cache": str(cache.root), "entries": entries, "freed_bytes": freed})
    else:
        print(f"cache: {cache.root}")
        print(f"entries removed: {entries}")
        print(f"bytes freed: {freed}")


def _time(entry: CacheEntry) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.modified))


def _holds(entry: CacheEntry) -> str:
    """One line about an entry, from its description; never from its bulk."""
    from infinito.data.token_store import DamagedStoreError, read_description

    if entry.path.suffix == ".tmp":
        return "unfinished, or being written"
    if entry.kind != "tokens":
        return _VALUES[entry.kind]
    try:
        store = read_description(entry.path)
    except DamagedStoreError:
        return "damaged; is made again when needed"
    return f"{store['n_tokens']} tokens of {store['label']}, vocabulary {store['vocab_size']}"
