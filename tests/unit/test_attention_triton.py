"""When the Triton attention kernels are chosen (``test_triton_interpreter.py``: what they give)."""

from __future__ import annotations

import pytest
import torch

from infinito.attention import ATTENTION, Request, distance_attention
from infinito.errors import ConfigError


def test_refused_on_the_cpu_with_a_reason() -> None:
    objection = ATTENTION.available(Request("l1"))["triton"]
    assert objection == "the tensors are on cpu, not on cuda"
    x = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ConfigError, match="the tensors are on cpu, not on cuda"):
        distance_attention(x, x, x, "l1", 1.0, backend="triton")


def test_what_it_cannot_run_goes_elsewhere() -> None:
    wide = Request("l1", device="cuda", width=257)
    double = Request("l1", device="cuda", dtype=torch.float64)
    assert ATTENTION.choose(wide).value == ATTENTION.choose(double).value == "chunked"
