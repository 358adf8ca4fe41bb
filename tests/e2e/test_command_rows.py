"""Rows K, D, E and G through the commands: many wrong or odd inputs in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from infinito.checkpoint.format import read_checkpoint, write_checkpoint
from infinito.cli.main import main
from infinito.config.loading import config_from_plain
from infinito.train.trainer import Trainer
from tests.support import ROOT, tiny_settings, write_text


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Outcome:
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


def clean(outcome: Outcome, code: int) -> str:
    """An expected failure: code, a message, nothing on stdout, no traceback. Returns stderr."""
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert "Traceback" not in outcome.err
    assert "error: " in outcome.err
    return outcome.err


def write_config(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(tmp_path, **changes)), encoding="utf-8")
    return path


WRONG = """\
seed: true
device: gpu
data:
  train_file: text.txt
  sequence_length: 1
tokenizer:
  vocab_size: 5
model:
  d_model: 64.5
  n_layers: 0
  n_heads: "2"
  dropout: 1.0
  qk_norm: 1
  d_ff: false
training:
  max_steps: -3
  epochs: 0
  batch_size: many
  learning_rate: [1]
  optimizer: sgd
  adam_beta1: 1
  save_every: -1
  max_grad_norm: .nan
"""


@pytest.mark.row("K-02")
def test_eighteen_wrong_values_are_told_in_one_go(call: Call, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(WRONG, encoding="utf-8")
    message = clean(call("train", "--config", "wrong.yaml"), 2)
    section, wanted = "", []
    for number, line in enumerate(WRONG.splitlines(), 1):
        key = line.strip().partition(":")[0]
        if not line.startswith(" "):
            section = f"{key}." if line.endswith(":") else ""
        if not line.endswith(":") and key != "train_file":
            prefix = section if line.startswith(" ") else ""
            wanted.append(f"wrong.yaml:{number}: {prefix}{key} = ")
    assert len(wanted) == 18
    assert [expected for expected in wanted if expected not in message] == []
    assert "18 problems in wrong.yaml" in message
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.yaml"]


@pytest.mark.row("K-02")
def test_heads_that_do_not_divide_the_width_are_refused(call: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, model__n_heads=3)
    message = clean(call("train", "--config", config), 2)
    assert "d_model 32 is not a multiple of n_heads 3" in message


@pytest.mark.row("K-01", "K-05")
def test_mistyped_keys_and_settings_create_nothing(call: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, training__lerning_rate=0.1)
    message = clean(call("train", "--config", config), 2)
    assert "did you mean 'training.learning_rate'?" in message
    config = write_config(tmp_path)
    for setting, expected in (
        ("model.n_layers", "expected KEY=VALUE"),
        ("", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("model.n_layers=", "no value after '='"),
        ("model=3", "is a section"),
        ("model.layers=3", "did you mean 'model.n_layers'?"),
    ):
        assert expected in clean(call("train", "--config", config, "--set", setting), 2)
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "tiny.yaml"}


@pytest.mark.row("K-06")
def test_missing_arguments_and_unknown_commands(call: Call, tmp_path: Path) -> None:
    for arguments, named in (
        (["train"], "--config"),
        (["train", "--config", "none.yaml"], "none.yaml"),
        (["resume"], "Missing argument"),
        (["tarin"], "No such command 'tarin'"),
        (["generate", "--promt", "x"], "No such option"),
    ):
        assert named in clean(call(*arguments), 2)
    assert call().code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.row("K-07")
def test_training_from_the_stored_config_gives_the_same_file(call: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path, model__dropout=0.1)
    assert call("train", "--config", config).code == 0
    (tmp_path / "run").rename(tmp_path / "first")
    assert call("train", "--config", "first/config.yaml").code == 0
    for name in ("step-000004.pt", "step-000008.pt", "config.yaml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


@pytest.mark.row("K-08")
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid_and_takes_two_steps(
    path: Path, call: Call, tmp_path: Path
) -> None:
    assert call("config", "validate", path).out == f"{path}: ok\n"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    source = settings["data"].get("source")
    data = _small_wikitext(tmp_path / "wikitext")
    changes = [f"data.path={data}"] if source == "wikitext-2" else []
    # The config's own model, but texts, steps and evaluations that a CPU takes in seconds.
    changes += ["training.batch_size=1", "training.gradient_accumulation_steps=1",
                "training.eval_every=0", "data.sequence_length=32"]  # fmt: skip
    options = [part for change in changes for part in ("--set", change)]
    outcome = call("train", "--config", path, "--max-steps", 2, "--output-dir", "run", *options)
    assert outcome.code == 0, outcome.err
    assert read_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def _small_wikitext(directory: Path) -> Path:
    directory.mkdir()
    for seed, split in enumerate(("train", "valid", "test")):
        write_text(directory / f"{split}.txt", paragraphs=30, seed=seed)
    return directory


@pytest.mark.row("D-01")
def test_useless_texts_are_refused_by_name_and_leave_nothing(call: Call, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, content, expected in (
        ("empty.txt", b"", "(train share) is empty"),
        ("blank.txt", b" \n\n", "nothing but blank lines"),
        ("short.txt", b"abc", "(valid share) is empty"),
        ("bad.txt", b"fine \xff", "offset 5"),
        ("mixed.txt", "caf\u00e9 ".encode() + "caf\u00e9".encode("latin-1"), "offset 9"),
        ("utf16.txt", "text".encode("utf-16"), "offset 0"),
        ("none.txt", None, "does not exist"),
        ("folder", None, "no .txt"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        message = clean(call("train", "--config", config, "--set", f"data.train_file={name}"), 3)
        assert expected in message
        assert name in message
    assert not (tmp_path / "run").exists()


@pytest.mark.row("D-03")
def test_odd_texts_train_and_are_the_same_text(call: Call, tmp_path: Path) -> None:
    """CRLF and a byte order mark are the text's clothes: without them the run is the same."""
    plain = write_text(tmp_path / "plain.txt").read_text(encoding="utf-8")
    valid = write_text(tmp_path / "valid.txt", paragraphs=3, seed=2)
    weights = []
    for name, data in (
        ("plain", plain.encode()),
        ("crlf", plain.replace("\n", "\r\n").encode()),
        ("bom", b"\xef\xbb\xbf" + plain.encode()),
        ("unfinished", plain.rstrip("\n").encode()),
    ):
        (tmp_path / f"{name}.txt").write_bytes(data)
        config = write_config(
            tmp_path, output_dir=name, data__train_file=f"{name}.txt", data__valid_file=str(valid),
            training__max_steps=2,
        )  # fmt: skip
        outcome = call("train", "--config", config)
        assert outcome.code == 0, outcome.err
        weights.append(read_checkpoint(tmp_path / name / "last.pt"))
    assert weights[0]["data"] == weights[1]["data"] == weights[2]["data"] != weights[3]["data"]
    for other in weights[1:3]:
        assert all(other["model"][n].equal(w) for n, w in weights[0]["model"].items())


@pytest.mark.row("D-03")
def test_one_line_of_ten_megabytes_trains(call: Call, tmp_path: Path) -> None:
    (tmp_path / "line.txt").write_bytes(b"word and word " * 720_000)
    valid = write_text(tmp_path / "valid.txt", paragraphs=3)
    config = write_config(
        tmp_path, data__train_file="line.txt", data__valid_file=str(valid), training__max_steps=2
    )
    outcome = call("train", "--config", config)
    assert outcome.code == 0, outcome.err
    assert (
        "train 10080039 tokens" in outcome.err
    )  # an end each, and no document is longer than 2^18


@pytest.mark.row("D-04", "D-06")
def test_an_empty_validation_text_is_refused_and_a_known_one_is_told(
    call: Call, tmp_path: Path
) -> None:
    config = write_config(tmp_path, training__max_steps=2)
    (tmp_path / "valid.txt").write_bytes(b"")
    options = ["train", "--config", config, "--set", "data.valid_file=valid.txt"]
    assert "is empty" in clean(call(*options), 3)
    assert not (tmp_path / "run").exists()
    known = (tmp_path / "text.txt").read_text().splitlines()[0]
    (tmp_path / "valid.txt").write_text(f"{known}\n{'never seen before . ' * 40}\n")
    outcome = call(*options)
    assert outcome.code == 0, outcome.err
    share = 100 * len(known) / (len(known) + len(("never seen before . " * 40).strip()))
    assert f"warning: {share:.1f} % of the validation text" in outcome.err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    content = Trainer(config_from_plain(tiny_settings(folder), "test")).state()
    content["model"]["embedding.weight"] *= 3  # far from uniform, so that choices matter
    write_checkpoint(folder / "model.pt", content)
    return folder / "model.pt"


@pytest.mark.row("D-05")
def test_a_tokenizer_larger_than_the_model_is_refused(
    call: Call, checkpoint: Path, tmp_path: Path
) -> None:
    content = read_checkpoint(checkpoint)
    words = ["<eos>", "<unk>", *(f"w{number}" for number in range(300))]
    content["tokenizer"] = json.dumps(
        {"format": "infinito-tokenizer", "version": 1, "kind": "word", "words": words}
    )
    write_checkpoint(tmp_path / "larger.pt", content)
    for command in (["evaluate"], ["generate", "--prompt", "w1"], ["resume"]):
        message = clean(call(command[0], "larger.pt", *command[1:]), 4)
        assert "302" in message
        assert "257" in message


@pytest.mark.row("E-01")
def test_both_names_of_evaluate_print_the_same_and_write_nothing(
    call: Call, checkpoint: Path
) -> None:
    files = {path: path.read_bytes() for path in checkpoint.parent.iterdir()}
    texts = []
    for command in ("evaluate", "eval", "evaluate"):
        outcome = call(command, checkpoint)
        assert outcome.code == 0, outcome.err
        texts.append([line for line in outcome.out.splitlines() if not line.startswith("time:")])
    assert texts[0] == texts[1] == texts[2]
    assert {path: path.read_bytes() for path in checkpoint.parent.iterdir()} == files


@pytest.mark.row("G-03", "G-05")
def test_extreme_but_legal_options_generate(call: Call, checkpoint: Path) -> None:
    base = ["generate", checkpoint, "--prompt", "the cat", "--seed", 1]
    for options in (
        ["--top-k", 10**6, "--top-p", 1],
        ["--top-p", 1e-9],
        ["--top-p", 0],
        ["--top-k", 0],
        ["--temperature", 1e-6],
        ["--temperature", 1e6],
        ["--repetition-penalty", 1e6],
        ["--max-new-tokens", 60],  # the context is 16
    ):
        outcome = call(*base, "--max-new-tokens", 20, *options)
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith("the cat")
        assert len(outcome.out) > len("the cat\n"), options
    nothing = call(*base, "--max-new-tokens", 0)
    assert (nothing.code, nothing.out) == (0, "the cat\n")


@pytest.mark.row("G-02", "G-07")
def test_greedy_is_one_text_on_stdout_for_every_seed(call: Call, checkpoint: Path) -> None:
    texts = set()
    for options in (["--temperature", 0], ["--greedy"], ["--top-k", 1]):
        for seed, top_p in ((1, 0.1), (2, 1.0)):
            outcome = call(
                "generate", checkpoint, "--prompt", "a dog", *options, "--seed", seed,
                "--top-p", top_p, "--max-new-tokens", 20,
            )  # fmt: skip
            assert outcome.code == 0
            assert "device" in outcome.err
            texts.add(outcome.out)
    assert len(texts) == 1
    assert texts.pop().startswith("a dog")


@pytest.mark.row("G-04")
def test_thirteen_illegal_options_are_refused_by_name(call: Call, checkpoint: Path) -> None:
    illegal = {
        "--temperature": ["-1", "nan", "inf", "warm"], "--top-k": ["-3", "1.5"],
        "--top-p": ["1.5", "-0.1", "nan"], "--repetition-penalty": ["0", "nan"],
        "--max-new-tokens": ["-1"], "--seed": ["-1"],
    }  # fmt: skip
    assert sum(map(len, illegal.values())) == 13
    for option, values in illegal.items():
        for value in values:
            outcome = call("generate", checkpoint, "--prompt", "x", f"{option}={value}")
            assert option in clean(outcome, 2), value


@pytest.mark.row("G-09")
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_greedy_or_not(
    call: Call, checkpoint: Path, tmp_path: Path, broken: float
) -> None:
    content = read_checkpoint(checkpoint)
    content["model"]["embedding.weight"][3, 3] = broken
    write_checkpoint(tmp_path / "broken.pt", content)
    for temperature in (0, 1):
        outcome = call("generate", "broken.pt", "--prompt", "x", "--temperature", temperature)
        assert "not finite" in clean(outcome, 5)
