"""Continuing a run: which checkpoint, what changes, what is set aside, said before it happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinito.checkpoint.discover import directory_of, resolve_checkpoint, suggest_other
from infinito.checkpoint.record import library_versions
from infinito.checkpoint.run_directory import RunDirectory
from infinito.config.explain import printable
from infinito.config.loading import changed_output_dir, override_config
from infinito.config.schema import Config
from infinito.data.cache import Cache
from infinito.distributed.ranks import from_first, is_first, joined
from infinito.errors import CheckpointError
from infinito.load import OpenedCheckpoint, open_checkpoint
from infinito.optim.schedule import learning_rate_factor
from infinito.runtime.events import note
from infinito.runtime.paths import shown
from infinito.telemetry.trackers import require_tracker
from infinito.train.automatic import resolve
from infinito.train.changes import Change, changes, touches_schedule
from infinito.train.rehearsal import rehearse
from infinito.train.session import carry_out, follow
from infinito.train.trainer import Trainer


@dataclass(frozen=True)
class Resumption:
    """A request to continue: from where, and what the user wants changed."""

    reference: str
    config_file: Path | None = None
    settings: Sequence[str] = ()
    flags: dict[str, object] = field(default_factory=dict)
    allow_data_change: bool = False


@joined()
def resume(request: Resumption, *, dry_run: bool) -> None:
    """Continue a run exactly where its checkpoint stands, under the changes asked for."""
    home = directory_of(request.reference).resolve()
    target = changed_output_dir(request.settings, request.flags, request.config_file)
    elsewhere = target if target is not None and target.resolve() != home else None
    if dry_run:
        trainer, _ = _rebuilt(request, home, elsewhere, Cache(read_only=True))
        if not _is_finished(trainer):
            rehearse(trainer)
    elif not is_first():
        trainer, _ = _rebuilt(request, home, elsewhere, Cache())
        if not trainer.finished:
            follow(trainer)
    elif elsewhere is None:
        _continue_in_place(request, home)
    else:
        _continue_elsewhere(request, home, elsewhere)


def _rebuilt(
    request: Resumption, home: Path, elsewhere: Path | None, cache: Cache
) -> tuple[Trainer, Path]:
    """The run of a checkpoint under the changes asked for, and the checkpoint; all is told."""
    path = Path(from_first(lambda: str(resolve_checkpoint(request.reference, "newest"))))
    opened = _open(path)
    # The directory a run lies in may have moved since; where it is now is no change.
    stored = opened.config.model_copy(update={"output_dir": str(home)})
    config = override_config(stored, request.settings, request.flags, request.config_file)
    config = config.model_copy(update={"output_dir": str(elsewhere or home)})
    changes(stored, config)  # refuses before any text is read
    require_tracker(config.training.tracker)
    allowed = request.allow_data_change
    trainer = Trainer.from_checkpoint(opened, resolve(config), allowed, cache)
    note(f"resuming {shown(path)} at step {trainer.progress.step} of {trainer.total_steps}")
    announce_versions(opened.content["versions"])
    announce_changes(changes(stored, trainer.config), stored, trainer)
    return trainer, path


def _open(path: Path) -> OpenedCheckpoint:
    try:
        return open_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(error.message, suggest_other(path)) from error


def _is_finished(trainer: Trainer) -> bool:
    if trainer.finished:
        note(f"nothing to do: already at step {trainer.progress.step} of {trainer.total_steps}")
    return trainer.finished


def _continue_in_place(request: Resumption, home: Path) -> None:
    # Locked before anything is chosen: a run that goes on until then would be rewound.
    with RunDirectory.open_existing(home) as directory:
        trainer, _ = _rebuilt(request, home, None, Cache())
        if _is_finished(trainer):
            return
        directory.keep_last = trainer.config.training.keep_last
        aside = directory.rewind(trainer.progress.step)
        if not aside.is_empty:
            note(f"rewound to step {trainer.progress.step}; {aside.describe()}")
        carry_out(trainer, directory)


def _continue_elsewhere(request: Resumption, home: Path, target: Path) -> None:
    trainer, path = _rebuilt(request, home, target, Cache())
    if _is_finished(trainer):
        return
    keep_last = trainer.config.training.keep_last
    directory = RunDirectory.create(target, target.name, keep_last=keep_last)
    with directory:
        directory.adopt(path, home)
        note(
            f"the run goes on in {shown(target)}, with its history up to step "
            f"{trainer.progress.step}"
        )
        carry_out(trainer, directory)


def announce_versions(stored: dict[str, Any]) -> None:
    """Warn if the program or a library is not the one that wrote the checkpoint."""
    different = [
        f"{name} {printable(str(stored.get(name, 'unknown')), 40)} -> {version}"
        for name, version in library_versions().items()
        if stored.get(name) != version
    ]
    if different:
        note(
            f"warning: versions differ: {', '.join(different)}; the bits of an unbroken run are "
            "promised for equal versions only"
        )


def announce_changes(made: Sequence[Change], stored: Config, trainer: Trainer) -> None:
    """Print old -> new with what each does, and both learning-rate curves where they differ."""
    for change in made:
        note(f"  {change.key}: {change.old} -> {change.new}  ({change.effect})")
    if not touches_schedule(made):
        return
    _announce_rates("learning rate", "learning_rate", stored, trainer)
    if stored.training.optimizer == "muon":
        _announce_rates("of the matrices", "muon_learning_rate", stored, trainer)


def _announce_rates(title: str, peak: str, stored: Config, trainer: Trainer) -> None:
    note(f"  {title:<15} before        now")
    steps, old_total = trainer.progress.step, trainer.total_steps_of(stored.training)
    for label, step in _milestones(steps, trainer.total_steps):
        before = _rate(stored, peak, step, old_total) if step < old_total else None
        now = _rate(trainer.config, peak, step, trainer.total_steps)
        old_text = f"{before:.3e}" if before is not None else "(ended)  "
        note(f"  {label:<15} {old_text}     {now:.3e}")


def _milestones(step: int, total: int) -> list[tuple[str, int]]:
    points = {step: "next step", (step + total) // 2: "halfway", max(step, total - 1): "last step"}
    return [(label, at) for at, label in points.items()]


def _rate(config: Config, peak: str, step: int, total: int) -> float:
    training = config.training
    return float(getattr(training, peak)) * learning_rate_factor(step, total, training)
