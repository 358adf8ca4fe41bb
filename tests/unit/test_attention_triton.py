"""The Triton kernels in Triton's interpreter, in a process that chooses it before the import.

What only a GPU shows (layouts, races, bfloat16 arithmetic) is not seen here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from infinito.attention import ATTENTION, Request, distance_attention
from infinito.errors import ConfigError
from tests.support import ROOT

CASES = ROOT / "tests" / "unit" / "attention_triton_cases.py"


@pytest.mark.skipif(find_spec("triton") is None, reason="the triton package is not installed")
def test_cases_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs"]
    result = subprocess.run(
        [*command, "-W", "ignore::RuntimeWarning", str(CASES)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


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
