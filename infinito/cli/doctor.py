"""``infinito doctor``: what this machine offers, each fact with its reason and remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infinito.cli.options import Json

if TYPE_CHECKING:
    from infinito.runtime.findings import Finding


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
    """The variants of each operation: is there one, on the chosen device or on the CPU?"""
    from infinito.bench.operations import OPERATIONS
    from infinito.runtime.device import choose_device
    from infinito.runtime.findings import Finding

    findings = []
    for operation in OPERATIONS:
        samples = map(operation.sample, ("cpu", choose_device("auto").value))
        on_cpu, chosen = map(operation.available, samples)
        for name, answer in chosen.items():
            answer = on_cpu[name] if isinstance(answer, str) else answer
            value, reason = ("no", answer) if isinstance(answer, str) else ("yes", answer.reason)
            remedy = operation.variants[name].remedy if value == "no" else ""
            findings.append(Finding(f"{operation.name} {name}", value, reason, remedy))
    return findings
