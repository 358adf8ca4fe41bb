"""One token through the whole model in one call of compiled code (``csrc``, loaded with ctypes).

The plain twin is the model itself with a cache, which spends most of a token's time on starting
small operations; here the weights are read once and little else happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof, c_float, c_int32, c_int64, c_void_p
from itertools import chain

import torch
from torch import Tensor, nn

from infinito.attention import KINDS, default_scale
from infinito.config.model_config import ModelConfig
from infinito.kernels.native import REMEDY, Native, fields, has_wide_vectors
from infinito.kernels.table import Operation, Variant, no_objection
from infinito.model.attention import SelfAttention
from infinito.model.block import Block
from infinito.model.experts import MixtureOfExperts
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.language_model import LanguageModel
from infinito.model.layers import Embedding, FeedForward, Linear, RMSNorm
from infinito.model.legacy import DoubleBlock
from infinito.model.packed import PackedWeights, StoredMatrix
from infinito.model.transformer import Transformer

_VERSION = 7
_STORED: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.int8)
_ACTIVATIONS = ("relu2", "gelu", "swiglu")
_MOST_BRANCHES = 2
#: Tokens of all sequences that are read at once: enough for a weight read once to serve many.
_ROWS = 64
#: Beyond so many the torch route is faster than portable code.
_MOST_PORTABLE = 32


class _Matrix(Structure):
    """Mirror of ``Matrix`` in csrc/decode.h, as the next five are of theirs."""

    _fields_ = [
        *fields(c_void_p, "data scales bias"),
        *fields(c_int64, "group groups"),
        *fields(c_int32, "stored"),
    ]


class _Norm(Structure):
    _fields_ = [*fields(c_void_p, "gain bias"), *fields(c_float, "epsilon")]


class _Network(Structure):
    _fields_ = [*fields(_Matrix, "up gate down"), ("hidden", c_int64)]


class _Branch(Structure):
    _fields_ = [
        *(("norm", _Norm), ("network", _Network), ("router", _Matrix), ("experts", c_void_p)),
        *fields(c_int64, "n_experts top_k"),
    ]


class _Layer(Structure):
    _fields_ = [
        *fields(_Norm, "attention_norm query_norm key_norm"),
        *fields(_Matrix, "query key value output"),
        ("log_lambda", c_void_p),
        ("branches", _Branch * _MOST_BRANCHES),
    ]


class _Decode(Structure):
    _fields_ = [
        ("layers", c_void_p),
        *fields(_Matrix, "embedding head"),
        *fields(_Norm, "embedding_norm final_norm"),
        *fields(c_void_p, "positions cosines sines slopes keys values tokens logits"),
        *fields(c_int64, "n_layers branches batch chunk width heads key_heads head_width"),
        *fields(c_int64, "vocabulary lambdas capacity length"),
        ("scale", c_float),
        *fields(c_int32, "kind activation threads grouped"),
    ]


_kernel = Native("decode step", _Decode, _VERSION)


def objection(model: LanguageModel) -> str | None:
    """Why the compiled step cannot stand in for ``model`` as it is now, or None."""
    if _kernel.missing:
        return _kernel.missing
    if model.training:
        return "the model is in training"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    try:
        _Reader().model(model)
    except _UnknownPartError as error:
        return str(error)
    return None


class _UnknownPartError(Exception):
    """A part of a model that the step does not compute; the message says which."""


def _known_block(block: nn.Module) -> Block:
    if type(block) is Block or type(block) is DoubleBlock:
        if type(block.attention) is SelfAttention:
            return block
        block = block.attention
    raise _UnknownPartError(f"it does not know a {type(block).__name__}")


class _Reader:
    """Fills the structures from a model's parts, and remembers what it has read."""

    def __init__(self) -> None:
        self.kept: list[object] = []

    def model(self, model: LanguageModel) -> _Decode:
        """Everything but the cache, the tokens and how to run."""
        if type(model) is not Transformer:
            raise _UnknownPartError(f"it is no plain transformer, but {type(model).__name__}")
        config, blocks = model.config, list(map(_known_block, model.blocks))
        layers = (_Layer * config.n_layers)(*map(self._layer, blocks))
        first, options = blocks[0].attention, config.attention
        arguments = _Decode(
            layers=addressof(layers),
            embedding=self._matrix(model.embedding),
            head=self._matrix(model.head or model.embedding),
            embedding_norm=self._norm(model.embedding_norm),
            final_norm=self._norm(model.final_norm),
            positions=None if model.positions is None else self._numbers(model.positions.matrix()),
            slopes=self._numbers(first.slopes),
            n_layers=config.n_layers,
            branches=len(blocks[0].branches()),
            width=config.d_model,
            heads=config.n_heads,
            key_heads=config.resolved_kv_heads,
            head_width=config.d_head,
            vocabulary=model.vocab_size,
            lambdas=1 if first.log_lambda is None else len(first.log_lambda),
            scale=default_scale(options.kind, config.d_head)
            * (options.lambda_init if first.log_lambda is None else 1.0),
            kind=KINDS.index(options.kind),
            activation=_ACTIVATIONS.index(config.activation),
            grouped=any(p.dtype == torch.int8 for p in model.parameters()),
        )
        self.kept += [] if model.positions is None else model.positions.parameters()
        read = set(map(id, self.kept))
        for name, parameter in model.named_parameters():
            if id(parameter) not in read:
                raise _UnknownPartError(f"it does not know the parameter {name}")
        self.kept.append(layers)
        return arguments

    def _layer(self, block: Block) -> _Layer:
        attention, branches = block.attention, block.branches()
        return _Layer(
            *map(self._norm, (block.attention_norm, attention.query_norm, attention.key_norm)),
            *map(self._matrix, (attention.query, attention.key)),
            *map(self._matrix, (attention.value, attention.output)),
            self._numbers(attention.log_lambda),
            (_Branch * _MOST_BRANCHES)(*(self._branch(*branch) for branch in branches)),
        )

    def _branch(self, norm: nn.Module, network: nn.Module) -> _Branch:
        if type(network) is not MixtureOfExperts:
            return _Branch(self._norm(norm), self._network(network))
        experts = (_Network * len(network.experts))(*map(self._network, network.experts))
        self.kept.append(experts)
        return _Branch(
            self._norm(norm), self._network(network.shared), self._matrix(network.router),
            addressof(experts), len(experts), network.top_k,
        )  # fmt: skip

    def _network(self, network: nn.Module | None) -> _Network:
        if network is None:
            return _Network()
        if type(network) is not FeedForward:
            raise _UnknownPartError(f"it does not know a {type(network).__name__}")
        matrices = map(self._matrix, (network.up, network.gate, network.down))
        return _Network(*matrices, network.hidden)

    def _matrix(self, part: Linear | Embedding | PackedWeights | None) -> _Matrix:
        if part is None:
            return _Matrix()
        stored = part.stored() if isinstance(part, PackedWeights) else StoredMatrix(part.matrix())
        return _Matrix(
            self._numbers(stored.values, _STORED),
            self._numbers(stored.scales),
            self._numbers(getattr(part, "bias", None)),
            stored.group,
            0 if stored.scales is None else stored.scales.shape[1],
            _STORED.index(stored.values.dtype),
        )

    def _norm(self, part: nn.Module) -> _Norm:
        if isinstance(part, nn.Identity):
            return _Norm()
        if not isinstance(part, RMSNorm | nn.LayerNorm):
            raise _UnknownPartError(f"it does not know a {type(part).__name__}")
        shift = self._numbers(getattr(part, "bias", None))
        return _Norm(self._numbers(part.weight), shift, part.eps)

    def _numbers(
        self, numbers: Tensor | None, dtypes: Sequence[torch.dtype] = _STORED[:1]
    ) -> int | None:
        """Where they lie, or None if there are none."""
        if numbers is None:
            return None
        if numbers.dtype not in dtypes or numbers.device.type != "cpu":
            raise _UnknownPartError(f"its numbers are {numbers.dtype} on {numbers.device}")
        if not numbers.is_contiguous():
            raise _UnknownPartError("its numbers do not lie row by row")
        self.kept.append(numbers)
        return numbers.data_ptr()


class PlainStep:
    """Reads tokens of each sequence and says what follows, appending to a cache if there is one."""

    def __init__(self, model: LanguageModel, cache: KeyValueCache | None) -> None:
        self._model, self._cache = model, cache

    def __call__(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V) float32, on the CPU, of the token after ``tokens`` (B, T)."""
        inputs = torch.tensor(tokens, device=self._model.device)
        return self._model.logits(self._model.hidden(inputs, self._cache)[:, -1]).cpu()


class DecodeStep(PlainStep):
    """Reads tokens of each sequence by compiled code: one, or a prompt in chunks.

    The addresses of weights and cache are taken once, so neither may be replaced while the step
    is in use; that a weight's numbers change is no harm.
    """

    def __init__(self, model: LanguageModel, cache: KeyValueCache) -> None:
        """Prepare for a model without :func:`objection` and its cache."""
        assert isinstance(model, Transformer)
        assert not model.training
        super().__init__(model, cache)
        reader = _Reader()
        self._kept = reader.kept
        batch = cache.keys.shape[1]
        self._tokens = (c_int64 * max(batch, _ROWS))()
        self._shape = (batch, model.vocab_size)
        self._limit = cache.capacity
        if model.positions is not None:
            self._limit = min(self._limit, len(model.positions.matrix()))
        self._arguments = arguments = reader.model(model)
        arguments.batch, arguments.capacity = batch, cache.capacity
        arguments.keys, arguments.values = cache.keys.data_ptr(), cache.values.data_ptr()
        arguments.tokens = addressof(self._tokens)
        rotary = _known_block(model.blocks[0]).attention.rotary
        if rotary is not None:
            cosines, sines = rotary.rows(0, self._limit, torch.device("cpu"))
            arguments.cosines, arguments.sines = cosines.data_ptr(), sines.data_ptr()
            self._kept += [cosines, sines]

    def __call__(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V) float32 of the token after ``tokens`` (B, T).

        Raises:
            IndexError: a token is not in the vocabulary.
            ResourceError: no memory.
        """
        arguments, cache, count = self._arguments, self._cache, len(tokens[0])
        assert cache is not None
        if count > _MOST_PORTABLE and not has_wide_vectors():
            return super().__call__(tokens)
        assert cache.length + count <= self._limit, f"no room behind {cache.length} tokens"
        if min(map(min, tokens)) < 0 or max(map(max, tokens)) >= arguments.vocabulary:
            raise IndexError(f"a token of {tokens} is not in the vocabulary")
        logits = torch.empty(self._shape)
        arguments.threads = torch.get_num_threads()
        longest = max(_ROWS // len(tokens), 1)
        for start in range(0, count, longest):
            chunk = [row[start : start + longest] for row in tokens]
            arguments.chunk, arguments.length = len(chunk[0]), cache.length
            arguments.logits = logits.data_ptr() if start + longest >= count else None
            self._tokens[: len(chunk) * len(chunk[0])] = [*chain.from_iterable(chunk)]
            _kernel(arguments)
            cache.length += len(chunk[0])
        return logits


def _sample(device: str) -> LanguageModel:
    config = ModelConfig(d_model=8, n_layers=1, n_heads=1)
    return Transformer(config, vocab_size=2, max_positions=2).to(device).eval()


#: A step is made of (model, cache); the request is the model, as it is now.
DECODE: Operation[LanguageModel] = Operation(
    "decode step",
    {
        "cpu": Variant(lambda: "one call of compiled code", objection, DecodeStep, REMEDY),
        "torch": Variant(lambda: "the model layer by layer", no_objection, PlainStep),
    },
    _sample,
)
