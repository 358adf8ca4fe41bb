"""From a request to a finished run: directory, data, trainer, sinks, loop, summary."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from infinito.checkpoint.discover import METRICS_FILE
from infinito.checkpoint.record import json_object
from infinito.checkpoint.run_directory import RunDirectory
from infinito.checkpoint.survey import finite
from infinito.config.loading import to_plain, to_yaml
from infinito.config.schema import Config
from infinito.data.cache import Cache
from infinito.data.prepare import prepare
from infinito.distributed.ranks import (
    first_goes_ahead,
    is_first,
    is_under_another_launcher,
    joined,
    resume_words,
    tell_launcher,
    world_size,
)
from infinito.errors import DivergedError, Interrupted
from infinito.runtime.events import note, reading
from infinito.runtime.memory import garbage_found_early, keep_freed_memory
from infinito.runtime.paths import command, shown
from infinito.runtime.random import random_state, set_random_state
from infinito.runtime.signals import StopRequest
from infinito.telemetry.console import console_sink
from infinito.telemetry.sinks import JsonLines, Sink
from infinito.telemetry.trackers import require_tracker, tracker
from infinito.train.automatic import resolve
from infinito.train.callbacks import Evaluate, Record, Save, StopOnSignal, WatchCores
from infinito.train.fitting import fit_step
from infinito.train.initial import inherited
from infinito.train.plan import checkpoint_bytes, memory_explained, plan_lines
from infinito.train.rehearsal import rehearse
from infinito.train.run import Callback, run
from infinito.train.saving import saver
from infinito.train.summary import summary_lines
from infinito.train.trainer import Trainer


@joined()
def start(config: Config, *, name: str, dry_run: bool) -> None:
    """Train a new run of ``config``; ``name`` names its directory where the config does not."""
    require_tracker(config.training.tracker)
    config, origin = inherited(config)
    config = resolve(config)
    directory = None
    if is_first() and not dry_run:
        wanted = Path(config.output_dir) if config.output_dir else None
        directory = RunDirectory.create(wanted, name, keep_last=config.training.keep_last)
        config = config.model_copy(update={"output_dir": str(directory.path.resolve())})
    with directory or nullcontext():
        with first_goes_ahead():
            tokenizer = origin.tokenizer if origin else None
            dataset = prepare(config, tokenizer=tokenizer, cache=Cache(read_only=dry_run))
        weights = origin.weights() if origin else None
        trainer = Trainer(fit_step(config, dataset), dataset, weights)
        if dry_run:
            rehearse(trainer)
        elif directory is None:
            follow(trainer)
        else:
            carry_out(trainer, directory)


def carry_out(trainer: Trainer, directory: RunDirectory) -> None:
    """Train ``trainer`` in its locked directory to the end, or to a signal.

    Raises:
        Interrupted: A signal came; everything is saved.
        DivergedError: A number was not finite; the message names the last good checkpoint.
        ResourceError: Memory or disk do not suffice.
    """
    streams = random_state(trainer.config.device)
    for line in plan_lines(trainer):
        note(line)
    note(f"run:        {shown(directory.path)}")
    saving = saver(trainer, directory)
    files = trainer.config.training.keep_last + saving.files_at_once
    directory.require_space(checkpoint_bytes(trainer) * files)
    keep_freed_memory()
    watch = WatchCores()
    with memory_explained(trainer):
        trainer.probe()
    tell_launcher(directory.path)
    directory.record_start(sys.argv, {"device": str(trainer.device), "processes": world_size()})
    directory.write_text("config.yaml", to_yaml(trainer.config))
    with _readers(trainer, directory), StopRequest(is_under_another_launcher()) as stop:
        stopping = StopOnSignal(stop)
        callbacks: list[Callback] = [
            Evaluate(trainer.config.training.eval_every),
            Record(_seconds_before(directory)),
            watch,
            stopping,
            saving,
        ]
        # A library may draw from Python's stream when it is imported (rich does), and imports
        # depend on the process: the run goes on with the streams it was built or restored with.
        set_random_state(streams, trainer.config.device)
        good = _naming_the_last_good(directory, saving)
        with memory_explained(trainer), good, garbage_found_early():
            result = run(trainer, callbacks)
    if stopping.number and not trainer.finished:
        step, total = trainer.progress.step, trainer.total_steps
        raise Interrupted(
            f"stopped at step {step} of {total}; everything is saved",
            command(*resume_words(shown(directory.path))),
            stopping.number,
        )
    for line in summary_lines(trainer, result, directory):
        note(line)


def follow(trainer: Trainer) -> None:
    """What the processes do that are not the first: the same steps, and no more."""
    streams, saving = random_state(trainer.config.device), saver(trainer, None)
    keep_freed_memory()
    trainer.probe()
    with StopRequest(is_under_another_launcher()) as stop, garbage_found_early():
        stopping = StopOnSignal(stop)
        set_random_state(streams, trainer.config.device)
        run(trainer, [Evaluate(trainer.config.training.eval_every), stopping, saving])
    if stopping.number and not trainer.finished:
        sys.exit(128 + stopping.number)  # the first one tells


@contextmanager
def _readers(trainer: Trainer, directory: RunDirectory) -> Iterator[None]:
    """Let the log, the terminal and the tracker, where one is wanted, hear of the run."""
    log = JsonLines(directory.path / METRICS_FILE)
    directory.keep(METRICS_FILE, log.write_again)
    sinks: list[Sink] = [log]
    config, step = trainer.config, trainer.progress.step
    sinks += tracker(config.training.tracker, directory.path, step, to_plain(config))
    known: dict[str, Any] = {}
    for last in trainer.progress.evaluations[-1:]:
        known = {**last, "valid_bits_per_byte": trainer.bits_per_byte(last["valid_loss"])}
    sinks.append(console_sink(directory.path.name, trainer.total_steps, known, trainer.bits_lead))
    try:
        with reading(*sinks):
            yield
    finally:
        for sink in reversed(sinks):
            sink.close()


@contextmanager
def _naming_the_last_good(directory: RunDirectory, saving: Save) -> Iterator[None]:
    try:
        yield
    except DivergedError as error:
        saving.wait()
        good = directory.newest_verified()
        place = (
            f"the last good checkpoint is {shown(good)}" if good else "no checkpoint was saved yet"
        )
        raise DivergedError(f"{error.message}; {place}", error.remedy) from error


def _seconds_before(directory: RunDirectory) -> float:
    """Training time of the run so far, from the last line of its metrics; 0 where it says none."""
    path = directory.path / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    last = json_object(lines[-1]) if lines else None
    seconds = finite((last or {}).get("seconds")) or 0.0  # None of a line that no run wrote
    return seconds if 0 <= seconds < 1e12 else 0.0
