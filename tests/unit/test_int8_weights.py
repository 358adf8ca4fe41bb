"""Eight bits a weight: how far off a number may be, and what stands in for what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infinito.config.loading import load_config
from infinito.config.model_config import ModelConfig
from infinito.errors import CheckpointError
from infinito.load import open_checkpoint
from infinito.model.packed import GROUP, pack, packable, to_int8
from infinito.model.transformer import Transformer
from infinito.train.trainer import Trainer
from tests.command_support import write_config
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import int8_groups


@given(
    rows=st.integers(1, 5), columns=st.integers(1, 3 * GROUP), exponent=st.integers(-30, 30),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_each_number_is_off_by_half_a_scale_of_its_own_group(
    rows: int, columns: int, exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator) * 2.0**exponent
    stored = to_int8(matrix)
    assert (stored.values.dtype, stored.values.shape) == (torch.int8, matrix.shape)
    assert int(stored.values.abs().max()) == 127  # the largest of a group uses the whole range
    for start in range(0, columns, GROUP):
        part = matrix[:, start : start + GROUP]
        half = part.abs().amax(1, keepdim=True) / 127 / 2
        error = (stored.as_float()[:, start : start + GROUP] - part).abs()
        assert bool((error <= half * 1.001).all())


def test_zeros_and_one_outlier() -> None:
    assert torch.equal(to_int8(torch.zeros(2, 70)).as_float(), torch.zeros(2, 70))
    matrix = torch.full((1, 2 * GROUP), 0.01)
    matrix[0, 0] = 100.0
    restored = to_int8(matrix).as_float()
    assert restored[0, 0] == pytest.approx(100.0)
    # The outlier costs its own group its small numbers, and no other.
    torch.testing.assert_close(restored[0, GROUP:], matrix[0, GROUP:], rtol=0.005, atol=0)


@pytest.mark.parametrize("kind", ["dot", "l1"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_int8_says_nearly_the_same(kind: str, tied: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        d_model=64, n_layers=2, n_heads=2, tie_embeddings=tied, attention={"kind": kind}
    )
    model = Transformer(config, 300, 32).eval()
    tokens = torch.randint(0, 300, (2, 32))
    with torch.no_grad():
        exact = model.logits(model.hidden(tokens))
        pack(model, packable(model))
        near = model.logits(model.hidden(tokens))
    assert not torch.equal(exact, near)
    assert float((near - exact).norm() / exact.norm()) < 0.03
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert kinds["blocks.0.attention.query.weight"] == kinds["embedding.weight"] == torch.int8
    assert all(dtype == torch.float32 for name, dtype in kinds.items() if "norm" in name)


def test_only_matrices_can_be_stored_so() -> None:
    model = Transformer(ModelConfig(d_model=32, n_layers=1, n_heads=2), 50, 8)
    with pytest.raises(CheckpointError, match=r"final_norm\.weight cannot be stored in int8"):
        pack(model, ["final_norm.weight"])


def test_the_table_of_groups_counts_the_file_and_the_perplexity(tmp_path: Path) -> None:
    trainer = Trainer(load_config(write_config(tmp_path)))
    trainer.save(tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    found = list(int8_groups.rows(opened, trainer.dataset.splits["valid"]))
    assert [(row["group"], row["tables"]) for row in found] == [
        ("-", "float32"),
        *((g, t) for g in (32, 64, 128, "per channel") for t in ("int8", "float32")),
    ]
    exact, rest = found[0], {(row["group"], row["tables"]): row for row in found[1:]}
    assert exact["perplexity_change"] == 0
    for row in rest.values():
        ratio = row["word_perplexity"] / exact["word_perplexity"]
        assert ratio == pytest.approx(1 + row["perplexity_change"], rel=1e-9)
        assert row["file_bytes"] < exact["file_bytes"]
        assert row["perplexity_change"] != 0
    tables = 4 * opened.tokenizer.vocab_size * opened.config.model.d_model
    with_tables, without = (rest["per channel", t]["file_bytes"] for t in ("int8", "float32"))
    smaller = without - with_tables
    assert smaller == pytest.approx(0.75 * tables, rel=0.1)
