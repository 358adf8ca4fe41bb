"""Training speed against the same-size GPT-2 of Hugging Face transformers, step by step.

    python benchmarks/train_vs_transformers.py [--rounds N] [--dropout P] [--json]

Both: 6 layers, width 256, 4 heads, 8192 tokens, sequence 256, batch 16, AdamW with clipping, the
same dropout wherever GPT-2 has it. Interleaved rounds, medians; only ratios of one run count.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from measure import HEADS, LAYERS, VOCABULARY, WIDTH, interleaved_medians

from infinito.bench.machine import matmul
from infinito.config.model_config import ModelConfig
from infinito.config.training_config import TrainingConfig
from infinito.model.count import count_flops
from infinito.model.transformer import Transformer
from infinito.optim.optimizers import Optimizers
from infinito.runtime.memory import keep_freed_memory
from infinito.runtime.precision import autocast
from infinito.train.step import training_step

SEQUENCE, BATCH = 256, 16
SHAPES = ((4096, 256, 1024), (4096, 256, 8192))
Step = Callable[[], object]


def ours(batch: torch.Tensor, dropout: float, precision: str) -> tuple[Step, Transformer]:
    torch.manual_seed(0)
    config = ModelConfig(d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, dropout=dropout)
    model = Transformer(config, VOCABULARY, SEQUENCE)
    training = TrainingConfig(precision=precision)  # type: ignore[arg-type]
    optimizers = Optimizers(model, training)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return lambda: training_step(
        model, optimizers, scaler, batch, BATCH, precision, 1.0
    ), model.train()


def theirs(batch: torch.Tensor, dropout: float, precision: str) -> tuple[Step, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=SEQUENCE, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    tokens = batch[:, :-1].contiguous()

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, "cpu"):
            loss = model(tokens, labels=tokens).loss  # transformers shifts the labels itself
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()  # type: ignore[no-any-return]

    return step, model


def compare(precision: str, dropout: float, rounds: int) -> dict[str, float]:
    batch = torch.randint(VOCABULARY, (BATCH, SEQUENCE + 1))
    our_step, our_model = ours(batch, dropout, precision)
    their_step, their_model = theirs(batch, dropout, precision)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    products = {
        "x".join(map(str, shape)): matmul(*shape, dtype, torch.device("cpu")) for shape in SHAPES
    }
    times = interleaved_medians({"ours": our_step, "theirs": their_step} | products, rounds)
    tokens = BATCH * SEQUENCE
    flops = count_flops(our_model.config, VOCABULARY, BATCH, SEQUENCE).training
    rates = {
        f"matmul_{name}": 2 * math.prod(shape) / times[name]
        for name, shape in zip(products, SHAPES, strict=True)
    }
    return {
        "parameters": sum(p.numel() for p in our_model.parameters()),
        "their_parameters": sum(p.numel() for p in their_model.parameters()),
        "tokens_per_second": tokens / times["ours"],
        "their_tokens_per_second": tokens / times["theirs"],
        "ratio": times["theirs"] / times["ours"],
        "flops_per_second": flops / times["ours"],
        **rates,
        "share_of_matmul_rate": flops / times["ours"] / max(rates.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()  # in force for both contenders
    results = {
        precision: compare(precision, arguments.dropout, arguments.rounds)
        for precision in ("float32", "bfloat16")
    }
    if arguments.json:
        print(json.dumps({"dropout": arguments.dropout, **results}, indent=2))
        return
    for precision, result in results.items():
        print(f"{precision}, dropout {arguments.dropout}")
        for name, value in result.items():
            if "flops" in name or "matmul_4" in name:
                print(f"  {name:<26}{value / 1e9:.1f} GFLOP/s")
            else:
                print(f"  {name:<26}{value:.3f}" if value < 100 else f"  {name:<26}{value:.0f}")


if __name__ == "__main__":
    main()
