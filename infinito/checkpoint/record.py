"""run.json: when and where a run was started, all that may differ between equal runs."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from infinito.version import __version__

RECORD_FILE = "run.json"
_MAX_BYTES = 1 << 20
_LIBRARIES = ("torch", "numpy", "tokenizers", "datasets")
_SECRET = "***"
_SECRET_NAME = r"(?<![a-z])(?:token|secret|password|passwd|api[_-]?key|credentials?)(?![a-z])"
_SECRET_OPTION = re.compile(rf"--?[\w.-]*{_SECRET_NAME}[\w.-]*", re.IGNORECASE)
_SECRET_SETTING = re.compile(rf"^([^=]*{_SECRET_NAME}[^=]*=).*", re.IGNORECASE | re.DOTALL)
_URL_PASSWORD = re.compile(r"(://)[^/@\s]+@")
_KEY_SHAPE = re.compile(r"\b(?:hf|sk|ghp)_?-?[A-Za-z0-9]{16,}")


def record_text(run: Path, arguments: Sequence[str], facts: Mapping[str, Any]) -> str:
    """run.json for a process that starts now; earlier starts move to its list ``earlier``.

    ``arguments`` is the command line (secrets are blanked), ``facts`` what else is worth noting
    (device, threads).
    """
    earlier = read_record(run)
    before = earlier.pop("earlier", [])
    now = time.time()
    record = {
        "start_time": now,
        "started": datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "command": without_secrets(arguments),
        "versions": library_versions(),
        "host": {
            "system": platform.system(),
            "release": platform.release(),
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
        },
        **facts,
        "earlier": [*before, earlier] if earlier and isinstance(before, list) else [],
    }
    return json.dumps(record, indent=1) + "\n"


def read_record(run: Path) -> dict[str, Any]:
    """What run.json says; empty where it is absent or damaged."""
    return read_object(run / RECORD_FILE, _MAX_BYTES) or {}


def read_object(path: Path, most_bytes: int) -> dict[str, Any] | None:
    """The JSON object that a file holds; None for links, larger files and anything else."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > most_bytes:
        return None
    return json_object(path.read_bytes())


def json_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that ``text`` is, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def start_time(run: Path) -> float:
    """Seconds since 1970 at which the latest process of ``run`` started; 0 where unknown."""
    value = read_record(run).get("start_time")
    return value if isinstance(value, float) and math.isfinite(value) else 0.0


def library_versions() -> dict[str, str]:
    """Versions of this program, Python and the libraries that numbers depend on."""
    own = {"infinito": __version__, "python": platform.python_version()}
    return own | {library: _version(library) for library in _LIBRARIES}


@cache
def _version(library: str) -> str:
    # Asked at every save; what is imported does not change under a running process.
    return importlib.metadata.version(library)


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """``arguments`` with values blanked that are, or are named like, passwords and tokens."""
    secrets = [
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and re.search(_SECRET_NAME + "|_key$", name, re.IGNORECASE)
    ]
    shown: list[str] = []
    for index, argument in enumerate(arguments):
        if index and _SECRET_OPTION.fullmatch(arguments[index - 1]):
            shown.append(_SECRET)
            continue
        text = Path(argument).name if index == 0 else argument
        text = _SECRET_SETTING.sub(rf"\g<1>{_SECRET}", text)
        text = _KEY_SHAPE.sub(_SECRET, _URL_PASSWORD.sub(rf"\g<1>{_SECRET}@", text))
        for secret in secrets:
            text = text.replace(secret, _SECRET)
        shown.append(text)
    return shown
