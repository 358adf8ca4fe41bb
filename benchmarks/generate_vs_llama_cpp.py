"""Decoding and prefill speed against llama.cpp: the same weights, in one process, by turns.

    pip install gguf llama-cpp-python      # builds llama.cpp from source: minutes
    python benchmarks/generate_vs_llama_cpp.py [--rounds N] [--tokens N] [--prompt N] [--threads N]

6 layers, width 256, 4 heads, 8192 tokens, SwiGLU, tied: a Qwen3 with random weights, which both
read, so that both do the same work (in float32 their logits are compared first). float32 against
float32, bfloat16 against F16, int8 against Q8_0; keys and values are float32 here and float16
there, its default. Both are driven token by token from Python: theirs through llama_decode itself,
without llama-cpp-python's samplers. Ratios are of the same round, intervals hold 95 % for the
median. The floor is the time in which memory delivers the weights that a token needs; a model
that fits the processor's caches can be below it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import HEADS, LAYERS, VOCABULARY, WIDTH

from infinito.bench.machine import (
    interleaved_seconds,
    median_interval,
    median_ratio,
    read_bandwidth,
)
from infinito.config.loading import config_from_plain
from infinito.export.gguf_export import NumberFormat, write_gguf
from infinito.load import build_model
from infinito.model.decode import DecodeStep
from infinito.model.packed import pack, packable, to_bfloat16, to_int8

CPU = torch.device("cpu")
FORMATS: dict[str, NumberFormat] = {"float32": "float32", "bfloat16": "float16", "int8": "q8_0"}
BATCH = 16
KEPT: list[object] = []  # what llama.cpp has the address of


class Ours:
    """Our model with its weights stored in one of FORMATS."""

    def __init__(self, model: Any, name: str, room: int) -> None:
        self.model, self.room = model, room
        if name != "float32":
            pack(model, packable(model), to_bfloat16 if name == "bfloat16" else to_int8)
        self.bytes = sum(p.numel() * p.element_size() for p in model.parameters())

    @torch.inference_mode()
    def prefill(self, prompt: list[int], batch: int = 1) -> tuple[DecodeStep, torch.Tensor]:
        """A step that has read ``prompt``, and the logits (B, V) behind it."""
        step = DecodeStep(self.model, self.model.new_cache(batch, self.room))
        return step, step([prompt] * batch)

    @torch.inference_mode()
    def write(self, tokens: int, batch: int = 1) -> list[list[int]]:
        """Greedy ids (tokens, B) behind the id 1."""
        step, logits = self.prefill([1], batch)
        written = [logits.argmax(-1).tolist()]
        for _ in range(tokens - 1):
            written.append(step([[token] for token in written[-1]]).argmax(-1).tolist())
        return written


class Theirs:
    """The same weights in llama.cpp."""

    def __init__(self, library: Any, file: Path, room: int, threads: int) -> None:
        self.library = library
        self.model = library.llama_model_load_from_file(
            str(file).encode(), library.llama_model_default_params()
        )
        options = library.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = BATCH * room, 512, 512
        options.n_seq_max = BATCH
        options.n_threads = options.n_threads_batch = threads
        self.context = library.llama_init_from_model(self.model, options)
        self.batch = library.llama_batch_init(512, 0, 1)

    def read(self, tokens: list[list[int]], start: int) -> torch.Tensor:
        """Logits (B, V) behind ``tokens`` (B, T), the first of them at position ``start``."""
        rows = [(t, s, start + i) for s, row in enumerate(tokens) for i, t in enumerate(row)]
        batch = self.batch
        batch.n_tokens = len(rows)
        for number, (token, sequence, position) in enumerate(rows):
            batch.token[number], batch.pos[number] = token, position
            batch.n_seq_id[number], batch.seq_id[number][0] = 1, sequence
            batch.logits[number] = position - start + 1 == len(tokens[0])
        assert self.library.llama_decode(self.context, batch) == 0
        logits = self.library.llama_get_logits(self.context)
        shape = (len(tokens), VOCABULARY)
        numbers = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * (shape[0] * shape[1])))
        return torch.frombuffer(numbers.contents, dtype=torch.float32).view(shape)

    def prefill(self, prompt: list[int]) -> torch.Tensor:
        """Logits (1, V) behind ``prompt``."""
        self.forget()
        for start in range(0, len(prompt), 512):
            logits = self.read([prompt[start : start + 512]], start)
        return logits

    def write(self, tokens: int, batch: int = 1) -> list[list[int]]:
        """Greedy ids (tokens, B) behind the id 1."""
        self.forget()
        written = [self.read([[1]] * batch, 0).argmax(-1).tolist()]
        for count in range(1, tokens):
            logits = self.read([[token] for token in written[-1]], count)
            written.append(logits.argmax(-1).tolist())
        return written

    def forget(self) -> None:
        """Empty the cache."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), False)


def contenders(place: Path, room: int, threads: int) -> dict[str, tuple[Ours, Theirs]]:
    import llama_cpp

    library: Any = llama_cpp.llama_cpp
    KEPT.append(library.llama_log_callback(lambda *_: None))
    library.llama_log_set(KEPT[0], ctypes.c_void_p(0))
    library.llama_backend_init()
    shape = {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "activation": "swiglu"}
    data = {"train_file": "none", "sequence_length": room}
    config = config_from_plain({"model": shape, "data": data}, "the benchmark")
    pairs = {}
    for name, numbers in FORMATS.items():
        torch.manual_seed(0)
        model = build_model(config, VOCABULARY).eval()
        weights = {
            n: 3 * p.detach() if p.ndim > 1 else p.detach() for n, p in model.named_parameters()
        }
        model.load_state_dict(weights, strict=False)
        file = place / f"{numbers}.gguf"
        write_gguf(file, config, weights, numbers, None)
        pairs[name] = Ours(model, name, room), Theirs(library, file, room, threads)
    ours, theirs = pairs["float32"]
    difference = ours.prefill([1, 2, 3])[1] - theirs.prefill([1, 2, 3])
    assert difference.abs().max() < 0.02, "these are not the same model"
    return pairs


def compare(
    name: str, tokens: float, ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> dict[str, Any]:
    """Tokens a second of both, and the ratio."""
    times = interleaved_seconds({"ours": ours, "theirs": theirs}, CPU, rounds, warm_up=1)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    return {
        "what": name,
        "ours": tokens / statistics.median(times["ours"]),
        "theirs": tokens / statistics.median(times["theirs"]),
        "ratio": median_ratio(times["theirs"], times["ours"]),
        "interval": median_interval(ratios),
    }


def measure(rounds: int, tokens: int, prompt: int, threads: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    bandwidth, rows = read_bandwidth(CPU), []
    ids = [number * 37 % VOCABULARY for number in range(prompt)]
    with tempfile.TemporaryDirectory() as place:
        pairs = contenders(Path(place), max(tokens, prompt) + 1, threads)
        for name, (ours, theirs) in pairs.items():
            once: Callable[[], object] = partial(ours.write, tokens)
            each: Callable[[], object] = partial(theirs.write, tokens)
            row = compare(f"{name}, 1 x {tokens} tokens", tokens, once, each, rounds)
            floor = ours.bytes / bandwidth
            rows.append({**row, "megabytes": ours.bytes / 1e6, "floors": 1 / row["ours"] / floor})
        few = tokens // 4
        for name, (ours, theirs) in pairs.items():
            once, each = partial(ours.prefill, ids), partial(theirs.prefill, ids)
            rows.append(compare(f"{name}, prompt of {prompt}", prompt, once, each, rounds))
            once, each = partial(ours.write, few, BATCH), partial(theirs.write, few, BATCH)
            rows.append(compare(f"{name}, {BATCH} x {few} tokens", BATCH * few, once, each, rounds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    rows = measure(**arguments)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'':<28}{'ours':>9}{'llama.cpp':>11} tok/s   ratio   (95 %)")
    for row in rows:
        low, high = row["interval"]
        floor = (
            f"   {row['floors']:.2f} floors of {row['megabytes']:.1f} MB" if "floors" in row else ""
        )
        print(
            f"{row['what']:<28}{row['ours']:>9.0f}{row['theirs']:>11.0f}"
            f"{row['ratio']:>14.2f}x  [{low:.2f}, {high:.2f}]{floor}"
        )


if __name__ == "__main__":
    main()
