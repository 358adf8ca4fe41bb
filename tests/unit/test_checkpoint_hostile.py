"""Files from strangers: refused before anything in them is run or allocated."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.checkpoint import plain_pickle
from infinito.checkpoint.format import read_checkpoint
from infinito.checkpoint.verify import inspect_checkpoint
from infinito.errors import CheckpointError
from tests.checkpoint_support import make_content, rebuilt, same, saved_bytes
from tests.support import ROOT


def refusal(tmp_path: Path, data: bytes) -> str:
    """The message with which a file of these bytes is refused."""
    path = tmp_path / "strange.pt"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = caught.value.message
    assert str(path) in message
    assert "weights_only" not in message
    assert "\n" not in message
    assert caught.value.remedy
    return message


class _RunsCommand:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.row("S-02")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_a_command(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    program = pickle.dumps({"log": _RunsCommand(canary)}, protocol=protocol)
    good = saved_bytes(make_content())
    assert "not an infinito checkpoint" in refusal(tmp_path, program)
    inside = refusal(tmp_path, rebuilt(good, {"archive/data.pkl": program}))
    assert "which a checkpoint never needs" in inside
    if protocol == 2:
        assert "posix.system" in inside
    assert not canary.exists()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.nn.Linear(2, 2), "refers to torch.nn.modules.linear.Linear"),
        (torch.zeros(2).to_sparse(), "refers to torch._utils._rebuild_sparse_tensor"),
        ({1, 2}, "refers to __builtin__.set"),
        (torch.device("cpu"), "refers to torch.device"),
        ((1, 2), "not plain data"),
        (OrderedDict(), "not plain data"),
        ({1: 2}, "description is damaged"),
    ],
    ids=["module", "sparse", "set", "device", "tuple", "ordered", "number as key"],
)
def test_objects_that_are_not_plain(tmp_path: Path, value: object, reason: str) -> None:
    assert reason in refusal(tmp_path, saved_bytes(make_content() | {"log": {"value": value}}))


def test_a_pickle_from_elsewhere(tmp_path: Path) -> None:
    assert "not an infinito checkpoint" in refusal(tmp_path, saved_bytes({"w": torch.ones(2)}))
    named = tmp_path / "model.pt"
    torch.save(make_content(), named)  # a path gives the archive another prefix
    assert "never has" in refusal(tmp_path, named.read_bytes())


_MEASURE = """
import resource, sys
from pathlib import Path
from infinito.checkpoint.format import read_checkpoint
from infinito.errors import CheckpointError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

peaks = [peak()]
try:
    read_checkpoint(Path(sys.argv[1]))
except CheckpointError as error:
    assert "compressed" in error.message
peaks.append(peak())
content = read_checkpoint(Path(sys.argv[2]))
peaks.append(peak())
content["model"]["w"].sum()
peaks.append(peak())
print(*peaks)
"""


def zeros_in_an_archive(name: str, mebibytes: int) -> bytes:
    """A zip archive of one deflated member of zeros, made without compressing all of them."""
    zeros, crc = bytes(1 << 20), 0
    for _ in range(mebibytes):
        crc = zlib.crc32(zeros, crc)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    # After a full flush nothing refers back, so the same bytes may follow again and again.
    block = deflate.compress(zeros) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = block * mebibytes + b"\x03\x00"
    sizes = crc, len(data), mebibytes << 20
    header = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, *sizes, len(name), 0)
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, *sizes, len(name), 0, 0, 0, 0, 0, 0
    )
    table, start = entry + name.encode(), len(header) + len(name) + len(data)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(table), start, 0)
    return header + name.encode() + data + table + end


@pytest.mark.row("S-03")
def test_reading_takes_no_more_than_the_file(tmp_path: Path) -> None:
    """2 GiB of zeros in 2 MB, then an honest file of 64 MB: verified, then touched."""
    bomb, large = tmp_path / "bomb.pt", tmp_path / "large.pt"
    bomb.write_bytes(zeros_in_an_archive("archive/data.pkl", mebibytes=2047))
    assert zipfile.ZipFile(bomb).infolist()[0].file_size == 2047 << 20
    assert bomb.stat().st_size < 3 << 20
    large.write_bytes(saved_bytes(make_content() | {"model": {"w": torch.ones(16 << 20)}}))
    output = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(bomb), str(large)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout  # fmt: skip
    start, refused, verified, touched = map(float, output.split())
    assert refused - start < 24
    assert verified - start < 24
    assert touched - start < 64 + 24


@pytest.mark.row("S-04")
@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "archive/../x", "archive/x\0y", "other/data"]
)
def test_odd_member_names(tmp_path: Path, name: str) -> None:
    refusal(tmp_path, rebuilt(saved_bytes(make_content()), {name: b"x"}))
    assert [path.name for path in tmp_path.iterdir()] == ["strange.pt"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    path.write_bytes(rebuilt(saved_bytes(make_content()), {}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", b"x")
    assert "twice" in refusal(tmp_path, path.read_bytes())


def test_members_inside_members(tmp_path: Path) -> None:
    """One run of bytes counted twice is how a small file grows large."""
    good = saved_bytes(make_content())
    plain = rebuilt(good, {})
    start = plain.index(b"archive/data/1") - 30
    whole_member = plain[start : plain.index(b"PK\x03\x04", start + 4)]
    data = bytearray(rebuilt(good, {"archive/data/0": whole_member}))
    entry = data.rindex(b"archive/data/1PK") - 46
    data[entry + 42 : entry + 46] = data.index(whole_member).to_bytes(4, "little")
    assert "overlap" in refusal(tmp_path, bytes(data))


def test_local_headers_are_checked(tmp_path: Path) -> None:
    data = saved_bytes(make_content())
    name = data.index(b"archive/data/0")
    for position in (name + 3, name - 30, name - 30 + 8):  # name, signature, method
        changed = bytearray(data)
        changed[position] ^= 8
        assert "header" in refusal(tmp_path, bytes(changed))


@pytest.mark.row("S-07")
def test_a_tensor_larger_than_its_data(tmp_path: Path) -> None:
    giant = torch.zeros(1).expand(10**9)
    content = make_content()
    message = refusal(tmp_path, saved_bytes(content | {"model": {"w": giant}}))
    assert "does not fit" in message
    turned = torch.arange(6.0).reshape(2, 3).t()
    assert "does not fit" in refusal(tmp_path, saved_bytes(content | {"model": {"w": turned}}))
    shared = torch.zeros(4)
    content = make_content() | {"model": {"a": shared, "b": shared.view(2, 2)}}
    assert "tensors that share" in refusal(tmp_path, saved_bytes(content))


def test_shared_containers_that_grow_when_walked(tmp_path: Path) -> None:
    bomb: list[Any] = [0]
    for _ in range(40):
        bomb = [bomb, bomb]
    loop: list[Any] = []
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep]
    assert "shares" in refusal(tmp_path, saved_bytes(make_content() | {"evaluations": bomb}))
    assert "shares" in refusal(tmp_path, saved_bytes(make_content() | {"optimizers": loop}))
    assert "nested" in refusal(tmp_path, saved_bytes(make_content() | {"optimizers": deep}))


def test_a_description_of_millions_of_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_pickle, "MAX_INSTRUCTIONS", 1000)
    program = b"\x80\x02" + b"]" * 2000 + b"."
    good = saved_bytes(make_content())
    assert "too long" in refusal(tmp_path, rebuilt(good, {"archive/data.pkl": program}))


def test_wrong_structure(tmp_path: Path) -> None:
    newer = refusal(tmp_path, saved_bytes(make_content() | {"format_version": 2}))
    assert "newer" in newer
    for key in make_content():
        content = make_content()
        del content[key]
        refusal(tmp_path, saved_bytes(content))
        refusal(tmp_path, saved_bytes(make_content() | {key: -1}))
    for changes in ({"step": -1}, {"step": True}, {"step": 2**70}, {"epoch": float("nan")}):
        refusal(tmp_path, saved_bytes(make_content() | changes))
    refusal(tmp_path, saved_bytes(make_content() | {"epoch": 10**400}))


@pytest.mark.row("C-04")
@pytest.mark.parametrize("kept", [0, 1, 3, 0.5, -1])
def test_cut_files(tmp_path: Path, kept: float) -> None:
    data = saved_bytes(make_content())
    cut = data[: int(len(data) * kept) if kept == 0.5 else int(kept)]
    assert any(word in refusal(tmp_path, cut) for word in ("truncated", "empty"))


def test_not_files(tmp_path: Path) -> None:
    (tmp_path / "directory.pt").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    for name, reason in (("directory.pt", "regular"), ("pipe.pt", "regular"), ("no.pt", "no che")):
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(tmp_path / name)
    (tmp_path / "text.pt").write_text("hello, this is no checkpoint at all, but quite long")
    with pytest.raises(CheckpointError, match="not an infinito checkpoint"):
        read_checkpoint(tmp_path / "text.pt")


def test_unaligned_but_honest_data_is_read(tmp_path: Path) -> None:
    path = tmp_path / "repacked.pt"
    path.write_bytes(rebuilt(saved_bytes(make_content()), {}))
    assert same(read_checkpoint(path), make_content())
    assert inspect_checkpoint(path)["step"] == 8
