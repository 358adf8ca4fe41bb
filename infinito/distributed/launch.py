"""``--nproc N``: start this program N times on this machine, and end as one program.

Every process gets its rank as from ``torchrun`` and runs the same command. They live in
sessions of their own, so that a signal reaches them through this one only, as often as it came.
No torch here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from infinito.errors import ConfigError, ResourceError
from infinito.runtime.cores import available_cores
from infinito.runtime.paths import command, shown
from infinito.runtime.signals import handled

#: Names the directory in which the processes leave what the launcher has to know.
WORKPLACE = "INFINITO_LAUNCH"
RUN_FILE = "run"
#: Where they meet. A file, because a port that is free now may be taken a moment later.
MEETING_FILE = "meeting"
#: Exit code of a process that ended because another one did.
LOST = 75
_GRACE_SECONDS = 30.0  # a checkpoint that is being written
_LOOK_SECONDS = 0.05
_TAIL_CHARACTERS = 1000


def is_launcher(processes: int) -> bool:
    """Whether this process has to start the others: it was asked for several and is none of them.

    Raises:
        ConfigError: another launcher started other than that many.
    """
    started = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if started and processes > 1 and started != processes:
        raise ConfigError(
            f"--nproc {processes}, and the launcher started {started} processes on this machine",
            "leave out --nproc under torchrun",
        )
    return processes > 1 and not started


def require_one(asked: int, what: str, remedy: str) -> None:
    """Raise ConfigError where several processes would do ``what`` only one can."""
    if max(asked, int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(f"{what}, not that of several", remedy)


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run ``infinito ARGUMENTS`` in so many processes; returns the exit code of the command.

    Raises:
        ResourceError: a process died; what was saved is named.
    """
    with tempfile.TemporaryDirectory(prefix="infinito-") as workplace:
        ranks = _Ranks(Path(workplace))
        # Before the first is started: none may be left without one to pass signals on.
        with handled(ranks.pass_on):
            ranks.start(processes, arguments)
            return ranks.wait()


class _Ranks:
    def __init__(self, workplace: Path) -> None:
        self.workplace = workplace
        self.started: list[subprocess.Popen[bytes]] = []
        self.ended: list[int] = []  # in the order in which it was seen
        self.signal_number = 0

    def start(self, processes: int, arguments: Sequence[str]) -> None:
        """Start all of them, and pass on to all what came meanwhile."""
        environment = _environment(processes, self.workplace)
        for rank in range(processes):
            self.started.append(self._start(rank, arguments, environment))
        if self.signal_number:
            self._send(self.signal_number)  # some were not there yet

    def _start(
        self, rank: int, arguments: Sequence[str], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """The first has the terminal; what the others say matters only if they die."""
        with self._said(rank).open("wb") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "infinito", *arguments],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else file,
                start_new_session=True,
            )

    def wait(self) -> int:
        """Until all have ended; once one failed, the others have some time to end by themselves."""
        deadline = None
        while self._look() < len(self.started):
            if deadline is None and any(process.returncode for process in self.started):
                deadline = time.monotonic() + _GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                self._send(signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)
        codes = [process.returncode for process in self.started]
        if self.signal_number and codes[0] < 0:  # it came before the handlers were there
            return 128 + self.signal_number
        # Where the first ended well, all steps were taken and saved: who fell while leaving is
        # no failure of the run.
        if codes[0] == LOST or codes[0] < 0:
            raise self._death(codes)
        return codes[0]  # the first process has told what there was to tell

    def _look(self) -> int:
        """How many have ended; who is new among them is noted."""
        for rank, process in enumerate(self.started):
            if rank not in self.ended and process.poll() is not None:
                self.ended.append(rank)
        return len(self.ended)

    def _send(self, number: int) -> None:
        for process in self.started:
            process.send_signal(number)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._send(number)

    def _said(self, rank: int) -> Path:
        return self.workplace / f"said-{rank}"

    def _death(self, codes: Sequence[int]) -> ResourceError:
        """Which process died, how, what it said last, and how to go on."""
        culprits = [rank for rank in self.ended if codes[rank] not in (0, LOST)]
        if not culprits:
            return ResourceError("the processes lost touch with each other", self._remedy())
        # The threads of torch abort a process that has lost another one: it is seldom the cause.
        rank = min(culprits, key=lambda culprit: codes[culprit] == -signal.SIGABRT)
        code = codes[rank]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        said = self._said(rank).read_text("utf-8", "backslashreplace").strip()
        quoted = f"; it said:\n{said[-_TAIL_CHARACTERS:]}" if said else ""
        return ResourceError(
            f"process {rank} of {len(self.started)} {how}, and the run ends with it{quoted}",
            self._remedy(),
        )

    def _remedy(self) -> str:
        told = self.workplace / RUN_FILE
        run = Path(told.read_text(encoding="utf-8")) if told.exists() else None
        if run is None or not any(run.glob("step-*.pt")):
            return "nothing was saved yet: start it again"
        return command("resume", shown(run), "--nproc", len(self.started))


def _environment(processes: int, workplace: Path) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(max(1, available_cores() // processes)),
        **os.environ,
        WORKPLACE: str(workplace),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
