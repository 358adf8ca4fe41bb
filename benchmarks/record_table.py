"""The rows of ``benchmarks/record.py`` as a table and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

HEAD = (
    "| model | seeds | PFLOP | minutes | valid | test | test, closed vocabulary | test, adaptive |"
)
#: Validation and test word perplexity of what was published, trained on WikiText-2 alone: Merity
#: et al. 2018 and Melis 2022 (with Takase et al. 2018) by NLP-progress, "Language modeling"; the
#: LSTM of 1,500 units by the users of pytorch/examples, issue 415.
ANCHORS = {
    "PyTorch LSTM-1500, 40 epochs": (88.0, 84.1),
    "AWD-LSTM, 750 epochs": (68.6, 65.8),
    "AWD-LSTM-DOC": (60.29, 58.03),
    "Mogrifier RLSTM": (56.7, 55.0),
}
_COLOURS = ("#3987e5", "#d95926", "#199e70", "#9085e9", "#c98500", "#d55181")
_INK = "#808080"  # is read on white and on black


def spread(values: Sequence[float]) -> str:
    """The mean and, of several, the standard deviation."""
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """A line a recipe over its seeds; the adaptive figure in a column of its own."""
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    for (_, name), group in groupby(
        sorted(rows, key=lambda row: (_order(row), row["name"])),
        key=lambda row: (_order(row), row["name"]),
    ):
        lines.append(_line(name, list(group)))
    return "\n".join(lines)


def _order(row: dict[str, Any]) -> int:
    return ("model", "floor", "ensemble").index(row["kind"])


def _line(name: str, rows: list[dict[str, Any]]) -> str:
    closed = [row["test"]["closed_word_perplexity"] for row in rows]
    ways = [next(iter(row["test"].get("adaptive", {}).items()), None) for row in rows]
    adaptive = [found["word_perplexity"] for _, found in filter(None, ways)]
    how = "/".join(dict.fromkeys(way for way, _ in filter(None, ways)))
    counted = [row["training_flops"] / 1e15 for row in rows if "training_flops" in row]
    minutes = [row["minutes"] for row in rows if "minutes" in row]
    cells = [
        name,
        ", ".join(str(row["seed"]) for row in rows if "seed" in row) or "-",
        f"{statistics.fmean(counted):.3g}" if counted else "-",
        f"{statistics.fmean(minutes):.0f}" if minutes else "-",
        spread([row["valid"]["word_perplexity"] for row in rows]),
        spread([row["test"]["word_perplexity"] for row in rows]),
        "-" if None in closed else spread(closed),
        f"{spread(adaptive)} ({how})" if len(adaptive) == len(rows) else "-",
    ]
    return f"| {' | '.join(cells)} |"


def draw(rows: Sequence[dict[str, Any]], file: Path) -> None:
    """Validation word perplexity against FLOPs and minutes, what was published as lines.

    Transparent, in grey and middle tones: it is read on a white page and on a dark one.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    settings: dict[Any, Any] = {
        "svg.hashsalt": "infinito", "svg.fonttype": "none", "font.size": 9, "text.color": _INK,
        "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    }  # fmt: skip
    models = [row for row in rows if row.get("curve")]
    names = list(dict.fromkeys(row["name"] for row in models))
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9, 3.8), layout="tight")
        for place, label in enumerate(("training FLOPs, counted", "minutes of training")):
            axes = figure.add_subplot(1, 2, place + 1)
            axes.patch.set_alpha(0)
            for row in models:
                colour = _COLOURS[names.index(row["name"]) % len(_COLOURS)]
                first = row is next(r for r in models if r["name"] == row["name"])
                across = [point[place] for point in row["curve"]]
                down = [point[2] for point in row["curve"]]
                axes.plot(across, down, color=colour, label=row["name"] if first else None)
                end = row["training_flops"] if place == 0 else row["minutes"]
                axes.plot([end], [row["valid"]["word_perplexity"]], "o", color=colour)
            lowest = min(valid for valid, _ in ANCHORS.values())
            for name, (valid, _) in ANCHORS.items():
                axes.axhline(valid, color=_INK, linewidth=0.8, linestyle="--")
                axes.annotate(
                    f"{name}: {valid:g}", (0.01, valid), xycoords=("axes fraction", "data"),
                    xytext=(0, -8 if valid == lowest else 2), textcoords="offset points",
                    fontsize=7,
                )  # fmt: skip
            axes.set(xscale="log", yscale="log", xlabel=label)
            for axis in [axes.yaxis, *([axes.xaxis] if place else [])]:  # FLOPs keep their powers
                axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
            axes.spines[["top", "right"]].set_visible(False)
            if place == 0:
                axes.set_ylabel("validation word perplexity")
                axes.legend(frameon=False, fontsize=8, loc="upper right")
        figure.savefig(file, transparent=True, metadata={"Date": None})
