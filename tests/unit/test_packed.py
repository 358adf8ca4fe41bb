"""Weights stored in bfloat16 or int8: what they stand for, and the step that reads them."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from infinito.config.schema import TokenizerConfig
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.kernels import native
from infinito.model import decode
from infinito.model.packed import StoredMatrix, pack, packable, to_bfloat16, to_int8
from infinito.tokenizer.tokenizer import train_tokenizer
from tests.decode_support import POSITIONS, PROMPT, SHAPES, build, prompted, said_by

missing = decode._kernel.missing
needs_step = pytest.mark.skipif(missing is not None, reason=str(missing))
ISAS = native.available_isas()
STORES: dict[str, Callable[[Tensor], StoredMatrix]] = {
    "bfloat16": to_bfloat16,
    "int8": to_int8,
    "int8 by row": lambda weight: to_int8(weight, weight.shape[1]),
    "int8 by 16": lambda weight: to_int8(weight, 16),
    "int8 by 48": lambda weight: to_int8(weight, 48),
}


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(("width", "group"), [(37, 37), (37, 16), (64, 32), (100, 64), (8, 64)])
def test_int8_by_its_definition(width: int, group: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, width) * torch.tensor([[1.0], [0.0], [100.0]])
    stored = to_int8(weight, group)
    floats, scales = stored.as_float().tolist(), stored.scales
    assert scales is not None
    for row in range(3):
        for column in range(width):
            value = int(stored.values[row, column])
            scale = float(scales[row, column // group])
            assert floats[row][column] == pytest.approx(value * scale, rel=1e-6)


def test_a_weight_that_is_no_number_stays_none() -> None:
    weight = torch.ones(2, 40)
    weight[1, 20] = torch.nan
    assert to_int8(weight, 16).as_float()[1, 16:32].isnan().all()
    assert to_int8(weight, 16).as_float()[0].isfinite().all()


def packed_pair(store: Callable[[Tensor], StoredMatrix], **shape: Any) -> tuple[Any, Any]:
    """A model with packed matrices, and a float32 one of the numbers that those stand for."""
    packed, twin = build(**shape), build(**shape)
    for model in (packed, twin):
        model.blocks[0].attention.output.weight[1] = 0
    for name in packable(packed):
        weight = twin.get_parameter(name)
        weight.copy_(store(weight).as_float())
    pack(packed, packable(packed), store)
    return packed, twin


@needs_step
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "name", ["plain", "odd", "grouped", "untied", "learned", "l1", "double", "experts"]
)
def test_the_step_on_packed_weights_equals_the_twin_in_float32(
    name: str, store: str, batch: int, isa: str
) -> None:
    packed, twin = packed_pair(STORES[store], **SHAPES[name])
    assert decode.objection(packed) is None
    tokens = torch.randint(0, 300, (batch, PROMPT + 6))
    plain, ours, slow = (prompted(model, tokens) for model in (twin, packed, packed))
    step = decode.DecodeStep(packed, ours)
    for column in tokens[:, PROMPT:].unbind(1):
        expected = said_by(twin, column, plain)
        with native.forced_isa(isa):
            found = step(column[:, None].tolist())
        # Where the processor multiplies bytes, activations have sixteen bits.
        by_bytes = "int8" in store and isa == "avx512"
        nearly = 6e-4 * float(expected.std()) if by_bytes else 1e-4
        torch.testing.assert_close(found, expected, atol=nearly, rtol=1e-5)
        torch.testing.assert_close(said_by(packed, column, slow), expected, atol=1e-4, rtol=1e-5)
    assert expected.std() > 0.05, "constant logits would prove nothing"


def guarded(x: Tensor) -> Tensor:
    """A copy of x whose last number lies at the end of readable memory."""
    size, page = x.numel() * x.element_size(), mmap.PAGESIZE
    length = -(-size // page) * page
    memory = mmap.mmap(-1, length + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + length), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=length - size)
    return copy.view(x.shape).copy_(x)


def at_the_end(stored: StoredMatrix) -> StoredMatrix:
    return replace(stored, values=guarded(stored.values))


@needs_step
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("store", ["float32", *STORES])
@pytest.mark.parametrize("widths", [(30, 37), (44, 44), (64, 50)])
def test_nothing_behind_a_matrix_is_read(widths: tuple[int, int], store: str, isa: str) -> None:
    options = {"n_heads": 2, "d_ff": widths[1], "tie_embeddings": False, "position": "learned"}
    model = build(d_model=widths[0], activation="swiglu", **options)

    if store == "float32":
        for name in packable(model):
            model.get_parameter(name).data = guarded(model.get_parameter(name))
    else:
        pack(model, packable(model), lambda weight: at_the_end(STORES[store](weight)))
    step = decode.DecodeStep(model, model.new_cache(3, POSITIONS))
    with native.forced_isa(isa):
        assert step([[1], [2], [299]]).isfinite().all()


@needs_step
@pytest.mark.parametrize(
    "place", ["embedding", "blocks.1.attention.output", "blocks.0.feed_forward.up"]
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_packed_weight_that_is_no_number_reaches_the_logits(place: str, value: float) -> None:
    model = build(**SHAPES["grouped"])
    model.get_parameter(f"{place}.weight")[7] = value
    pack(model, packable(model))
    step = decode.DecodeStep(model, model.new_cache(1, POSITIONS))
    assert not step([[7]]).isfinite().all()


@needs_step
@pytest.mark.parametrize("store", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["grouped", "experts", "odd"])
def test_a_row_of_a_packed_model_has_the_same_bits_in_any_batch(name: str, store: str) -> None:
    model = build(**SHAPES[name])
    pack(model, packable(model), STORES[store])
    tokens = torch.randint(0, 300, (7, 12)).tolist()
    together = decode.DecodeStep(model, model.new_cache(7, POSITIONS))
    alone = decode.DecodeStep(model, model.new_cache(1, POSITIONS))
    for column in zip(*tokens, strict=True):
        expected = together([[token] for token in column])[3]
        assert torch.equal(alone([[column[3]]])[0], expected)


@needs_step
def test_some_matrices_may_stay_as_they_are() -> None:
    packed, twin = build(**SHAPES["plain"]), build(**SHAPES["plain"])
    pack(packed, [name for name in packable(packed) if ".output" in name])
    for block in twin.blocks:
        weight = block.attention.output.weight
        weight.copy_(to_int8(weight).as_float())
    step = decode.DecodeStep(packed, packed.new_cache(1, POSITIONS))
    expected = said_by(twin, torch.tensor([5]), twin.new_cache(1, POSITIONS))
    torch.testing.assert_close(step([[5]]), expected, atol=1e-4, rtol=1e-5)


def test_a_packed_model_writes_the_same_with_and_without_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="byte"), [])
    tokenizer.per_line_eos = True  # then no id ends a sample, and lengths are certain
    model = build(257, **SHAPES["plain"])
    pack(model, packable(model))
    config = SamplingConfig(max_new_tokens=12, temperature=0)
    fast = generate(model, tokenizer, [1, 2, 3], config)
    monkeypatch.setattr(decode._kernel, "missing", "not today")
    assert generate(model, tokenizer, [1, 2, 3], config) == fast
