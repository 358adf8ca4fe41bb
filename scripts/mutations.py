"""Damage for the fuzzer: bytes, archives, pickles, plain data and tokenizers, from one seed."""

from __future__ import annotations

import io
import itertools
import json
import pickletools
import random
import zipfile
from typing import Any

PICKLE = "archive/data.pkl"
# What a stranger may write where a value of any kind belongs.
STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 1000, 4096, 16384, 65535, 65536, 2**31, 2**32,
    2**53, 2**63 - 1, 2**63, -(2**63), 0.0, -0.0, 0.5, 1e-300, 1e300, -1e300, float("nan"),
    float("inf"), "", "x", "0", "byte", "bpe", "word", "dot", "l1", "learned", "double", "muon",
    "float16", "bfloat16", "aggressive", "cuda", "cuda:99", "mps", "wikitext-2", "hub", "text",
    "python-docs", "/dev/zero", "/dev/stdin", "/proc/self/mem", ".", "..", "../../x", "\0", "*",
    "a\nb", "é", "\ud800", "\u2028", "x" * 5000, [], [[]], [0] * 100, {}, {"": None},
    {"x": {"x": {}}}, {"step": -1},
]  # fmt: skip
_YAML_PIECES = [
    b"\t", b"\0", b"\xff", b": ", b"- ", b"? ", b"[", b"]", b"{", b"}", b"&a ", b"*a", b"!!python ",
    b"<<: ", b"---\n", b"...\n", b"|\n", b">\n", b'"', b"'", b"#", b"%YAML 9.9\n", b"\xef\xbb\xbf",
    b"\r", b"\xe2\x80\xa8", b"1e999", b".nan", b"0x1F", b"010", b"1:30", b"no", b"~", b"9" * 500,
    b"[" * 300, b"{a: " * 300, b"\\x00", b"2024-01-01",
]  # fmt: skip


def damaged_bytes(data: bytes, generator: random.Random) -> bytes:
    """A cut, a flipped bit, noise, or one to four parts removed, doubled, zeroed or moved."""
    kind = generator.randrange(8)
    if kind == 0:
        return data[: generator.randrange(len(data) + 1)]
    if kind == 1:
        return generator.randbytes(generator.choice((0, 1, 22, 100, 5000)))
    changed = bytearray(data)
    if kind == 2 and changed:
        position = generator.randrange(len(changed) * 8)
        changed[position // 8] ^= 1 << position % 8
        return bytes(changed)
    for _ in range(generator.randint(1, 4)):
        _damage_a_part(changed, generator)
    return bytes(changed)


def _damage_a_part(changed: bytearray, generator: random.Random) -> None:
    if not changed:
        return
    start = generator.randrange(len(changed))
    end = min(len(changed), start + generator.choice((1, 2, 4, 8, 64, 512)))
    part = bytes(changed[start:end])
    kind = generator.randrange(5)
    if kind == 0:
        changed[start:end] = generator.randbytes(len(part))
    elif kind == 1:
        del changed[start:end]
    elif kind == 2:
        changed[start:start] = part
    elif kind == 3:
        changed[start:end] = bytes(len(part))
    else:
        to = generator.randrange(len(changed))
        changed[to : to + len(part)] = part


def with_pickle(data: bytes, program: bytes) -> bytes:
    """The checkpoint ``data`` with another pickle, every checksum right."""
    return packed(members_of(data) | {PICKLE: program})


def members_of(data: bytes) -> dict[str, bytes]:
    """Bytes of each member of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def packed(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of ``members``."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def damaged_members(data: bytes, generator: random.Random) -> bytes:
    """Surgery on members with right checksums: changed, cut, removed, renamed, added, packed."""
    members = members_of(data)
    name = generator.choice(list(members))
    kind = generator.randrange(7)
    if kind <= 1:
        members[name] = damaged_bytes(members[name], generator)
    elif kind == 2:
        del members[name]
    elif kind == 3:
        members["../" + name if generator.random() < 0.5 else name + "0"] = members.pop(name)
    elif kind == 4:
        members[f"archive/data/{generator.randrange(10**9)}"] = generator.randbytes(64)
    elif kind == 5:
        return packed(members, zipfile.ZIP_DEFLATED)
    else:
        other = generator.choice(list(members))
        members[name], members[other] = members[other], members[name]
    return packed(members)


def damaged_program(data: bytes, generator: random.Random) -> bytes:
    """The pickle with instructions removed, doubled, swapped, replaced or given other operands."""
    program = members_of(data)[PICKLE]
    starts = [position for _, _, position in pickletools.genops(program)] + [len(program)]
    parts = [program[a:b] for a, b in itertools.pairwise(starts)]
    for _ in range(generator.randint(1, 3)):
        _damage_an_instruction(parts, generator)
    return with_pickle(data, b"".join(parts))


def _damage_an_instruction(parts: list[bytes], generator: random.Random) -> None:
    index = generator.randrange(len(parts))
    kind = generator.randrange(6)
    if kind == 0:
        del parts[index]
    elif kind == 1:
        parts.insert(index, parts[index])
    elif kind == 2:
        other = generator.randrange(len(parts))
        parts[index], parts[other] = parts[other], parts[index]
    elif kind == 3:
        opcode = generator.choice(pickletools.opcodes)
        parts[index] = opcode.code.encode("latin-1") + parts[index][1:]
    elif kind == 4:
        operand = generator.randbytes(max(len(parts[index]) - 1, 0))
        parts[index] = parts[index][:1] + operand
    else:
        parts.insert(index, _hostile_instructions(generator))


def _hostile_instructions(generator: random.Random) -> bytes:
    number = generator.choice((0, 1, 2**16, 2**30, 2**31 - 1))
    return generator.choice(
        [
            b"cposix\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"]" * 1000, b"(" * 1000,
            b"J" + number.to_bytes(4, "little"), b"X" + number.to_bytes(4, "little"), b"R", b"Q",
            b"\x8a\xff" + b"\xff" * 255, b"r" + number.to_bytes(4, "little"), b"}", b")", b"N",
            b".",
        ]
    )  # fmt: skip


def damaged_value(value: Any, generator: random.Random, changes: int = 2) -> Any:
    """Plain data with a few of its values replaced, removed, doubled or renamed, at any depth."""
    for _ in range(generator.randint(1, changes)):
        value = _damage_one(value, generator)
    return value


def _damage_one(value: Any, generator: random.Random) -> Any:
    # Deep places get their share: go down with a probability instead of choosing among all leaves.
    if isinstance(value, dict) and value and generator.random() < 0.9:
        key = generator.choice(list(value))
        kind = generator.randrange(12)
        if kind == 0:
            return {name: item for name, item in value.items() if name != key}
        if kind == 1:
            return value | {str(generator.choice(["", "x", key + "x"])): value[key]}
        return value | {key: _damage_one(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.9:
        index, kind = generator.randrange(len(value)), generator.randrange(6)
        if kind == 0:
            return value[:index] + value[index + 1 :]
        if kind == 1:
            return value + value[index : index + 1]
        return [*value[:index], _damage_one(value[index], generator), *value[index + 1 :]]
    if isinstance(value, str) and value and generator.random() < 0.3:
        position = generator.randrange(len(value))
        return value[:position] + generator.choice(["", "\0", "é", "9"]) + value[position + 1 :]
    if type(value) is int and generator.random() < 0.4:
        return generator.choice([value + 1, value - 1, -value, value * 2, value * 1000])
    return generator.choice(STRANGE)


def damaged_tokenizer(text: str, generator: random.Random) -> str:
    """A tokenizer's JSON with its bytes or its structure damaged."""
    if generator.random() < 0.3:
        return damaged_bytes(text.encode(), generator).decode("utf-8", "replace")
    if generator.random() < 0.1:
        return "[" * 100_000 if generator.random() < 0.5 else '{"a":' * 100_000
    return json.dumps(damaged_value(json.loads(text), generator, changes=4))


def damaged_yaml(data: bytes, generator: random.Random) -> bytes:
    """A config with its bytes damaged, or with pieces of YAML put in where they do harm."""
    if generator.random() < 0.4:
        return damaged_bytes(data, generator)
    for _ in range(generator.randint(1, 4)):
        position = generator.randrange(len(data) + 1)
        data = data[:position] + generator.choice(_YAML_PIECES) + data[position:]
    return data
