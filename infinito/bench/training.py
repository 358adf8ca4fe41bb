"""``infinito bench train``: tokens a second of a real training step, and its share of the floor."""

from __future__ import annotations

from typing import Any

import torch

from infinito.bench.machine import matmul_rate, median_seconds
from infinito.config.schema import Config
from infinito.model.count import count_flops, count_parameters
from infinito.model.memory import count_memory
from infinito.model.transformer import Transformer
from infinito.optim.optimizers import Optimizers
from infinito.runtime.memory import keep_freed_memory, peak_memory_mb
from infinito.train.automatic import resolve_automatic
from infinito.train.step import training_step


def bench_training(config: Config, vocab_size: int, rounds: int) -> dict[str, Any]:
    """Time steps of the config's model on random tokens.

    The floor is the time that the step's matrix products take at the rate that this machine shows
    for the two largest shapes among them, each weighted by its share of the FLOPs.
    """
    config = resolve_automatic(config, lambda _: None)
    device, training, data = torch.device(config.device), config.training, config.data
    keep_freed_memory()  # as `infinito train` does
    torch.manual_seed(config.seed)
    model = Transformer(config.model, vocab_size, data.sequence_length).to(device).train()
    optimizers = Optimizers(model, training)
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
    shape = (training.sequences_per_step, data.sequence_length + 1)
    sequences = torch.randint(vocab_size, shape, device=device)

    def step() -> None:
        training_step(
            model, optimizers, scaler, sequences,
            training.batch_size, training.precision, training.max_grad_norm,
        )  # fmt: skip

    seconds = median_seconds(step, device, rounds)
    tokens = training.sequences_per_step * data.sequence_length
    floor = _floor_seconds(config, vocab_size, device)
    counted = count_memory(config.model, training, vocab_size, data.sequence_length)
    return {
        "device": str(device),
        "precision": training.precision,
        "threads": torch.get_num_threads(),
        "parameters": count_parameters(config.model, vocab_size, data.sequence_length).total,
        "tokens_per_step": tokens,
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "floor_seconds": floor,
        "share_of_floor": floor / seconds,
        "peak_memory_mb": peak_memory_mb(config.device),
        "counted_memory_mb": counted.total / 1e6,
    }


def _floor_seconds(config: Config, vocab_size: int, device: torch.device) -> float:
    """Seconds of a step's matrix products alone at this machine's own rate."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    dtype = names[config.training.precision]
    batch, length = config.training.batch_size, config.data.sequence_length
    flops = count_flops(config.model, vocab_size, batch, length)
    rows, width = batch * length, config.model.d_model
    inner_rate = matmul_rate(rows, width, config.model.resolved_d_ff, dtype, device)
    head_rate = matmul_rate(rows, width, vocab_size, dtype, device)
    inner = flops.projections + flops.attention + flops.feed_forward
    passes = config.training.gradient_accumulation_steps
    return 3 * passes * (inner / inner_rate + flops.head / head_rate)
