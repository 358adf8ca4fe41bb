"""What ``infinito evaluate`` says about a model: a block of text, and the same as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from infinito.data.token_store import TokenStore
from infinito.evaluate.conventions import Figure
from infinito.evaluate.perplexity import Score
from infinito.evaluate.tuned import Cost
from infinito.tokenizer.coder import UNKNOWN

LEAK_BELOW = 20.0
Adapt = Literal["none", "dynamic", "cache", "both"]
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Adaptive:
    """What test-time adaptation reaches, how, and at what cost.

    Attributes:
        settings: of each model, by its name.
        tuning_tokens: of the validation text, from which they are.
        cost: of the one pass over the text; ``tuning_cost`` of all that came before, then or once.
        kept_in: the file in which an earlier evaluation left the settings; None without one.
    """

    kind: Adapt
    score: Score
    interval: Interval
    settings: dict[str, dict[str, float]]
    tuning_tokens: int
    cost: Cost
    tuning_cost: Cost
    kept_in: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "kind": self.kind,
            **_score_figures(self.score, self.interval),
            "settings": self.settings,
            "tuned_on": f"the first {self.tuning_tokens} tokens of the validation text",
            "settings_from": self.kept_in,
            "seconds": round(self.cost.seconds, 3),
            "processor_seconds": round(self.cost.processor_seconds, 3),
            "tuning_seconds": round(self.tuning_cost.seconds, 3),
            "tuning_processor_seconds": round(self.tuning_cost.processor_seconds, 3),
            "tokens_per_second": round(self.score.n_tokens / self.cost.seconds, 1),
        }

    def rows(self) -> list[tuple[str, str]]:
        """For people; it is never the headline."""
        score, plain = self.score, self.to_plain()
        low, high = self.interval or (None, None)
        spread = f"95% interval {low:.4f} to {high:.4f}" if low and high else "no interval"
        kept = f", kept in {self.kept_in}" if self.kept_in else ""
        rows = [
            ("adaptive", f"{self.kind}; each token is scored before anything learns from it"),
            ("  per word", f"perplexity {score.word_perplexity:.4f}, {spread}"),
            ("  per token", f"perplexity {score.token_perplexity:.4f}"),
            ("  bits per byte", f"{score.bits_per_byte:.4f}"),
            ("  settings", f"segments of {score.stride} tokens; from {plain['tuned_on']}{kept}"),
            ("  time", f"{self.cost}, {plain['tokens_per_second']:.0f} tokens/s"),
            ("  tuning", f"{self.tuning_cost}{', earlier' if kept else ''}"),
        ]
        for name, found in self.settings.items():
            values = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            rows.insert(-2, ("", f"{name}: {values}"))
        return rows


@dataclass(frozen=True)
class Report:
    """One evaluation: score, circumstances, warnings, and figures under other conventions.

    ``split`` and ``corpus`` say where the scored text, ``store``, came from. ``bits_lead`` is why
    bits per byte come first, empty where they do not.
    """

    score: Score
    split: str
    corpus: str
    store: TokenStore
    checkpoint: str
    step: int | None
    tokenizer_kind: str
    vocab_size: int
    parameters: int
    interval: Interval
    seconds: float
    bits_lead: str = ""
    warnings: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    members: list[dict[str, Any]] = field(default_factory=list)
    adaptive: Adaptive | None = None

    @property
    def convention(self) -> str:
        """What the word perplexity may be compared with."""
        if self.tokenizer_kind == "word":
            return f"AWD-LSTM convention, closed vocabulary of {self.vocab_size} words"
        return f"upper bound: open vocabulary, {self.tokenizer_kind} tokens"

    def to_plain(self) -> dict[str, Any]:
        """The report for ``--json``; numbers that are not finite become None."""
        score, store = self.score, self.store
        return {
            "checkpoint": self.checkpoint,
            "step": self.step,
            "parameters": self.parameters,
            "split": self.split,
            "corpus": self.corpus,
            "text_sha256": store.text_sha256,
            **_score_figures(score, self.interval),
            "n_tokens": score.n_tokens,
            "n_words": score.n_words,
            "n_lines": store.n_lines,
            "n_bytes": score.n_bytes,
            "n_unknown": store.n_unknown,
            "n_documents": len(store.document_starts),
            "convention": self.convention,
            "context": score.context,
            "seconds": round(self.seconds, 3),
            "warnings": self.warnings,
            "conventions": {figure.key: _finite(figure.value) for figure in self.figures},
            "convention_intervals": {
                f.key: [_finite(x) for x in f.interval] for f in self.figures if f.interval
            },
            "members": self.members,
            "adaptive": self.adaptive and self.adaptive.to_plain(),
        }

    def to_text(self) -> str:
        """The block a person reads."""
        lines = [f"{label + ':' if label else '':<18}{text}" for label, text in self._rows()]
        lines += [f"  {f.value:.4f}  {f.meaning}{_spread(f)}" for f in self.figures]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str]]:
        score, store = self.score, self.store
        words = score.n_words - store.n_lines
        unknown = f", {store.n_unknown / words:.2%} unknown" if store.n_unknown else ""
        rows = [
            ("checkpoint", self.checkpoint + ("" if self.step is None else f" (step {self.step})")),
            ("data", f"{self.corpus} {self.split}, sha256 {store.text_sha256}"),
            ("text", f"{words} words + {store.n_lines} line ends, {score.n_bytes} bytes{unknown}"),
            ("method", f"context {score.context}, stride {score.stride}, one stream, static"),
            ("nll total", f"{score.nll_total:.4f} nats over {score.n_tokens} tokens"),
            ("loss", f"{score.loss:.4f} nats per token"),
            ("token perplexity", f"{score.token_perplexity:.4f} ({self._tokens_per_word})"),
            ("word perplexity", f"{score.word_perplexity:.4f} ({self.convention})"),
            ("95% interval", self._interval_text),
            ("bits per byte", f"{score.bits_per_byte:.4f}"),
            ("time", f"{self.seconds:.1f} s"),
        ]
        if self.bits_lead:
            why = f" (the figure to compare: {self.bits_lead})"
            rows.insert(5, ("bits per byte", rows.pop(9)[1] + why))
        rows += self._member_rows()
        rows += self.adaptive.rows() if self.adaptive else []
        return [*rows, ("other conventions", "")] if self.figures else rows

    @property
    def _tokens_per_word(self) -> str:
        score = self.score
        return (
            f"{score.n_tokens / score.n_words:.4f} tokens per word" if score.n_words else "no words"
        )

    @property
    def _interval_text(self) -> str:
        if self.interval is None:
            return f"none: {len(self.store.document_starts)} documents are too few to resample"
        low, high = self.interval
        documents = len(self.store.document_starts)
        return f"{low:.4f} to {high:.4f} of word perplexity, {documents} documents resampled"

    def _member_rows(self) -> list[tuple[str, str]]:
        return [
            ("member", f"{m['checkpoint']}, weight {m['weight']:.4f}, alone "
             f"{m['valid_word_perplexity']:.2f} on the validation text")
            for m in self.members
        ]  # fmt: skip


def _score_figures(score: Score, interval: Interval) -> dict[str, Any]:
    return {
        "loss": score.loss,
        "nll_total": score.nll_total,
        "token_perplexity": _finite(score.token_perplexity),
        "word_perplexity": _finite(score.word_perplexity),
        "word_perplexity_interval": [_finite(x) for x in interval] if interval else None,
        "bits_per_byte": _finite(score.bits_per_byte),
        "stride": score.stride,
    }


def _spread(figure: Figure) -> str:
    low, high = figure.interval or (None, None)
    return f", 95% {low:.4f} to {high:.4f}" if low and high else ""


COMPARISON_HEADERS = (
    "model", "parameters", "step", "loss", "token ppl", "word ppl", "bits per byte", "",
)  # fmt: skip


def comparison_rows(reports: Sequence[Report]) -> list[list[str]]:
    """A row of text a model; of one text, the fewest bits per byte are the best.

    Losses and token perplexities of different tokenizers do not compare, bits per byte do, but
    for a closed vocabulary that makes more words unknown and so has less to predict.
    """
    best = min((report.store.n_unknown, report.score.bits_per_byte) for report in reports)
    one_text = len({report.store.text_sha256 for report in reports}) == 1
    return [
        [
            report.checkpoint.removesuffix("/best.pt"),
            str(report.parameters or "-"),
            "-" if report.step is None else str(report.step),
            f"{report.score.loss:.4f}",
            f"{report.score.token_perplexity:.4f}",
            f"{report.score.word_perplexity:.4f}",
            f"{report.score.bits_per_byte:.4f}",
            _remark(report, *best) if one_text else "",
        ]
        for report in reports
    ]


def _remark(report: Report, fewest_unknown: int, best: float) -> str:
    if spared := report.store.n_unknown - fewest_unknown:
        return f"{spared} more words are {UNKNOWN}"
    return "best" if report.score.bits_per_byte == best else ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
