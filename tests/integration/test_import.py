"""infinito import: folders that transformers wrote say the same as checkpoints of ours."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.load import load_model
from tests.command_support import infinito, memory_at_most, write_config
from tests.support import write_text

_SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 1,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 24, "rms_norm_eps": 1e-5},
    "llama": {
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
    },
}


def write_tokenizer(folder: Path) -> Any:
    """A byte-level pair code as others make it: special tokens first, its own way to split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    library.train([str(write_text(folder / "text.txt"))], trainer)
    library.add_tokens([AddedToken("<think>", special=False)])
    library.save(str(folder / "tokenizer.json"))
    return library


def write_folder(folder: Path, name: str, shard: str = "1GB", **changes: Any) -> Any:
    """A random model saved by transformers, and its tokenizer."""
    import transformers

    folder.mkdir()
    library = write_tokenizer(folder)
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        name, **{**_SHAPE, "vocab_size": 320, "initializer_range": 0.2, **CASES[name], **changes}
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size=shard)
    return model, library


@pytest.mark.parametrize("name", CASES)
def test_an_imported_model_says_the_same(name: str, tmp_path: Path) -> None:
    folder, path = tmp_path / "folder", tmp_path / "model.pt"
    theirs, library = write_folder(folder, name, "20KB" if name == "qwen3" else "1GB")
    assert (folder / "model.safetensors").exists() == (name == "llama")  # else in shards
    done = infinito("import", folder, "--output", path)
    assert done.code == 0, done.err
    ours = load_model(path, "cpu")
    tokens = torch.randint(320, (2, 60))
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = ours.model.logits(ours.model.hidden(tokens))
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    text = "the cat <think> <|end|> 地é\n\n"
    ids = ours.tokenizer.encode(text)
    assert ours.tokenizer.decode(ids) == text
    assert not {0, 1} & set(ids)  # no text becomes a special token
    plain = "the cat <think> sees\n"
    assert ours.tokenizer.encode(plain) == library.encode(plain, add_special_tokens=False).ids
    report = infinito("evaluate", path, "--text", folder / "text.txt", "--json")
    assert report.code == 0, report.err
    assert json.loads(report.out)["n_words"] > 100
    written = infinito("generate", path, "--prompt", "the cat", "--max-new-tokens", 70)
    assert written.out.startswith("the cat")

    config = write_config(tmp_path, tokenizer={}, model={}, training__init_from=str(path),
                          training__max_steps=2)  # fmt: skip
    assert infinito("train", "--config", config).code == 0
    assert infinito("resume", tmp_path / "run", "--max-steps", 3).code == 0
    back = tmp_path / "back"
    assert infinito("export", tmp_path / "run", "--to", "hf", "--output", back).code == 0
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    assert tokenizer(text).input_ids == [1, *ids]
    assert transformers.AutoModelForCausalLM.from_pretrained(back).config.model_type == name


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": True}, "attention_bias: True"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "linear"),
        ({"model_type": "gpt2"}, "model_type: 'gpt2'"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_hidden_layers": 3}, "blocks.2.attention.key.weight"),
        ({"hidden_size": "32"}, "model.d_model"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"eos_token_id": None}, "eos_token_id"),
    ],
)
def test_what_our_model_lacks_is_named(
    changes: dict[str, Any], named: str, stock: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "folder"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    assert named in infinito("import", folder, "--output", tmp_path / "model.pt").refused(4)
    assert not (tmp_path / "model.pt").exists()


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock") / "folder"
    write_folder(folder, "llama")
    return folder


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def _changed(**entry: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        header, rest = _header(data)
        header["model.layers.0.input_layernorm.weight"] |= entry
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + rest

    return change


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "length": lambda data: struct.pack("<Q", 1 << 62) + data[8:],
    "overlap": _changed(data_offsets=[0, 128]),
    "dtype": _changed(dtype="I32"),
    "shape": _changed(shape=[1 << 40]),
    "cut": lambda data: data[:-1],
    "deep": lambda _: struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
    "pickle": lambda _: b"\x80\x02}q\x00.",
}


@pytest.mark.row("S-05")
@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_folders_are_refused_in_little_memory(
    fault: str, stock: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(stock, tmp_path / "folder"))
    path = folder / "model.safetensors"
    path.write_bytes(HOSTILE[fault](path.read_bytes()))
    with memory_at_most(16 << 20):
        infinito("import", folder, "--output", tmp_path / "model.pt").refused(4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder"]


def test_only_safetensors_inside_the_folder_are_read(stock: Path, tmp_path: Path) -> None:
    folder, output = Path(shutil.copytree(stock, tmp_path / "folder")), tmp_path / "model.pt"
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "pickle" in infinito("import", folder, "--output", output).refused(4)
    for name in ("../outside.safetensors", "pytorch_model.bin", 7):
        index = json.dumps({"weight_map": {"lm_head.weight": name}})
        (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
        assert "no file" in infinito("import", folder, "--output", output).refused(4)
    (tmp_path / "outside.safetensors").rename(folder / "model.safetensors")
    for text in ("{}", '{"model": {"type": "WordLevel"}}', "[" * 5000, '{"model":{"type":"BPE"}}'):
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        infinito("import", folder, "--output", output).refused(3)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in infinito("import", folder, "--output", output).refused(4)
    assert not output.exists()


@pytest.mark.parametrize("command", ["generate", "evaluate", "resume"])
def test_a_folder_in_the_place_of_a_run_is_named_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "a model", "qwen3")
    words = ["--prompt", "The"] if command == "generate" else []
    said = infinito(command, "a model", *words).refused(4)
    [advice] = re.findall("infinito (.*)", said)
    assert infinito(*shlex.split(advice)).code == 0
    if command != "resume":
        text = ["--text", "a model/text.txt"] if command == "evaluate" else []
        assert infinito(command, "NEW.pt", *words, *text).code == 0
