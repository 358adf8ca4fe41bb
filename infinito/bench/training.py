"""``infinito bench train``: tokens a second of a real training step, and its share of the floor.

The step, the matrix products that it cannot do without, and the step of another config, if one is
given, take turns: what else the machine does hits all of them alike, and only ratios count.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch

from infinito.bench.machine import interleaved_seconds, matmul, median_ratio
from infinito.config.schema import Config
from infinito.kernels.fusion import COMPILED, Plan
from infinito.load import build_model
from infinito.model.count import count_flops, count_parameters
from infinito.model.step_memory import count_memory
from infinito.optim.optimizers import Optimizers
from infinito.runtime.memory import keep_freed_memory, peak_memory_mb
from infinito.runtime.precision import DTYPES
from infinito.train.automatic import require_memory, resolve
from infinito.train.compilation import compile_blocks
from infinito.train.step import training_step


def bench_training(
    config: Config, vocab_size: int, rounds: int, against: Config | None = None
) -> dict[str, Any]:
    """Time steps of the config's model on random tokens.

    The floor is the time that the step's matrix products take at the rate that this machine shows
    for the two largest shapes among them, each weighted by its share of the FLOPs. With
    ``against``, steps of that config take turns with them; ``speed_ratio`` is the tokens a second
    of ``config`` divided by those of ``against``.
    """
    config = resolve(config)
    device, training, data = torch.device(config.device), config.training, config.data
    keep_freed_memory()  # as `infinito train` does
    step = training_action(config, vocab_size)
    step()
    peak = peak_memory_mb(config.device)  # before another model stands beside this one
    actions = {"step": step, **_products(config, vocab_size, device)}
    if against is not None:
        against = resolve(against)
        actions["against"] = training_action(against, vocab_size)
    times = interleaved_seconds(actions, device, rounds)
    floors = _floor_seconds(config, vocab_size, times)
    tokens = training.sequences_per_step * data.sequence_length
    seconds = statistics.median(times["step"])
    counted = count_memory(config, vocab_size)
    result = {
        "device": str(device),
        "precision": training.precision,
        "threads": torch.get_num_threads(),
        "parameters": count_parameters(config.model, vocab_size, data.sequence_length).total,
        "tokens_per_step": tokens,
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "floor_seconds": statistics.median(floors),
        "share_of_floor": median_ratio(floors, times["step"]),
        "peak_memory_mb": peak,
        "counted_memory_mb": counted.total / 1e6,
    }
    if against is not None:
        tokens_against = against.training.sequences_per_step * against.data.sequence_length
        ratio = median_ratio(times["against"], times["step"]) * tokens / tokens_against
        result["tokens_per_second_against"] = tokens_against / statistics.median(times["against"])
        result["speed_ratio"] = ratio
    return result


def training_action(
    config: Config, vocab_size: int, plan: Plan | None = None
) -> Callable[[], object]:
    """One optimizer step of the config's model, from the same random tokens each time.

    ``plan``: by which code, in place of the config's.
    """
    device, training, data = torch.device(config.device), config.training, config.data
    require_memory(config, vocab_size)
    torch.manual_seed(config.seed)
    model = build_model(config, vocab_size).to(device).train()
    optimizers = Optimizers(model, training)
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
    shape = (training.sequences_per_step, data.sequence_length + 1)
    sequences = torch.randint(vocab_size, shape, device=device)
    model.checkpoint_activations = training.activation_checkpointing
    model.use(plan or Plan.from_text(training.fusion_plan))

    def step() -> object:
        return training_step(
            model, optimizers, scaler, sequences,
            training.batch_size, training.precision, training.max_grad_norm,
        )  # fmt: skip

    if training.fusion in COMPILED:
        compile_blocks(model, step)
    return step


def _shapes(config: Config, vocab_size: int) -> dict[str, tuple[int, int, int]]:
    rows, width = config.training.batch_size * config.data.sequence_length, config.model.d_model
    return {
        "inner": (rows, width, config.model.resolved_d_ff),
        "head": (rows, width, vocab_size),
    }


def _products(
    config: Config, vocab_size: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    dtype, shapes = DTYPES[config.training.precision], _shapes(config, vocab_size)
    return {name: matmul(*shape, dtype, device) for name, shape in shapes.items()}


def _floor_seconds(config: Config, vocab_size: int, times: dict[str, list[float]]) -> list[float]:
    """Seconds of a step's matrix products alone, at the rates of each round."""
    batch, length = config.training.batch_size, config.data.sequence_length
    flops = count_flops(config.model, vocab_size, batch, length)
    passes = 3 * config.training.gradient_accumulation_steps
    parts = {"inner": flops.projections + flops.attention + flops.feed_forward, "head": flops.head}
    calls = {
        name: passes * parts[name] / (2 * math.prod(shape))
        for name, shape in _shapes(config, vocab_size).items()
    }
    return [
        calls["inner"] * inner + calls["head"] * head
        for inner, head in zip(times["inner"], times["head"], strict=True)
    ]
