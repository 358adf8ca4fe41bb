"""A self-test: no prediction may depend on a token that comes after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infinito.errors import CheckpointError, DivergedError
from infinito.model.language_model import LanguageModel
from infinito.model.mode import evaluation_mode
from infinito.runtime.random import fixed_draws

#: Several tiles of every kernel, the last of them partial.
CHECKED_LENGTH = 200
_BORDERS = (16, 32, 64, 128)
_SEED = 20240229


def check_causality(
    model: LanguageModel, length: int | None = None, *, rows: int = 1, training: bool = False
) -> None:
    """Change the end of a text and require what precedes it to stay the same, bit for bit.

    A leak of later tokens makes losses wonderfully low and the model useless, and nothing else
    shows it; so this runs before every training and evaluation, in the precision of the
    surrounding autocast. The text changes from either side of each border between tiles on, and
    from a few places within them. At most 13 passes of 200 tokens, 2 FLOPs a token for each
    number of the blocks' matrices: 5200 FLOPs a number, as much as scoring 2600 tokens, and the
    attention's products. The model's mode and the random state are left as they were.

    Args:
        model: tested on the device where it is.
        length: tokens of the text; the training length, at most 200, if None.
        rows: texts a pass, the changes shared among them.
        training: the route of training, with dropout (the same in each pass) and gradients.

    Raises:
        CheckpointError: a later token changes an earlier prediction; names the layer.
        DivergedError: logits are not finite.
    """
    length = length or min(CHECKED_LENGTH, model.max_positions)
    generator = torch.Generator().manual_seed(_SEED)
    tokens = torch.randint(model.vocab_size, (1, length), generator=generator)
    tokens = tokens.to(model.device).expand(rows, -1)
    with evaluation_mode(model), torch.set_grad_enabled(training):
        model.train(training)
        states = _states(model, tokens)
        if not bool(model.logits(states).isfinite().all()):
            raise DivergedError(
                "the model's logits are not finite", "take an earlier checkpoint of this run"
            )
        for positions in torch.tensor(_positions(length)).split(rows):
            _require_equal_before(model, tokens, states, positions.tolist())


def _positions(length: int) -> list[int]:
    """From where on the text changes; a leak between two positions that stay is not seen."""
    beside = {place for border in _BORDERS for place in (border - 1, border)}
    within = {1, length // 3, 2 * length // 3, length - 1}
    return sorted((beside | within) & set(range(1, length)))


def _require_equal_before(
    model: LanguageModel, tokens: Tensor, states: Tensor, positions: list[int]
) -> None:
    changed = tokens.clone()
    for row, position in enumerate(positions):
        changed[row, position:] = (tokens[row, position:] + 1) % model.vocab_size
    # Same shapes on the same route: equal bits may then be asked of every kernel.
    after = _states(model, changed)
    for row, position in enumerate(positions):
        if not torch.equal(after[row, :position], states[row, :position]):
            raise CheckpointError(
                f"causality: a change of the tokens from {position} on alters earlier "
                f"predictions, through {_leaking_layer(model, tokens, changed, row, position)}",
                "any perplexity of this model would be a leak; please report it",
            )


def _states(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Final states (B, T, C), from which each prediction is made by itself."""
    with fixed_draws(_SEED, str(tokens.device)):
        return model.hidden(tokens).detach()


def _leaking_layer(
    model: LanguageModel, tokens: Tensor, changed: Tensor, row: int, position: int
) -> str:
    """The first layer that lets the change through, with its kind and name."""
    before, after = _outputs(model, tokens), _outputs(model, changed)
    for (name, output), (_, other) in zip(before, after, strict=True):
        if not torch.equal(output[row, :position], other[row, :position]):
            kind = type(model.get_submodule(name)).__name__
            attention = f" (attention kind {model.config.attention.kind})"
            return f"{kind} {name}{attention if 'attention' in name else ''}"
    return "the model's own code, outside its layers"


def _outputs(model: LanguageModel, tokens: Tensor) -> list[tuple[str, Tensor]]:
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
        _states(model, tokens)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
