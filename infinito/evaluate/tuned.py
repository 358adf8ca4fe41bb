"""What was found on the validation text, kept beside the checkpoint: found once, used for any text.

A finding belongs to a question: the checkpoints by their bytes, the validation text by its hash,
and how it was asked. Whatever of it changes, the answer is looked for anew.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infinito.checkpoint.atomic import write_text_atomic
from infinito.checkpoint.record import read_object
from infinito.checkpoint.verify import sha256_of
from infinito.errors import ResourceError
from infinito.load import LoadedModel
from infinito.runtime.events import note

TUNED_FILE = "tuned.json"
_FORMAT = "infinito-tuned"
_MAX_BYTES = 1 << 20


class Cost(NamedTuple):
    """Seconds on the wall, and of all threads on processors."""

    seconds: float
    processor_seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s ({self.processor_seconds:.1f} s of processor time)"


class Tuned(NamedTuple):
    """An answer, what it cost, and the file it was kept in; None where it was looked for now."""

    answer: dict[str, Any]
    cost: Cost
    kept_in: str | None


def together(findings: Sequence[Tuned], answer: dict[str, Any] | None = None) -> Tuned:
    """Costs added; kept in the first's file, if all were kept."""
    cost = Cost(*map(sum, zip(*(finding.cost for finding in findings), strict=True)))
    kept = all(finding.kept_in for finding in findings)
    return Tuned(answer or {}, cost, findings[0].kept_in if kept else None)


def kept_or_found(
    models: Sequence[LoadedModel],
    question: dict[str, Any],
    like: dict[str, Any],
    find: Callable[[], dict[str, Any]],
) -> Tuned:
    """The answer that stands beside the first of ``models``, else what ``find`` gives, kept there.

    ``question`` and the answer are plain data; ``like`` is an answer with any numbers in it: what
    has another shape is none. Where nothing can be written, that is said.
    """
    file = models[0].path.parent / TUNED_FILE
    question = {"checkpoints": [sha256_of(loaded.path) for loaded in models], **question}
    for entry in _read(file):
        if entry["question"] == question and _alike(entry["answer"], like):
            note(f"{question['what']}: found before on the validation text, kept in {file}")
            return Tuned(entry["answer"], Cost(*entry["cost"]), str(file))
    note(f"{question['what']}: looking for the best on the validation text")
    start, work = time.monotonic(), time.process_time()
    answer = find()
    cost = Cost(time.monotonic() - start, time.process_time() - work)
    entries = [*_read(file), {"question": question, "answer": answer, "cost": cost}]
    try:
        text = json.dumps({"format": _FORMAT, "found": entries}, indent=1)
        write_text_atomic(file, text + "\n")
    except ResourceError as error:
        note(f"not kept for the next evaluation: {error.message}")
    return Tuned(answer, cost, None)


def _read(file: Path) -> list[dict[str, Any]]:
    """Entries of the file; none where it is absent, damaged or another program's."""
    content = read_object(file, _MAX_BYTES) or {}
    entries = content.get("found") if content.get("format") == _FORMAT else None
    if not isinstance(entries, list):
        return []
    return [
        entry
        for entry in entries
        if isinstance(entry, dict)
        and entry.keys() >= {"question", "answer"}
        and _alike(entry.get("cost"), [0.0, 0.0])
    ]


def _alike(value: object, example: object) -> bool:
    """Whether both have the same keys and lengths, and ``value`` finite numbers in all places."""
    if isinstance(example, dict) and isinstance(value, dict):
        return value.keys() == example.keys() and all(_alike(value[k], example[k]) for k in value)
    if isinstance(example, list) and isinstance(value, list):
        return len(value) == len(example) and all(map(_alike, value, example))
    return isinstance(value, int | float) and isinstance(example, float) and math.isfinite(value)
