"""Builds the compiled parts (plain C, no Python headers) where a C compiler is at hand.

Everything else about the package stands in pyproject.toml. The library is optional: without a
compiler the installation succeeds, and torch operations do the work (`infinito doctor` says so).
``CC`` names the compiler; the default is ``cc``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("infinito/kernels/csrc")
# Contraction lets a * b + c become one fused instruction. No -ffast-math: NaN and the sign of
# zero matter. No -march=native: the instruction set is chosen at run time.
FLAGS = ["-O3", "-fPIC", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", "-Wall", "-Wextra"]
X86_FLAGS = {  # of the files whose names end so
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"],
}


class BuildKernel(build_ext):
    """Compiles each source with its own instruction set, and links them into one library."""

    def get_ext_filename(self, fullname: str) -> str:
        """One name on every platform: it is loaded by path, not imported."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build, or announce why not."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)  # never ship what an earlier build left behind
        try:
            self._compile(ext, target)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stderr", None) or error
            self.warn(f"no {ext.name}, torch operations will serve: {detail}")

    def _compile(self, ext: Extension, target: Path) -> None:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        objects = Path(self.build_temp) / ext.name
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        on_x86 = run([*compiler, "-dumpmachine"]).startswith("x86_64")
        built = []
        for source in map(Path, ext.sources):
            isa = source.stem.rpartition("_")[2]
            if isa in X86_FLAGS and not on_x86:
                continue
            built.append(str(objects / f"{source.stem}.o"))
            flags = [*FLAGS, *X86_FLAGS.get(isa, [])]
            run([*compiler, *flags, "-c", str(source), "-o", built[-1]])
        run([*compiler, "-shared", "-pthread", *built, "-lm", "-o", str(target)])


class PlatformWheel(bdist_wheel):
    """The library does not depend on the Python version, so one wheel serves all of them."""

    def get_tag(self) -> tuple[str, str, str]:
        """py3-none-<platform>."""
        return "py3", "none", super().get_tag()[2]


def run(command: list[str]) -> str:
    """Standard output of a command; CalledProcessError with its messages if it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


setup(
    ext_modules=[
        Extension(
            "infinito.kernels.libinfinito",
            sorted(map(str, SOURCES.glob("*.c"))),
            depends=sorted(map(str, SOURCES.glob("*.h"))),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": PlatformWheel},
)
