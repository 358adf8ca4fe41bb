"""What a config leaves open is settled once, before any text is read: by capability, with reasons.

What cannot run here is refused at the same place, so that no work is done in vain.
"""

from __future__ import annotations

import math

import torch

from infinito.attention import ATTENTION, Request
from infinito.checkpoint.atomic import format_size
from infinito.config.schema import Config
from infinito.distributed.ranks import processes_here, require_own_device, share_of, world_size
from infinito.distributed.strategy import require_strategy
from infinito.errors import ResourceError
from infinito.kernels.fusion import OPERATIONS, Plan, StepShape, make_plan
from infinito.model.step_memory import count_memory
from infinito.runtime.device import choose_device
from infinito.runtime.events import note
from infinito.runtime.memory import available_bytes
from infinito.runtime.precision import DTYPES, choose_precision
from infinito.tokenizer.tokenizer import LEAST_VOCABULARY
from infinito.train.fusion_choice import choose_level


def resolve(config: Config, *, frozen: bool = False) -> Config:
    """The config with device and precision named; each choice is told, with its reason.

    ``frozen``: hardly any parameter is going to be trained.

    Raises:
        ResourceError: the device is not there, or its memory does not suffice whatever the text.
        ConfigError: it cannot compute in the precision, or by the attention back end, asked for.
    """
    device = choose_device(config.device)
    require_own_device(device.value)
    share_of(config.training.batch_size)  # refuses what is too small
    require_strategy(config.distributed.strategy)
    precision = choose_precision(config.training.precision, device.value)
    if config.device != device.value:
        note(f"device {device.value}: {device.reason}")
    if config.training.precision != precision.value:
        note(f"precision {precision.value}: {precision.reason}")
    training = config.training.model_copy(update={"precision": precision.value})
    config = config.model_copy(update={"device": device.value, "training": training})
    config = _with_fusion_plan(config)
    note(f"attention {attention_reason(config)}")
    require_memory(config, LEAST_VOCABULARY[config.tokenizer.kind], frozen=frozen)
    return config


def step_shape(config: Config) -> StepShape:
    """What the choice of fused operations depends on; the config has its device and precision.

    The batch is what a process computes at once, the largest share where several split it: all of
    them choose alike.
    """
    model, training = config.model, config.training
    return StepShape(
        torch.device(config.device).type, DTYPES[training.precision],
        math.ceil(training.batch_size / world_size()),
        config.data.sequence_length, model.d_model, model.resolved_d_ff, model.d_head,
        model.n_heads, model.resolved_kv_heads, dropout=model.dropout_on("residual"),
    )  # fmt: skip


def _with_fusion_plan(config: Config) -> Config:
    """The config with its level, and a variant for each operation of it; told, with reasons."""
    training, shape = config.training, step_shape(config)
    level: str = training.fusion
    wanted, reason = Plan.from_text(training.fusion_plan), ""
    has_plan = training.fusion_plan is not None
    if has_plan and level in ("auto", wanted.level):
        level = wanted.level
    elif level != "none":
        level, wanted, reason = choose_level(level, shape, config.device)
    if reason:
        note(f"fusion {level}: {reason}")
    used = _operations(config)
    plan, told = make_plan(level, shape, wanted, used)
    if plan.variants:
        by = {v: [o for o in used if plan.variants[o] == v] for v in plan.variants.values()}
        parts = [f"{', '.join(names)} by {variant}" for variant, names in by.items() if names]
        note("; ".join([f"fusion {level}: {parts[0]}", *parts[1:], *told]))
    kept = str(plan) if plan.variants or reason or has_plan else None
    return config.with_training(fusion=level, fusion_plan=kept)


def _operations(config: Config) -> list[str]:
    """The operations that a step of this model and optimizer has: no other is worth a word."""
    model, muon = config.model, config.training.optimizer == "muon"
    standard = model.block == "standard"
    summed = model.resolved_position == "learned" or model.word_dropout > 0
    there = {
        "embedding": standard and model.embedding_norm and not summed, "norm": standard,
        "squared_relu": model.activation == "relu2", "swiglu": model.activation == "swiglu",
        "momentum": muon, "move": muon,
    }  # fmt: skip
    return [name for name in OPERATIONS if there.get(name, True)]


def attention_reason(config: Config) -> str:
    """Which attention back end will run in training, and why."""
    model, options = config.model, config.model.attention
    kind = torch.device(config.device).type
    length = config.data.sequence_length
    request = Request(
        options.kind, kind, DTYPES[config.training.precision], model.d_head, length, length,
        dropout=model.dropout_on("attention") > 0, alibi=model.resolved_position == "alibi",
        plain=options.kind == "dot" and not options.has_lambda and options.lambda_init == 1,
    )  # fmt: skip
    choice = ATTENTION.choose(request, options.backend)
    return f"{choice.value}: {choice.reason}"


def require_memory(config: Config, vocab_size: int, *, frozen: bool = False) -> None:
    """Refuse a run that cannot fit, before any of it is allocated and the system kills it.

    Raises:
        ResourceError: weights, optimizer state and a step need more than the device has left.
    """
    training, length = config.training, config.data.sequence_length
    count = count_memory(config, vocab_size, frozen=frozen)
    free = available_bytes(config.device)
    if free is not None and config.device == "cpu":
        free //= processes_here()
    if free is None or count.total <= free:
        return
    state = count.total - count.activations
    sequences = training.batch_size * (free - state) / count.activations
    raise ResourceError(
        f"this run needs about {format_size(count.total)} of memory on {config.device} and "
        f"{format_size(free)} are left: {format_size(state)} for weights, gradients and optimizer, "
        f"{format_size(count.activations)} for a step of {training.batch_size} x {length} tokens",
        _what_to_lower(0.9 * sequences, free > state),  # an estimate: a tenth is left over
    )


def _what_to_lower(sequences: float, model_fits: bool) -> str:
    """The remedy where so many sequences have room at once."""
    if sequences >= 1:
        return f"try --batch-size {int(sequences)}, or training.activation_checkpointing=true"
    if model_fits:
        return "lower data.sequence_length, or set training.activation_checkpointing=true"
    return "lower model.d_model, model.n_layers, model.d_ff or tokenizer.vocab_size"
