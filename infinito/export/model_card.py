"""README.md of an exported model: what it is, what it was trained on, how well, and how to go on.

The head is the metadata that model hubs read.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from infinito.checkpoint.record import read_record
from infinito.load import OpenedCheckpoint
from infinito.model.count import count_parameters
from infinito.version import __version__

_LICENSES = {
    "wikitext-2": "CC BY-SA 3.0 and GFDL (Wikipedia)",
    "python-docs": "Python Software Foundation License 2 (the documentation of Python)",
}
_USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForCausalLM.from_pretrained("PATH")
prompt = tokenizer("The ", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt)[0], skip_special_tokens=True))""".splitlines()
_HUB_NAMES = {"wikitext-2": "Salesforce/wikitext"}


def model_card(opened: OpenedCheckpoint, name: str, objections: list[str]) -> str:
    """The text; ``objections`` says why it is no stock architecture, and is empty where it is."""
    config, content, digests = opened.config, opened.content, opened.content["data"]
    source = config.data.resolved_source or "text"
    hub = config.data.dataset or _HUB_NAMES.get(source)
    parts = count_parameters(config.model, opened.tokenizer.vocab_size, config.data.sequence_length)
    start = config.training.init_from
    origin = f"trained from {f'the weights of {Path(start).name}' if start else 'scratch'}"
    text = f"{hub or source}; licence of the text: {_LICENSES.get(source, 'that of its authors')}"
    if not digests:
        origin, text, hub = "imported", "not known here, nor its licence: it was imported", None
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "license: unknown  # yours to choose; mind the licence of the text below",
        *([f"datasets: [{hub}]"] if hub else []),
        "tags: [infinito]",
        "---",
        f"# {name}",
        "",
        f"A language model of {parts.total} parameters, {origin} with infinito {__version__}.",
        "\n## Use",
        "```python",
        *(["import infinito.hf  # registers the classes"] if objections else []),
        *_USE,
        "```",
        *([f"No stock architecture: {'; '.join(objections)}."] if objections else []),
        "\n## Training",
        f"- text: {text}",
        *(f"- SHA-256 of the {split} text: {digest}" for split, digest in digests.items()),
        f"- tokenizer: {opened.tokenizer.kind}, {opened.tokenizer.vocab_size} ids; every document "
        "follows an end-of-document token, which the tokenizer puts first",
        f"- seen: {content['tokens']} tokens in {content['step']} steps "
        f"({content['epoch']:.2f} epochs), context {config.data.sequence_length}",
        *_command(opened),
        "\n## Figures",
        *_figures(opened),
    ]
    return "\n".join(lines) + "\n"


def _command(opened: OpenedCheckpoint) -> list[str]:
    """What started the run, as run.json beside the checkpoint has it, if it has."""
    words = read_record(opened.path.parent).get("command")
    is_right = isinstance(words, list) and all(isinstance(word, str) for word in words)
    return [f"- command: `{shlex.join(['infinito', *words[1:]])}`"] if words and is_right else []


def _figures(opened: OpenedCheckpoint) -> list[str]:
    content, length = opened.content, opened.config.data.sequence_length
    known = [item for item in content["evaluations"] if item["step"] <= content["step"]]
    if not known:
        return ["None yet: the run has no validation."]
    last = known[-1]
    loss, words = last["valid_loss"], last.get("valid_word_perplexity")
    return [
        f"Validation text at step {last['step']}, windows of {length} tokens without overlap, "
        "static; nats are summed over all tokens, ends of documents included. Word perplexity is "
        "exp(nats / words), a word being what whitespace separates, and each line end one more.",
        "",
        "| measure | value |",
        "|---|---|",
        f"| loss (nats a token) | {loss:.4f} |",
        f"| token perplexity | {math.exp(min(loss, 700)):.4f} |",
        *([f"| word perplexity | {words:.4f} |"] if words is not None else []),
        "",
        "More, from the checkpoint: `infinito evaluate CKPT --split valid --all-conventions`.",
    ]
