"""Folders for transformers: what its own classes load from them says what our checkpoint says."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.config.loading import config_from_plain
from infinito.data.sources import open_corpus
from infinito.export.hugging_face import write_tokenizer
from infinito.export.model_card import model_card
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.load import load_model, open_checkpoint
from infinito.tokenizer.tokenizer import train_tokenizer
from infinito.train.trainer import Trainer
from tests.command_support import infinito
from tests.support import tiny_settings, wikitext2_dir

_STOCK = {"model__activation": "swiglu", "model__n_kv_heads": 1}
_OWN = {
    "model__attention": {"kind": "l2"},
    "model__position": "alibi",
    "model__moe": {"n_experts": 3},
}
CASES = {
    "Qwen3ForCausalLM": {**_STOCK, "tokenizer": {"kind": "bpe", "vocab_size": 290}},
    "LlamaForCausalLM": {**_STOCK, "model__qk_norm": False, "tokenizer": {"kind": "word"}},
    "InfinitoForCausalLM": {**_OWN, "training__ema_decay": 0.5},
}


def trained(place: Path, **changes: object) -> Path:
    """A checkpoint after a few steps that moved every weight."""
    settings = tiny_settings(
        place, data__sequence_length=160, training__learning_rate=0.02, **changes
    )
    trainer = Trainer(config_from_plain(settings, "test"))
    for _ in range(6):
        trainer.train_step()
    trainer.validate()
    trainer.save(place / "model.pt")
    return place / "model.pt"


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_what_was_exported(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, folder = trained(tmp_path, **CASES[name]), tmp_path / "folder"
    done = infinito("export", path, "--to", "hf", "--output", folder)
    assert done.code == 0, done.err
    if name == "InfinitoForCausalLM":
        assert "load it after `import infinito.hf`" in done.err
        assert "model.moe.n_experts: 3" in done.err
        importlib.import_module("infinito.hf")
    ours = load_model(path, "cpu")
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == name
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")[:600]
    for odd in (text, "", " <eos> <unk>a", "地é\u2003b\x85c\x0bd\r\n\n e ", "<|endoftext|>"):
        own = [ours.tokenizer.eos_id, *ours.tokenizer.encode(odd)]
        assert tokenizer(odd).input_ids == own
        assert tokenizer.decode(own[1:]) == ours.tokenizer.decode(own[1:])
    tokens = torch.tensor([tokenizer(text).input_ids[:100]])
    with torch.no_grad():
        found = theirs(tokens).logits
        torch.testing.assert_close(
            found, ours.model.logits(ours.model.hidden(tokens)), rtol=0, atol=1e-5
        )
    prompt = tokenizer("the cat", return_tensors="pt")
    greedy = SamplingConfig(max_new_tokens=128, temperature=0.0, repetition_penalty=1.0)
    expected = generate(ours.model, ours.tokenizer, prompt.input_ids[0, 1:].tolist(), greedy)[0].ids
    written = theirs.generate(**prompt, do_sample=False, max_new_tokens=128, repetition_penalty=1.0)
    assert written[0, prompt.input_ids.shape[1] :].tolist() == expected
    assert theirs.generation_config.top_k == 50
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{ours.step} steps" in card
    assert "license:" in card


@pytest.mark.skipif(wikitext2_dir() is None, reason="no WikiText-2 beside the checkout")
@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_wikitext_has_the_same_ids(kind: str, tmp_path: Path) -> None:
    """Trained on the validation text, so that the test text has words it never saw."""
    from transformers import PreTrainedTokenizerFast

    config = config_from_plain(
        {"data": {"path": str(wikitext2_dir())},
         "tokenizer": {"kind": kind, "vocab_size": 3000}}, "test"
    )  # fmt: skip
    corpus = open_corpus(config.data)
    tokenizer = train_tokenizer(config.tokenizer, corpus.documents("valid"))
    write_tokenizer(tmp_path, tokenizer, 256)
    theirs: Any = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for split in ("valid", "test"):
        documents = list(corpus.documents(split))
        own = [[tokenizer.eos_id, *ids] for ids in tokenizer.encode_batch(documents)]
        assert theirs(documents).input_ids == own


def test_texts_padded_on_the_left_are_refused_by_our_own_class(tmp_path: Path) -> None:
    from infinito.hf import InfinitoConfig, InfinitoForCausalLM

    model = InfinitoForCausalLM(InfinitoConfig({"d_model": 8, "n_heads": 1, "n_layers": 1}))
    tokens = torch.tensor([[0, 5, 6], [4, 5, 6]])
    with pytest.raises(ValueError, match="pad on the right"):
        model(tokens, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    loss = model(tokens, attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]), labels=tokens).loss
    assert loss.isfinite()


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    path, folder = trained(tmp_path), tmp_path / "folder"
    int8 = tmp_path / "int8.pt"
    assert infinito("export", path, "--to", "int8", "--output", int8).code == 0
    assert "eight bits" in infinito("export", int8, "--to", "hf", "--output", folder).refused(4)
    assert infinito("export", path, "--to", "hf", "--output", folder).code == 0
    before = sorted(file.name for file in tmp_path.iterdir())
    assert "exists" in infinito("export", path, "--to", "hf", "--output", folder).refused(6)
    infinito("export", path, "--to", "hf", "--output", tmp_path / "no" / "where").refused(6)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_the_card_of_a_model_that_others_began_says_so(tmp_path: Path) -> None:
    opened = open_checkpoint(trained(tmp_path))
    assert "trained from scratch" in model_card(opened, "x", [])
    training = opened.config.training.model_copy(update={"init_from": "/far/other.pt"})
    opened = replace(opened, config=opened.config.model_copy(update={"training": training}))
    card = model_card(opened, "x", [])
    assert "trained from the weights of other.pt" in card
    assert "scratch" not in card
    opened.content["data"] = {}  # as in an imported checkpoint
    card = model_card(opened, "x", [])
    assert "imported with infinito" in card
    assert "licence of the text: that of its authors" not in card
