"""``infinito generate``: continue a prompt with a trained model."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infinito.cli.options import Json
from infinito.cli.output import print_json, say
from infinito.cli.prompts import read_prompts
from infinito.cli.subject import one_reference
from infinito.errors import ConfigError

if TYPE_CHECKING:
    from infinito.generate.engine import Sample
    from infinito.generate.options import SamplingConfig
    from infinito.load import LoadedModel

_SEPARATOR = "---"


def generate(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[CKPT|RUN_DIR]",
            help="Checkpoint file or run directory (its best checkpoint); absent: the most "
            "recent run under checkpoints/.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", metavar="CKPT|RUN_DIR", help="The same, as an option."),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help='Text to continue; "" starts a document.'),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompt-file",
            metavar="FILE",
            help="Read the prompt from a UTF-8 file (- is stdin); one final line end is dropped.",
        ),
    ] = None,
    interactive: Annotated[
        bool,
        typer.Option("--interactive", help="Continue each line of stdin in turn; Ctrl-D ends."),
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", help="Tokens to generate at most.")
    ] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="X", help="Divides the logits; 0 is greedy.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="N", help="Keep the N likeliest tokens; 0 is off.")
    ] = 50,
    top_p: Annotated[
        float,
        typer.Option("--top-p", metavar="X", help="Keep the likeliest tokens of mass X; 1 is off."),
    ] = 0.95,
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p", metavar="X", help="Keep tokens X times as likely as the best; 0 is off."
        ),
    ] = 0.0,
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty", metavar="X", help="Penalty of tokens seen before; 1 is off."
        ),
    ] = 1.2,
    no_repeat_ngram_size: Annotated[
        int,
        typer.Option(
            "--no-repeat-ngram-size", metavar="N", help="Repeat no N tokens in a row; 0 is off."
        ),
    ] = 0,
    num_samples: Annotated[
        int,
        typer.Option(
            "--num-samples",
            metavar="N",
            help="Continuations; more than one are printed when all are done, each with the "
            f"prompt, with a line {_SEPARATOR} between them.",
        ),
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", help="Seed of the draws; absent: drawn, and told on stderr."
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="The same as --temperature 0, over which it wins.")
    ] = False,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", metavar="TEXT", help="End before this text appears; may be repeated."
        ),
    ] = None,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Let the text <unk> be generated.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", metavar="D", help="auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Continue a prompt: the prompt and its continuation on stdout, nothing else.

    Equal options, seed and checkpoint give equal text. The first of several samples is the one
    that --num-samples 1 gives. A line end never ends a continuation; the end of a document does.
    When the model's context is full, its last half is kept.
    """
    from infinito.generate.options import SamplingConfig

    chosen_seed = _random_seed() if seed is None else seed
    config = SamplingConfig(
        max_new_tokens=max_new_tokens,
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        num_samples=num_samples,
        seed=chosen_seed,
        stop=tuple(stop or ()),
        allow_unknown=allow_unknown,
    )
    _check_device(device)
    prompts = read_prompts(prompt, prompt_file, interactive, as_json)
    loaded = _load(one_reference(reference, checkpoint), device)
    if seed is None and not config.greedy:
        say(f"seed: {chosen_seed} (give --seed {chosen_seed} for the same text again)")
    for text in prompts:
        if as_json:
            _print_document(loaded, text, config)
        else:
            _print_text(loaded, text, config)


def _print_text(loaded: LoadedModel, prompt: str, config: SamplingConfig) -> None:
    """The prompt and its continuation as it grows; several one after the other."""
    from infinito.generate.engine import generate as run

    ids = loaded.tokenizer.encode(prompt)
    if config.num_samples == 1:
        _write(prompt)
        run(loaded.model, loaded.tokenizer, ids, config, lambda _, piece: _write(piece))
        _write("\n")
        return
    samples = run(loaded.model, loaded.tokenizer, ids, config)
    _write(f"\n{_SEPARATOR}\n".join(prompt + sample.text for sample in samples) + "\n")


def _print_document(loaded: LoadedModel, prompt: str, config: SamplingConfig) -> None:
    """One JSON document with the samples, the speed and how repetitive they are."""
    from dataclasses import asdict

    from infinito.evaluate.repetition import NGRAM_SIZES, distinct, human_summary, words_of
    from infinito.generate.engine import generate as run

    start = time.perf_counter()
    samples = run(loaded.model, loaded.tokenizer, loaded.tokenizer.encode(prompt), config)
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
    import re

    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(f"--device is {device!r}", "use auto, cpu, cuda, cuda:N or mps")


def _load(reference: str | None, device: str) -> LoadedModel:
    from infinito.checkpoint.store import resolve_checkpoint
    from infinito.load import load_model
    from infinito.runtime.device import choose_device

    path = resolve_checkpoint(reference, prefer="best")  # says which, where it had to choose
    choice = choose_device(device)
    say(f"device: {choice.value} ({choice.reason})")
    return load_model(path, choice.value)


def _random_seed() -> int:
    import secrets

    return secrets.randbelow(2**32)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
