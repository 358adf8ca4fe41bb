"""A file for llama.cpp: the stock architectures, under its names, in its number formats.

A tied model whose embeddings are normalised is stored with two tables: what is read, normalised,
and what is multiplied by. Text is split as GPT-2 does, and ``<unk>`` where it is one token is found
before that; so ids are ours but for words, numbers and other runs of more than 64 signs, which
llama.cpp does not part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from infinito.checkpoint.atomic import cannot_write, copy_atomic, reserved
from infinito.config.schema import Config
from infinito.errors import ConfigError
from infinito.export.hugging_face import float_weights
from infinito.export.stock import gguf_objections, stock_architecture, stock_weights
from infinito.load import OpenedCheckpoint
from infinito.tokenizer.coder import UNKNOWN
from infinito.tokenizer.library import to_library
from infinito.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

NumberFormat = Literal["float32", "float16", "q8_0"]
_GGUF_NAMES = {"float32": "F32", "float16": "F16", "q8_0": "Q8_0"}
_FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}


@dataclass(frozen=True)
class GgufExport:
    """What was written: the architecture's name there, and names of matrices that stay float16.

    Q8_0 stores 32 neighbours in a row together, so a row of another length stays float16.
    """

    architecture: str
    kept_float16: list[str]


def export_gguf(opened: OpenedCheckpoint, path: Path, numbers: NumberFormat) -> GgufExport:
    """Write ``opened`` to the new file ``path``, its averaged weights where it has them.

    Args:
        numbers: how matrices are stored; norms are always float32.

    Raises:
        ConfigError: no stock architecture is like it, or llama.cpp has no such tokenizer; or the
            gguf library is missing.
        CheckpointError, DivergedError: as :func:`float_weights`.
        ResourceError: ``path`` exists or cannot be written.
    """
    if reasons := gguf_objections(opened.config):
        raise ConfigError(
            f"{opened.path} cannot become gguf: llama.cpp has nothing like {'; '.join(reasons)}",
            "export --to hf, or train with other settings (config validate tells beforehand)",
        )
    weights = float_weights(opened)
    with reserved(path):
        try:
            with TemporaryDirectory(dir=path.parent) as place:
                file = Path(place) / path.name
                kept = write_gguf(file, opened.config, weights, numbers, opened.tokenizer)
                copy_atomic(file, path)
        except OSError as error:
            raise cannot_write(path, error) from error
    return GgufExport(stock_architecture(opened.config.model), kept)


def write_gguf(
    path: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    numbers: NumberFormat,
    tokenizer: Tokenizer | None,
) -> list[str]:
    """The file itself; without a tokenizer it takes and gives ids only. Returns as GgufExport."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ConfigError(
            "export --to gguf needs gguf", 'pip install "infinito[export]"'
        ) from error
    model, architecture = config.model, stock_architecture(config.model)
    kind = {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA}[architecture]
    names = gguf.get_tensor_name_map(kind, model.n_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(path.stem)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[numbers]])
    _add_shape(writer, config, len(weights["embedding.weight"]))
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_tokenizer(writer, tokenizer)
    kept = []
    for name, weight in _rotated(stock_weights(model, dict(weights)), config).items():
        stored = gguf.GGMLQuantizationType[_GGUF_NAMES[numbers] if weight.ndim > 1 else "F32"]
        if stored.name == "Q8_0" and weight.shape[1] % 32:
            stored = gguf.GGMLQuantizationType.F16
            kept.append(name)
        data = gguf.quants.quantize(weight.contiguous().numpy(), stored)
        theirs = names.get_name(name, (".weight",))
        assert theirs, f"no name for {name}"
        writer.add_tensor(theirs, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


def _rotated(weights: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """In llama a rotation turns neighbours against each other, here the halves of a head."""
    if stock_architecture(config.model) == "llama":
        for name, weight in weights.items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                halves = weight.unflatten(0, (-1, 2, config.model.d_head // 2))
                weights[name] = halves.transpose(1, 2).flatten(0, 2)
    return weights


def _add_shape(writer: GGUFWriter, config: Config, vocab_size: int) -> None:
    model = config.model
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(config.data.sequence_length)
    writer.add_embedding_length(model.d_model)
    writer.add_block_count(model.n_layers)
    writer.add_feed_forward_length(model.resolved_d_ff)
    writer.add_head_count(model.n_heads)
    writer.add_head_count_kv(model.resolved_kv_heads)
    writer.add_key_length(model.d_head)
    writer.add_value_length(model.d_head)
    writer.add_rope_dimension_count(model.d_head)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_layer_norm_rms_eps(model.norm_epsilon)


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """Byte-level merges; the end of a document stands before each text, as in training."""
    from gguf import TokenType

    library, end = to_library(tokenizer)
    tokens: list[Any] = [library.id_to_token(number) for number in range(tokenizer.vocab_size)]
    types = [TokenType.NORMAL] * len(tokens)
    types[tokenizer.eos_id] = TokenType.CONTROL
    for text in (UNKNOWN, f" {UNKNOWN}"):
        ids = tokenizer.encode(text)
        if len(ids) == 1:
            tokens[ids[0]], types[ids[0]] = text, TokenType.USER_DEFINED
    assert tokens[tokenizer.eos_id] == end
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(m) for m in json.loads(library.to_str())["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.eos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_add_bos_token(True)
