"""Small checkpoints, good and hostile, for the tests of infinito.checkpoint."""

from __future__ import annotations

import copy
import io
import zipfile
from pathlib import Path
from typing import Any

import torch


def make_content(step: int = 8, seed: int = 0) -> dict[str, Any]:
    """A whole checkpoint of a few kilobytes with every kind of value."""
    generator = torch.Generator().manual_seed(seed * 1000 + step)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "format": "infinito-checkpoint",
        "format_version": 1,
        "step": step,
        "epoch": step / 16,
        "tokens": step * 64,
        "sequences": step * 4,
        "config": {"seed": 1, "model": {"d_model": 8}, "data": {"source": None}},
        "tokenizer": '{"kind": "byte"}',
        "vocab_size": 257,
        "data": {"train": "ab" * 32, "valid": "cd" * 32},
        "model": {"embedding": normal(16, 8), "norm": normal(8), "gain": normal(1, 8)},
        "average": {"embedding": normal(16, 8), "norm": normal(8), "gain": normal(1, 8)},
        "optimizers": {
            "norm": {"step": step, "moments": [normal(16, 8), normal(8).bfloat16()], "lr": 1e-3},
        },
        "scaler": None,
        "random": {
            "torch": torch.arange(16, dtype=torch.uint8),
            "python": [3, [2**31, 5, 70000], None],
            "flag": torch.tensor(True),
            "empty": torch.zeros(0, 3),
        },
        "best": {"step": step, "valid_loss": 3.25},
        "evaluations": [{"step": step, "valid_loss": 3.25, "valid_word_perplexity": 99.5}],
        "log": {"loss_sum": 1.5, "targets": 64},
        "versions": {"torch": "2"},
    }


def same(left: Any, right: Any) -> bool:
    """Equality of content: types, order of keys, values, dtypes and bits of tensors."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        same_kind = left.dtype == right.dtype and left.shape == right.shape
        return same_kind and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def saved_bytes(content: Any) -> bytes:
    """What plain torch.save makes of ``content`` (hostile content included)."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def rebuilt(data: bytes, changes: dict[str, bytes], compress: bool = False) -> bytes:
    """The archive ``data`` with members replaced or added: names map to new bytes."""
    source = zipfile.ZipFile(io.BytesIO(data))
    members = {info.filename: source.read(info) for info in source.infolist()}
    target = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, member in (members | changes).items():
            archive.writestr(name, member)
    return target.getvalue()


def write_step(run: Path, step: int, **changes: Any) -> Path:
    """A step file in ``run`` without a RunDirectory around it."""
    from infinito.checkpoint.format import write_checkpoint

    path = run / f"step-{step:06d}.pt"
    write_checkpoint(path, make_content(step) | copy.deepcopy(changes))
    return path
