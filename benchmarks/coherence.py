"""What a model writes beside what people wrote: how likely, how varied, how repetitive.

    python benchmarks/coherence.py CHECKPOINT [JUDGE ... [ngram]] [--prompts N] [--words N]
        [--data DIR]

Prompts are taken at equal distances from the validation text; the model continues each by as many
words as the human text that follows it is long. The judges, the model itself if none is named,
give the mean nats a word, with their own tokens' ends in it: several as the ensemble that
``infinito evaluate ... --ensemble`` makes of them, with the weights of the validation text. A
continuation far likelier than the human one is dull, one far less likely is no text; repetition
stands beside. Greedy decoding is reported, not recommended.
"""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infinito.checkpoint.discover import resolve_checkpoint
from infinito.config.loading import override_config
from infinito.config.schema import SplitName
from infinito.data.prepare import prepare
from infinito.data.token_store import TokenStore
from infinito.evaluate.members import ensemble_subject, model_subject, ngram_subject
from infinito.evaluate.perplexity import stream_nats
from infinito.evaluate.predictor import Predictor
from infinito.evaluate.repetition import HUMAN_REP, distinct, rep, seq_rep, words_of
from infinito.evaluate.windows import sliding_windows
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.load import LoadedModel, load_model

NGRAM = "ngram"
PROMPT_WORDS = 32
WORD = re.compile(r"[^\S\n]*(?:\n|\S+)")  # with the space before it; a line end is one
DECODING = {
    "top-p 0.95": {"temperature": 1.0, "top_p": 0.95},
    "temperature 1": {"temperature": 1.0, "top_p": 1.0},
    "greedy": {"temperature": 0.0},
}


class Pair(NamedTuple):
    """A prompt and what a person wrote after it."""

    prompt: str
    human: str


def pairs(text: str, count: int, words: int) -> list[Pair]:
    """Stretches of ``text`` at equal distances, cut between words; line ends are words."""
    parts = WORD.findall(text)
    places = np.linspace(0, len(parts) - PROMPT_WORDS - words, count).astype(int).tolist()
    stretches = [parts[place : place + PROMPT_WORDS + words] for place in places]
    return [Pair("".join(s[:PROMPT_WORDS]), "".join(s[PROMPT_WORDS:])) for s in stretches]


def continued(loaded: LoadedModel, pair: Pair, words: int, seed: int, how: str) -> str:
    """The model's continuation, of at most ``words``."""
    changes = {"top_k": 0, "repetition_penalty": 1.0, "allow_unknown": True, "seed": seed}
    config = SamplingConfig(max_new_tokens=4 * words, **{**changes, **DECODING[how]})  # type: ignore[arg-type]
    ids = loaded.tokenizer.encode(pair.prompt)
    text = generate(loaded.model, loaded.tokenizer, ids, config)[0].text
    return "".join(WORD.findall(text)[:words])


def nats(judge: Predictor, prompt: str, text: str) -> float:
    """Of ``text`` after ``prompt``."""
    read, written = judge.tokenizer.encode(prompt), judge.tokenizer.encode(text)
    tokens = np.array([*read, *written])
    windows = sliding_windows(0, len(tokens), judge.context, max(1, judge.context // 2))
    return float(stream_nats(judge, tokens, windows, 1)[len(read) :].sum())


def row(judge: Predictor, prompts: list[str], texts: list[str]) -> str:
    """One line of the table."""
    samples = [words_of(text) for text in texts]
    count = sum(map(len, samples))
    per_word = sum(map(nats, [judge] * len(texts), prompts, texts)) / max(1, count)
    repeated = [share for sample in samples if (share := seq_rep(sample, 4)) is not None]
    near = [share for sample in samples if (share := rep(sample, 128)) is not None]
    varied = " | ".join(f"{distinct(samples, size) or 0:.3f}" for size in (1, 2, 3, 4))
    return (
        f"{per_word:.3f} | {varied} | {statistics.mean(repeated or [0]):.4f} | "
        f"{statistics.mean(near or [0]):.3f} | {count}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="writer, then judges")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--words", type=int, default=128)
    parser.add_argument("--data", type=Path, help="directory of the corpus, if it moved")
    options = parser.parse_args()
    named = options.checkpoints
    models = [load_model(resolve_checkpoint(name, "best")) for name in named if name != NGRAM]
    writer, judges = models[0], models[1:] or models
    moved = [f"data.path={options.data}"] if options.data else []
    config = override_config(writer.config, moved)

    def texts(split: SplitName) -> TokenStore:
        return prepare(config, tokenizer=writer.tokenizer, splits=(split,)).splits[split]

    subjects = [model_subject(each) for each in judges]
    if NGRAM in named:
        subjects.append(ngram_subject(judges[0], texts))
    several = len(subjects) > 1
    judged = ensemble_subject(subjects, texts, None, None, None) if several else subjects[0]
    judge, valid = judged.predictor, texts("valid")
    chosen = pairs(writer.tokenizer.decode(valid.tokens.tolist()), options.prompts, options.words)
    prompts = [pair.prompt for pair in chosen]
    print(f"writer {writer.path}; judged by {judged.name}")
    for member in judged.members:
        print(f"- weight {member['weight']:.3f}: {member['checkpoint']}")
    print("| text | nats a word | distinct-1 | 2 | 3 | 4 | seq-rep-4 | rep-128 | words |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(f"| human | {row(judge, prompts, [pair.human for pair in chosen])} |", flush=True)
    for how in DECODING:
        written = [continued(writer, pair, options.words, i, how) for i, pair in enumerate(chosen)]
        print(f"| {how} | {row(judge, prompts, written)} |", flush=True)
    print(f"(people repeat {HUMAN_REP[128]} of their words within 128 words: all of the split)")


if __name__ == "__main__":
    main()
