"""Loading the compiled parts of the package: plain C, built at install time, called with ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

ISAS = ("portable", "avx2", "avx512")
AUTOMATIC_ISA = -1


def load(
    path: Path, name: str, structure: type[ctypes.Structure], version: int
) -> ctypes.CDLL | str:
    """The library at ``path``, or the reason why there is none.

    Args:
        path: the shared library.
        name: its functions are called ``infinito_<name>_...``.
        structure: the arguments that its functions take; their size must agree.
        version: of the meaning of those arguments; must agree too.
    """
    if not path.exists():
        return f"the compiled {name} is missing: no C compiler was there at installation"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the compiled {name} does not load: {error}"
    stale = library[f"infinito_{name}_size"]() != ctypes.sizeof(structure)
    if stale or library[f"infinito_{name}_version"]() != version:
        return f"the compiled {name} belongs to another version: install the package again"
    return library
