"""``infinito generate``: continue a prompt with a trained model."""

from __future__ import annotations

import re
import secrets
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinito.cli.options import ChosenCheckpoint, Device, Json, grouped
from infinito.cli.output import print_json, say
from infinito.cli.prompts import PromptPlace
from infinito.cli.subject import load_subject
from infinito.errors import ConfigError

if TYPE_CHECKING:
    from infinito.generate.engine import Sample
    from infinito.generate.sampling_config import SamplingConfig
    from infinito.load import LoadedModel

#: Between several samples of one prompt, on a line of its own.
_SEPARATOR = "---"
_MOST_IN_ONE_DOCUMENT = 10_000  # samples, which are all held until it is printed


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is drawn, as options; the defaults are those of the command alone."""

    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens to generate at most.")
    ] = 200
    temperature: Annotated[
        float, typer.Option(metavar="X", help="Divides the logits; 0 is greedy.")
    ] = 0.8
    top_k: Annotated[
        int, typer.Option(metavar="N", help="Keep the N likeliest tokens; 0 is off.")
    ] = 50
    top_p: Annotated[
        float, typer.Option(metavar="X", help="Keep the likeliest tokens of mass X; 1 is off.")
    ] = 0.95
    min_p: Annotated[
        float,
        typer.Option(metavar="X", help="Keep tokens X times as likely as the best; 0 is off."),
    ] = 0.0
    repetition_penalty: Annotated[
        float, typer.Option(metavar="X", help="Penalty of tokens seen before; 1 is off.")
    ] = 1.2
    no_repeat_ngram_size: Annotated[
        int, typer.Option(metavar="N", help="Repeat no N tokens in a row; 0 is off.")
    ] = 0
    num_samples: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Continuations; more than one are printed 32 at a time, each with the prompt, "
            f"with a line {_SEPARATOR} between them.",
        ),
    ] = 1
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Seed of the draws; absent: drawn, and told on stderr."),
    ] = None
    greedy: Annotated[
        bool, typer.Option("--greedy", help="The same as --temperature 0, over which it wins.")
    ] = False
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text appears; may be repeated."),
    ] = None
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Let the text <unk> be generated.")
    ] = False

    def config(self) -> SamplingConfig:
        """The options, checked; a seed is drawn where none was given."""
        from infinito.generate.sampling_config import SamplingConfig

        values = {name: value for name, value in vars(self).items() if name != "greedy"}
        values["stop"] = tuple(self.stop or ())
        if self.greedy:
            values["temperature"] = 0.0
        if self.seed is None:
            values["seed"] = secrets.randbelow(2**32)
        return SamplingConfig(**values)


@grouped
def generate(
    chosen: ChosenCheckpoint,
    place: PromptPlace,
    sampling: SamplingOptions,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Continue a prompt: the prompt and its continuation on stdout, nothing else.

    Equal options, seed and checkpoint give equal text. The first of several samples is the one
    that --num-samples 1 gives. A line end never ends a continuation; the end of a document does.
    When the model's context is full, its last half is kept.
    """
    config = sampling.config()
    if as_json and config.num_samples > _MOST_IN_ONE_DOCUMENT:
        raise ConfigError(
            f"--num-samples is {config.num_samples}, and --json prints one document of at most "
            f"{_MOST_IN_ONE_DOCUMENT}",
            "drop --json: text is printed as it is made; or vary --seed over several documents",
        )
    _check_device(device)
    prompts = place.read(as_json)
    loaded = load_subject(chosen.path(), device)
    if sampling.seed is None and not config.greedy:
        say(f"seed: {config.seed} (give --seed {config.seed} for the same text again)")
    for text in prompts:
        if as_json:
            _print_document(loaded, text, config)
        else:
            _print_text(loaded, text, config)


def _print_text(loaded: LoadedModel, prompt: str, config: SamplingConfig) -> None:
    """The prompt and its continuation as it grows; of several, each group as it is done."""
    from infinito.generate.engine import generate as run
    from infinito.generate.engine import sample_groups

    ids = _encode(loaded, prompt)
    if config.num_samples == 1:
        write = partial(print, end="", flush=True)
        write(prompt)
        run(loaded.model, loaded.tokenizer, ids, config, lambda _, piece: write(piece))
        write("\n")
        return
    separator = ""
    for samples in sample_groups(loaded.model, loaded.tokenizer, ids, config):
        for sample in samples:
            sys.stdout.write(f"{separator}{prompt}{sample.text}\n")
            separator = f"{_SEPARATOR}\n"
        sys.stdout.flush()


def _encode(loaded: LoadedModel, prompt: str) -> list[int]:
    """The ids of ``prompt``; what of it the model will not see is said."""
    from infinito.generate.context import tokens_kept

    ids = loaded.tokenizer.encode(prompt)
    limit = loaded.model.max_positions
    if (kept := tokens_kept(len(ids) + 1, limit)) < len(ids):  # 1: the start of a document
        say(
            f"the prompt has {len(ids)} tokens, and the context holds {limit - 1}: the last {kept} "
            "are used"
        )
    return ids


def _print_document(loaded: LoadedModel, prompt: str, config: SamplingConfig) -> None:
    """One JSON document with the samples, the speed and how repetitive they are."""
    from dataclasses import asdict

    from infinito.evaluate.repetition import NGRAM_SIZES, distinct, human_summary, words_of
    from infinito.generate.engine import generate as run

    start = time.perf_counter()
    samples = run(loaded.model, loaded.tokenizer, _encode(loaded, prompt), config)
    seconds = time.perf_counter() - start
    words = [words_of(sample.text) for sample in samples]
    print_json(
        {
            "checkpoint": str(loaded.path),
            "step": loaded.step,
            "prompt": prompt,
            "sampling": asdict(config),
            "samples": [_plain(sample) for sample in samples],
            **{f"distinct_{size}": distinct(words, size) for size in NGRAM_SIZES},
            "human": human_summary(),
            "seconds": seconds,
            "tokens_per_second": sum(len(sample.ids) for sample in samples) / seconds,
        }
    )


def _plain(sample: Sample) -> dict[str, Any]:
    from infinito.evaluate.repetition import repetition_report

    return {
        "text": sample.text,
        "n_tokens": len(sample.ids),
        "finish_reason": sample.finish_reason,
        "repetition": repetition_report(sample.text),
    }


def _check_device(device: str) -> None:
    """Refuse a name that no machine has, before torch is imported to look for it."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(f"--device is {device!r}", "use auto, cpu, cuda, cuda:N or mps")
