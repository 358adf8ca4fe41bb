"""A stock folder of ``transformers`` (Qwen3 or Llama) as a checkpoint of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from infinito.checkpoint.archive import DamagedError, open_regular
from infinito.checkpoint.atomic import reserved
from infinito.checkpoint.format import read_safetensors, write_checkpoint
from infinito.checkpoint.record import json_object, library_versions
from infinito.checkpoint.structure import FORMAT, FORMAT_VERSION, check_shapes
from infinito.config.loading import config_from_plain, to_plain
from infinito.config.schema import LONGEST_SEQUENCE, Config
from infinito.errors import CheckpointError
from infinito.export.stock import stock_name
from infinito.load import parameter_shapes, planned_model
from infinito.tokenizer.imported import MAX_VOCAB_SIZE, ImportedCoder
from infinito.tokenizer.tokenizer import MAX_JSON_CHARACTERS, Tokenizer
from infinito.train.progress import Progress

_ARCHITECTURES = ("qwen3", "llama")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)
#: What our model has only in this form; a key that is absent or null is as good.
_ONLY: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "rope_scaling": None,
    "quantization_config": None,
}


@dataclass(frozen=True)
class Imported:
    """What was read: the architecture, and numbers of the checkpoint that was written."""

    architecture: str
    parameters: int
    vocab_size: int
    context: int


def import_folder(folder: Path, output: Path) -> Imported:
    """Write the checkpoint ``output`` of a stock folder, whose weights become float32.

    Raises:
        CheckpointError: a file is missing, damaged, hostile or a pickle; or the model has what
            ours lacks, which is named.
        DataError: its tokenizer is no byte-level pair code.
        ResourceError: ``output`` exists or cannot be written.
    """
    found = _read_json(folder / "config.json")
    config, vocab_size = _config_of(found, folder), found.get("vocab_size")
    if type(vocab_size) is not int or not 0 < vocab_size <= MAX_VOCAB_SIZE:
        raise CheckpointError(f"{folder / 'config.json'}: vocab_size is {ascii(vocab_size)[:60]}")
    weights = _our_weights(config, vocab_size, _stock_weights(folder), folder)
    tokenizer = Tokenizer(
        ImportedCoder(_read_text(folder / "tokenizer.json"), _eos_id(found, folder), vocab_size)
    )
    content: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **Progress().to_plain(),
        "epoch": 0.0,
        "config": to_plain(config),
        "tokenizer": tokenizer.to_json(),
        "vocab_size": vocab_size,
        "data": {},
        "model": weights,
        "average": None,
        "optimizers": {},
        "scaler": None,
        "random": {},
        "versions": library_versions(),
    }
    with reserved(output):
        write_checkpoint(output, content)
    count = sum(weight.numel() for weight in weights.values())
    return Imported(found["model_type"], count, vocab_size, config.data.sequence_length)


def _config_of(found: Mapping[str, Any], folder: Path) -> Config:
    rope = found.get("rope_parameters") or {}
    known = {**found, **(rope if type(rope) is dict else {"rope_type": rope})}
    only = _ONLY | {"rope_type": "default", "layer_types": None}
    if set(found.get("layer_types") or ()) == {"full_attention"}:
        known["layer_types"] = None
    foreign = [
        f"{key}: {ascii(known[key])[:60]}"
        for key, value in only.items()
        if known.get(key) not in (None, value)
    ]
    if found.get("model_type") not in _ARCHITECTURES:
        foreign = [f"model_type: {ascii(found.get('model_type'))[:60]}"]
    if foreign:
        raise CheckpointError(
            f"{folder} has what our model lacks: {'; '.join(foreign)}",
            f"import reads {' and '.join(_ARCHITECTURES)} without these",
        )
    model = {
        "d_model": found.get("hidden_size"),
        "n_layers": found.get("num_hidden_layers"),
        "n_heads": found.get("num_attention_heads"),
        "n_kv_heads": found.get("num_key_value_heads"),
        "head_width": found.get("head_dim"),
        "d_ff": found.get("intermediate_size"),
        "activation": "swiglu",
        "position": "rope",
        "rope_theta": known.get("rope_theta") or 10_000.0,
        "norm_epsilon": found.get("rms_norm_eps", 1e-6),
        "embedding_norm": False,
        "qk_norm": found["model_type"] == "qwen3",
        "tie_embeddings": found.get("tie_word_embeddings", False),
    }
    context = found.get("max_position_embeddings", 2048)
    context = min(context, LONGEST_SEQUENCE) if type(context) is int else context
    data = {"source": "python-docs", "sequence_length": context}
    plain = {"data": data, "tokenizer": {"kind": "imported"}, "model": model}
    return config_from_plain(plain, str(folder / "config.json"), CheckpointError)


def _eos_id(found: Mapping[str, Any], folder: Path) -> Any:
    """The first id that ends a document."""
    value = found.get("eos_token_id")
    first = value[0] if type(value) is list and value else value
    if first is None:
        raise CheckpointError(
            f"{folder / 'config.json'} names no eos_token_id", "add the id that ends a document"
        )
    return first


def _stock_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files by their stock names."""
    if (folder / _WEIGHTS).exists():
        return read_safetensors(folder / _WEIGHTS)
    if not (folder / _INDEX).exists():
        raise CheckpointError(
            f"{folder} has no {_WEIGHTS}",
            "save it with safetensors: pickle files can run code, and are not read",
        )
    placed = _read_json(folder / _INDEX).get("weight_map")
    names = set(placed.values()) if type(placed) is dict else {None}
    weights: dict[str, Tensor] = {}
    for name in names:
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise CheckpointError(f"{folder / _INDEX} names {ascii(name)[:60]}, which is no file")
        weights |= read_safetensors(folder / name)
    return weights


def _our_weights(
    config: Config, vocab_size: int, stock: dict[str, Tensor], folder: Path
) -> dict[str, Tensor]:
    """The weights under our names in float32; shapes are compared before any is copied."""
    shapes = parameter_shapes(planned_model(config, vocab_size))
    if config.model.tie_embeddings:
        stock.pop(stock_name("head.weight"), None)  # some write it twice
    ours = {stock_name(name): name for name in shapes}
    found = {ours.get(name, name): weight for name, weight in stock.items()}
    check_shapes(found, shapes)
    strange = [name for name, weight in found.items() if not weight.is_floating_point()]
    if strange:
        raise CheckpointError(f"{folder}: the weight {strange[0]} is of {found[strange[0]].dtype}")
    return {name: found[name].float() for name in shapes}


def _read_text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            if path.stat().st_size > MAX_JSON_CHARACTERS:
                raise DamagedError("it is too large")
            data = file.read()
    except (OSError, DamagedError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"cannot read {path}: {reason}", "give a whole folder") from error
    return data.decode(errors="replace")


def _read_json(path: Path) -> dict[str, Any]:
    value = json_object(_read_text(path).encode())
    if value is None:
        raise CheckpointError(f"cannot use {path}: it is no JSON object", "give a whole folder")
    return value
