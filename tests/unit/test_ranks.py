"""Rows and masks that processes share, and the launcher, with programs in their place."""

from __future__ import annotations

import ast
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from infinito.attention import distance_attention
from infinito.config.loading import config_from_plain
from infinito.distributed import launch, strategy
from infinito.distributed.ranks import share_of
from infinito.distributed.rows import Share, computing
from infinito.errors import ConfigError, ResourceError
from infinito.kernels.plain import dropout, keep_mask
from infinito.train import session
from tests.support import tiny_settings


@pytest.fixture
def among(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    return monkeypatch


@pytest.mark.parametrize(("rows", "count"), [(8, 2), (7, 3), (4, 4), (5, 1)])
def test_the_shares_of_a_batch_cover_it_once(
    among: pytest.MonkeyPatch, rows: int, count: int
) -> None:
    among.setattr(dist, "get_world_size", lambda: count)
    seen = []
    for rank in range(count):
        among.setattr(dist, "get_rank", lambda rank=rank: rank)
        part = list(range(rows))[share_of(rows).rows]
        assert rows // count <= len(part) <= rows // count + 1
        seen += part
    assert seen == list(range(rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distributed__strategy": "none"}, "strategy is none, and there are 2 processes"),
        ({"training__tracker": "trackio"}, "needs the package trackio"),
    ],
)
def test_what_cannot_run_is_refused_before_any_text_is_read(
    among: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    for name, value in {"get_world_size": 2, "get_rank": 0, "broadcast_object_list": None}.items():
        among.setattr(dist, name, lambda *_, value=value: value)
    among.setitem(sys.modules, "trackio", None)
    among.setattr(session, "prepare", lambda *_, **__: pytest.fail("the text was read"))
    config = config_from_plain(tiny_settings(tmp_path, **changes), "a test")
    with pytest.raises(ConfigError, match=message):
        session.start(config, name="x", dry_run=False)
    assert not (tmp_path / "run").exists()


def test_a_batch_smaller_than_the_processes_is_refused(among: pytest.MonkeyPatch) -> None:
    among.setattr(dist, "get_world_size", lambda: 4)
    among.setattr(dist, "get_rank", lambda: 0)
    with pytest.raises(ConfigError, match=r"batch_size 3 .* there are 4"):
        share_of(3)


def shares(total: int) -> list[Share]:
    return [Share(0, 2, total), Share(2, 3, total), Share(3, total, total)]


@pytest.mark.parametrize("shape", [(5, 3, 7), (6, 1), (4, 8, 16)])
def test_masks_of_shares_are_those_of_the_batch(shape: tuple[int, ...]) -> None:
    """Odd sizes too: four elements come of one draw, and shares do not end where draws do."""
    torch.manual_seed(3)
    whole = keep_mask(torch.Size(shape), 0.3, torch.device("cpu"))
    after = torch.rand(1)
    parts = []
    for share in shares(shape[0]):
        torch.manual_seed(3)
        with computing(share):
            own = torch.Size((share.stop - share.first, *shape[1:]))
            parts.append(keep_mask(own, 0.3, torch.device("cpu")))
        assert torch.rand(1) == after, "every process goes on with the same stream"
    assert torch.equal(torch.cat(parts), whole)


def test_a_mask_that_has_no_row_a_sequence_is_the_same_for_all() -> None:
    torch.manual_seed(3)
    whole = dropout(torch.ones(9, 1), 0.5, of_batch=False)
    torch.manual_seed(3)
    with computing(Share(1, 2, 4)):
        assert torch.equal(dropout(torch.ones(9, 1), 0.5, of_batch=False), whole)


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_attention_drops_the_same_weights_in_shares(backend: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, 2, 6, 8) for _ in range(3))

    def attend(rows: slice) -> torch.Tensor:
        torch.manual_seed(11)
        inputs = (q[rows], k[rows], v[rows])
        return distance_attention(*inputs, "l1", 1.0, dropout_p=0.4, backend=backend)

    whole, parts = attend(slice(None)), []
    for share in shares(5):
        with computing(share):
            parts.append(attend(share.rows))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)
    other = attend(slice(2, 3))
    assert not torch.allclose(other, whole[2:3]), "without its share a part draws other masks"


def test_one_process_waits_for_no_import_of_shards() -> None:
    """They take 0.6 s, and every command imports this."""
    tree = ast.parse(Path(strategy.__file__).read_text(encoding="utf-8"))
    names = [
        ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert names
    assert not [name for name in names if "fsdp" in name or "tensor" in name or "mesh" in name]


def test_who_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert launch.is_launcher(2)
    assert not launch.is_launcher(1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not launch.is_launcher(2)
    assert not launch.is_launcher(1), "torchrun needs no --nproc"
    with pytest.raises(ConfigError, match="launcher started 2"):
        launch.is_launcher(4)


def launched(place: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> int:
    """Launch two of ``program`` in the place of this one; it knows its RANK."""
    package = place / "infinito"
    package.mkdir()
    (package / "__main__.py").write_text(
        "import os, signal, sys, time\n"
        "rank, said = int(os.environ['RANK']), lambda text: print(text, file=sys.stderr)\n"
        f"{program}\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", "")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        return launch.launch(2, ["train"])
    finally:
        assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("said('error: the same everywhere'); sys.exit(2)", 2),
        ("sys.exit(3 if rank == 0 else 75)", 3),
    ],
)
def test_what_the_first_process_told_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, code: int
) -> None:
    assert launched(tmp_path, monkeypatch, program) == code


@pytest.mark.parametrize(
    ("program", "message", "remedy"),
    [
        (
            "sys.exit(75)",
            "the processes lost touch with each other",
            "nothing was saved yet: start it again",
        ),
        (
            "said('error: no memory'); sys.exit(6 if rank else 75)",
            "process 1 of 2 ended with 6, and the run ends with it; it said:\nerror: no memory",
            "nothing was saved yet: start it again",
        ),
        (
            "open(os.environ['INFINITO_LAUNCH'] + '/run', 'w').write('run'); os.mkdir('run')\n"
            "open('run/step-000004.pt', 'w'); os.kill(os.getpid(), 11)"
            " if rank == 0 else time.sleep(600)",
            "process 0 of 2 was killed by SIGSEGV, and the run ends with it",
            "infinito resume run --nproc 2",
        ),
        (
            "os.kill(os.getpid(), signal.SIGKILL if rank else signal.SIGABRT)",
            "process 1 of 2 was killed by SIGKILL, and the run ends with it",
            "nothing was saved yet: start it again",
        ),
        (
            "there = os.environ['INFINITO_LAUNCH'] + '/of-1'\n"
            "if rank: os.symlink(str(os.getpid()), there)\n"
            "while not os.path.lexists(there): time.sleep(0.01)\n"
            "try:\n"  # the launcher has seen its end when there is no such process any more
            "    while not rank: os.kill(int(os.readlink(there)), 0)\n"
            "except OSError: pass\n"
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "process 1 of 2 was killed by SIGSEGV, and the run ends with it",
            "nothing was saved yet: start it again",
        ),
    ],
)
def test_a_death_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str, remedy: str
) -> None:
    """Also where the others hang, which are killed then."""
    if "sleep" in program:  # the others end by themselves, however late they start
        monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.2)
    program = program.replace("os.mkdir('run')", "os.makedirs('run', exist_ok=True)")
    with pytest.raises(ResourceError) as caught:
        launched(tmp_path, monkeypatch, program)
    assert caught.value.message == message
    assert caught.value.remedy == remedy


def test_each_signal_reaches_each_process_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = """
def count(number, frame):
    open(f'got-{rank}', 'a').write('x')
signal.signal(signal.SIGTERM, count)
open(f'ready-{rank}', 'w')
end = time.monotonic() + 300
while not os.path.exists('enough') and time.monotonic() < end:
    time.sleep(0.01)
sys.exit(143)"""
    places = [tmp_path / f"ready-{rank}" for rank in (0, 1)]

    def send() -> None:
        while not all(place.exists() for place in places):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        while not all((tmp_path / f"got-{rank}").exists() for rank in (0, 1)):
            time.sleep(0.01)
        (tmp_path / "enough").touch()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    assert launched(tmp_path, monkeypatch, program) == 143
    sender.join(timeout=30)
    assert [(tmp_path / f"got-{rank}").read_text() for rank in (0, 1)] == ["x", "x"]
