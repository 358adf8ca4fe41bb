"""int8 weights of a checkpoint, measured: size, generation speed, and what they cost in loss."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from infinito.bench.machine import interleaved_seconds, median_interval
from infinito.data.token_store import TokenStore
from infinito.evaluate.perplexity import score, windows_a_pass
from infinito.evaluate.predictor import ModelPredictor
from infinito.export.int8_export import export_int8
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.load import LoadedModel, OpenedCheckpoint, load_model
from infinito.runtime.events import note
from infinito.train.lambdas import standard_error

ROUNDS = 12
NEW_TOKENS = 64
#: Word perplexity may rise by so much; it is what int8 is held to everywhere.
ALLOWED = 0.005


@dataclass(frozen=True)
class Int8Trial:
    """An int8 copy against its original.

    Attributes:
        bytes_before, bytes_after: of the weights.
        ratio, low, high: generation speed, batch 1, over the original's; 95 % interval.
        loss_change, noise: validation nats a token, and the standard error of that difference.
        perplexity_change: of the word perplexity, as a share.
    """

    bytes_before: int
    bytes_after: int
    ratio: float
    low: float
    high: float
    loss_change: float
    noise: float
    perplexity_change: float

    @property
    def is_kept(self) -> bool:
        """Smaller, no slower, and as good."""
        is_smaller = self.bytes_after < self.bytes_before
        return is_smaller and self.high >= 1 and self.perplexity_change < ALLOWED

    @property
    def reason(self) -> str:
        """The figures, and what follows from them."""
        size = self.bytes_before / self.bytes_after
        return (
            f"{'kept' if self.is_kept else 'not kept'}: weights {size:.2f}x smaller, generation "
            f"{self.ratio:.3f}x [{self.low:.3f}, {self.high:.3f}] as fast, validation loss "
            f"{self.loss_change:+.5f} +- {self.noise:.5f}, word perplexity "
            f"{100 * self.perplexity_change:+.3f} % (at most {100 * ALLOWED:g} %)"
        )


def try_int8(opened: OpenedCheckpoint, store: TokenStore, device: str, path: Path) -> Int8Trial:
    """Write ``opened`` in int8 to ``path``, and leave it there if it is worth keeping."""
    done = export_int8(opened, path)
    exact, small = load_model(opened.path, device), load_model(path, device)
    speeds = _speeds(exact, small)
    length = opened.config.data.sequence_length
    before, after = (
        score(
            ModelPredictor(loaded.model, loaded.tokenizer), store, context=length, stride=length,
            batch_size=windows_a_pass(length),
        )
        for loaded in (exact, small)
    )  # fmt: skip
    nats_per_word = (after.nll_total - before.nll_total) / max(before.n_words, 1)
    trial = Int8Trial(
        done.float32_bytes, done.int8_bytes, statistics.median(speeds), *median_interval(speeds),
        after.loss - before.loss, standard_error(after.token_nll - before.token_nll, length),
        math.expm1(min(nats_per_word, 100.0)),
    )  # fmt: skip
    if not trial.is_kept:
        path.unlink()
    note(f"int8: {trial.reason}")
    return trial


def _speeds(exact: LoadedModel, small: LoadedModel) -> list[float]:
    """Generation speed of ``small`` over that of ``exact``, of each round.

    Both may end a text early, so that speeds and not times are compared.
    """
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, temperature=0.0, repetition_penalty=1.0)
    lengths: dict[str, int] = {}

    def write(name: str, loaded: LoadedModel) -> None:
        [sample] = generate(loaded.model, loaded.tokenizer, [], sampling)
        lengths[name] = len(sample.ids)

    actions = {"exact": lambda: write("exact", exact), "int8": lambda: write("int8", small)}
    device = next(exact.model.parameters()).device
    times = interleaved_seconds(actions, device, ROUNDS)
    share = lengths["int8"] / lengths["exact"]
    return [share * a / b for a, b in zip(times["exact"], times["int8"], strict=True)]
