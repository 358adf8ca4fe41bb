"""One token through the whole model in one call of compiled code (``csrc``, loaded with ctypes).

The plain twin is ``Transformer.hidden`` with a cache, which spends most of a token's time on
starting small operations; here the weights are read once and little else happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from infinito.attention import KINDS, default_scale, native
from infinito.errors import ResourceError
from infinito.model.attention import SelfAttention
from infinito.model.block import Block
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.language_model import LanguageModel
from infinito.model.layers import Embedding, FeedForward, Linear, RMSNorm
from infinito.model.legacy import DoubleBlock
from infinito.model.packed import PackedWeights, StoredMatrix
from infinito.model.transformer import Transformer

_VERSION = 3
_LIBRARY = Path(__file__).parent / "libdecode.so"
_STORED: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.int8)
_ACTIVATIONS = ("relu2", "gelu", "swiglu")
_MOST_NETWORKS = 4


class _Matrix(ctypes.Structure):
    """Mirror of ``Matrix`` in csrc/decode.h, as the next four are of theirs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("data", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("group", "groups")),
        ("stored", ctypes.c_int32),
    ]


class _Norm(ctypes.Structure):
    _fields_ = [("gain", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("epsilon", ctypes.c_float)]


class _Network(ctypes.Structure):
    _fields_ = [
        ("norm", _Norm),
        *((name, _Matrix) for name in ("up", "gate", "down")),
        ("hidden", ctypes.c_int64),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("attention_norm", "query_norm", "key_norm")),
        *((name, _Matrix) for name in ("query", "key", "value", "output")),
        ("log_lambda", ctypes.c_void_p),
        ("networks", _Network * _MOST_NETWORKS),
    ]


class _Decode(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.c_void_p),
        *((name, _Matrix) for name in ("embedding", "head")),
        *((name, _Norm) for name in ("embedding_norm", "final_norm")),
        *((name, ctypes.c_void_p) for name in ("positions", "cosines", "sines", "slopes")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "tokens", "logits")),
        *((name, ctypes.c_int64) for name in ("n_layers", "networks", "batch", "width")),
        *((name, ctypes.c_int64) for name in ("heads", "key_heads", "head_width")),
        *((name, ctypes.c_int64) for name in ("vocabulary", "lambdas", "capacity", "length")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("kind", "activation", "threads", "isa")),
    ]


@cache
def _load() -> ctypes.CDLL | str:
    return native.load(_LIBRARY, "decode", _Decode, _VERSION)


def why_missing() -> str | None:
    """Why there is no compiled decode step on this machine, or None."""
    library = _load()
    return library if isinstance(library, str) else None


def available_isas() -> tuple[str, ...]:
    """Instruction sets of the library that this processor has, the slowest first."""
    return native.ISAS[: _library().infinito_decode_best_isa() + 1]


def _library() -> ctypes.CDLL:
    library = _load()
    if isinstance(library, str):
        raise ResourceError(library, "install again with a C compiler")
    return library


def objection(model: LanguageModel) -> str | None:
    """Why the compiled step cannot stand in for ``model`` as it is now, or None."""
    if missing := why_missing():
        return missing
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
            layers=ctypes.addressof(layers),
            embedding=self._matrix(model.embedding),
            head=self._matrix(model.head or model.embedding),
            embedding_norm=self._norm(model.embedding_norm),
            final_norm=self._norm(model.final_norm),
            positions=None if model.positions is None else self._numbers(model.positions.matrix()),
            slopes=self._numbers(first.slopes),
            n_layers=config.n_layers,
            networks=len(blocks[0].branches()),
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
            (_Network * _MOST_NETWORKS)(*(self._network(*branch) for branch in branches)),
        )

    def _network(self, norm: nn.Module, network: nn.Module) -> _Network:
        if type(network) is not FeedForward:
            raise _UnknownPartError(f"it does not know a {type(network).__name__}")
        matrices = map(self._matrix, (network.up, network.gate, network.down))
        return _Network(self._norm(norm), *matrices, network.hidden)

    def _matrix(self, part: Linear | Embedding | PackedWeights | None) -> _Matrix:
        if part is None:
            return _Matrix()
        if isinstance(part, PackedWeights):
            stored, dtypes = part.stored(), _STORED
        else:
            stored, dtypes = StoredMatrix(part.matrix()), _STORED[:1]
        return _Matrix(
            self._numbers(stored.values, dtypes),
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


class DecodeStep:
    """Reads one token of each sequence and says what follows, appending to a cache.

    The addresses of weights and cache are taken once, so neither may be replaced while the step
    is in use; that a weight's numbers change is no harm.
    """

    def __init__(self, model: LanguageModel, cache: KeyValueCache, isa: str | None = None) -> None:
        """Prepare for a model without :func:`objection` and its cache; ``isa`` is for tests."""
        assert isinstance(model, Transformer)
        assert not model.training
        reader = _Reader()
        self._cache, self._kept = cache, reader.kept
        batch = cache.keys.shape[1]
        self._tokens = (ctypes.c_int64 * batch)()
        self._shape = (batch, model.vocab_size)
        self._limit = cache.capacity
        if model.positions is not None:
            self._limit = min(self._limit, len(model.positions.matrix()))
        self._call = _library().infinito_decode_step
        self._arguments = arguments = reader.model(model)
        arguments.batch, arguments.capacity = batch, cache.capacity
        arguments.keys, arguments.values = cache.keys.data_ptr(), cache.values.data_ptr()
        arguments.tokens = ctypes.addressof(self._tokens)
        arguments.isa = native.AUTOMATIC_ISA if isa is None else native.ISAS.index(isa)
        rotary = _known_block(model.blocks[0]).attention.rotary
        if rotary is not None:
            cosines, sines = rotary.rows(0, self._limit, torch.device("cpu"))
            arguments.cosines, arguments.sines = cosines.data_ptr(), sines.data_ptr()
            self._kept += [cosines, sines]
        self._reference = ctypes.byref(arguments)

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """Logits (B, V) float32 of the token after each of ``tokens`` (B,).

        Raises:
            IndexError: a token is not in the vocabulary.
            ResourceError: no memory.
        """
        arguments, cache = self._arguments, self._cache
        assert cache.length < self._limit, f"no room behind {cache.length} tokens"
        if min(tokens) < 0 or max(tokens) >= arguments.vocabulary:
            raise IndexError(f"a token of {list(tokens)} is not in the vocabulary")
        self._tokens[:] = list(tokens)
        logits = torch.empty(self._shape)
        arguments.logits = logits.data_ptr()
        arguments.length = cache.length
        arguments.threads = torch.get_num_threads()
        status = self._call(self._reference)
        if status == 1:
            raise ResourceError("no memory for a decode step", "decode fewer samples at once")
        assert status == 0, f"the decode step returned {status}"
        cache.length += 1
        return logits
