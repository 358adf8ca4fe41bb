"""Training speed against what a good engineer writes in a hundred lines, compiled by torch.

    python benchmarks/train_vs_compiled.py [--fusion LEVEL ...] [--rounds N] [--dropout P]
                                           [--set KEY=VALUE] [--json]

The contender is a plain modern transformer (RMSNorm, RoPE, QK-norm, fused dot products, squared
ReLU, tied embeddings, AdamW with clipping, the same dropout) under ``torch.compile``. Both: 6
layers, width 256, 4 heads, 8192 tokens, sequence 256, batch 16. Ours runs at each of the fusion
levels. Interleaved rounds, medians; only ratios of one run count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import HEADS, LAYERS, VOCABULARY, WIDTH, interleaved_medians
from torch import Tensor, nn

from infinito.bench.training import training_action
from infinito.config.loading import load_config
from infinito.runtime.memory import keep_freed_memory
from infinito.runtime.precision import autocast
from infinito.train.automatic import resolve

SEQUENCE, BATCH = 256, 16
HEAD_WIDTH = WIDTH // HEADS
Step = Callable[[], object]


def rotary_table() -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, D) of RoPE (Su et al. 2021), halves rotated against each other."""
    rates = 10000.0 ** (-torch.arange(0, HEAD_WIDTH, 2) / HEAD_WIDTH)
    angles = torch.outer(torch.arange(SEQUENCE), rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-high, low), -1) * sines


class PlainBlock(nn.Module):
    """Attention and a squared-ReLU network, each normed before and added after."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        self.head_norms = nn.ModuleList(nn.RMSNorm(HEAD_WIDTH) for _ in range(2))
        self.inputs = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        heads = self.inputs(self.norms[0](x)).unflatten(-1, (3, HEADS, HEAD_WIDTH))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        query = rotated(self.head_norms[0](query), cosines, sines).to(value.dtype)
        key = rotated(self.head_norms[1](key), cosines, sines).to(value.dtype)
        mixed = F.scaled_dot_product_attention(
            query, key, value, dropout_p=self.dropout, is_causal=True
        )
        x = x + F.dropout(self.output(mixed.transpose(1, 2).flatten(2)), self.dropout)
        hidden = F.relu(self.up(self.norms[1](x))).square()
        return x + F.dropout(self.down(hidden), self.dropout)


class PlainModel(nn.Module):
    """The model of a hundred lines: tokens and targets in, mean nats out."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(PlainBlock(dropout) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        for name, table in zip(("cosines", "sines"), rotary_table(), strict=True):
            self.register_buffer(name, table)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """(B, T) twice -> scalar."""
        x = F.dropout(self.embedding(tokens), self.dropout)
        for block in self.blocks:
            x = block(x, self.cosines, self.sines)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def plain_step(precision: str, dropout: float, compiled: bool) -> Step:
    """A training step of the plain model on the same random tokens each time."""
    torch.manual_seed(0)
    model = PlainModel(dropout)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    batch = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, "cpu"):
            loss = forward(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def our_step(keys: list[str], level: str) -> Step:
    """A training step of ours at a fusion level."""
    config = resolve(load_config(None, [*keys, f"training.fusion={level}"]))
    return training_action(config, VOCABULARY)


def compare(
    precision: str, dropout: float, levels: list[str], settings: list[str], rounds: int
) -> dict[str, Any]:
    """Tokens a second of ours, of the plain model and of it compiled, with the ratios."""
    keys = [f"training.precision={precision}", f"model.dropout={dropout}", "device=cpu", *settings]
    steps = {
        **{level: our_step(keys, level) for level in levels},
        "eager": plain_step(precision, dropout, compiled=False),
        "compiled": plain_step(precision, dropout, compiled=True),
    }
    start = time.perf_counter()
    steps["compiled"]()
    compile_seconds = time.perf_counter() - start
    times = interleaved_medians(steps, rounds)
    return {
        **{f"{name}_tokens_per_second": BATCH * SEQUENCE / t for name, t in times.items()},
        **{f"{level}_to_eager": times["eager"] / times[level] for level in levels},
        **{f"{level}_to_compiled": times["compiled"] / times[level] for level in levels},
        "compile_seconds": compile_seconds,
    }


def main() -> None:
    """Print the comparison in both precisions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fusion", action="append", metavar="LEVEL")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()  # in force for all contenders
    results = {
        precision: compare(
            precision, arguments.dropout, arguments.fusion or ["none", "moderate"],
            arguments.settings, arguments.rounds,
        )
        for precision in ("float32", "bfloat16")
    }  # fmt: skip
    if arguments.json:
        print(json.dumps({"dropout": arguments.dropout, **results}, indent=2))
        return
    for precision, result in results.items():
        print(f"{precision}, dropout {arguments.dropout}")
        for name, value in result.items():
            print(f"  {name.replace('_', ' '):<28}{value:.3f}" if value < 100 else
                  f"  {name.replace('_', ' '):<28}{value:.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
