"""A folder that ``transformers`` loads: a stock architecture, or one for ``import infinito.hf``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from infinito.checkpoint.atomic import new_directory
from infinito.checkpoint.safetensors_file import write_safetensors
from infinito.errors import CheckpointError
from infinito.export.model_card import model_card
from infinito.export.stock import objections, stock_config, stock_weights
from infinito.generate.sampling_config import SamplingConfig
from infinito.load import OpenedCheckpoint, build_model, load_weights
from infinito.tokenizer.library import to_library
from infinito.tokenizer.tokenizer import Tokenizer

#: Before each weight's name in a folder for ``infinito.hf``: the attribute that holds our model.
PREFIX = "transformer."


def float_weights(opened: OpenedCheckpoint) -> dict[str, Tensor]:
    """Finite float32 weights of ``opened``, averaged where it has them, apart from its file.

    Raises:
        CheckpointError: they are of eight bits.
        DivergedError: a weight is not finite.
    """
    if opened.int8_names:
        raise CheckpointError(
            f"{opened.path} holds weights of eight bits", "export what it was made from"
        )
    model = build_model(opened.config, opened.tokenizer.vocab_size)
    load_weights(model, opened.weights())
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def export_hugging_face(opened: OpenedCheckpoint, path: Path) -> list[str]:
    """Write the folder ``path``; returns why its architecture is no stock one, if so.

    Raises:
        CheckpointError, DivergedError: as :func:`float_weights`.
        ResourceError: ``path`` exists or cannot be written.
    """
    config, weights = opened.config, float_weights(opened)
    reasons = objections(config.model)
    plain = (_own_config if reasons else stock_config)(config, opened.tokenizer.vocab_size)
    if reasons:
        weights = {PREFIX + name: weight for name, weight in weights.items()}
    else:
        weights = stock_weights(config.model, weights)
    final = None if opened.tokenizer.per_line_eos else opened.tokenizer.eos_id
    special = {"bos_token_id": opened.tokenizer.eos_id, "eos_token_id": final}
    with new_directory(path) as folder:
        write_safetensors(folder / "model.safetensors", weights)
        _write_json(folder / "config.json", {**plain, **special})
        generation = {**_generation(opened.tokenizer), **special}
        _write_json(folder / "generation_config.json", generation)
        write_tokenizer(folder, opened.tokenizer, config.data.sequence_length)
        (folder / "README.md").write_text(model_card(opened, path.name, reasons), "utf-8")
    return reasons


def _own_config(config: Any, vocab_size: int) -> dict[str, Any]:
    """``config.json`` of :class:`infinito.hf.InfinitoConfig`."""
    return {
        "architectures": ["InfinitoForCausalLM"],
        "model_type": "infinito",
        "vocab_size": vocab_size,
        "max_position_embeddings": config.data.sequence_length,
        "shape": config.model.model_dump(),
        "dtype": "float32",
    }


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """The defaults of ``infinito generate``; like there, ``<unk>`` is never written.

    A length is left to who asks: here it would win over the ``max_length`` of a program that sets
    one, as lm-evaluation-harness does.
    """
    ours = SamplingConfig()
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    unknown = {tuple(tokenizer.encode(text)) for text in ("<unk>", " <unk>")}
    return {
        "do_sample": True,
        **{name: getattr(ours, name) for name in names},
        "bad_words_ids": sorted(map(list, unknown)),
        "pad_token_id": tokenizer.eos_id,
    }


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """tokenizer.json and its settings, for AutoTokenizer."""
    library, end = to_library(tokenizer)
    library.save(str(folder / "tokenizer.json"))
    unknown = {"unk_token": "<unk>"} if tokenizer.unknown_id is not None else {}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": end for role in ("bos", "eos", "pad")},
        **unknown,
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "split_special_tokens": True,  # what looks like one in a text is text
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
