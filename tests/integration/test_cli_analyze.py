"""``infinito analyze`` on runs made by training: documents, files, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from infinito.analyze.collect import analyze_attention
from infinito.cli.main import main
from infinito.config.loading import config_from_plain
from infinito.config.schema import SplitName
from infinito.data.prepare import prepare
from infinito.load import LoadedModel, load_model
from infinito.train.trainer import Trainer
from tests.support import tiny_settings, write_text

STATISTICS = {
    "entropy", "normalised_entropy", "max_weight", "mean_distance", "first_token_mass", "self_mass",
}  # fmt: skip


def train_in(folder: Path, kind: str, **changes: object) -> Path:
    valid = write_text(folder / "valid.txt", paragraphs=8, seed=1)
    settings = tiny_settings(
        folder, data__valid_file=str(valid), model__attention={"kind": kind}, **changes
    )
    trainer = Trainer(config_from_plain(settings, "test"))
    while not trainer.finished:
        trainer.train_step()
    path = folder / "model.pt"
    trainer.save(path)
    return path


@pytest.fixture(scope="module")
def l1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with trained lambdas and averaged weights."""
    folder = tmp_path_factory.mktemp("analyze-l1")
    return train_in(folder, "l1", training__ema_decay=0.5, training__max_steps=20)


@pytest.fixture(scope="module")
def dot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose lambda is fixed."""
    return train_in(tmp_path_factory.mktemp("analyze-dot"), "dot")


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert main(["analyze", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def first_window(loaded: LoadedModel, split: SplitName) -> torch.Tensor:
    store = prepare(loaded.config, tokenizer=loaded.tokenizer, splits=(split,)).splits[split]
    return torch.from_numpy(store.tokens[None, :16].astype("int64"))


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and path.stat().st_size > 5000


def test_one_document_and_the_files(
    l1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = l1.read_bytes()
    found = document(capsys, l1, "--samples", 3, "--output-dir", tmp_path / "out" / "here")
    assert (found["checkpoint"], found["step"], found["split"]) == (str(l1), 20, "valid")
    assert (found["kind"], found["lambda_is_trained"]) == ("l1", True)
    assert (found["n_windows"], found["window_tokens"], found["n_positions"]) == (3, 16, 45)
    assert [(head["layer"], head["head"]) for head in found["heads"]] == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip
    assert all(set(head) == STATISTICS | {"layer", "head", "lambda"} for head in found["heads"])
    assert all(0 < head["normalised_entropy"] < 1 for head in found["heads"])
    names = ["attention.json", "attention.png", "entropy.png", "lambda.png"]
    files = [tmp_path / "out" / "here" / name for name in names]
    assert found.pop("files") == [str(path) for path in files]
    assert sorted(path.name for path in files[0].parent.iterdir()) == names
    assert json.loads(files[0].read_text()) == found
    assert all(map(is_picture, files[1:]))
    assert l1.read_bytes() == before


def test_twice_writes_the_same_bytes(
    l1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        document(capsys, l1, "--output-dir", tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_the_table_is_on_stdout_and_the_rest_is_not(
    l1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", "--checkpoint", str(l1), "--output-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:4] == ["layer", "head", "entropy", "normalised"]
    assert [line.split()[0] for line in lines[1:]] == ["0", "0", "1", "1", "mean", "uniform"]
    assert f"wrote {tmp_path / 'lambda.png'}" in printed.err
    assert "two or more visible keys, 16 windows of 16" in printed.err


def test_averaged_weights_are_used(
    l1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, l1, "--samples", 1, "--output-dir", tmp_path)
    averaged, last = (
        analyze_attention(loaded, first_window(loaded, "valid"))
        for loaded in (load_model(l1, "cpu", use) for use in (True, False))
    )
    assert found["heads"] == averaged.heads
    assert found["mean"]["entropy"] != pytest.approx(last.mean["entropy"], rel=1e-5)


def test_the_windows_are_those_of_the_split(
    l1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model(l1, "cpu")
    hashes = []
    for split in ("train", "valid"):
        expected = analyze_attention(loaded, first_window(loaded, split))
        found = document(capsys, l1, "--split", split, "--samples", 1, "--output-dir", tmp_path)
        assert found["heads"] == expected.heads
        hashes.append(found["text_sha256"])
    assert hashes == [loaded.data_sha256["train"], loaded.data_sha256["valid"]]
    other = write_text(tmp_path / "other.txt", paragraphs=5, seed=3)
    changed = document(
        capsys, l1, "--set", f"data.valid_file={other}", "--output-dir", tmp_path / "out"
    )
    assert changed["text_sha256"] not in hashes


def test_a_fixed_lambda_is_not_drawn_and_an_old_plot_of_one_goes(
    l1: Path, dot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document(capsys, l1, "--output-dir", tmp_path)
    found = document(capsys, dot, "--output-dir", tmp_path)
    assert [head["lambda"] for head in found["heads"]] == [1.0] * 4
    assert not found["lambda_is_trained"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention.json", "attention.png", "entropy.png",
    ]  # fmt: skip


def test_fewer_windows_than_asked_for_are_told(
    dot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("the cat sees", encoding="utf-8")
    arguments = ["--set", f"data.valid_file={short}", "--output-dir", str(tmp_path)]
    assert main(["analyze", str(dot), *arguments]) == 0
    assert "the valid text has 13 tokens: 1 window of 13" in capsys.readouterr().err


def test_a_run_stands_for_its_best_and_nothing_for_the_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt")
    config = tmp_path / "config.yaml"
    config.write_text(
        "data: {train_file: text.txt, sequence_length: 16}\ntokenizer: {kind: byte}\n"
        "model: {d_model: 32, n_layers: 2, n_heads: 2}\n"
        "training: {max_steps: 4, batch_size: 4, eval_every: 2, save_every: 2}\n"
    )
    run = Path("checkpoints/one")
    assert main(["train", "--config", str(config), "--output-dir", str(run)]) == 0
    best = str((run / "best.pt").resolve())
    whole = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    for arguments in ([run], []):
        shutil.rmtree(run / "analysis", ignore_errors=True)
        found = document(capsys, *arguments)
        assert str(Path(found["checkpoint"]).resolve()) == best
        assert (run / "analysis" / "attention.json").is_file()
    assert main(["analyze", "--json"]) == 0
    assert "of the most recent run" in capsys.readouterr().err
    assert whole == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert main(["evaluate", str(run)]) == 0  # the folder in the run is in nobody's way


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--samples", "0"], 2, "--samples"),
        (["--split", "all"], 2, "--split"),
        (["--set", "model.d_model=8"], 2, "data.* settings"),
        (["--set", "data.sequence_length=8"], 2, "data.* settings"),
        (["--checkpoint", "other.pt"], 2, "two checkpoints"),
        (["--split", "test"], 3, "--set data.test_file="),
        (["--set", "data.valid_file=/nowhere/gone.txt"], 3, "/nowhere/gone.txt"),
    ],
)
def test_refusals(
    dot: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    assert main(["analyze", str(dot), *arguments, "--output-dir", str(output)]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""
    assert not output.exists()


def test_a_missing_checkpoint_is_a_checkpoint_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(tmp_path / "gone.pt")]) == 4
    assert "gone.pt" in capsys.readouterr().err


def test_a_directory_that_cannot_be_is_a_resource_error(
    dot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        assert main(["analyze", str(dot), "--output-dir", str(tmp_path / place)]) == 6
        printed = capsys.readouterr()
        assert f"cannot write {tmp_path / place}" in printed.err
        assert printed.out == ""
    (tmp_path / "out" / "entropy.png").mkdir(parents=True)
    assert main(["analyze", str(dot), "--output-dir", str(tmp_path / "out")]) == 6
    assert "entropy.png" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_text_of_a_single_token_is_a_data_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train_in(tmp_path, "dot", tokenizer__kind="word", training__max_steps=1)
    word = tmp_path / "word.txt"
    word.write_text("cat", encoding="utf-8")
    assert main(["analyze", str(checkpoint), "--set", f"data.valid_file={word}"]) == 3
    assert "single token" in capsys.readouterr().err
    assert not (tmp_path / "analysis").exists()
