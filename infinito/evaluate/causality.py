"""A self-test: no prediction may depend on a token that comes after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infinito.errors import CheckpointError, DivergedError
from infinito.evaluate.mode import evaluation_mode
from infinito.model.transformer import Transformer

_LENGTH = 12
_SEED = 20240229


def check_causality(model: Transformer) -> None:
    """Change single tokens and require the logits before them to stay the same, bit for bit.

    A leak of later tokens makes losses wonderfully low and the model useless, and nothing else
    shows it; so this runs before every training and evaluation (five short forward passes). The
    model's mode and torch's random state are left as they were.

    Raises:
        CheckpointError: a later token changes an earlier prediction; names the layer.
        DivergedError: logits are not finite.
    """
    length = min(_LENGTH, model.max_positions)
    generator = torch.Generator().manual_seed(_SEED)
    tokens = torch.randint(model.vocab_size, (1, length), generator=generator)
    tokens = tokens.to(model.embedding.weight.device)
    with evaluation_mode(model):
        logits = model(tokens)
        if not bool(logits.isfinite().all()):
            raise DivergedError(
                "the model's logits are not finite", "take an earlier checkpoint of this run"
            )
        for position in sorted(
            {1, length // 3, 2 * length // 3, length - 1} & set(range(1, length))
        ):
            changed = tokens.clone()
            changed[0, position] = (tokens[0, position] + 1) % model.vocab_size
            # Same shapes, one sequence each: equal bits may then be asked of every kernel.
            if not torch.equal(model(changed)[:, :position], logits[:, :position]):
                raise CheckpointError(
                    f"causality: a change of token {position} alters earlier predictions, through "
                    f"{_leaking_layer(model, tokens, changed, position)}",
                    "any perplexity of this model would be a leak; please report it",
                )


def _leaking_layer(model: Transformer, tokens: Tensor, changed: Tensor, position: int) -> str:
    """The first layer that lets the change through, with its kind and name."""
    before, after = _outputs(model, tokens), _outputs(model, changed)
    for (name, output), (_, other) in zip(before, after, strict=True):
        if not torch.equal(output[:, :position], other[:, :position]):
            kind = type(model.get_submodule(name)).__name__
            attention = f" (attention kind {model.config.attention.kind})"
            return f"{kind} {name}{attention if 'attention' in name else ''}"
    return "the model's own code, outside its layers"


def _outputs(model: Transformer, tokens: Tensor) -> list[tuple[str, Tensor]]:
    """Names and outputs (B, T, width) of all inner modules, in the order they finish."""
    outputs: list[tuple[str, Tensor]] = []

    def keep(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 3 and output.shape[:2] == tokens.shape:
            outputs.append((name, output))

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        module: nn.Module = model.get_submodule(name)
        return module.register_forward_hook(lambda _module, _input, output: keep(name, output))

    handles = [hook(name) for name, _ in model.named_modules() if name]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
