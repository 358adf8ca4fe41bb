"""What ``infinito optimise`` leaves behind: a config ready to train, all figures, and a report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infinito.checkpoint.atomic import write_text_atomic
from infinito.config.loading import diff, to_yaml
from infinito.config.schema import Config
from infinito.optimise.int8_trial import Int8Trial
from infinito.optimise.optimisations import Alternative
from infinito.optimise.pipeline import SEEDS, Optimised, QualityTrial, SpeedTrial
from infinito.version import __version__

CONFIG_FILE, FIGURES_FILE, REPORT_FILE, INT8_FILE = (
    "optimised.yaml", "optimise.json", "report.md", "int8.pt"
)  # fmt: skip
FILES = (CONFIG_FILE, FIGURES_FILE, REPORT_FILE, INT8_FILE)
HEADERS = ("setting", "on top of", "tokens/s", "speed", "95 % interval", "MB", "verdict")
RULES = f"""\
- Speed: steps of both configs take turns in one process; a setting is faster only if the 95 %
  interval of the median ratio lies above 1. MB is what a step holds, counted.
- Quality: short trainings on the same text with {SEEDS} seeds each; it is unchanged if the mean
  validation loss is no higher than before by more than the losses before differ between the seeds
  (standard deviation)."""


def figures(
    subject: str, base: Config, result: Optimised, int8: Int8Trial | None
) -> dict[str, Any]:
    """All that was measured, as one JSON document."""
    return {
        "subject": subject,
        "version": __version__,
        "device": base.device,
        "changed": {key: new for key, _, new in diff(base, result.config)},
        "kept": [alternative.name for alternative in result.kept],
        "reasons": result.reasons,
        "total": asdict(result.total) if result.total else None,
        "speeds": [{**asdict(trial), "verdict": trial.verdict} for trial in result.speeds],
        "qualities": [_quality(trial) for trial in result.qualities],
        "threads": {
            count: {**asdict(speed), "verdict": speed.verdict}
            for count, speed in result.threads.items()
        },
        "int8": {**asdict(int8), "kept": int8.is_kept} if int8 else None,
    }


def write_files(
    directory: Path, base: Config, result: Optimised, int8: Int8Trial | None, data: dict[str, Any]
) -> None:
    """Write the config, the figures and the report (ResourceError)."""
    header = "".join(f"# {line}".rstrip() + "\n" for line in summary(base, result, int8))
    write_text_atomic(directory / CONFIG_FILE, header + to_yaml(result.config))
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(directory / FIGURES_FILE, text + "\n")
    write_text_atomic(directory / REPORT_FILE, report(data["subject"], base, result, int8))


def summary(base: Config, result: Optimised, int8: Int8Trial | None) -> list[str]:
    """The outcome in a few lines."""
    lines = []
    if result.total is None or not result.kept:
        lines.append("Nothing was faster at unchanged quality: the config is as it was.")
    else:
        total = result.total
        changed = ", ".join(f"{key}: {old} -> {new}" for key, old, new in diff(base, result.config))
        lines += [
            f"{total.before:.0f} -> {total.after:.0f} tokens/s: {total.ratio:.2f}x "
            f"[{total.low:.2f}, {total.high:.2f}] on {base.device}; a step holds "
            f"{total.memory_before:.0f} -> {total.memory_after:.0f} MB",
            f"changed: {changed}",
        ]
        trial = next(t for t in reversed(result.qualities) if t.names == _names(result.kept))
        lines.append(f"validation loss of short trainings: {trial.difference:+.4f} nats, seeds "
                     f"alone +-{trial.spread:.4f}")  # fmt: skip
    faster = {c: s for c, s in result.threads.items() if s.verdict == "faster"}
    if faster:
        count = max(faster, key=lambda number: faster[number].ratio)
        lines.append(f"set OMP_NUM_THREADS={count} in the environment: {faster[count].text}")
    if int8:
        lines.append(
            f"int8 ({INT8_FILE}): {int8.reason}" if int8.is_kept else f"int8: {int8.reason}"
        )
    return lines


def speed_rows(result: Optimised) -> list[list[str]]:
    """A row for each measurement, under ``HEADERS``."""
    rows = [_speed_row(trial) for trial in result.speeds]
    for count, speed in result.threads.items():
        rows.append(_speed_row(SpeedTrial((f"threads={count}",), _names(result.kept), speed)))
    if result.total:
        rows.append(_speed_row(SpeedTrial(("all together",), (), result.total)))
    return rows


def report(subject: str, base: Config, result: Optimised, int8: Int8Trial | None) -> str:
    """The report in Markdown: what was kept, what not, and why."""
    lines = [f"# Optimised: {subject}", "", *summary(base, result, int8), ""]
    lines += ["## What was kept, what not, and why", ""]
    lines += [f"- {name}: {reason}" for name, reason in result.reasons.items()]
    lines += ["", "## Speed", "", *_markdown(HEADERS, speed_rows(result))]
    heads = ("settings", "loss before", "loss with them", "difference", "seeds alone", "verdict")
    lines += ["", "## Quality", "", *_markdown(heads, [_row(t) for t in result.qualities])]
    return "\n".join([*lines, "", "## Rules", "", RULES, ""])


def _names(alternatives: list[Alternative]) -> tuple[str, ...]:
    return tuple(alternative.name for alternative in alternatives)


def _quality(trial: QualityTrial) -> dict[str, Any]:
    derived = {"difference": trial.difference, "spread": trial.spread}
    return {**asdict(trial), **derived, "is_unchanged": trial.is_unchanged}


def _speed_row(trial: SpeedTrial) -> list[str]:
    head = [trial.name, ", ".join(trial.on_top_of) or "-"]
    if trial.speed is None:
        return [*head, "-", "-", "-", "-", f"refused: {trial.refusal}"]
    s = trial.speed
    interval = f"{s.low:.3f} to {s.high:.3f}"
    return [*head, f"{s.after:.0f}", f"{s.ratio:.3f}", interval, f"{s.memory_after:.0f}", s.verdict]


def _row(trial: QualityTrial) -> list[str]:
    before, after = (
        " ".join(f"{loss:.4f}" for loss in losses) or "diverged"
        for losses in (trial.baseline, trial.losses)
    )
    difference = "-" if trial.difference is None else f"{trial.difference:+.4f}"
    verdict = "unchanged" if trial.is_unchanged else "worse"
    return [" ".join(trial.names), before, after, difference, f"{trial.spread:.4f}", verdict]


def _markdown(headers: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    if not rows:
        return ["Nothing was measured."]
    return [f"| {' | '.join(row)} |" for row in (headers, ["---"] * len(headers), *rows)]
