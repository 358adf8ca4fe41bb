"""``infinito doctor``: what this machine offers, each fact with its reason and remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infinito.cli.options import Json

if TYPE_CHECKING:
    from infinito.runtime.findings import Finding

_BUILD = "install a C compiler, then install infinito again"


def doctor(as_json: Json = False) -> None:
    """Show what this machine offers a run.

    Device, precisions, attention back ends, memory, disk, threads, compiler and versions, each
    with its reason, and a remedy where something is missing.
    """
    from dataclasses import asdict
    from pathlib import Path

    from infinito.cli.output import print_json, table
    from infinito.runtime.findings import examine

    findings = [*examine(Path("checkpoints")), *_kernels()]
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
        return
    rows = [(f.name, f.value, f.reason, f.remedy) for f in findings]
    table(("what", "value", "reason", "remedy"), rows)


def _kernels() -> list[Finding]:
    """The compiled parts: which attention back ends serve distances, and the decode step."""
    from infinito.attention import Route, available_backends
    from infinito.model.decode import why_missing
    from infinito.runtime.findings import Finding

    findings = []
    for name, answer in available_backends().items():
        works = isinstance(answer, Route)
        reason = answer.reason if isinstance(answer, Route) else answer
        remedy = "" if works or name != "cpu" else _BUILD
        findings.append(Finding(f"l1 attention {name}", "yes" if works else "no", reason, remedy))
    obstacle = why_missing()
    reason = obstacle or "one call a token for the whole model"
    value, remedy = ("no", _BUILD) if obstacle else ("yes", "")
    return [*findings, Finding("compiled decode step", value, reason, remedy)]
