"""fusion: aggressive compiles the blocks, or says why not and goes on in eager mode."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infinito.config.loading import config_from_plain
from infinito.config.model_config import ModelConfig
from infinito.model.transformer import Transformer
from infinito.train.compilation import compile_blocks
from infinito.train.trainer import Trainer
from tests.support import tiny_settings


def test_a_failing_probe_falls_back_and_is_announced(notes: list[str]) -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(d_model=32, n_layers=2, n_heads=2), 50, 16)
    tokens = torch.randint(0, 50, (2, 16))
    expected = model.hidden(tokens)

    def probe() -> None:
        raise RuntimeError("no compiler\nand a long story")

    assert not compile_blocks(model, probe)
    assert notes == ["fusion: eager, because compiling failed (no compiler)"]
    assert torch.equal(model.hidden(tokens), expected)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs g++")
def test_compiled_training_equals_eager_within_rounding(tmp_path: Path, notes: list[str]) -> None:
    trainers = []
    for fusion in ("none", "aggressive"):
        plain = tiny_settings(tmp_path, training__fusion=fusion, model__n_layers=1)
        trainer = Trainer(config_from_plain(plain, "test"))
        torch.manual_seed(3)
        for _ in range(3):
            trainer.train_step()
        trainers.append(trainer)
    assert any("blocks compiled in" in note for note in notes), notes
    eager, compiled = trainers
    names = [name for name, _ in compiled.model.named_parameters()]
    assert names == [name for name, _ in eager.model.named_parameters()]
    for a, b in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_experts_are_not_compiled_anew_for_each_text(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: original(self, backend=count))
    torch.manual_seed(0)
    moe = {"n_experts": 4, "top_k": 2}
    model = Transformer(ModelConfig(d_model=32, n_layers=1, n_heads=2, d_ff=48, moe=moe), 60, 64)
    texts = [torch.randint(60, (2, 64)) for _ in range(6)]
    torch._dynamo.reset()
    assert compile_blocks(model, lambda: [model.hidden(text) for text in texts[:2]])
    first = len(graphs)
    for text in texts[2:]:
        model.hidden(text)
    assert 0 < first == len(graphs)
    torch._dynamo.reset()
