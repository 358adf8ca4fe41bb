"""The report as one HTML file: its data, style and script are in it, and it asks for nothing."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from torch import Tensor

from infinito.analyze.attention_report import AttentionReport
from infinito.analyze.plots import FAINTEST
from infinito.checkpoint.survey import finite
from infinito.config.explain import show_value
from infinito.config.keys import flatten
from infinito.config.loading import load_config, to_plain
from infinito.report.curves import inner_panels, panels
from infinito.report.model_view import ModelView
from infinito.report.run_log import RunLog
from infinito.runtime.paths import command, shown
from infinito.telemetry.console import seconds_text

#: Positions of a drawn attention map.
_POSITIONS = 48


def render(runs: Sequence[RunLog], views: Sequence[ModelView]) -> str:
    """The page of ``runs``, each with what its model shows."""
    parts = {name: files(__package__).joinpath(name).read_text("utf-8") for name in _PARTS}
    data = {
        "runs": [_run(run, view) for run, view in zip(runs, views, strict=True)],
        "panels": [asdict(panel) for panel in panels(runs)],
        "inner": [asdict(panel) for panel in inner_panels(runs)],
        "differences": differences(runs),
    }
    # "<" in a script would begin a tag; json has other ways to write it.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    filled = {
        "title": html.escape(", ".join(run.name for run in runs)),
        "style": parts["page.css"],
        "script": parts["page.js"],
        "data": text,
    }
    # In one pass: a run may be called "{data}".
    return re.sub(
        r"\{(title|style|script|data)\}", lambda mark: filled[mark[1]], parts["page.html"]
    )


_PARTS = ("page.html", "page.css", "page.js")


def differences(runs: Sequence[RunLog]) -> list[list[str]]:
    """Rows key, value, ...: where the runs' configs differ, or those of one run from the defaults.

    Of one run, the last cell is the default.
    """
    configs = [_flat(run) for run in runs]
    if len(runs) == 1:
        configs.append(_shown(flatten(to_plain(load_config(None)))))
    keys = list(dict.fromkeys(key for config in configs for key in config if key != "output_dir"))
    rows = [[key, *(config.get(key, "absent") for config in configs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1] if all(configs) else []


def _flat(run: RunLog) -> dict[str, str]:
    return _shown(flatten(to_plain(run.config))) if run.config else {}


def _shown(flat: dict[str, Any]) -> dict[str, str]:
    return {key: show_value(value) for key, value in flat.items()}


def _run(run: RunLog, view: ModelView) -> dict[str, Any]:
    axes = {
        name: numbers for name, numbers in run.axes().items() if any(x is not None for x in numbers)
    }
    return {
        "name": run.name,
        "thinning": run.thinning,
        "axes": axes,
        "figures": _figures(run, view),
        "samples": [[x["step"], s] for x in run.lines if isinstance(s := x.get("sample"), str)],
        "config": _flat(run),
        "environment": _environment(run),
        "commands": _commands(run),
        "missing": view.missing,
        "source": f"{view.checkpoint}, step {view.step}",
        "vocabulary": view.vocabulary,
        "pieces": view.pieces,
        "n_tokens": len(view.tokens),
        "attention": _attention(view.attention, view.tokens) if view.attention else None,
    }


def _figures(run: RunLog, view: ModelView) -> dict[str, str]:
    """What is known of a run in one line each."""
    last = run.lines[-1] if run.lines else {}
    best = run.best or {}
    speeds = [x for line in run.lines if (x := finite(line.get("tokens_per_second"))) is not None]
    training = run.config.training if run.config else None
    steps = f" of {training.max_steps}" if training and training.max_steps else ""
    cells = {
        "state": run.survey["state"],
        "step": f"{last['step']}{steps}" if last else None,
        "best validation loss": _number(best.get("valid_loss"), ".4f"),
        "word perplexity": _number(best.get("valid_word_perplexity"), ".2f"),
        "bits per byte": _number(best.get("valid_bits_per_byte"), ".4f"),
        "best at step": _number(best.get("step"), ".0f"),
        "tokens": _number(last.get("tokens"), ".0f"),
        "epochs": _number(last.get("epoch"), ".2f"),
        "time": None if (seconds := finite(last.get("seconds"))) is None else seconds_text(seconds),
        "tokens/s (median)": _number(statistics.median(speeds) if speeds else None, ".0f"),
        "parameters": str(view.parameters) if view.parameters else None,
        "memory": _number(last.get("memory_mb"), ".0f", " MB"),
    }
    return {name: cell for name, cell in cells.items() if cell is not None}


def _number(value: object, form: str, unit: str = "") -> str | None:
    number = finite(value)
    return None if number is None else format(number, form) + unit


def _environment(run: RunLog) -> dict[str, str]:
    record = run.record
    host = record.get("host") or {}
    system = " ".join(str(host[key]) for key in ("system", "release", "machine") if key in host)
    cells = {
        "started": record.get("started"),
        "device": record.get("device"),
        "system": f"{system}, {host.get('cpu_count')} cores" if system else None,
        **(record.get("versions") or {}),
    }
    return {name: str(cell) for name, cell in cells.items() if cell is not None}


def _commands(run: RunLog) -> dict[str, list[str]]:
    """What was typed, the earliest first, and what can be typed next."""
    records = [*(run.record.get("earlier") or []), run.record]
    typed = [record["command"][1:] for record in records if record.get("command")]
    place = shown(run.path)
    goes_on = [] if run.survey["state"] == "finished" else [command("resume", place)]
    return {
        "typed": [shlex.join(["infinito", *words]) for words in typed],
        "next": [
            *goes_on,
            command("evaluate", place),
            command("generate", place, "--prompt") + ' "..."',
        ],
    }


def _attention(report: AttentionReport, tokens: list[str]) -> dict[str, Any]:
    """Maps of the first window as a byte a weight, on a logarithmic scale, and the statistics."""
    size = min(_POSITIONS, report.example.shape[-1])
    return {
        "kind": report.kind,
        "windows": f"{report.n_windows} windows of {report.length} tokens",
        "size": size,
        "faintest": FAINTEST,
        "tokens": tokens[:size],
        "maps": [[_packed(head[:size, :size]) for head in layer] for layer in report.example],
        "heads": report.heads,
    }


def _packed(weights: Tensor) -> str:
    scaled = 255 * (1 - weights.clamp(FAINTEST, 1.0).log10() / math.log10(FAINTEST))
    return base64.b64encode(bytes(scaled.round().int().flatten().tolist())).decode()
