"""Writing and reading back: equal content, equal bytes, whole files only."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from infinito.checkpoint import format as checkpoint_format
from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from infinito.checkpoint.plain_pickle import TensorSpec
from infinito.checkpoint.structure import check_shapes
from infinito.checkpoint.verify import inspect_checkpoint
from infinito.errors import CheckpointError, ResourceError
from tests.checkpoint_support import make_content, same


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content = make_content()
    sha256 = write_checkpoint(tmp_path / "a.pt", content)
    assert same(read_checkpoint(tmp_path / "a.pt"), content)
    assert sha256 == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_what_was_read_is_freed_at_once(tmp_path: Path) -> None:
    """A training verifies what it saves, and a full garbage collection is minutes away."""
    write_checkpoint(tmp_path / "a.pt", make_content())
    inspect_checkpoint(tmp_path / "a.pt")
    gc.collect()
    gc.disable()
    try:
        inspect_checkpoint(tmp_path / "a.pt")
        assert not [thing for thing in gc.get_objects() if type(thing) is TensorSpec]
    finally:
        gc.enable()


@pytest.mark.row("S-01")
def test_loads_with_weights_only_and_no_added_globals(tmp_path: Path) -> None:
    content = make_content()
    write_checkpoint(tmp_path / "a.pt", content)
    assert same(torch.load(tmp_path / "a.pt", weights_only=True), content)


def test_what_was_read_writes_the_same_bytes(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", make_content())
    write_checkpoint(tmp_path / "other-name.pt", read_checkpoint(tmp_path / "a.pt"))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other-name.pt").read_bytes()


def _with_shared_history() -> dict[str, Any]:
    """The content of make_content, whose objects share strings, lists and storages."""
    content = make_content()
    content["average"] = {"".join(list(name)): value for name, value in content["average"].items()}
    content["data"] = {"tra" + "in"[:2]: "ab" * 32, "val" + "id": ("cd" * 64)[:64]}
    wide = torch.zeros(4, 8)
    wide[:1] = content["model"]["gain"]
    content["model"]["gain"] = wide[:1]  # a view of a larger storage
    strange = torch.empty_strided((1, 8), (99, 1))
    strange.copy_(content["average"]["gain"])
    content["average"]["gain"] = strange  # contiguous, with the stride of another history
    content["model"]["embedding"] = torch.nn.Parameter(content["model"]["embedding"])
    joined = torch.cat([content["model"]["norm"], content["average"]["norm"]])
    content["model"]["norm"], content["average"]["norm"] = joined[:8], joined[8:]
    return content


def test_equal_content_has_equal_bytes_whatever_it_shared(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", make_content())
    write_checkpoint(tmp_path / "b.pt", _with_shared_history())
    write_checkpoint(tmp_path / "c.pt", copy.deepcopy(make_content()))
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "c.pt").read_bytes()


def test_equal_strings_in_two_places_need_not_be_one_object(tmp_path: Path) -> None:
    once = "".join(["some ", "text"])
    again = "".join(["some ", "text"])
    assert once is not again
    write_checkpoint(tmp_path / "a.pt", make_content() | {"log": {"x": once, "y": once}})
    write_checkpoint(tmp_path / "b.pt", make_content() | {"log": {"x": once, "y": again}})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_one_tensor_in_two_places_is_written_twice(tmp_path: Path) -> None:
    content = make_content()
    content["average"] = dict(content["model"])
    separate = make_content() | {"average": copy.deepcopy(content["model"])}
    write_checkpoint(tmp_path / "a.pt", content)
    write_checkpoint(tmp_path / "b.pt", separate)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_tensors_read_are_writable_and_never_reach_the_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", make_content())
    before = (tmp_path / "a.pt").read_bytes()
    read_checkpoint(tmp_path / "a.pt")["model"]["embedding"].fill_(7)
    assert (tmp_path / "a.pt").read_bytes() == before


@pytest.mark.parametrize(
    "value", [(1, 2), {1: 2}, b"x", 1j, Path("x"), torch.zeros(2, dtype=torch.complex64)]
)
def test_what_is_not_plain_is_a_bug_and_leaves_nothing(tmp_path: Path, value: object) -> None:
    with pytest.raises(AssertionError):
        write_checkpoint(tmp_path / "a.pt", make_content() | {"log": {"value": value}})
    assert not list(tmp_path.iterdir())


def test_inspection_gives_the_content_without_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pt", make_content())
    content = inspect_checkpoint(tmp_path / "a.pt")
    assert content["step"] == 8
    spec = content["model"]["embedding"]
    assert isinstance(spec, TensorSpec)
    assert (spec.dtype, spec.shape) == ("float32", (16, 8))


@pytest.mark.row("C-15")
def test_order_of_system_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    kinds: dict[int, str] = {}
    real_open, real_fsync, real_replace = os.open, os.fsync, os.replace

    def traced_open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        descriptor = real_open(path, flags, *rest, **named)
        kinds[descriptor] = "directory" if os.path.isdir(path) else Path(path).name
        return descriptor

    def traced_fsync(descriptor: int) -> None:
        calls.append(f"fsync {kinds[descriptor]} {os.fstat(descriptor).st_size > 1000}")
        real_fsync(descriptor)

    def traced_replace(source: Any, target: Any) -> None:
        calls.append(f"rename {Path(source).name} {Path(target).name}")
        real_replace(source, target)

    monkeypatch.setattr(os, "open", traced_open)
    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    write_checkpoint(tmp_path / "a.pt", make_content())
    assert calls[:2] == ["fsync a.pt.tmp True", "rename a.pt.tmp a.pt"]
    assert calls[2].startswith("fsync directory")
    assert len(calls) == 3


@pytest.mark.row("C-03")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write_checkpoint(tmp_path / "a.pt", make_content(1))
    before = (tmp_path / "a.pt").read_bytes()

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResourceError, match=re.escape(os.strerror(code))) as caught:
        write_checkpoint(tmp_path / "a.pt", make_content(2))
    assert "needed" in caught.value.message
    assert "free" in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == before


def test_a_write_that_failed_once_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a moment must not leave a hole in a file that gets its name."""
    real = checkpoint_format.atomic_writer

    class FullForAMoment:
        def __init__(self, file: BinaryIO) -> None:
            self.file, self.writes = file, 0

        def write(self, data: bytes) -> int:
            self.writes += 1
            if self.writes == 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

    @contextlib.contextmanager
    def writer(path: Path, needed_bytes: int | None = None) -> Iterator[FullForAMoment]:
        with real(path, needed_bytes) as file:
            yield FullForAMoment(file)

    monkeypatch.setattr(checkpoint_format, "atomic_writer", writer)
    with pytest.raises(ResourceError, match="No space"):
        write_checkpoint(tmp_path / "a.pt", make_content())
    assert not list(tmp_path.iterdir())


@pytest.mark.row("S-08")
def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.pt.tmp").symlink_to(tmp_path / "victim")
    write_checkpoint(tmp_path / "a.pt", make_content())
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.row("S-07")
def test_shapes_are_compared_by_name() -> None:
    model = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    check_shapes(model, {"a": (2, 3), "b": (4,)})
    with pytest.raises(CheckpointError) as caught:
        check_shapes(model, {"a": (2, 5), "c": (1,)})
    assert "a: (2, 3) vs (2, 5)" in caught.value.message
    assert "b: (4,) vs absent" in caught.value.message
    assert "c: absent vs (1,)" in caught.value.message
