"""The options of ``generate``: what is continued, and how a token is chosen."""

from __future__ import annotations

from typing import Annotated

import typer

#: Between several samples of one prompt, on a line of its own.
SEPARATOR = "---"

Prompt = Annotated[
    str | None,
    typer.Option("--prompt", metavar="TEXT", help='Text to continue; "" starts a document.'),
]
PromptFile = Annotated[
    str | None,
    typer.Option(
        "--prompt-file",
        metavar="FILE",
        help="Read the prompt from a UTF-8 file (- is stdin); one final line end is dropped.",
    ),
]
Interactive = Annotated[
    bool,
    typer.Option("--interactive", help="Continue each line of stdin in turn; Ctrl-D ends."),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", help="Tokens to generate at most.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="X", help="Divides the logits; 0 is greedy.")
]
TopK = Annotated[
    int, typer.Option("--top-k", metavar="N", help="Keep the N likeliest tokens; 0 is off.")
]
TopP = Annotated[
    float,
    typer.Option("--top-p", metavar="X", help="Keep the likeliest tokens of mass X; 1 is off."),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", metavar="X", help="Keep tokens X times as likely as the best; 0 is off."
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", metavar="X", help="Penalty of tokens seen before; 1 is off."
    ),
]
NoRepeatNgramSize = Annotated[
    int,
    typer.Option(
        "--no-repeat-ngram-size", metavar="N", help="Repeat no N tokens in a row; 0 is off."
    ),
]
NumSamples = Annotated[
    int,
    typer.Option(
        "--num-samples",
        metavar="N",
        help="Continuations; more than one are printed 32 at a time, each with the prompt, with "
        f"a line {SEPARATOR} between them.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="N", help="Seed of the draws; absent: drawn, and told on stderr."
    ),
]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="The same as --temperature 0, over which it wins.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text appears; may be repeated."),
]
AllowUnknown = Annotated[
    bool, typer.Option("--allow-unknown", help="Let the text <unk> be generated.")
]
