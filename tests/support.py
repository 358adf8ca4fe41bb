"""What several tests need: where things are, and a run that takes seconds."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def wikitext2_dir() -> Path | None:
    """The real WikiText-2 beside the checkout, or None."""
    path = ROOT.parent / "shared" / "data" / "wikitext-2"
    return path if (path / "train.txt").is_file() else None


def write_text(path: Path, paragraphs: int = 60, seed: int = 0) -> Path:
    """A small English-like text with structure that a tiny model can learn."""
    import random

    generator = random.Random(seed)
    subjects = ["the cat", "a dog", "my friend", "the old man", "one bird"]
    verbs = ["sees", "likes", "follows", "finds", "remembers"]
    objects = ["the house", "a river", "some bread", "the small garden", "nothing"]
    lines = []
    for _ in range(paragraphs):
        sentences = [
            f"{generator.choice(subjects)} {generator.choice(verbs)} {generator.choice(objects)} ."
            for _ in range(generator.randint(3, 6))
        ]
        lines.append(" ".join(sentences) + "\n\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def tiny_settings(tmp_path: Path, **changes: object) -> dict[str, object]:
    """Plain config of a run on a tiny text; ``changes`` are dotted keys, ``__`` for the dot."""
    text = tmp_path / "text.txt"
    if not text.exists():
        write_text(text)
    settings: dict[str, dict[str, object] | object] = {
        "seed": 7,
        "device": "cpu",
        "output_dir": str(tmp_path / "run"),
        "data": {"train_file": str(text), "sequence_length": 16},
        "tokenizer": {"kind": "byte"},
        "model": {"d_model": 32, "n_layers": 2, "n_heads": 2},
        "training": {
            "max_steps": 8, "batch_size": 4, "warmup_steps": 2,
            "eval_every": 4, "save_every": 4, "log_every": 2,
        },
    }  # fmt: skip
    for name, value in changes.items():
        *sections, key = name.split("__")
        target = settings
        for section in sections:
            target = target.setdefault(section, {})  # type: ignore[assignment]
        target[key] = value
    return settings
