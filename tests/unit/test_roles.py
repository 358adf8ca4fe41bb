"""What layers say of their parameters: complete, and what optimizers and counts rely on."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from infinito.config.model_config import ModelConfig
from infinito.model.roles import Role, declared_parameters
from infinito.model.transformer import Transformer
from tests.support import ROOT

SHAPES: list[dict[str, Any]] = [
    {},
    {"attention": {"kind": "l1"}, "activation": "swiglu", "tie_embeddings": False},
    {"position": "learned", "qk_norm": False, "n_kv_heads": 2},
    {"moe": {"n_experts": 5, "top_k": 2, "n_shared": 1}, "activation": "swiglu", "d_ff": 48},
    {"block": "double", "second_d_ff": 24, "position": "learned", "attention": {"kind": "l2sq"}},
]


def build(changes: dict[str, Any]) -> Transformer:
    return Transformer(ModelConfig(**{"d_model": 32, "n_layers": 2, **changes}), 50, 24)


@pytest.mark.parametrize("changes", SHAPES)
def test_every_parameter_has_one_role_that_fits_its_shape(changes: dict[str, Any]) -> None:
    model = build(changes)
    declared = list(declared_parameters(model))
    for (name, parameter, role), (expected, other) in zip(
        declared, model.named_parameters(), strict=True
    ):
        assert name == expected
        assert parameter is other
        assert (parameter.ndim == 2) == (role in (Role.MATRIX, Role.TABLE, Role.ROUTER))
        in_a_block = name.startswith("blocks.")
        assert (role is Role.ROUTER) == ("router" in name)
        assert (role in (Role.MATRIX, Role.ROUTER)) == (in_a_block and parameter.ndim == 2)
        assert (role is Role.LAMBDA) == ("lambda" in name)
        assert (role is Role.GAIN) == ("norm" in name)


def test_a_parameter_that_nobody_declared_is_no_parameter_of_a_model() -> None:
    model = build({})
    model.blocks[1].add_module("stranger", nn.Linear(3, 3))
    with pytest.raises(AssertionError, match=r"blocks\.1\.stranger\.weight"):
        list(declared_parameters(model))


@pytest.mark.parametrize("changes", SHAPES)
def test_first_weights_have_the_deviations_of_their_kind(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{"d_model": 128, "n_layers": 3, **changes}), 400, 300)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.ndim == 2:
            expected = parameter.shape[1] ** -0.5
            if name in ("embedding.weight", "positions.weight") or "router" in name:
                expected = 0.02
            if name.endswith(("output.weight", "down.weight")):
                expected /= 6**0.5  # two branches a layer
            assert parameter.std().item() == pytest.approx(expected, rel=0.05)


def test_shapes_are_planned_without_loading_the_compiler() -> None:
    """Drawing numbers on torch's meta device imports all of torch.compile, two seconds."""
    script = (
        "import sys; from infinito.config.schema import Config; "
        "config = Config(data={'source': 'python-docs'}); "
        "from infinito.load import planned_model; planned_model(config, 300); "
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"
