"""R-14: whichever field of a checkpoint is lost or stale, the comparison of R-01 notices.

Every leaf of a checkpoint is mutated in turn, and the run goes on from it. Noticed means that
loading refuses it, or that the run does not end with the bytes of the unbroken one. A mutation
that does neither would be of a field that a resumed run does not need, or does not restore.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from infinito.checkpoint.record import library_versions
from infinito.config.loading import config_from_plain, to_plain
from infinito.errors import CheckpointError, InfinitoError
from infinito.load import checked_content
from infinito.train.automatic import resolve
from infinito.train.resumption import announce_versions
from infinito.train.trainer import Trainer
from tests.checkpoint_support import same
from tests.support import tiny_settings, write_text

STOP, END = 7, 8
# Both optimizers, a scaler, an average, every dropout, an evaluation before the stop and after it.
SETTINGS = {
    "data__sequence_length": 8,
    "model__n_layers": 1,
    "model__d_model": 16,
    "model__dropout": 0.2,
    "model__word_dropout": 0.1,
    "training__batch_size": 2,
    "training__max_steps": END,
    "training__ema_decay": 0.9,
    "training__optimizer": "muon",
    "training__precision": "float16",
}
# Where the next step puts another value before anything reads this one.
# A dense model measures nothing: its empty measurements cannot be lost (an expert's can, see
# test_exact_resume.py), and earlier checkpoints lack them.
OVERWRITTEN = {("log", "grad_norm"), ("log", "measurements")}
# On a CPU there is no state of an accelerator to go stale.
CONSTANT = {("random", "device")}

# What differs only where the program or its libraries do: announced, not refused (see below).
GUARDED = {("versions", name) for name in library_versions()}
# Sections with an entry for each parameter, and one parameter of each kind: table, matrix, gain.
PER_PARAMETER = ("model", "average", "optimizers")
PARAMETERS = ("embedding.weight", "blocks.0.attention.query.weight", "final_norm.weight")

Leaf = tuple[str, ...]


class Run(NamedTuple):
    content: dict[str, Any]  # of a checkpoint in the middle
    end: bytes  # the file at the end of the unbroken run
    folder: Path


def advance(trainer: Trainer, until: int) -> Trainer:
    while trainer.progress.step < until:
        trainer.train_step()
        if trainer.progress.step % 2 == 0:
            trainer.validate()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("mutations")
    write_text(folder / "text.txt", paragraphs=3)
    trainer = Trainer(config_from_plain(tiny_settings(folder, **SETTINGS), "test"))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # no step overflows
    advance(trainer, STOP).save(folder / "part.pt")
    advance(trainer, END).save(folder / "whole.pt")
    return Run(read_checkpoint(folder / "part.pt"), (folder / "whole.pt").read_bytes(), folder)


def nodes(value: Any, path: Leaf = ()) -> Iterator[Leaf]:
    """The paths of everything in nested dicts; a list counts as one thing."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from nodes(inner, (*path, key))


def at(content: dict[str, Any], path: Leaf) -> Any:
    for name in path:
        content = content[name]
    return content


def lost(content: dict[str, Any], path: Leaf) -> dict[str, Any]:
    """The content without what is at ``path``."""
    mutated = copy.deepcopy(content)
    del at(mutated, path[:-1])[path[-1]]
    return mutated


def stale(content: dict[str, Any], path: Leaf) -> dict[str, Any]:
    """The content with another value of the same kind at ``path``."""
    mutated = copy.deepcopy(content)
    other = STREAMS[path[-1]]() if path[0] == "random" else another(at(content, path))
    at(mutated, path[:-1])[path[-1]] = other
    return mutated


def python_stream() -> list[Any]:
    version, numbers, gauss = random.Random(99).getstate()
    return [version, list(numbers), gauss]


def numpy_stream() -> list[Any]:
    name, keys, *rest = np.random.RandomState(99).get_state(legacy=True)
    return [str(name), keys.tolist(), *rest]


STREAMS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(99).get_state(),
    "python": python_stream,
    "numpy": numpy_stream,
}


def another(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value * 0.5 + 0.25
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value[::-1]
    return [{name: another(inner) for name, inner in item.items()} for item in value]


def outcome(content: dict[str, Any], run: Run) -> str:
    """What comes of going on from ``content``: a refusal, "other bits" or "same bits"."""
    path = run.folder / "mutated.pt"
    write_checkpoint(path, content)
    try:
        content = read_checkpoint(path)
        config = config_from_plain(content["config"], "test", CheckpointError)
        trainer = Trainer.from_checkpoint(checked_content(content, path), resolve(config))
    except InfinitoError as error:
        return f"refused with {error.exit_code}: {error.message}"
    advance(trainer, END).save(path)
    return "same bits" if path.read_bytes() == run.end else "other bits"


def is_constant(content: dict[str, Any], path: Leaf) -> bool:
    """Whether losing a key of the config gives the same run, by the key's default."""
    if path[0] != "config" or len(path) == 1:
        return False
    try:
        again = resolve(config_from_plain(lost(content, path)["config"], "test"))
    except InfinitoError:
        return False
    return to_plain(again) == content["config"]


def mutations(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field lost, and every value stale, in turn; of the parameters, one of each kind."""
    for path in nodes(content):
        if path[0] in PER_PARAMETER and path[1:] and path[1] not in PARAMETERS:
            continue
        if path not in OVERWRITTEN and path[:2] not in GUARDED and not is_constant(content, path):
            yield f"{'.'.join(path)} lost", lost(content, path)
        is_leaf = not isinstance(at(content, path), dict)
        if is_leaf and path not in OVERWRITTEN | CONSTANT and path[0] not in ("config", "versions"):
            yield f"{'.'.join(path)} stale", stale(content, path)


@pytest.mark.row("R-14")
def test_every_lost_or_stale_field_is_noticed(run: Run) -> None:
    assert outcome(run.content, run) == "same bits"
    outcomes = {name: outcome(mutated, run) for name, mutated in mutations(run.content)}
    assert [name for name, found in outcomes.items() if found == "same bits"] == []
    kinds = Counter(found == "other bits" for found in outcomes.values())
    print(f"{len(outcomes)} mutations, all noticed: {kinds[True]} by other bits")
    assert kinds[True] >= 25, "refusing everything would prove nothing"
    for name, found in outcomes.items():
        if found != "other bits" and name.endswith("stale"):
            assert REFUSED.get(name.split(".")[0], name.split()[0]) in found, f"{name}: {found}"


REFUSED = {
    "format stale": "not an infinito checkpoint",
    "format_version stale": "newer infinito (format 2,",
    "sequences stale": "contradicts itself in: epoch",
    "evaluations stale": "contradicts itself in: best",
    "data": "text is not what this run was trained on",
    "best": "contradicts itself in: best",
}


@pytest.mark.row("R-14")
def test_every_parameter_moment_and_stream_is_restored(run: Run) -> None:
    """All values at once are other ones: a resumed run has each of them, not its own."""
    mutated = copy.deepcopy(run.content)
    restored = (*PER_PARAMETER, "random", "scaler", "log")
    for path in nodes(run.content):
        is_leaf = not isinstance(at(run.content, path), dict)
        if path[0] in restored and is_leaf and path not in CONSTANT:
            mutated = stale(mutated, path)
    trainer = Trainer.from_checkpoint(
        checked_content(mutated, Path("test")), config_from_plain(mutated["config"], "test")
    )
    state = trainer.state()
    for name in restored:
        assert not same(state[name], run.content[name])
        assert same(state[name], mutated[name]), name


@pytest.mark.row("R-14")
def test_other_versions_are_announced(run: Run, notes: list[str]) -> None:
    announce_versions(run.content["versions"])
    assert notes == []
    for name, version in run.content["versions"].items():
        announce_versions(lost(run.content, ("versions", name))["versions"])
        assert f"{name} unknown -> {version}" in notes[-1]
        announce_versions(run.content["versions"] | {name: "0.0"})
        assert f"{name} 0.0 -> {version}" in notes[-1]
    assert len(notes) == 2 * len(run.content["versions"])
