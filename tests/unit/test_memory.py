"""Memory: the loss never holds all logits, and a run that cannot fit is refused in words."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infinito.config.loading import config_from_plain
from infinito.config.schema import Config, DataConfig
from infinito.config.training_config import TrainingConfig
from infinito.errors import ResourceError
from infinito.model.loss import CHUNK_ELEMENTS, summed_cross_entropy
from infinito.model.step_memory import MemoryCount, count_memory
from infinito.runtime.memory import (
    available_bytes,
    garbage_found_early,
    memory_errors_explained,
)
from infinito.train import session
from infinito.train.run import RunResult
from tests.support import ROOT, tiny_settings


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation returned."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return result


def test_the_loss_of_a_large_vocabulary_never_holds_all_logits() -> None:
    vocabulary, rows, width = 33_278, 512, 8
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    with LargestTensor() as watched:
        summed_cross_entropy(hidden, weight, torch.randint(vocabulary, (rows,))).backward()
    assert rows * vocabulary > 5 * CHUNK_ELEMENTS
    assert watched.largest <= max(CHUNK_ELEMENTS, 64 * vocabulary)


def test_counted_memory_follows_its_causes() -> None:
    def counted(device: str = "cpu", **training: Any) -> MemoryCount:
        data, kept = DataConfig(source="python-docs"), TrainingConfig(**training)
        return count_memory(Config(data=data, device=device, training=kept), 8192)

    base = counted(precision="float32")
    assert counted(precision="float32", batch_size=32).activations == 2 * base.activations
    assert counted(activation_checkpointing=True).activations < base.activations / 2
    assert counted(ema_decay=0.9).average == base.weights
    assert counted("cuda").loss > 5 * base.loss  # its chunks of logits are larger


def test_failed_allocations_are_explained_and_other_errors_are_not() -> None:
    with pytest.raises(ResourceError, match="batch 8"), memory_errors_explained("batch 8", "less"):
        torch.empty(1 << 62, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), memory_errors_explained("batch 8", "less"):
        raise RuntimeError("shape mismatch")
    assert (available_bytes("cpu") or 1) > 0


FAULTS = """
import resource, sys, torch
from infinito.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    parts = [torch.ones(5_000_000) for _ in range(8)]  # 20 MB each, all freed at the end
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    # What glibc does by itself depends on the order of all calls before; this makes it hand back.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    faults = {
        mode: int(
            subprocess.check_output([sys.executable, "-c", FAULTS, mode], cwd=ROOT, env=environment)
        )
        for mode in ("keep", "leave")
    }
    # With huge pages a fault brings many small ones: only the ratio holds everywhere.
    assert faults["keep"] * 10 < faults["leave"], faults


class Circle:
    """Refers to itself: only the collector frees it."""

    alive = 0

    def __init__(self) -> None:
        self.me = self
        Circle.alive += 1

    def __del__(self) -> None:
        Circle.alive -= 1


def most_circles_alive(made: int = 200_000, used_together: int = 10_000) -> int:
    """The most circles that are alive while ``made`` of them are each used for a while."""
    in_use: deque[Circle] = deque(maxlen=used_together)  # long enough to count as survivors
    most = 0
    for _ in range(made):
        in_use.append(Circle())
        most = max(most, Circle.alive)
    return most


def test_garbage_is_found_early_among_many_lasting_objects() -> None:
    lasting = [[number] for number in range(1_000_000)]
    gc.collect()
    without = most_circles_alive()
    with garbage_found_early():
        assert gc.get_freeze_count() > len(lasting)
        within = most_circles_alive()
    assert gc.get_freeze_count() == 0
    assert within < 120_000
    if sys.version_info < (3, 14):  # whose collector works in increments, early of itself
        assert without > 150_000, "nothing was left lying: the test says nothing"


def test_a_run_trains_with_the_collector_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def run(*_: object) -> RunResult:
        seen.append(gc.get_freeze_count())
        return RunResult(0, 0, None)

    monkeypatch.setattr(session, "run", run)
    config = config_from_plain(tiny_settings(tmp_path), "test")
    session.start(config, name="tiny", dry_run=False)
    assert seen[0] > 100_000, "torch and its imports are more"
    assert gc.get_freeze_count() == 0
