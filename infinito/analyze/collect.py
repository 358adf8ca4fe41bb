"""Run a model over windows of text and take each layer's attention as it passes by."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infinito.analyze.attention_report import AttentionReport
from infinito.analyze.patterns import FEWEST_KEYS, STATISTICS, pattern_sums
from infinito.attention.call import Call, prepare_call
from infinito.attention.chunked import weight_blocks
from infinito.errors import ConfigError, DataError, DivergedError
from infinito.load import LoadedModel
from infinito.model.attention import SelfAttention, attentions, head_lambdas
from infinito.model.language_model import LanguageModel
from infinito.model.mode import evaluation_mode

#: More positions of one head than this are too fine to see.
_DRAWN_POSITIONS = 128
#: Weights that the pictures of all heads may hold.
_DRAWN_WEIGHTS = 2**26
#: Tokens of one forward pass; more only cost memory.
_BATCH_TOKENS = 4096


def analyze_attention(
    model: LoadedModel | LanguageModel, tokens: Tensor, rows_per_block: int | None = None
) -> AttentionReport:
    """Where each head of ``model`` looks while it reads ``tokens``.

    The weights are those the model computes in evaluation mode (no dropout), in float32, from the
    queries and keys it makes under the surrounding autocast. They are formed a block of rows at a
    time, so that memory is linear in the window. Mode, gradients and random state of the model are
    left as they were.

    Args:
        model: a model, or what ``load_model`` returns.
        tokens: (N, T) int64 ids, N windows of T >= 2 tokens.
        rows_per_block: query rows whose weights are held at once; None for a fixed budget.

    Raises:
        ConfigError: ``tokens`` are no ids of this model, or exceed its learned positions.
        DataError: a window is shorter than two tokens.
        DivergedError: a statistic is not finite, because the weights of the model are broken.
    """
    transformer = model.model if isinstance(model, LoadedModel) else model
    _check(transformer, tokens)
    collector = _Collector(transformer, rows_per_block)
    size = max(1, _BATCH_TOKENS // tokens.shape[1])
    with evaluation_mode(transformer), _eager(transformer), collector.listening():
        for batch in tokens.to(transformer.device).split(size):
            transformer.hidden(batch)
    return collector.report(*tokens.shape)


def spread_windows(tokens: NDArray[np.integer], count: int, length: int) -> Tensor:
    """Up to ``count`` disjoint windows (N, T) int64, spread evenly over ``tokens`` (n,).

    Fewer where the text has fewer, and one of the whole text where that is shorter than
    ``length``.
    """
    length = min(length, len(tokens))
    count = min(count, len(tokens) // length)
    begins = np.linspace(0, len(tokens) - length, count).astype(np.int64)
    return torch.from_numpy(
        np.stack([tokens[begin : begin + length] for begin in begins]).astype(np.int64)
    )


class _Collector:
    """Sums the statistics of every layer; called before each attention with its input."""

    def __init__(self, model: LanguageModel, rows_per_block: int | None) -> None:
        self.model = model
        self.attentions = attentions(model)
        self.heads = model.config.n_heads
        self.rows_per_block = rows_per_block
        shape = len(self.attentions), len(STATISTICS), self.heads
        self.sums = torch.zeros(shape, dtype=torch.float64)
        self.examples: list[Tensor] = []  # (H, N, N) a layer

    def listening(self) -> ExitStack:
        """Collects until it is closed."""
        hooks = ExitStack()
        for attention in self.attentions:
            hooks.enter_context(attention.register_forward_pre_hook(self._collect))
        return hooks

    def _collect(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(module, SelfAttention)
        query, key, _ = module.project(arguments[0])
        self.sums[module.layer] += pattern_sums(_call(module, query, key), self.rows_per_block)
        if len(self.examples) == module.layer:  # the first batch
            drawn = slice(self._drawn(query.shape[2]))
            call = _call(module, query[:1, :, drawn], key[:1, :, drawn])
            self.examples.append(_whole(call))

    def _drawn(self, length: int) -> int:
        """Positions to draw: rows of a causal matrix do not change where it is cut off."""
        fitting = int((_DRAWN_WEIGHTS / (len(self.attentions) * self.heads)) ** 0.5)
        return min(length, _DRAWN_POSITIONS, fitting)

    def report(self, n_windows: int, length: int) -> AttentionReport:
        if not bool(self.sums.isfinite().all()):
            raise DivergedError(
                "the attention weights of this model are not finite",
                "its weights are broken: take an earlier checkpoint",
            )
        first = self.attentions[0]
        return AttentionReport(
            kind=first.options.kind,
            n_windows=n_windows,
            length=length,
            means=self.sums / (n_windows * (length - FEWEST_KEYS + 1)),
            lambdas=head_lambdas(self.model),
            lambda_is_trained=first.log_lambda is not None,
            example=torch.stack(self.examples),
        )


def _call(module: SelfAttention, query: Tensor, key: Tensor) -> Call:
    """The attention call that ``module`` makes; keys stand in for the values, never read here."""
    return prepare_call(
        query, key, key, module.options.kind, module.lam,
        causal=True, dropout_p=0.0, dropout_seed=None, scale=None, alibi_slopes=module.slopes,
    )  # fmt: skip


def _whole(call: Call) -> Tensor:
    """Weights (H, T, T) of the first window, on the CPU."""
    length = call.query.shape[2]
    whole = torch.zeros(call.query.shape[1], length, length)
    for rows, weights in weight_blocks(call):
        whole[:, rows.start : rows.stop, : rows.stop] = weights[0].cpu()
    return whole


def _eager(model: LanguageModel) -> AbstractContextManager[object]:
    """Compiled blocks do not call hooks that came later, so these run uncompiled."""
    compiled = any(block._compiled_call_impl is not None for block in model.blocks)
    stance: AbstractContextManager[object] = (
        torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    )
    return stance


def _check(model: LanguageModel, tokens: Tensor) -> None:
    if tokens.dim() != 2 or tokens.dtype != torch.int64 or not len(tokens):
        raise ConfigError(
            f"attention analysis got tokens {tuple(tokens.shape)} of {tokens.dtype}",
            "give windows of ids, (N, T) int64",
        )
    length = tokens.shape[1]
    if length < FEWEST_KEYS:
        raise DataError(
            f"windows of {length} tokens have no attention pattern: a token sees itself alone",
            f"give at least {FEWEST_KEYS} tokens",
        )
    rows = model.config.learned_positions or model.max_positions
    if model.config.resolved_position == "learned" and length > rows:
        raise ConfigError(
            f"windows of {length} tokens exceed the {rows} learned positions of this model",
            "give shorter windows",
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.vocab_size:
        raise ConfigError(
            f"ids from {low} to {high} are not of this model's {model.vocab_size} tokens",
            "tokenise the text with the tokenizer of the checkpoint",
        )
