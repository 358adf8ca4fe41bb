"""From a config or a checkpoint to a directory with the optimised config and its proof."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinito.checkpoint.atomic import cannot_write, make_numbered
from infinito.checkpoint.discover import RUNS_DIRECTORY, resolve_checkpoint
from infinito.config.loading import load_config
from infinito.config.schema import Config
from infinito.data.prepare import prepare
from infinito.errors import ResourceError
from infinito.load import OpenedCheckpoint, open_checkpoint
from infinito.optimise.int8_trial import Int8Trial, try_int8
from infinito.optimise.measuring import TrainingMeasurer, other_thread_counts
from infinito.optimise.optimisations import alternatives_of
from infinito.optimise.optimise_report import FILES, INT8_FILE, figures, summary, write_files
from infinito.optimise.pipeline import Optimised, Pipeline
from infinito.train.automatic import require_memory, resolve
from infinito.train.fitting import fit_step
from infinito.train.initial import inherited


@dataclass(frozen=True)
class OptimiseOutcome:
    """Where the files are, and what is in them."""

    directory: Path
    result: Optimised
    figures: dict[str, Any]
    lines: list[str]


def optimise(reference: str, output_dir: Path | None) -> OptimiseOutcome:
    """Measure every optimisation on the config or checkpoint ``reference``; keep what helps.

    Raises:
        InfinitoError: whatever training it would raise; a directory with files of an earlier one.
    """
    opened, config = _subject(reference)
    config = resolve(config)
    dataset = prepare(config, tokenizer=opened.tokenizer if opened else None)
    config = fit_step(config, dataset)
    require_memory(config, dataset.tokenizer.vocab_size)
    pipeline = Pipeline(config, TrainingMeasurer(dataset, opened.weights() if opened else None))
    with _made_directory(output_dir, Path(reference)) as directory:
        result = pipeline.run(alternatives_of(config), other_thread_counts(config))
        int8: Int8Trial | None = None
        if opened:
            store = dataset.splits["valid"]
            int8 = try_int8(opened, store, config.device, directory / INT8_FILE)
        data = figures(reference, config, result, int8)
        write_files(directory, config, result, int8, data)
    return OptimiseOutcome(directory, result, data, summary(config, result, int8))


def _subject(reference: str) -> tuple[OpenedCheckpoint | None, Config]:
    path = Path(reference)
    if not path.is_dir() and path.suffix != ".pt":
        return None, inherited(load_config(path))[0]
    opened = open_checkpoint(resolve_checkpoint(reference, "best"))
    opened.require_trainable()
    # What is trained from it is a new run.
    return opened, opened.config.model_copy(update={"output_dir": None})


@contextmanager
def _made_directory(wanted: Path | None, subject: Path) -> Iterator[Path]:
    """The directory of the results; where there come to be none, there is no directory either."""
    directory = _directory(wanted, subject)
    try:
        yield directory
    except BaseException:
        with suppress(OSError):  # not empty: int8 was done
            directory.rmdir()
        raise


def _directory(wanted: Path | None, subject: Path) -> Path:
    """Make the directory; what an earlier call left there is not overwritten."""
    try:
        if wanted is None:
            RUNS_DIRECTORY.mkdir(exist_ok=True)
            return make_numbered(RUNS_DIRECTORY, f"{subject.stem or 'run'}-optimised")
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(wanted or RUNS_DIRECTORY, error) from error
    taken = [name for name in FILES if (wanted / name).exists()]
    if taken:
        raise ResourceError(f"{wanted / taken[0]} exists", "name another --output-dir")
    return wanted
