"""Writes checkpoint-v<format>.pt and what must come out of it (row R-13).

Run it once for each version of the checkpoint format, never again for the same one: the file
stands for what users of that version have on their disks.

    python -m tests.golden.make_checkpoint
"""

from __future__ import annotations

import json
from pathlib import Path

from infinito.checkpoint.structure import FORMAT_VERSION
from infinito.config.loading import config_from_plain
from infinito.data.prepare import tokenize_text
from infinito.evaluate.perplexity import score
from infinito.evaluate.predictor import ModelPredictor
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.load import load_model
from infinito.train.trainer import Trainer

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / f"checkpoint-v{FORMAT_VERSION}.pt"
EXPECTED = CHECKPOINT.with_suffix(".json")
TEXT = HERE / "checkpoint-text.txt"
PROMPT, NEW_TOKENS, PENALTY = "The for statement", 40, 3.0
SETTINGS = {
    "seed": 3,
    "device": "cpu",
    "data": {"source": "python-docs", "sequence_length": 16},
    "tokenizer": {"kind": "byte"},
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 16, "qk_norm": False},
    "training": {
        "max_steps": 80, "batch_size": 16, "warmup_steps": 5,
        "optimizer": "muon", "learning_rate": 0.03,
    },
}  # fmt: skip


def main() -> None:
    """Train the tiny model, save it, and note its loss and its greedy text."""
    trainer = Trainer(config_from_plain(SETTINGS, "make_checkpoint"))
    while not trainer.finished:
        trainer.train_step()
    trainer.save(CHECKPOINT)
    loaded = load_model(CHECKPOINT)
    greedy = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=0, repetition_penalty=PENALTY)
    prompt = loaded.tokenizer.encode(PROMPT)
    [sample] = generate(loaded.model, loaded.tokenizer, prompt, greedy)
    predictor = ModelPredictor(loaded.model, loaded.tokenizer)
    loss = score(predictor, tokenize_text(str(TEXT), loaded.tokenizer)).loss
    EXPECTED.write_text(json.dumps({"loss": loss, "text": PROMPT + sample.text}, indent=1) + "\n")


if __name__ == "__main__":
    main()
