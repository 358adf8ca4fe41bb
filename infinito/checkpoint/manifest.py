"""MANIFEST.json: SHA-256 and size of each step file of a run, always written last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from infinito.checkpoint.atomic import write_text_atomic
from infinito.checkpoint.record import read_object
from infinito.checkpoint.verify import sha256_of

MANIFEST_FILE = "MANIFEST.json"
_MAX_BYTES = 8 << 20


@dataclass(frozen=True)
class ManifestEntry:
    """What the file had when it was written: SHA-256 in hexadecimal, size in bytes."""

    sha256: str
    size: int


def entry_of(path: Path) -> ManifestEntry:
    """The entry that describes ``path`` as it is now."""
    return ManifestEntry(sha256_of(path), path.stat().st_size)


def read_manifest(run: Path) -> dict[str, ManifestEntry]:
    """Entries by file name; none where the manifest is absent or damaged.

    That is safe because each checkpoint also verifies by itself: the manifest adds a second
    check, it does not vouch for anything.
    """
    manifest = read_object(run / MANIFEST_FILE, _MAX_BYTES) or {}
    try:
        return {
            str(name): ManifestEntry(str(entry["sha256"]), int(entry["size"]))
            for name, entry in manifest["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return {}


def write_manifest(run: Path, entries: dict[str, ManifestEntry]) -> None:
    """Replace the manifest of ``run`` (ResourceError where it cannot be written)."""
    files = {name: asdict(entries[name]) for name in sorted(entries)}
    text = json.dumps({"format": "infinito-manifest", "files": files}, indent=1)
    write_text_atomic(run / MANIFEST_FILE, text + "\n")
