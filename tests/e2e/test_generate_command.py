"""``infinito generate`` as a user meets it (catalogue rows G-01 to G-09)."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from infinito.checkpoint.format import write_checkpoint
from infinito.cli.main import main
from infinito.config.schema import Config
from infinito.generate import engine
from infinito.model.decode import DECODE
from infinito.model.transformer import Transformer
from infinito.train.trainer import Trainer
from tests.support import ROOT, tiny_settings

pty = pytest.importorskip("pty")  # Windows has none


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Generate = Callable[..., Outcome]


def write_tiny_checkpoint(path: Path, broken: float | None = None) -> Path:
    config = Config.model_validate(tiny_settings(path.parent, model__tie_embeddings=False))
    content = Trainer(config).state()
    weights = content["model"]
    weights["head.weight"] *= 3  # an untrained model is nearly uniform; make choices matter
    if broken is not None:
        weights["embedding.weight"][3, 3] = broken
    write_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("run") / "step-000000.pt")


@pytest.fixture
def generate(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    def call(*options: str, prompt: str | None = "the cat") -> Outcome:
        given = [] if prompt is None else ["--prompt", prompt]
        fixed = ["--device", "cpu", "--max-new-tokens", "20"]
        code = main(["generate", str(checkpoint), *fixed, *given, *options])
        return Outcome(code, *capsys.readouterr())

    return call


def piped(checkpoint: Path, *options: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "infinito", "generate", str(checkpoint), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, check=False, timeout=60, env=environment, **how
    )


@pytest.mark.row("G-07")
def test_stdout_is_the_prompt_and_its_continuation_only(generate: Generate) -> None:
    outcome = generate("--seed", "1")
    assert outcome.code == 0
    assert outcome.out.startswith("the cat")
    assert len(outcome.out) > len("the cat\n")
    assert outcome.out.endswith("\n")
    assert "device" in outcome.err
    assert "device" not in outcome.out


@pytest.mark.row("G-01")
def test_seeds(generate: Generate) -> None:
    assert generate("--seed", "1").out == generate("--seed", "1").out
    assert generate("--seed", "1").out != generate("--seed", "2").out


@pytest.mark.row("G-01")
def test_a_drawn_seed_is_told_and_gives_the_text_again(generate: Generate) -> None:
    first = generate()
    seed = first.err.split("--seed ")[1].split()[0]
    assert generate("--seed", seed).out == first.out
    assert generate().out != first.out


@pytest.mark.row("G-02")
def test_greedy_is_temperature_zero(generate: Generate) -> None:
    greedy = generate("--greedy", "--temperature", "0.9", "--seed", "4")
    assert greedy.out == generate("--temperature", "0", "--seed", "5").out


@pytest.mark.parametrize(
    "options",
    [
        ("--temperature", "5"),
        ("--top-k", "1"),
        ("--top-p", "0"),
        ("--min-p", "1"),
        ("--repetition-penalty", "50"),
        ("--no-repeat-ngram-size", "1", "--top-k", "3"),
        ("--max-new-tokens", "3"),
        ("--num-samples", "2"),
    ],
)
def test_every_option_has_an_effect(generate: Generate, options: tuple[str, ...]) -> None:
    base = ("--seed", "1", "--repetition-penalty", "1", "--top-k", "3")
    outcome = generate(*base, *options)
    assert outcome.code == 0
    assert outcome.out != generate(*base).out


def test_stop_text_ends_the_output_before_it(generate: Generate) -> None:
    whole = generate("--seed", "1").out
    stop = whole[len("the cat") + 4]
    cut = generate("--seed", "1", "--stop", "never there", "--stop", stop).out
    assert cut == "the cat" + whole[len("the cat") :].split(stop)[0] + "\n"


def test_several_samples_are_separated_and_the_first_is_the_single_one(generate: Generate) -> None:
    samples = generate("--seed", "1", "--num-samples", "3").out.removesuffix("\n").split("\n---\n")
    assert len(samples) == 3
    assert samples[0] + "\n" == generate("--seed", "1").out


@pytest.mark.parametrize("count", [2, 70])
def test_samples_are_printed_group_by_group(
    generate: Generate, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is decoded is printed before more is, so that a million need neither time nor memory."""
    events: list[str] = []
    decode, write = engine._decode, sys.stdout.write
    monkeypatch.setattr(engine, "_decode", lambda *given: (events.append("decode"), decode(*given)))
    monkeypatch.setattr(sys.stdout, "write", lambda text: (events.append("write"), write(text))[1])
    outcome = generate("--seed", "1", "--num-samples", str(count), "--max-new-tokens", "3")
    assert len(outcome.out.removesuffix("\n").split("\n---\n")) == count
    assert [event for event, _ in itertools.groupby(events)][: 2 * -(-count // 32)] == [
        "decode", "write",
    ] * -(-count // 32)  # fmt: skip


def test_a_reader_of_a_billion_samples_may_leave(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "infinito", "generate", str(checkpoint), "--prompt", "x",
               "--num-samples", "1000000000", "--max-new-tokens", "2"]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        text = b"".join(process.stdout.readline() for _ in range(200))
        process.stdout.close()
        assert text.count(b"\n---\n") > 30
        assert b"rror" not in process.stderr.read()
        assert process.wait() == 0


def test_a_billion_samples_are_not_one_document(generate: Generate) -> None:
    outcome = generate("--num-samples", "1000000000", "--json")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--num-samples" in outcome.err
    assert "10000" in outcome.err


def test_a_prompt_beyond_the_context_is_cut_and_it_is_said(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    # By torch operations, whose ids can be looked at: the compiled step is not to be had.
    plain = DECODE.variants["torch"]
    monkeypatch.setitem(DECODE.variants, "cpu", plain)
    hidden = Transformer.hidden

    def spied(model: Transformer, ids: torch.Tensor, *more: Any) -> torch.Tensor:
        read.extend(ids.tolist())
        return hidden(model, ids, *more)

    monkeypatch.setattr(Transformer, "hidden", spied)
    # The context is 16 tokens, and the start of a document is one of them.
    assert "tokens" not in generate(prompt="abcdefghijklmno").err
    assert bytes(read[0][1:]) == b"abcdefghijklmno"
    read.clear()
    told = generate(prompt="abcdefghijklmnop").err
    assert "the prompt has 16 tokens, and the context holds 15: the last 8 are used" in told
    assert bytes(read[0]) == b"ijklmnop"
    assert "the last 8 are used" in generate("--json", prompt="word " * 4000).err


def test_json_is_one_document(generate: Generate) -> None:
    outcome = generate("--seed", "1", "--num-samples", "2", "--json", "--max-new-tokens", "150")
    document = json.loads(outcome.out)
    assert document["prompt"] == "the cat"
    assert document["step"] == 0
    assert document["sampling"]["seed"] == 1
    assert document["tokens_per_second"] > 0
    assert document["human"]["rep_128"] == 0.53
    for sample in document["samples"]:
        assert 0 < sample["n_tokens"] <= 150
        assert sample["finish_reason"] in {"length", "eos"}
        assert sample["repetition"]["words"] > 0
        assert {"seq_rep_4", "rep_128", "diversity", "human"} <= sample["repetition"].keys()


@pytest.mark.row("G-04")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--temperature", "-1"), "--temperature"),
        (("--temperature", "nan"), "--temperature"),
        (("--temperature", "warm"), "--temperature"),
        (("--top-k", "-3"), "--top-k"),
        (("--top-p", "1.5"), "--top-p"),
        (("--min-p", "-0.5"), "--min-p"),
        (("--repetition-penalty", "0"), "--repetition-penalty"),
        (("--max-new-tokens", "-1"), "--max-new-tokens"),
        (("--num-samples", "0"), "--num-samples"),
        (("--seed", "-1"), "--seed"),
        (("--stop", ""), "--stop"),
        (("--device", "toaster"), "--device"),
        (("--interactive",), "--interactive"),
        (("--checkpoint", "other.pt"), "--checkpoint"),
    ],
)
def test_illegal_options(generate: Generate, options: tuple[str, ...], named: str) -> None:
    outcome = generate(*options)
    assert outcome.code == 2
    assert named in outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


def test_no_prompt(generate: Generate) -> None:
    outcome = generate(prompt=None)
    assert outcome.code == 2
    assert "--prompt" in outcome.err


@pytest.mark.row("G-06")
@pytest.mark.parametrize(
    "prompt",
    ["", "   ", "日本語 ❤", "--help", "-x", "<eos><unk><|endoftext|>", "word " * 4000, "a\nb\n"],
)
def test_any_prompt_is_continued(generate: Generate, prompt: str) -> None:
    outcome = generate("--seed", "1", prompt=prompt)
    assert outcome.code == 0
    assert outcome.out.startswith(prompt)


@pytest.mark.row("G-06")
def test_prompt_of_bad_bytes(generate: Generate) -> None:
    outcome = generate(prompt=os.fsdecode(b"caf\xe9"))
    assert outcome.code == 2
    assert "UTF-8" in outcome.err


def test_prompt_file(generate: Generate, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("the cat\n")
    assert generate("--prompt-file", str(file), "--seed", "1", prompt=None).out == (
        generate("--seed", "1").out
    )
    file.write_bytes(b"ok \xff")
    outcome = generate("--prompt-file", str(file), prompt=None)
    assert (outcome.code, "offset 3" in outcome.err) == (3, True)
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
    outcome = generate("--prompt-file", str(file), prompt=None)
    assert (outcome.code, "prompt.txt is a PNG image, not text" in outcome.err) == (3, True)
    assert generate("--prompt-file", str(tmp_path / "none"), prompt=None).code == 3


def test_missing_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["generate", str(tmp_path / "none.pt"), "--prompt", "x"]) == 4
    assert "none.pt" in capsys.readouterr().err


@pytest.mark.row("G-09")
@pytest.mark.parametrize("temperature", ["0", "1"])
def test_broken_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], temperature: str
) -> None:
    path = write_tiny_checkpoint(tmp_path / "step-000000.pt", broken=float("nan"))
    assert main(["generate", str(path), "--prompt", "x", "--temperature", temperature]) == 5
    assert "not finite" in capsys.readouterr().err


def test_interactive_continues_each_line(checkpoint: Path) -> None:
    options = ("--interactive", "--max-new-tokens", "0")
    lines = b"first line\n\nnot \xff text\nand \0\r\nthird \xe2\x82\xac"
    result = piped(checkpoint, *options, input=lines)
    assert result.returncode == 0
    assert result.stdout.decode() == "first line\n\nand \0\nthird €\n"
    assert b"bad byte at offset 4; passed over" in result.stderr


def read_until(terminal: int, mark: bytes) -> bytes:
    """What a program writes on its terminal, up to ``mark``, or all of it until the end."""
    text = b""
    while not text.endswith(mark):
        try:
            text += os.read(terminal, 1)
        except OSError:  # Linux ends a closed terminal with an error
            break
    return text


def test_interactive_lines_are_edited_and_recalled(checkpoint: Path, tmp_path: Path) -> None:
    terminal, slave = pty.openpty()
    options = ("--interactive", "--max-new-tokens", "0", "--device", "cpu", "--greedy")
    process = subprocess.Popen(
        [sys.executable, "-m", "infinito", "generate", str(checkpoint), *options],
        stdin=slave, stdout=slave, stderr=slave, cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "HOME": str(tmp_path)},
    )  # fmt: skip
    os.close(slave)
    try:
        assert b"Ctrl-D ends" in read_until(terminal, b"> ")
        os.write(terminal, b"ab\x01X\n")  # Ctrl-A: to the start of the line
        assert b"\r\nXab\r\n" in read_until(terminal, b"> ")
        os.write(terminal, b"\x1b[A!\n")  # upwards: the line before
        assert b"\r\nXab!\r\n" in read_until(terminal, b"> ")
        os.write(terminal, b"\x04")
        read_until(terminal, b"never written")
        assert process.wait() == 0
    finally:
        process.kill()
        os.close(terminal)
    assert not list(tmp_path.iterdir())  # no history is kept on disk


def test_interactive_with_its_text_in_a_file(checkpoint: Path) -> None:
    """Only the mark that asks and the hint are on the terminal, and neither is in the file."""
    terminal, slave = pty.openpty()
    options = ("--interactive", "--max-new-tokens", "0", "--device", "cpu", "--greedy")
    process = subprocess.Popen(
        [sys.executable, "-m", "infinito", "generate", str(checkpoint), *options],
        stdin=slave, stdout=subprocess.PIPE, stderr=slave, cwd=ROOT,
    )  # fmt: skip
    os.close(slave)
    assert b"Ctrl-D ends" in read_until(terminal, b"> ")
    os.write(terminal, b"caf\xe9\n")  # of a terminal that is not set to UTF-8
    assert b"bad byte at offset 3; passed over" in read_until(terminal, b"> ")
    os.write(terminal, "café\n".encode())
    read_until(terminal, b"> ")
    os.write(terminal, b"\x04")
    out, _ = process.communicate()
    os.close(terminal)
    assert (process.returncode, out.decode()) == (0, "café\n")


@pytest.mark.row("G-08")
def test_closed_stdout_is_silent(checkpoint: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "infinito", "generate", str(checkpoint), "--prompt", "x"]
    result = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, check=False, timeout=60
    )
    os.close(write)
    assert b"Traceback" not in result.stderr
    assert b"rror" not in result.stderr
