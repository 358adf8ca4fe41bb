"""The transformers figure against the documentation's own loop on the exported model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.data.prepare import tokenize_text
from infinito.evaluate.evaluation import EvaluationOptions
from infinito.load import load_model
from tests.command_support import infinito
from tests.evaluation_support import evaluated
from tests.integration.test_export_hf import CASES, trained
from tests.support import write_text


def documented(model: Any, ids: torch.Tensor, context: int, stride: int) -> float:
    """Perplexity as the documentation computes it, window by window, with the model's own loss."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + context, ids.shape[1])
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : -(end - previous)] = -100
        with torch.no_grad():
            mean = float(model(window, labels=labels).loss)
        counted = int((labels != -100).sum()) - 1
        total, count, previous = total + mean * counted, count + counted, end
        if end == ids.shape[1]:
            break
    return math.exp(total / count)


@pytest.mark.parametrize("context", [2, 7, 40, 5000])
def test_the_figure_is_that_of_the_documented_loop(
    context: int, exported: tuple[Path, Path]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, folder = exported
    text = write_text(folder / "some.txt", paragraphs=2, seed=9)
    loaded = load_model(path, "cpu")
    store = tokenize_text(str(text), loaded.tokenizer)
    request = EvaluationOptions(context=context, all_conventions=True)
    report = evaluated(loaded, store, "text", "x", request)
    figure = report.to_plain()["conventions"]["token_perplexity_hugging_face"]
    rows = [line if line.strip() else "" for line in text.open()]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("\n\n".join(rows), return_tensors="pt").input_ids
    stride = 512 if context > 512 else context // 2
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert figure == pytest.approx(documented(model, ids, context, stride), rel=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and the folder for transformers that was made of it."""
    place = tmp_path_factory.mktemp("exported")
    path, folder = trained(place, **CASES["Qwen3ForCausalLM"]), place / "folder"
    assert infinito("export", path, "--to", "hf", "--output", folder).code == 0
    return path, folder
