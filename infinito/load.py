"""A trained model from one file: weights, tokenizer and config, nothing else needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from infinito.checkpoint.format import read_checkpoint
from infinito.checkpoint.structure import check_shapes
from infinito.config.loading import config_from_plain
from infinito.config.schema import Config
from infinito.errors import CheckpointError
from infinito.model.transformer import Transformer
from infinito.model.weights import load_weights, parameter_shapes
from infinito.runtime.device import choose_device
from infinito.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with all that is needed to use it."""

    model: Transformer
    tokenizer: Tokenizer
    config: Config
    step: int
    path: Path
    data_sha256: dict[str, str]


def load_model(path: str | Path, device: str = "auto", use_average: bool = True) -> LoadedModel:
    """Read and verify a checkpoint file and rebuild its model.

    Args:
        path: A ``.pt`` file.
        device: auto, cpu, cuda, cuda:N or mps.
        use_average: Take the averaged weights where the checkpoint has them.

    Raises:
        CheckpointError: The file is missing, damaged, hostile, or does not fit its own config.
        DivergedError: Its weights are not finite.
    """
    path = Path(path)
    content = read_checkpoint(path)
    config = config_from_plain(content["config"], str(path), CheckpointError)
    tokenizer = Tokenizer.from_json(content["tokenizer"])
    if tokenizer.vocab_size != content["vocab_size"]:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the checkpoint says {content['vocab_size']}"
        )
    averaged = content["average"] if use_average else None
    weights = averaged or content["model"]
    check_shapes(weights, planned_shapes(config, tokenizer.vocab_size))
    model = build_model(config, tokenizer.vocab_size)
    load_weights(model, weights)
    model.to(choose_device(device).value).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, config, content["step"], path, content["data"])


def planned_shapes(config: Config, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the parameters that ``build_model`` makes, without any memory for them.

    A stranger's config can ask for a model of terabytes: it is compared with the weights first.
    """
    with torch.device("meta"):
        return parameter_shapes(build_model(config, vocab_size))


def build_model(config: Config, vocab_size: int) -> Transformer:
    """An untrained model of the config's shape."""
    return Transformer(config.model, vocab_size, config.data.sequence_length)
