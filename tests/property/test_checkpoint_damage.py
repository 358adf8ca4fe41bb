"""Flips, cuts and random mutations of a good checkpoint: noticed, or without any effect."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from infinito.errors import CheckpointError
from tests.checkpoint_support import make_content, same

FLIPS = 600
MUTATIONS = 400


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.pt"
    write_checkpoint(path, make_content())
    return path.read_bytes()


def noticed_or_equal(path: Path, data: bytes) -> bool:
    """Whether ``data`` is refused as a checkpoint; fails if it is accepted with other content."""
    path.write_bytes(data)
    try:
        content = read_checkpoint(path)
    except CheckpointError:
        return True
    assert same(content, make_content())
    return False


@pytest.mark.row("C-05")
def test_flipped_bits(good: bytes, tmp_path: Path) -> None:
    generator = random.Random(5)
    noticed = 0
    for position in generator.sample(range(len(good) * 8), FLIPS):
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        noticed += noticed_or_equal(tmp_path / "a.pt", bytes(data))
    # The rest are padding and fields such as dates, which nobody reads.
    assert noticed > FLIPS / 2


@pytest.mark.row("C-04")
def test_cuts(good: bytes, tmp_path: Path) -> None:
    for length in [*range(0, len(good), 97), len(good) - 1]:
        assert noticed_or_equal(tmp_path / "a.pt", good[:length])


def mutate(data: bytes, generator: random.Random) -> bytes:
    """One to four changes: bytes overwritten, a part removed, doubled, zeroed or moved."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        start = generator.randrange(len(changed))
        end = min(len(changed), start + generator.choice((1, 2, 4, 8, 64, 512)))
        part = bytes(changed[start:end])
        match generator.randrange(5):
            case 0:
                changed[start:end] = generator.randbytes(len(part))
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = part
            case 3:
                changed[start:end] = bytes(len(part))
            case _:
                to = generator.randrange(len(changed))
                changed[to : to + len(part)] = part
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.row("S-09")
def test_mutations(good: bytes, tmp_path: Path) -> None:
    generator = random.Random(11)
    changed = [mutate(good, generator) for _ in range(MUTATIONS)]
    noticed = sum(noticed_or_equal(tmp_path / "a.pt", data) for data in changed)
    assert noticed > MUTATIONS / 2


@pytest.mark.row("S-09")
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_mutated_descriptions_with_right_checksums(good: bytes, tmp_path: Path) -> None:
    """An attacker repairs the CRC, so the interpreter itself meets arbitrary bytes."""
    import io
    import zipfile

    from tests.checkpoint_support import rebuilt

    program = zipfile.ZipFile(io.BytesIO(good)).read("archive/data.pkl")
    generator = random.Random(13)
    refused = 0
    for _ in range(MUTATIONS):
        data = rebuilt(good, {"archive/data.pkl": mutate(program, generator)})
        (tmp_path / "a.pt").write_bytes(data)
        try:
            read_checkpoint(tmp_path / "a.pt")
        except CheckpointError:
            refused += 1
    assert refused > MUTATIONS / 2
