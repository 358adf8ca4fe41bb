"""Int8 weights by group size, with tables in int8 or not: file size against word perplexity.

    python benchmarks/int8_groups.py CHECKPOINT [--split valid] [--set data.path=DIR] [--json]

Each row is the checkpoint with its linear maps in int8, a scale for so many neighbours of a row or
for the whole row (per channel), and the tables (embeddings) in int8 or float32; norms, biases and
routers stay float32. Perplexity is that of ``infinito evaluate`` over the whole split; a change is
allowed 0.5 % (docs/log.md says which row is the export's).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from infinito.checkpoint.format import write_checkpoint
from infinito.config.loading import override_config
from infinito.data.prepare import prepare
from infinito.data.token_store import TokenStore
from infinito.evaluate.perplexity import score, windows_a_pass
from infinito.evaluate.predictor import ModelPredictor
from infinito.load import OpenedCheckpoint, build_model, load_weights, open_checkpoint
from infinito.model.layers import Embedding
from infinito.model.packed import pack, packable, to_int8

PER_CHANNEL = 1 << 30
GROUPS = (32, 64, 128, PER_CHANNEL)


def rows(opened: OpenedCheckpoint, store: TokenStore) -> Iterator[dict[str, Any]]:
    """The exact weights first, then every variant."""
    exact = None
    for group, tables in [(0, False), *((g, t) for g in GROUPS for t in (True, False))]:
        model = build_model(opened.config, opened.tokenizer.vocab_size)
        load_weights(model, opened.weights())
        table_names = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, Embedding)}
        names = [name for name in packable(model) if tables or name not in table_names]
        if group:
            pack(model, names, partial(to_int8, group=group))
        length = opened.config.data.sequence_length
        found = score(
            ModelPredictor(model.eval(), opened.tokenizer), store, context=length, stride=length,
            batch_size=windows_a_pass(length),
        )  # fmt: skip
        exact = exact or found
        stored = {name: parameter.detach() for name, parameter in model.named_parameters()}
        more_nats = (found.nll_total - exact.nll_total) / max(found.n_words, 1)
        yield {
            "weights": "exact" if not group else "int8",
            "group": "-" if not group else "per channel" if group == PER_CHANNEL else group,
            "tables": "int8" if group and tables else "float32",
            "file_bytes": _file_bytes(opened, stored),
            "valid_loss": found.loss,
            "word_perplexity": found.word_perplexity,
            "perplexity_change": math.expm1(more_nats),
        }


def _file_bytes(opened: OpenedCheckpoint, stored: dict[str, Any]) -> int:
    """Of a checkpoint with these weights and no state of training."""
    training: dict[str, Any] = {"average": None, "optimizers": {}, "scaler": None, "random": {}}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "weights.pt"
        write_checkpoint(path, {**opened.content, "model": stored, **training})
        return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--split", default="valid", choices=["valid", "test", "train"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    opened = open_checkpoint(arguments.checkpoint)
    config = override_config(opened.config, arguments.settings, {})
    store = prepare(config, tokenizer=opened.tokenizer).splits[arguments.split]
    if not arguments.json:
        print("| group | tables | file MB | loss | word perplexity | change |")
        print("|---|---|---|---|---|---|")
    for row in rows(opened, store):
        if arguments.json:
            print(json.dumps(row), flush=True)
            continue
        print(
            f"| {row['group']} | {row['tables']} | {row['file_bytes'] / 1e6:.2f} "
            f"| {row['valid_loss']:.5f} | {row['word_perplexity']:.3f} "
            f"| {row['perplexity_change']:+.3%} |", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
