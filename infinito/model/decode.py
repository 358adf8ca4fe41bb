"""One token through the whole model in one call of compiled code (``csrc``, loaded with ctypes).

The plain twin is ``Transformer.hidden`` with a cache, which spends most of a token's time on
starting small operations; here the weights are read once and little else happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from infinito.attention import native
from infinito.errors import ResourceError
from infinito.model.attention import SelfAttention
from infinito.model.key_value_cache import KeyValueCache
from infinito.model.language_model import LanguageModel
from infinito.model.transformer import Transformer

_VERSION = 1
_LIBRARY = Path(__file__).parent / "libdecode.so"
_ACTIVATIONS = ("relu2", "gelu", "swiglu")
_LAYER = {
    path.rpartition(".")[2]: f"{path}.weight"
    for path in (
        *("attention_norm", "attention.query", "attention.key", "attention.value"),
        *("attention.query_norm", "attention.key_norm", "attention.output"),
        *("feed_forward_norm", "feed_forward.up", "feed_forward.gate", "feed_forward.down"),
    )
}
_MODEL = {
    name: f"{name}.weight"
    for name in ("embedding", "embedding_norm", "positions", "final_norm", "head")
}


class _Layer(ctypes.Structure):
    """Mirror of ``Layer`` in csrc/decode.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in _LAYER]


class _Decode(ctypes.Structure):
    """Mirror of ``Decode`` in csrc/decode.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("layers", "embedding", "embedding_norm")),
        *((name, ctypes.c_void_p) for name in ("positions", "cosines", "sines", "slopes")),
        *((name, ctypes.c_void_p) for name in ("final_norm", "head", "keys", "values")),
        *((name, ctypes.c_void_p) for name in ("tokens", "logits")),
        *((name, ctypes.c_int64) for name in ("n_layers", "batch", "width", "heads")),
        *((name, ctypes.c_int64) for name in ("key_heads", "head_width", "hidden")),
        *((name, ctypes.c_int64) for name in ("vocabulary", "capacity", "length")),
        *((name, ctypes.c_int32) for name in ("activation", "threads", "isa")),
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


def supports(model: LanguageModel) -> TypeGuard[Transformer]:
    """Whether a compiled step computes what ``model`` does: float32 on a CPU, in evaluation.

    A model with a parameter that the step does not know is one that it does not know.
    """
    config = model.config
    weights = dict(model.named_parameters())
    known = set(_MODEL.values())
    known |= {f"blocks.{n}.{name}" for n in range(config.n_layers) for name in _LAYER.values()}
    return (
        why_missing() is None
        and type(model) is Transformer
        and not model.training
        and weights.keys() <= known
        and config.attention.kind == "dot"
        and config.attention.lambda_init == 1.0
        and config.activation in _ACTIVATIONS
        and all(_readable(weight) for weight in weights.values())
        and not torch.is_autocast_enabled("cpu")
    )


def _readable(weight: Tensor) -> bool:
    plain = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return plain and weight.is_contiguous()


class DecodeStep:
    """Reads one token of each sequence and says what follows, appending to a cache.

    The addresses of weights and cache are taken once, so neither may be replaced while the step
    is in use; that a weight's numbers change is no harm.
    """

    def __init__(self, model: LanguageModel, cache: KeyValueCache, isa: str | None = None) -> None:
        """Prepare for a model that :func:`supports` and its cache; ``isa`` is for tests."""
        assert supports(model)
        config = model.config
        self._cache = cache
        self._kept: list[object] = []
        self._weights = dict(model.named_parameters())
        batch = cache.keys.shape[1]
        self._tokens = (ctypes.c_int64 * batch)()
        self._shape = (batch, model.vocab_size)
        self._limit = cache.capacity
        if model.positions is not None:
            self._limit = min(self._limit, model.max_positions)
        self._call = _library().infinito_decode_step
        self._arguments = _Decode(
            **{field: self._address(name) for field, name in _MODEL.items()},
            layers=ctypes.addressof(self._layers(config.n_layers)),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            tokens=ctypes.addressof(self._tokens),
            n_layers=config.n_layers,
            batch=batch,
            width=config.d_model,
            heads=config.n_heads,
            key_heads=config.resolved_kv_heads,
            head_width=config.d_head,
            hidden=config.resolved_d_ff,
            vocabulary=model.vocab_size,
            capacity=cache.capacity,
            activation=_ACTIVATIONS.index(config.activation),
            isa=native.AUTOMATIC_ISA if isa is None else native.ISAS.index(isa),
        )
        if model.head is None:
            self._arguments.head = self._arguments.embedding
        self._add_positions(model)
        self._reference = ctypes.byref(self._arguments)

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

    def _layers(self, count: int) -> ctypes.Array[_Layer]:
        """The table of the blocks' weights."""
        layers = (_Layer * count)()
        for number, layer in enumerate(layers):
            for field, name in _LAYER.items():
                setattr(layer, field, self._address(f"blocks.{number}.{name}"))
        self._kept.append(layers)
        return layers

    def _add_positions(self, model: Transformer) -> None:
        # All blocks share the table of rotations, and have equal slopes.
        attention = next(m for m in model.modules() if isinstance(m, SelfAttention))
        if attention.rotary is not None:
            cosines, sines = attention.rotary.rows(0, self._limit, torch.device("cpu"))
            self._arguments.cosines, self._arguments.sines = cosines.data_ptr(), sines.data_ptr()
            self._kept += [cosines, sines]
        if attention.slopes is not None:
            self._arguments.slopes = attention.slopes.data_ptr()
            self._kept.append(attention.slopes)

    def _address(self, name: str) -> int | None:
        """Where a weight lies, or None if the model has none of that name."""
        weight = self._weights.get(name)
        return None if weight is None else weight.data_ptr()
