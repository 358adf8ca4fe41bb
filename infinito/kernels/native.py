"""The compiled library of the package: plain C, built at install time, called with ctypes.

Its threads are those of torch's own OpenMP pool: the library is not linked to OpenMP, it is given
the address of ``GOMP_parallel`` as torch's library resolves it. Where torch has none, it starts
POSIX threads. ``csrc/entry.c`` is the table of what is in it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from infinito.errors import ResourceError

ISAS = ("portable", "avx2", "avx512")
REMEDY = "install a C compiler, then install infinito again"
_LIBRARY = Path(__file__).parent / "libinfinito.so"


def fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    """The fields of a structure that have one type, from their names."""
    return [(name, kind) for name in names.split()]


def gomp_address() -> int | None:
    """Where torch's own GOMP_parallel is, searched through torch's library and what it loads."""
    for library in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:
            symbol = ctypes.CDLL(str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue  # a torch with another OpenMP: the library then starts POSIX threads
        return ctypes.cast(symbol, ctypes.c_void_p).value
    return None


def load(path: Path) -> ctypes.CDLL | str:
    """The library at ``path`` with its threads, or the reason why there is none."""
    if not path.exists():
        return "the compiled library is missing: no C compiler was there at installation"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the compiled library does not load: {error}"
    library.infinito_set_gomp(ctypes.c_void_p(gomp_address()))
    return library


_loaded = load(_LIBRARY)
#: The instruction set in use: the best that this processor has, but for tests.
_isa = 0 if isinstance(_loaded, str) else int(_loaded.infinito_best_isa())


def available_isas() -> tuple[str, ...]:
    """Instruction sets of the library that this processor has, the slowest first."""
    return () if isinstance(_loaded, str) else ISAS[: _loaded.infinito_best_isa() + 1]


def describe_library() -> str:
    """The instruction set and the threads in use, for reasons and ``doctor``."""
    return f"{ISAS[_isa]}, {'OpenMP of torch' if gomp_address() else 'POSIX threads'}"


def has_wide_vectors() -> bool:
    """Whether the instruction set in use is more than the portable one."""
    return _isa > 0


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Use one instruction set within the block (tests). Not for use by several threads."""
    global _isa
    best, _isa = _isa, ISAS.index(name)
    try:
        yield
    finally:
        _isa = best


class Native:
    """An operation of the library.

    Attributes:
        missing: why it cannot be called, or None.
    """

    def __init__(self, name: str, structure: type[ctypes.Structure], version: int) -> None:
        """Find it; size and version of its arguments must be those of the library."""
        self.name = name
        if isinstance(_loaded, str):
            self.missing: str | None = _loaded
            return
        size = ctypes.sizeof(structure)
        self._number = _loaded.infinito_find(name.encode(), size, version)
        stale = "the compiled library belongs to another version: install the package again"
        self.missing = stale if self._number < 0 else None

    def __call__(self, arguments: ctypes.Structure) -> None:
        """Run it.

        Raises:
            ResourceError: there is no such operation, or no memory for it.
        """
        if self.missing is not None or isinstance(_loaded, str):
            raise ResourceError(str(self.missing), REMEDY)
        status = _loaded.infinito_run(self._number, _isa, ctypes.byref(arguments))
        if status == 1:
            raise ResourceError(f"no memory for the {self.name}", "use a smaller batch")
        assert status == 0, f"{self.name} returned {status}"
