"""The estimate on paper, against sums done by hand."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.support import ROOT


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "scripts" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


def test_by_hand(scaling: ModuleType) -> None:
    """4 GB of gradients over 100 GB/s: half of it, twice, is 40 ms; fsdp2 takes three halves."""
    machine = scaling.Machine(1e12, 8, 1e11, 1e10, 0.0, hidden=0.0)
    work = scaling.Work(10**9, 6e10)
    ddp = scaling.estimate("ddp", 2, work, machine)
    assert ddp.compute == pytest.approx(0.06)
    assert ddp.communication == ddp.exposed == pytest.approx(0.04)
    assert ddp.efficiency == pytest.approx(0.6)
    assert scaling.estimate("fsdp2", 2, work, machine).communication == pytest.approx(0.06)
    assert scaling.estimate("ddp", 1, work, machine).communication == 0
    # Sixteen cards are two machines: the slow link, and 15/16 of the bytes twice.
    assert scaling.estimate("ddp", 16, work, machine).communication == pytest.approx(0.75)


def test_hops_and_what_is_hidden(scaling: ModuleType) -> None:
    machine = scaling.Machine(1e12, 8, 1e30, 1e30, 1e-3, hidden=0.5)
    four = scaling.estimate("ddp", 3, scaling.Work(1, 12e9, passes=4), machine)
    assert four.communication == pytest.approx(0.004)
    # A backward pass of a quarter of 12 ms is 2 ms, of which half hides.
    assert four.exposed == pytest.approx(0.003)
    shards = scaling.estimate("fsdp2", 3, scaling.Work(1, 12e9, passes=4), machine)
    assert shards.communication == pytest.approx(0.018)
    assert shards.exposed == pytest.approx(0.012)
