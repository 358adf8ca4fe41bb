"""Imports every module of the installed package: none may need an extra at import."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import infinito

#: Imported by its user alone, beside the library that it is written for.
NEED_MORE = {
    "infinito.hf",
    "infinito.evaluate.harness",
    "infinito.attention.triton_kernels",
    "infinito.attention.triton_tiles",
    "infinito.kernels.triton_passes",
}
#: C, loaded by path.
NOT_PYTHON = {"infinito.kernels.libinfinito"}


def main() -> int:
    """Import all; 1 names what failed."""
    failed = 0
    for module in pkgutil.walk_packages(infinito.__path__, "infinito."):
        if module.name in NEED_MORE | NOT_PYTHON or module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            print(f"{module.name}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
