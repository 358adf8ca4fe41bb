"""``--dry-run``: what a run would do, after a few of its steps were taken. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from infinito.checkpoint.format import write_nowhere
from infinito.distributed.ranks import largest
from infinito.evaluate.perplexity import windows_a_pass
from infinito.runtime.events import note
from infinito.runtime.memory import keep_freed_memory
from infinito.train.plan import memory_explained, plan_lines
from infinito.train.saving import saves_shards
from infinito.train.trainer import Trainer

# Steps beside those that warm up, and seconds, until their speed is known.
_STEPS, _SECONDS = 5, 3.0
# Two steps that took so long are enough.
_PATIENCE_SECONDS = 60.0
_PASSES = 4
# A save hashes and writes a checkpoint, and reads back what it wrote.
_PASSES_OF_A_SAVE = 2


def rehearse(trainer: Trainer) -> None:
    """Tell the plan of a run, and the time that it takes; ``trainer`` is used up.

    Raises:
        ResourceError: memory does not suffice for a step.
    """
    for line in plan_lines(trainer):
        note(line)
    keep_freed_memory()
    done, total = trainer.progress.step, trainer.total_steps
    evaluations, saves = _events(trainer)
    with memory_explained(trainer):
        step = seconds_of_a_step(trainer)
        evaluation = _seconds_of_an_evaluation(trainer)
        save, so_long = 0.0, "in the background"
        if not saves_shards(trainer):
            save = _PASSES_OF_A_SAVE * _seconds(lambda: write_nowhere(trainer.state()))
            so_long = f"of {save:.2f} s"
    seconds = (total - done) * step + len(evaluations) * evaluation + len(saves) * save
    note(
        f"time:       about {duration_text(seconds)}: {total - done} steps of {step:.2f} s, "
        f"{len(evaluations)} evaluations of {evaluation:.2f} s, {len(saves)} saves {so_long}"
    )
    note("dry run: nothing was written")


def duration_text(seconds: float) -> str:
    """3700 -> '1 h 01 min', 90 -> '1 min 30 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _events(trainer: Trainer) -> tuple[set[int], set[int]]:
    """The steps after which the run evaluates and saves; each score is taken for a best one."""
    training, done, total = trainer.config.training, trainer.progress.step, trainer.total_steps

    def due(every: int) -> set[int]:
        return set(range(done - done % every + every, total + 1, every)) if every else set()

    evaluations = due(training.eval_every) | {total} if "valid" in trainer.dataset.splits else set()
    return evaluations, due(training.save_every) | evaluations | {total}


def seconds_of_a_step(trainer: Trainer) -> float:
    """Whole steps, the optimizer's part included, as the run takes them."""
    started, first = time.monotonic(), trainer.progress.step
    while not trainer.finished:
        trainer.train_step()
        taken, seconds = trainer.progress.step - first, time.monotonic() - started
        enough = seconds >= (_SECONDS if taken >= _STEPS else _PATIENCE_SECONDS) and taken > 1
        if largest(enough):
            break
    return trainer.speed.seconds_per_step


def _seconds_of_an_evaluation(trainer: Trainer) -> float:
    """From a few forward passes to the whole validation text."""
    dataset, length = trainer.dataset, trainer.config.data.sequence_length
    store = dataset.splits.get("valid")
    if store is None:
        return 0.0
    batch_size = max(trainer.config.training.batch_size, windows_a_pass(length))
    part = replace(store, tokens=store.tokens[: _PASSES * batch_size * length])
    trainer.dataset = replace(dataset, splits={**dataset.splits, "valid": part})
    return _seconds(trainer.validate) * store.n_tokens / part.n_tokens


def _seconds(action: Callable[[], object]) -> float:
    action()  # the first time it allocates and fills caches
    started = time.monotonic()
    action()
    return time.monotonic() - started
