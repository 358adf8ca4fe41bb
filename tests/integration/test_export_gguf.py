"""Files for llama.cpp: gguf's reader finds what the checkpoint holds, llama.cpp says the same."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from infinito.config.loading import config_from_plain
from infinito.generate.engine import generate
from infinito.generate.sampling_config import SamplingConfig
from infinito.load import LoadedModel, load_model
from infinito.train.trainer import Trainer
from tests.command_support import infinito
from tests.support import tiny_settings, write_text

_STOCK = {"model__activation": "swiglu", "model__n_kv_heads": 1}
CASES: dict[str, dict[str, Any]] = {
    "qwen3": _STOCK,
    "llama": {**_STOCK, "model__qk_norm": False, "model__n_heads": 4},
    "odd": {**_STOCK, "model__d_ff": 44, "model__tie_embeddings": False},
}
#: Of the largest number of a matrix: half a step of 11 bits, of 1/127.
ERRORS = {"float32": 0.0, "float16": 2.0**-11, "q8_0": 0.5 / 127 + 2.0**-11}
TEXT = "the cat sat <unk> on\n\n  the<unk> mat 地é don't 12345  ,,; <eos> naïve\t"


def trained(place: Path, **changes: Any) -> Path:
    """A checkpoint after a few steps that moved every weight."""
    changes = {"tokenizer": {"kind": "bpe", "vocab_size": 300}, **changes}
    settings = tiny_settings(
        place, data__sequence_length=96, training__learning_rate=0.02, **changes
    )
    text = place / "text.txt"
    text.write_text(text.read_text(encoding="utf-8") + " of <unk> and" * 40, encoding="utf-8")
    trainer = Trainer(config_from_plain(settings, "test"))
    for _ in range(6):
        trainer.train_step()
    trainer.validate()
    for parameter in trainer.model.parameters():  # what a few steps make writes one token only
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.3)
    trainer.save(place / "model.pt")
    return place / "model.pt"


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", CASES)
def test_the_file_holds_the_checkpoint(name: str, dtype: str, tmp_path: Path) -> None:
    path, target = trained(tmp_path, **CASES[name]), tmp_path / "model.gguf"
    done = infinito("export", path, "--to", "gguf", "--dtype", dtype, "--output", target)
    assert done.code == 0, done.err
    reader = gguf.GGUFReader(target)
    architecture = "llama" if name == "llama" else "qwen3"
    assert reader.get_field("general.architecture").contents() == architecture
    assert reader.get_field(f"{architecture}.context_length").contents() == 96
    stored = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    model: Any = load_model(path, "cpu").model
    inner = model.blocks[1]
    expected = {
        "blk.1.attn_v.weight": inner.attention.value.weight,
        "blk.1.attn_output.weight": inner.attention.output.weight,
        "blk.1.ffn_down.weight": inner.feed_forward.down.weight,
        "output.weight": (model.head or model.embedding).weight,
        "token_embd.weight": model.embedding_norm(model.embedding.weight),
    }
    for key, weight in expected.items():
        error = np.abs(stored[key] - weight.detach().numpy()).max() / weight.abs().max().item()
        assert error <= ERRORS[dtype], key
    assert torch.equal(torch.tensor(stored["output_norm.weight"]), model.final_norm.weight)
    assert ("float16, since rows" in done.err) == (name == "odd" and dtype == "q8_0")
    if dtype == "q8_0":
        assert target.stat().st_size < 0.6 * path.stat().st_size
    says_what_llama_cpp_says(load_model(path, "cpu"), target, exact=dtype == "float32")


def says_what_llama_cpp_says(ours: LoadedModel, file: Path, exact: bool) -> None:
    """Ids, logits and greedy text, where llama-cpp-python is installed."""
    llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    library = llama_cpp.llama_cpp
    silent = library.llama_log_callback(lambda *_: None)
    library.llama_log_set(silent, ctypes.c_void_p(0))
    options = {"n_threads": 1, "logits_all": True, "verbose": False}
    theirs = llama_cpp.Llama(str(file), n_ctx=96, type_k=0, type_v=0, **options)  # 0: float32
    own = [ours.tokenizer.eos_id, *ours.tokenizer.encode(TEXT)]
    assert theirs.tokenize(TEXT.encode(), add_bos=True, special=False) == own
    assert theirs.detokenize(own[1:]).decode() == TEXT
    own = own[:30]
    theirs.eval(own)
    found = torch.tensor(theirs.scores[: len(own)])
    with torch.no_grad():
        expected = ours.model.logits(ours.model.hidden(torch.tensor([own])))[0]
    error = float((found - expected).std() / expected.std())
    assert error < (1e-5 if exact else 0.1)
    if exact:
        greedy = SamplingConfig(max_new_tokens=60, temperature=0, repetition_penalty=1)
        written = generate(ours.model, ours.tokenizer, own[1:], greedy)[0].ids
        assert len(set(written)) > 3, "a constant text would prove nothing"
        for token in written:
            assert int(theirs.scores[theirs.n_tokens - 1].argmax()) == token
            theirs.eval([token])
    theirs.close()


def test_the_chunks_of_evaluate_are_those_of_llama_cpp(tmp_path: Path) -> None:
    llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    path, target = trained(tmp_path, **_STOCK), tmp_path / "model.gguf"
    assert infinito("export", path, "--to", "gguf", "--output", target).code == 0
    text = write_text(tmp_path / "other.txt", paragraphs=9, seed=3)
    told = infinito("evaluate", path, "--text", text, "--all-conventions", "--json")
    found = json.loads(told.out)["conventions"]["token_perplexity_second_half"]

    # As tools/perplexity/perplexity.cpp goes about it, by llama.cpp's own ids and logits.
    options = {"n_threads": 1, "logits_all": True, "verbose": False}
    theirs = llama_cpp.Llama(str(target), n_ctx=96, type_k=0, type_v=0, **options)
    ids = theirs.tokenize(text.read_bytes(), add_bos=True, special=False)
    nats = []
    for start in range(0, len(ids) - 95, 96):
        theirs.reset()
        theirs.eval([theirs.token_bos(), *ids[start + 1 : start + 96]])
        logits = torch.tensor(theirs.scores[48:95]).double()
        targets = torch.tensor(ids[start + 49 : start + 96])
        nats.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    theirs.close()
    assert len(nats) > 2
    assert found == pytest.approx(float(torch.cat(nats).mean().exp()), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"model__attention": {"kind": "l2"}}, ["model.activation: relu2", "model.attention.kind"]),
        ({**_STOCK, "tokenizer": {"kind": "byte"}}, ["tokenizer.kind: byte"]),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused_by_name(
    changes: dict[str, Any], keys: list[str], tmp_path: Path
) -> None:
    path, target = trained(tmp_path, **changes), tmp_path / "model.gguf"
    message = infinito("export", path, "--to", "gguf", "--output", target).refused(2)
    for key in keys:
        assert key in message
    assert not target.exists()


def test_wrong_uses_are_refused(tmp_path: Path) -> None:
    path, target = trained(tmp_path, **_STOCK), tmp_path / "model.gguf"
    wrong = infinito("export", path, "--to", "hf", "--dtype", "q8_0", "--output", target)
    assert "--dtype" in wrong.refused(2)
    target.write_text("mine")
    message = infinito("export", path, "--to", "gguf", "--output", target).refused(6)
    assert f"{target} exists" in message
    assert target.read_text() == "mine"
    assert list(tmp_path.glob("tmp*")) == []


def test_validate_foretells_what_gguf_refuses(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()
    path = trained(place, **_STOCK, tokenizer={"kind": "byte"})
    refused = infinito("export", path, "--to", "gguf", "--output", tmp_path / "x.gguf").refused(2)
    assert "tokenizer.kind: byte" in refused
    config = tmp_path / "c.yaml"
    config.write_text(
        "{data: {train_file: x}, model: {activation: swiglu}, tokenizer: {kind: byte}}",
        encoding="utf-8",
    )
    told = infinito("config", "validate", config).err
    assert "stock qwen3, but no gguf: tokenizer.kind: byte" in told
    for to in ("int8", "safetensors"):  # what is to be typed next, can be
        hint = infinito("export", path, "--to", to, "--output", place / to).err
        assert f"'{place / to}'" in hint
