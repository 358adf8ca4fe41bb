"""Decoding speed against the same-size GPT-2 of Hugging Face transformers, both with a cache.

    python benchmarks/generate_vs_transformers.py [--rounds N] [--tokens N] [--json]

Batch 1, greedy, 256 new tokens after a prompt of 16; 6 layers, width 256, 4 heads, 8192 tokens,
float32. The floor is the time in which memory delivers the weights that a token needs.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from measure import HEADS, LAYERS, VOCABULARY, WIDTH, interleaved_medians, seconds

from infinito.bench.machine import read_bandwidth
from infinito.config.model_config import ModelConfig
from infinito.generate.context import Context
from infinito.model.transformer import Transformer

PROMPT = 16


def build_ours(tokens: int) -> Transformer:
    torch.manual_seed(0)
    config = ModelConfig(d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS)
    return Transformer(config, VOCABULARY, PROMPT + tokens).eval()


@torch.inference_mode()
def our_decoding(model: Transformer, prompt: list[int], tokens: int) -> list[int]:
    """Greedy decoding through the engine's own context, as ``generate`` does without penalties."""
    context = Context(model, prompt, len(prompt) + tokens, True)
    chosen: list[int] = []
    for _ in range(tokens):
        chosen.append(int(context.next_logits()[0].argmax()))
        context.append([chosen[-1]])
    return chosen


def compare(tokens: int, rounds: int) -> dict[str, float]:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = build_ours(tokens)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=PROMPT + tokens, n_embd=WIDTH, n_layer=LAYERS,
        n_head=HEADS, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    their_model: Any = GPT2LMHeadModel(config)
    their_model.train(False)
    prompt = torch.arange(1, PROMPT + 1)

    def ours() -> None:
        assert len(our_decoding(model, prompt.tolist(), tokens)) == tokens

    def theirs() -> None:
        with torch.inference_mode():
            written = their_model.generate(
                prompt[None], attention_mask=torch.ones(1, PROMPT, dtype=torch.long),
                max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, use_cache=True,
            )  # fmt: skip
        assert written.shape[1] == PROMPT + tokens

    first = seconds(lambda: our_decoding(model, prompt.tolist(), 1))
    times = interleaved_medians({"ours": ours, "theirs": theirs}, rounds)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    bandwidth = read_bandwidth(torch.device("cpu"))
    floor = weight_bytes / bandwidth
    return {
        "tokens_per_second": tokens / times["ours"],
        "their_tokens_per_second": tokens / times["theirs"],
        "ratio": times["theirs"] / times["ours"],
        "first_token_ms": first * 1e3,
        "weight_megabytes": weight_bytes / 1e6,
        "bandwidth_gigabytes_per_second": bandwidth / 1e9,
        "floor_ms_per_token": floor * 1e3,
        "times_the_floor": times["ours"] / tokens / floor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = compare(arguments.tokens, arguments.rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:<32}{value:.3f}")


if __name__ == "__main__":
    main()
