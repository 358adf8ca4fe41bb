"""``infinito evaluate``: how well a checkpoint predicts a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infinito.cli.options import Device, Json, Settings, complete_run, grouped
from infinito.cli.subject import (
    DEFAULT_SPLIT,
    SplitName,
    check_data_settings,
    corpus_name,
    open_split,
)

if TYPE_CHECKING:
    from infinito.data.token_store import TokenStore
    from infinito.evaluate.members import Subject
    from infinito.evaluate.report import Report
    from infinito.load import LoadedModel

NGRAM = "ngram"
_SETTINGS_REMEDY = "the model is the checkpoint's; for the window use --context and --stride"


@dataclass(frozen=True)
class EvaluateOptions:
    """What to score, on which text, and which figures to print."""

    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CKPT|RUN_DIR|ngram]...",
            help="Checkpoints or runs (their best); else the last run. Behind one, ngram is the "
            "count-based floor: Kneser-Ney 5-grams of its training tokens.",
            autocompletion=complete_run,
        ),
    ] = None
    checkpoint: Annotated[
        str | None, typer.Option(metavar="CKPT", help="One more checkpoint or run.")
    ] = None
    split: Annotated[
        SplitName | None, typer.Option(help="Part of the corpus; valid unless told otherwise.")
    ] = None
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Evaluate this text, in any form that --data takes."),
    ] = None
    context: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens a window; absent: the training length."),
    ] = None
    stride: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="New tokens a window; absent: half the context."),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Windows a pass, for speed; absent: 2048 tokens."),
    ] = None
    all_conventions: Annotated[
        bool,
        typer.Option(
            "--all-conventions", help="Also the figures of other codes; takes several times longer."
        ),
    ] = False
    exact_words: Annotated[
        bool,
        typer.Option(
            "--exact-words",
            help="Also the word perplexity of the training text's closed vocabulary, of a model "
            "that spells words in pieces; takes about three times as long.",
        ),
    ] = False
    ensemble: Annotated[
        bool,
        typer.Option(
            "--ensemble", help="One result: their mean probability, weighted on the valid split."
        ),
    ] = False
    adapt: Annotated[
        Literal["none", "dynamic", "cache", "both"],
        typer.Option(
            help="Also the figure of a model that learns from what it has scored: by gradients, "
            "by a neural cache, or both; settings are found on the valid split."
        ),
    ] = "none"
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Run these tasks of lm-evaluation-harness instead: names, or YAML files.",
        ),
    ] = None
    settings: Settings = None
    device: Device = "auto"
    json: Json = False

    def references(self) -> list[str | None]:
        """What is scored, in order; None is the last run."""
        named = [*(self.checkpoints or []), *([self.checkpoint] if self.checkpoint else [])]
        return [*named] or [None]

    def refuse_contradictions(self) -> None:
        """Refuse what cannot go together, before anything heavy is imported."""
        from infinito.errors import ConfigError

        references, adapts = self.references(), self.adapt != "none"
        other_texts = self.ensemble or adapts or self.exact_words or NGRAM in references
        needless = self.split is not None or (self.settings and not other_texts)
        if self.text is not None and needless:
            raise ConfigError("--text names the text: --split and --set do not apply", "drop them")
        if self.ensemble and len(references) < 2:
            remedy = "name them, with ngram or without"
            raise ConfigError("--ensemble mixes two or more models", remedy)
        figures = (self.context, self.stride, self.all_conventions, self.exact_words, self.ensemble)
        if self.tasks is None:
            check_data_settings(self.settings or [], "evaluate", _SETTINGS_REMEDY)
            self._refuse_for_ngram()
        elif any((self.split, self.text, self.settings, adapts, *figures)):
            remedy = "give --batch-size at most"
            raise ConfigError("--tasks brings its own texts and windows", remedy)

    def _refuse_for_ngram(self) -> None:
        """Counts have no weights, no vocabulary of their own, and no training text."""
        from infinito.errors import ConfigError

        references = self.references()
        if references[0] == NGRAM:
            raise ConfigError(
                f"{NGRAM} counts the tokens of a checkpoint, and none stands before it",
                f"infinito evaluate CKPT {NGRAM}",
            )
        if NGRAM in references and self.adapt in ("dynamic", "both"):
            raise ConfigError(
                f"--adapt {self.adapt}: {NGRAM} has no weights that gradients could change",
                f"use --adapt cache, or leave {NGRAM} out",
            )
        if self.exact_words and (self.ensemble or NGRAM in references):
            raise ConfigError(
                "--exact-words is of models, without --ensemble and ngram", "drop them"
            )


@grouped
def evaluate(options: EvaluateOptions) -> None:
    """Score a whole split, or a text of yours.

    Prints loss, perplexities with their conventions named, and bits per byte.
    """
    from infinito.cli.output import print_json, table

    options.refuse_contradictions()
    if options.tasks is not None:
        _run_tasks(options, options.tasks.split(","))
        return
    from infinito.evaluate.report import COMPARISON_HEADERS, comparison_rows
    from infinito.runtime.events import reading
    from infinito.telemetry.bar import TerminalBar

    reports: list[Report] = []
    with reading(TerminalBar()):
        evaluation = _Evaluation(options)
        subjects = evaluation.subjects(options.references())
        if options.ensemble:
            subjects = iter([evaluation.mixed(list(subjects))])
        for number, subject in enumerate(subjects):
            reports.append(evaluation.report(subject))
            if not options.json:
                print(("\n" if number else "") + reports[-1].to_text(), flush=True)
    if options.json:
        plain = [report.to_plain() for report in reports]
        print_json(plain if len(plain) > 1 else plain[0])
    elif len(reports) > 1:
        print()
        table(COMPARISON_HEADERS, comparison_rows(reports))


def _run_tasks(options: EvaluateOptions, tasks: list[str]) -> None:
    from infinito.checkpoint.discover import resolve_checkpoint
    from infinito.cli.output import print_json, table
    from infinito.evaluate.harness import run_tasks
    from infinito.load import load_model
    from infinito.runtime.events import reading
    from infinito.telemetry.bar import TerminalBar

    results = []
    paths = [resolve_checkpoint(reference, "best") for reference in options.references()]
    for number, path in enumerate(paths):
        with reading(TerminalBar()):
            results.append(run_tasks(load_model(path, options.device), tasks, options.batch_size))
        if not options.json:
            print(("\n" if number else "") + f"checkpoint: {path} (step {results[-1]['step']})")
            rows = [
                (task, metric, value if isinstance(value, str) else f"{value:.4f}")
                for task, figures in results[-1]["tasks"].items()
                for metric, value in figures.items()
            ]
            table(("task", "metric", "value"), rows)
    if options.json:
        print_json(results if len(results) > 1 else results[0])


class _Evaluation:
    """One text and one way of evaluating, for whatever is named."""

    def __init__(self, options: EvaluateOptions) -> None:
        from infinito.evaluate.evaluation import EvaluationOptions

        self.options = options
        self.last: LoadedModel | None = None  # whose data and tokenizer count
        self.request = EvaluationOptions(
            options.context, options.stride, options.batch_size,
            options.all_conventions, options.adapt, options.exact_words,
        )  # fmt: skip

    def subjects(self, references: Sequence[str | None]) -> Iterator[Subject]:
        """What the references name, one at a time."""
        from infinito.checkpoint.discover import resolve_checkpoint
        from infinito.evaluate.evaluation import check_figures
        from infinito.evaluate.members import model_subject, ngram_subject
        from infinito.load import load_model

        # A wrong name is refused before hours are spent on the others.
        paths = [name if name == NGRAM else resolve_checkpoint(name, "best") for name in references]
        for path in paths:
            if path == NGRAM and self.last is not None:
                yield ngram_subject(self.last, self.open)
            else:
                self.last = load_model(path, self.options.device)
                check_figures(self.last, self.request)
                yield model_subject(self.last)

    def mixed(self, subjects: list[Subject]) -> Subject:
        """One subject of several."""
        from infinito.evaluate.members import ensemble_subject

        windows = self.request.context, self.request.stride, self.request.batch_size
        return ensemble_subject(subjects, self.open, *windows)

    def open(self, split: SplitName) -> TokenStore:
        """The tokens of a split of the last checkpoint's data."""
        from infinito.config.loading import override_config

        assert self.last is not None
        config = override_config(self.last.config, self.options.settings or [])
        return open_split(self.last, config, split, "name any text with --text FILE")

    def report(self, subject: Subject) -> Report:
        """Evaluate it on the text."""
        from infinito.config.loading import override_config
        from infinito.data.prepare import tokenize_text
        from infinito.evaluate.evaluation import ScoredText
        from infinito.evaluate.evaluation import evaluate as run

        assert self.last is not None
        if (name := self.options.text) is not None:
            field = self.last.config.data.text_field
            text = ScoredText(tokenize_text(name, self.last.tokenizer, field), "text", name)
        else:
            split = self.options.split or DEFAULT_SPLIT
            config = override_config(self.last.config, self.options.settings or [])
            is_wikitext = config.data.resolved_source == "wikitext-2"
            text = ScoredText(self.open(split), split, corpus_name(config), is_wikitext)
        return run(subject, text, self.request, self.open)
