"""``infinito evaluate`` on a run made by training: numbers, files, flags, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infinito.cli.main import main
from infinito.config.loading import config_from_plain
from infinito.evaluate import adaptation
from infinito.train.trainer import Trainer
from tests.support import tiny_settings, write_text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, float]:
    """A trained checkpoint, the directory of its text, and its last validation loss."""
    folder = tmp_path_factory.mktemp("evaluate")
    valid = write_text(folder / "valid.txt", paragraphs=8, seed=1)
    settings = tiny_settings(folder, data__valid_file=str(valid), training__max_steps=6)
    trainer = Trainer(config_from_plain(settings, "test"))
    while not trainer.finished:
        trainer.train_step()
    evaluation = trainer.validate()
    assert evaluation is not None
    trainer.save(folder / "model.pt")
    return folder / "model.pt", folder, evaluation.score.loss


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_trainers_validation_is_found_again(
    run: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _, loss = run
    found = result(capsys, checkpoint, "--context", 16, "--stride", 16)
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert (found["split"], found["step"], found["warnings"]) == ("valid", 6, [])
    assert result(capsys, checkpoint)["loss"] != found["loss"]  # half the stride by default


@pytest.mark.row("E-01", "E-02")
def test_twice_is_equal_and_the_checkpoint_untouched(
    run: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    before = run[0].read_bytes()
    first, second = (result(capsys, run[0], "--batch-size", size) for size in (8, 8))
    other = result(capsys, run[0], "--batch-size", 3)
    assert first | {"seconds": 0} == second | {"seconds": 0}
    assert other["nll_total"] == pytest.approx(first["nll_total"], rel=1e-6)
    assert run[0].read_bytes() == before


def test_several_checkpoints_give_a_list_and_several_blocks(
    run: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    both = result(capsys, run[0], "--checkpoint", run[0])
    assert [report["step"] for report in both] == [6, 6]
    assert main(["eval", str(run[0]), str(run[0])]) == 0
    assert capsys.readouterr().out.count("word perplexity:") == 2


def test_several_models_end_in_one_table_that_marks_the_best(
    run: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings(
        run[1], data__valid_file=str(run[1] / "valid.txt"), tokenizer__vocab_size=300,
        tokenizer__kind="bpe", model__d_model=16,
    )  # fmt: skip
    Trainer(config_from_plain(settings, "test")).save(tmp_path / "best.pt")
    found = result(capsys, tmp_path / "best.pt", run[0])
    assert main(["evaluate", str(tmp_path / "best.pt"), str(run[0])]) == 0
    *_, head, untrained, trained = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["model", "parameters", "step", "loss"]
    for row, report, name in zip(
        (untrained, trained), found, (str(tmp_path), str(run[0])), strict=True
    ):
        figures = ("loss", "token_perplexity", "word_perplexity", "bits_per_byte")
        words = [str(report["parameters"]), str(report["step"])]
        assert row.split()[:7] == [name, *words, *(f"{report[key]:.4f}" for key in figures)]
    # Fewer nats a token, and yet more bits a byte: its tokens are shorter.
    assert found[1]["loss"] < found[0]["loss"]
    assert (untrained.endswith("  best"), trained.endswith("  best")) == (True, False)
    # Of two texts no model is the better one.
    other = write_text(tmp_path / "other.txt", paragraphs=5, seed=3)
    other_settings = tiny_settings(run[1], data__valid_file=str(other))
    Trainer(config_from_plain(other_settings, "test")).save(tmp_path / "other.pt")
    assert main(["evaluate", str(tmp_path / "other.pt"), str(run[0])]) == 0
    assert "  best" not in capsys.readouterr().out


def test_other_texts_and_other_splits(
    run: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = result(capsys, run[0], "--split", "train")
    assert "trained on" in trained["warnings"][0]
    text = result(capsys, run[0], "--text", run[1] / "valid.txt")
    assert text["split"] == "text"
    assert text["nll_total"] == pytest.approx(result(capsys, run[0])["nll_total"], rel=0.05)
    other = write_text(tmp_path / "other.txt", paragraphs=5, seed=3)
    changed = result(capsys, run[0], "--set", f"data.valid_file={other}")
    assert "not the one this checkpoint knew" in changed["warnings"][0]


def test_the_source_and_no_path_says_what_wikitext_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for split in ("train", "valid"):
        write_text(folder / f"{split}.txt", paragraphs=12)
    settings = tiny_settings(tmp_path)
    settings["data"] = {"path": str(folder), "sequence_length": 16}
    Trainer(config_from_plain(settings, "test")).save(tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    folder.rename("wikitext-2")
    read = ("evaluate", "model.pt", "--all-conventions")
    for text in ("wikitext-2", "wikitext-2/valid.txt"):
        assert main([*read, "--text", text]) == 0
        assert "detokenised" not in capsys.readouterr().out
    assert main([*read, "--set", "data.path=wikitext-2"]) == 0
    assert "pages alone, detokenised (lm-eval wikitext)" in capsys.readouterr().out


def test_an_ensemble_with_counts_is_no_worse_than_its_members(
    run: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    model, floor = result(capsys, run[0], "ngram")
    assert (model["members"], floor["step"]) == ([], None)
    mixed = result(capsys, run[0], "ngram", "--ensemble")
    best = min(model["nll_total"], floor["nll_total"])
    assert mixed["nll_total"] <= best * (1 + 1e-9)  # six steps add nothing to counts
    weights = [member["weight"] for member in mixed["members"]]
    assert sum(weights) == pytest.approx(1)
    assert [member["step"] for member in mixed["members"]] == [6, None]
    for alone, member in zip((model, floor), mixed["members"], strict=True):
        assert member["valid_word_perplexity"] == pytest.approx(alone["word_perplexity"])
    assert main(["evaluate", str(run[0]), "ngram", "--ensemble"]) == 0
    assert f"weight {weights[1]:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["cache", "both"])
def test_adaptation_is_a_column_of_its_own_tuned_on_validation(
    run: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    valid = f"data.valid_file={write_text(run[1] / 'short.txt', paragraphs=1, seed=4)}"
    static = result(capsys, run[0], "--set", valid)
    adapted = result(capsys, run[0], "--set", valid, "--adapt", kind)
    found = adapted["adaptive"]
    assert adapted["nll_total"] == static["nll_total"]
    assert static["adaptive"] is None
    assert found["nll_total"] < static["nll_total"]
    expected = {"cache": {"sharpness", "share", "size"}}
    expected["both"] = expected["cache"] | {"rate", "decay"}
    assert set(found["settings"][str(run[0])]) == expected[kind]
    assert found["seconds"] > 0
    assert found["tuning_seconds"] > 0
    # Whatever is scored, the settings are those of the validation text.
    odd = write_text(run[1] / "odd.txt", paragraphs=2, seed=5)
    text = ("--text", odd, "--set", valid)
    elsewhere = result(capsys, run[0], *text, "--adapt", kind)
    assert elsewhere["adaptive"]["settings"] == found["settings"]
    assert elsewhere["n_tokens"] != adapted["n_tokens"]


def test_settings_of_the_validation_text_are_kept_and_no_other_text_finds_any(
    run: tuple[Path, Path, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "run" / "model.pt"
    model.parent.mkdir()
    model.write_bytes(run[0].read_bytes())
    valid = write_text(tmp_path / "valid.txt", paragraphs=1, seed=4)
    texts = [write_text(tmp_path / f"{i}.txt", paragraphs=1, seed=i) for i in (5, 6)]
    asked = (model, "--set", f"data.valid_file={valid}", "--adapt")
    tuned = model.parent / "tuned.json"

    searched: list[str] = []
    climb = adaptation.climb
    monkeypatch.setattr(adaptation, "climb", lambda *given: searched.append("") or climb(*given))
    first = result(capsys, *asked, "both", "--text", texts[0])["adaptive"]
    assert (len(searched), first["settings_from"]) == (2, None)
    kept = json.loads(tuned.read_text())["found"]
    assert {k: v for entry in kept for k, v in entry["answer"].items()} == first["settings"][
        str(model)
    ]
    again = result(capsys, *asked, "both", "--text", texts[1])["adaptive"]
    assert (len(searched), again["settings_from"]) == (2, str(tuned))
    assert again["settings"] == first["settings"]
    assert again["tuning_processor_seconds"] == first["tuning_processor_seconds"]

    # What is kept is what is used: other settings there give another figure.
    kept[0]["answer"]["rate"] /= 30
    kept[1]["question"]["of"][1] = kept[0]["answer"]
    tuned.write_text(json.dumps({"format": "infinito-tuned", "found": kept}))
    other = result(capsys, *asked, "both", "--text", texts[1])["adaptive"]
    assert other["settings"][str(model)]["rate"] == kept[0]["answer"]["rate"]
    assert other["nll_total"] != again["nll_total"]
    # Another checkpoint or validation text asks anew; a damaged file is no answer.
    longer = write_text(tmp_path / "longer.txt", paragraphs=2, seed=4)
    asked_of_it = (model, "--set", f"data.valid_file={longer}", "--adapt", "cache")
    assert result(capsys, *asked_of_it)["adaptive"]["settings_from"] is None
    assert len(searched) == 3
    tuned.write_text("{")
    assert result(capsys, *asked_of_it)["adaptive"]["settings_from"] is None


def test_weights_of_an_ensemble_are_kept(
    run: tuple[Path, Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.pt"
    model.write_bytes(run[0].read_bytes())
    first = result(capsys, model, "ngram", "--ensemble")
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    [entry] = tuned["found"]
    assert entry["answer"]["weights"] == [member["weight"] for member in first["members"]]
    entry["answer"]["weights"] = [1.0, 0.0]
    (tmp_path / "tuned.json").write_text(json.dumps(tuned))
    mixed = result(capsys, model, "ngram", "--ensemble", "--text", run[1] / "valid.txt")
    alone = result(capsys, model, "--text", run[1] / "valid.txt")
    assert mixed["nll_total"] == pytest.approx(alone["nll_total"])
    assert mixed["nll_total"] != first["nll_total"]


@pytest.mark.parametrize(
    "damage",
    [
        {"cost": [1.0]},
        {"answer": {}},
        {"answer": {"weights": [0.5], "alone": [9.0, 9.0]}},
        {"answer": {"weights": [0.5, "x"], "alone": [9.0, 9.0]}},
        {"answer": {"weights": [0.5, float("nan")], "alone": [9.0, 9.0]}},
    ],
)
def test_what_was_damaged_is_looked_for_anew(
    run: tuple[Path, Path, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: dict[str, object],
) -> None:
    model = tmp_path / "model.pt"
    model.write_bytes(run[0].read_bytes())
    first = result(capsys, model, "ngram", "--ensemble")
    tuned = json.loads((tmp_path / "tuned.json").read_text())
    tuned["found"][0] |= damage
    (tmp_path / "tuned.json").write_text(json.dumps(tuned))
    again = result(capsys, model, "ngram", "--ensemble")
    assert (again["nll_total"], again["members"]) == (first["nll_total"], first["members"])


def test_an_adaptation_that_breaks_down_does_not_blame_the_weights(
    run: tuple[Path, Path, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "model.pt").write_bytes(run[0].read_bytes())
    monkeypatch.setattr(adaptation, "climb", lambda *_: {"rate": 1e30, "decay": 1e-3})
    assert main(["evaluate", str(tmp_path / "model.pt"), "--adapt", "dynamic"]) == 5
    said = capsys.readouterr()
    assert "--adapt dynamic breaks down on this text" in said.err
    assert "weights are broken" not in said.err


def test_an_ensemble_adapts_member_by_member(
    run: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(run[0]), "ngram", "--ensemble", "--adapt", "cache"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert text.count("word perplexity:") == 1
    assert "adaptive:         cache; each token is scored before" in text
    assert "ngram (Kneser-Ney, order 5): sharpness 0, share" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "model.d_model=8"], 2, "data.* settings"),
        (["--ensemble"], 2, "--ensemble mixes two or more"),
        (["--adapt", "much"], 2, "much"),
        (["--set", "data.sequence_length=8"], 2, "--context"),
        (["--stride", "20"], 2, "stride 20"),
        (["--text", "x", "--split", "test"], 2, "--text"),
        (["--split", "test"], 3, "--text FILE"),
        (["--set", "data.valid_file=/nowhere/gone.txt"], 3, "/nowhere/gone.txt"),
        (["--set", "data.valid_file=''"], 2, "--set data.valid_file='': data.valid_file"),
        (["--set", "data.source=hub"], 2, "--set data.source=hub: data: "),
        (["--text", "/nowhere/gone.txt"], 3, "/nowhere/gone.txt"),
    ],
)
def test_refusals(
    run: tuple[Path, Path, float],
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", str(run[0]), *arguments]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("member", "arguments", "words"),
    [
        ("ngram", ["--ensemble", "--adapt", "both"], "ngram has no weights"),
        ("ngram", ["--exact-words"], "without --ensemble and ngram"),
        ("", ["--ensemble", "--exact-words"], "without --ensemble and ngram"),
        ("word", ["--adapt", "both", "--exact-words"], "closed as it is"),
        ("int8", ["--ensemble", "--adapt", "dynamic"], "eight bits"),
    ],
)
def test_a_figure_that_a_model_cannot_have_is_refused_before_anything_is_scored(
    run: tuple[Path, Path, float],
    member: str,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [str(run[0]), member or str(run[0])]
    if member == "word":
        names = [str(tmp_path / "word.pt")]
        settings = tiny_settings(run[1], tokenizer__kind="word")
        Trainer(config_from_plain(settings, "test")).save(tmp_path / "word.pt")
    elif member == "int8":
        names[1] = str(tmp_path / "int8")
        assert main(["export", names[0], "--to", "int8", "--output", names[1]]) == 0

    def scored(*_: object) -> None:
        raise AssertionError("scored")

    monkeypatch.setattr("infinito.evaluate.perplexity.window_batch", scored)
    monkeypatch.setattr("infinito.evaluate.adaptation.window_batch", scored)
    capsys.readouterr()
    assert main(["evaluate", *names, *arguments]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.out == ""


def test_missing_data_is_named_with_two_ways_out(
    run: tuple[Path, Path, float], capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = run[1] / "valid.txt"
    hidden.rename(run[1] / "moved.txt")
    try:
        assert main(["evaluate", str(run[0])]) == 3
    finally:
        (run[1] / "moved.txt").rename(hidden)
    message = capsys.readouterr().err
    assert str(hidden) in message
    assert "--set data.valid_file=" in message
    assert "--text" in message
