"""Shards written in the background and read whole, by a group of one process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from infinito.checkpoint.run_directory import RunDirectory
from infinito.config.loading import config_from_plain, load_config
from infinito.distributed.shards import ShardWriter, read_whole, wait_for_shards
from infinito.errors import ConfigError, ResourceError
from infinito.train import saving
from infinito.train.saving import saves_shards
from infinito.train.session import carry_out
from infinito.train.trainer import Trainer
from tests.support import tiny_settings


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    store = (tmp_path / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sharded(*shapes: tuple[int, ...]) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (1,))
    tensors = {f"/{number}": torch.randn(shape) for number, shape in enumerate(shapes)}
    return {name: distribute_tensor(t, mesh, [Shard(0)]) for name, t in tensors.items()}


def test_what_is_read_is_what_was_there_when_the_save_began(group: None, tmp_path: Path) -> None:
    shards = sharded((5, 3), (1,), (7, 2, 2))
    before = {name: shard.full_tensor().clone() for name, shard in shards.items()}
    written = ShardWriter().start(tmp_path / "place", shards)
    for shard in shards.values():
        shard.to_local().add_(1.0)
    wait_for_shards(written)
    wholes = read_whole(tmp_path / "place", shards)
    assert wholes.keys() == before.keys()
    assert all(torch.equal(wholes[name], whole) for name, whole in before.items())
    assert not list((tmp_path / "place").glob("*.safetensors"))


def test_a_part_that_cannot_be_written_is_told(group: None, tmp_path: Path) -> None:
    (tmp_path / "place").write_text("no directory")
    with pytest.raises(ResourceError, match="process 0 cannot write its part of a checkpoint"):
        wait_for_shards(ShardWriter().start(tmp_path / "place", sharded((4, 4))))


def a_trainer(monkeypatch: pytest.MonkeyPatch, place: Path, **changes: Any) -> Trainer:
    """Of one process whose model is sharded, although that would not be needed."""
    monkeypatch.setattr("infinito.distributed.strategy.world_size", lambda: 2)
    monkeypatch.setattr("infinito.train.saving.world_size", lambda: 2)
    real = init_device_mesh
    monkeypatch.setattr(
        "torch.distributed.device_mesh.init_device_mesh", lambda device, _: real(device, (1,))
    )
    settings = tiny_settings(
        place, distributed__strategy="fsdp2", distributed__checkpoint="sharded",
        training__max_steps=6, training__save_every=2, training__eval_every=0, **changes,
    )  # fmt: skip
    return Trainer(config_from_plain(settings, "a test"))


def test_a_save_that_fails_in_the_background_ends_the_run_and_leaves_the_last(
    group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = a_trainer(monkeypatch, tmp_path)
    reads = []

    def full(place: Path, shards: dict[str, Tensor]) -> dict[str, Tensor]:
        if reads:
            raise OSError(28, os.strerror(28))
        reads.append(place)
        return read_whole(place, shards)

    monkeypatch.setattr(saving, "read_whole", full)
    handler = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(ResourceError, match=r"shards\.tmp: No space left"),
        RunDirectory.create(tmp_path / "run", "x") as directory,
    ):
        carry_out(trainer, directory)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-000002.pt"]
    assert not list((tmp_path / "run").glob("*.tmp"))
    with RunDirectory.open_existing(tmp_path / "run") as directory:
        assert directory.newest_verified() == tmp_path / "run" / "step-000002.pt"


def test_it_is_decided_by_what_fits_and_told(
    group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    trainer = a_trainer(monkeypatch, tmp_path)
    assert saves_shards(trainer)
    monkeypatch.setattr(saving, "processes_here", lambda: 2)
    auto = trainer.config.distributed.model_copy(update={"checkpoint": "auto"})
    trainer.config = trainer.config.model_copy(update={"distributed": auto})
    assert not saves_shards(trainer), "one machine"
    monkeypatch.setattr(saving, "processes_here", lambda: 1)
    n_bytes = 12 * sum(p.numel() for p in trainer.model.parameters())
    for free, expected in ((2 * n_bytes - 2, True), (2 * n_bytes + 2, False)):
        monkeypatch.setattr(saving, "available_bytes", lambda _, free=free: free)
        assert saves_shards(trainer) is expected
    told = [note.split(":")[0] for note in notes[-3:]]
    assert told == [f"checkpoint {how}" for how in ("gathered", "sharded", "gathered")]


def test_shards_are_of_fsdp2_only() -> None:
    with pytest.raises(ConfigError, match="checkpoint sharded needs strategy fsdp2"):
        load_config(None, ["data.source=python-docs", "distributed.checkpoint=sharded"])
