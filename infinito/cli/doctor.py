"""``infinito doctor``: what this machine offers, each fact with its reason and remedy."""

from __future__ import annotations

from infinito.cli.options import Json


def doctor(as_json: Json = False) -> None:
    """Show what this machine offers a run.

    Device, precisions, attention back ends, memory, disk, threads, compiler and versions, each
    with its reason, and a remedy where something is missing.
    """
    from dataclasses import asdict
    from pathlib import Path

    from infinito.cli.output import print_json, table
    from infinito.runtime.doctor import examine

    findings = examine(Path("checkpoints"))
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
        return
    rows = [(f.name, f.value, f.reason, f.remedy) for f in findings]
    table(("what", "value", "reason", "remedy"), rows)
