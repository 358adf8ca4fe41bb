"""``infinito bench generate``: tokens a second of greedy decoding, beside the bandwidth floor."""

from __future__ import annotations

from typing import Any

import torch

from infinito.bench.machine import median_seconds, read_bandwidth
from infinito.config.schema import Config, TokenizerConfig
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.load import build_model
from infinito.model.decode import DECODE
from infinito.runtime.device import choose_device
from infinito.tokenizer.tokenizer import Tokenizer, train_tokenizer


def bench_generation(config: Config, vocab_size: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Decode ``tokens`` greedily, batch 1, with the cache, through the engine users run; median.

    The floor reads every weight once a token at the machine's own bandwidth.
    """
    device = torch.device(choose_device(config.device).value)
    torch.manual_seed(config.seed)
    tokenizer = made_up_tokenizer(vocab_size)
    model = build_model(config, tokenizer.vocab_size).to(device).eval()
    sampling = SamplingConfig(max_new_tokens=tokens, temperature=0.0, repetition_penalty=1.0)
    seconds = median_seconds(lambda: generate(model, tokenizer, [], sampling), device, rounds)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    bandwidth = read_bandwidth(device)
    floor, step = weight_bytes / bandwidth, DECODE.choose(model)
    return {
        "device": str(device),
        "decode_step": f"{step.value}: {step.reason}",
        "threads": torch.get_num_threads(),
        "new_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "milliseconds_per_token": 1e3 * seconds / tokens,
        "weight_bytes": weight_bytes,
        "read_bandwidth_gb_per_second": bandwidth / 1e9,
        "floor_milliseconds_per_token": 1e3 * floor,
        "times_the_floor": seconds / tokens / floor,
    }


def made_up_tokenizer(vocab_size: int) -> Tokenizer:
    """A word tokenizer of ``vocab_size`` made-up words, <eos> and <unk> among them."""
    words = " ".join(f"w{number}" for number in range(vocab_size - 2))
    return train_tokenizer(TokenizerConfig(kind="word"), [words + "\n"])
