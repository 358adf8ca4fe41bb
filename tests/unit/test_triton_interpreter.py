"""The Triton kernels in Triton's interpreter, in a process that chooses it before the import.

What only a GPU shows (layouts, races, bfloat16 arithmetic) is not seen here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support import ROOT


@pytest.mark.skipif(find_spec("triton") is None, reason="the triton package is not installed")
@pytest.mark.parametrize("cases", ["attention_triton_cases.py", "fused_triton_cases.py"])
def test_cases_in_the_interpreter(cases: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-rs"]
    result = subprocess.run(
        [*command, "-W", "ignore::RuntimeWarning", str(ROOT / "tests" / "unit" / cases)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
