"""The tests fill a cache of their own, never the user's: here and in processes they start."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from infinito.data.cache import cache_root
from tests.support import ROOT


def test_the_cache_is_not_the_users() -> None:
    program = "from infinito.data.cache import cache_root; print(cache_root())"
    printed = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert Path(printed.strip()) == cache_root()
    assert cache_root().is_relative_to(tempfile.gettempdir())
    assert cache_root().parent.name.startswith("infinito-tests-")
