"""What is left of the host's memory: the machine, control groups of both versions, ulimit -v.

The system's files are replaced by those of a directory, so that any container can be staged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from infinito.runtime.findings import examine
from infinito.runtime.memory import available_bytes
from tests.command_support import memory_at_most

GB = 10**9
MACHINE = {
    "/proc/meminfo": f"MemTotal:  {64 * GB // 1024} kB\nMemAvailable: {40 * GB // 1024} kB\n"
}
NO_LIMIT = str(2**63 - 4096)

Stage = Callable[[dict[str, object]], None]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Stages the files of a system: what is not given does not exist below /proc and /sys."""
    real = Path.read_text

    def read_text(path: Path, *arguments: str, **options: str) -> str:
        if path.parts[:2] in (("/", "proc"), ("/", "sys")):
            path = tmp_path.joinpath(*path.parts[1:])
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    def write(files: dict[str, object]) -> None:
        for name, text in {**MACHINE, **files}.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        monkeypatch.setattr(Path, "read_text", read_text)

    return write


def unified(group: str, limit: object, used: int, files: int = 0) -> dict[str, object]:
    """A group of version 2; ``files`` bytes of its use are cached files."""
    place = f"/sys/fs/cgroup{group}"
    stat = f"anon {used - files}\ninactive_file {files // 2}\nactive_file {files - files // 2}"
    return {
        f"{place}/memory.max": limit,
        f"{place}/memory.current": used,
        f"{place}/memory.stat": stat,
    }


def legacy(group: str, limit: object, used: int, files: int = 0) -> dict[str, object]:
    """A group of version 1; its own share of the files differs from that of all below it."""
    place = f"/sys/fs/cgroup/memory{group}"
    stat = f"inactive_file 1\nactive_file 1\ntotal_inactive_file {files}\ntotal_active_file 0"
    return {
        f"{place}/memory.limit_in_bytes": limit,
        f"{place}/memory.usage_in_bytes": used,
        f"{place}/memory.stat": stat,
    }


V1 = "9:name=systemd:/\n4:cpu,memory:/docker/ab\n0::/"
CASES = {
    "machine alone": ({}, 40),
    "no limit": ({"/proc/self/cgroup": "0::/", **unified("", "max", 9 * GB)}, 40),
    "unified, as a container sees it": (
        {"/proc/self/cgroup": "0::/", **unified("", 8 * GB, 3 * GB)},
        5,
    ),
    "unified, nested": ({"/proc/self/cgroup": "0::/a/b c", **unified("/a/b c", 8 * GB, GB)}, 7),
    "unified, a limit above": (
        {
            "/proc/self/cgroup": "0::/a/b",
            **unified("/a/b", "max", GB),
            **unified("/a", 8 * GB, 6 * GB),
        },
        2,
    ),
    "cached files can be taken back": (
        {"/proc/self/cgroup": "0::/", **unified("", 8 * GB, 7 * GB, files=4 * GB)},
        5,
    ),
    "legacy, nested": (
        {"/proc/self/cgroup": V1, **legacy("/docker/ab", 8 * GB, 7 * GB, files=GB)},
        2,
    ),
    "legacy, as a container sees it": ({"/proc/self/cgroup": V1, **legacy("", 6 * GB, GB)}, 5),
    "legacy, no limit": ({"/proc/self/cgroup": V1, **legacy("/docker/ab", NO_LIMIT, GB)}, 40),
    "a limit beyond the machine": (
        {"/proc/self/cgroup": "0::/", **unified("", 512 * GB, GB)},
        40,
    ),
    "more in use than the limit": (
        {"/proc/self/cgroup": "0::/", **unified("", GB, 2 * GB)},
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_guard_and_doctor_know_the_tightest_limit(case: str, stage: Stage) -> None:
    files, left_gb = CASES[case]
    stage(files)
    assert available_bytes("cpu") == pytest.approx(left_gb * GB, abs=2048)
    finding = next(found for found in examine(Path()) if found.name == "memory")
    assert finding.value.startswith(f"{left_gb}.0 GB free")
    assert ("control group" in finding.reason) == (left_gb != 40)


def test_a_limit_on_the_address_space_counts_for_both() -> None:
    with memory_at_most(1 << 30):
        assert (available_bytes("cpu") or 0) <= 1 << 30
        finding = next(found for found in examine(Path()) if found.name == "memory")
    assert "ulimit -v" in finding.reason


def test_a_system_that_says_nothing_is_no_limit(stage: Stage) -> None:
    stage({"/proc/meminfo": "nothing known"})
    assert available_bytes("cpu") is None
    finding = next(found for found in examine(Path()) if found.name == "memory")
    assert finding.value == "unknown"
