"""Reports: what is read of a run, what is drawn of it, and what surprised its model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from infinito.errors import CheckpointError
from infinito.load import LoadedModel, load_model
from infinito.report.braille import drawn
from infinito.report.curves import inner_panels, panels
from infinito.report.model_view import ModelView
from infinito.report.page import render
from infinito.report.run_log import read_run
from infinito.report.surprise import surprise
from tests.command_support import Outcome, infinito, write_config
from tests.unit.test_cli_output import on_a_terminal

#: What could make a browser ask for another file.
_ASKS = re.compile(r"(?i)(src|href|action)\s*=\s*[\"']?(https?:|//)|url\(|@import|fetch\(|import\(")
TEXT = "the cat sees a river .\nÄ “quoted” bird finds nothing .\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run that has experts, lambdas and evaluations."""
    place = tmp_path_factory.mktemp("place")
    changes = {"model__attention__learnable_lambda": True, "model__moe__n_experts": 3}
    done = infinito("train", "--config", write_config(place, **changes))
    assert done.code == 0, done.err
    assert done.err.count(f"infinito report {place / 'run'}\n") == 1
    return place


@pytest.fixture(scope="module")
def model(place: Path) -> LoadedModel:
    return load_model(place / "run" / "best.pt", "cpu")


def _data(page: str) -> str:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return found[1]


def make_run(path: Path, *lines: object) -> Path:
    path.mkdir()
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    return path


def test_values_of_the_lines_become_curves(tmp_path: Path) -> None:
    one = {"step": 1, "loss": 2.0, "tokens": 8, "seconds": 30, "expert_load": [[0.25, 0.75]]}
    two = {"step": 4, "loss": 1.5, "valid_loss": 1.75, "tokens": 32, "seconds": 90}
    run = read_run(make_run(tmp_path / "run", one, two, {"note": "no step"}))
    assert run.axes()["steps"] == [1.0, 4.0]
    assert run.axes()["minutes"] == [0.5, 1.5]
    (loss,) = (panel for panel in panels([run]) if panel.name == "loss")
    found = {curve.label: (curve.at, curve.values) for curve in loss.curves}
    assert found == {"training": ([0, 1], [2.0, 1.5]), "validation": ([1], [1.75])}
    (load,) = inner_panels([run])
    assert [(c.label, c.values) for c in load.curves] == [
        ("layer 0 expert 0", [0.25]), ("layer 0 expert 1", [0.75]),
    ]  # fmt: skip


def test_what_is_no_number_is_not_drawn(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": "much"}, {"step": 2, "loss": None}, '{"step": 3, "loss": NaN}']
    run = read_run(make_run(tmp_path / "run", *lines))
    assert panels([run]) == []
    assert '"panels": []' in render([run], [ModelView(missing="no checkpoint")])


def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"step": 1}, '{"step": 2, "lo', {"step": 3})
    with pytest.raises(CheckpointError, match="line 2"):
        read_run(run)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"step": 1})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in read_run(run).lines] == [1]


def test_of_many_lines_every_evaluation_is_kept(tmp_path: Path) -> None:
    lines = [
        {"step": n, "loss": 1.0, **({"valid_loss": 1.0} if n % 1000 == 1 else {})}
        for n in range(5000)
    ]
    run = read_run(make_run(tmp_path / "run", *lines))
    assert len(run.lines) < 1300
    assert [line["step"] for line in run.evaluations] == [1, 1001, 2001, 3001, 4001]
    assert run.lines[-1]["step"] == 4999


@pytest.mark.parametrize("text", [TEXT, "a" * 40])
def test_surprise_is_what_each_token_costs(model: LoadedModel, text: str) -> None:
    tokens = model.tokenizer.encode(text)
    pieces = surprise(model, tokens)
    assert "".join(piece["text"] for piece in pieces) == text
    total = sum(piece["nats"] for piece in pieces)
    assert total == pytest.approx(_nats(model, tokens), abs=0.01)


def _nats(model: LoadedModel, tokens: list[int]) -> float:
    """Each token after at least half a context, one at a time."""
    context, total = model.model.max_positions, 0.0
    stream = [model.tokenizer.eos_id, *tokens]
    for at in range(1, len(stream)):
        done = at - 1  # tokens before it in the text
        begin = (
            0
            if done < context
            else (done - context) // (context // 2) * (context // 2) + context // 2
        )
        window = torch.tensor([stream[begin:at]])
        with torch.no_grad():
            logits = model.model.logits(model.model.hidden(window))[0, -1]
        total -= float(logits.double().log_softmax(-1)[stream[at]])
    return total


def test_likeliest_are_the_largest_probabilities(model: LoadedModel) -> None:
    tokens = model.tokenizer.encode("the cat")
    with torch.no_grad():
        inputs = torch.tensor([[model.tokenizer.eos_id, *tokens[:-1]]])
        chances = model.model.logits(model.model.hidden(inputs))[0].double().softmax(-1)
    for piece, row in zip(surprise(model, tokens), chances, strict=True):
        assert [chance for _, chance in piece["likeliest"]] == pytest.approx(
            sorted(row.tolist(), reverse=True)[:5], abs=1e-4
        )
        assert math.exp(-piece["nats"]) == pytest.approx(row[ord(piece["text"])].item(), abs=1e-3)
    everything = dict(surprise(model, tokens)[0]["likeliest"])
    assert len(everything) == 5


def test_a_character_of_several_tokens_is_one_piece(model: LoadedModel) -> None:
    pieces = surprise(model, model.tokenizer.encode("aÄ€b"))
    assert [piece["text"] for piece in pieces] == ["a", "Ä", "€", "b"]
    cut = surprise(model, model.tokenizer.encode("a€")[:-1])
    assert [piece["text"] for piece in cut] == ["a", "\ufffd"]


def test_the_page_holds_all_it_needs_and_no_markup_of_a_stranger(tmp_path: Path) -> None:
    sample = {"step": 1, "loss": 1.0, "sample": "</script><img src=https://example.org/x>{style}"}
    run = read_run(make_run(tmp_path / "{data}<b>", sample))
    page = render([run], [ModelView(missing="<i>")])
    assert not _ASKS.search(page.replace(_data(page), ""))
    assert "<title>{data}&lt;b&gt;</title>" in page
    assert page.count("</script>") == 2
    assert json.loads(_data(page))["runs"][0]["samples"] == [[1, sample["sample"]]]


def test_a_rising_curve_rises_in_the_terminal(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": step / 10} for step in range(1, 11)]
    run = read_run(make_run(tmp_path / "run", *lines))
    (loss,) = panels([run])
    shown = [line.plain for line in drawn(loss, [run], 60)]
    columns = [
        [row for row, line in enumerate(shown[1:-2]) if line[at] not in "\u2800 "]
        for at in range(10, len(shown[1]))
    ]
    heights = [min(column) for column in columns if column]
    assert heights == sorted(heights, reverse=True)
    assert (heights[0], heights[-1]) == (6, 0)
    assert shown[-1].strip() == "training: 0.1 -> 1"


def report(*arguments: object) -> Outcome:
    return infinito("report", *arguments)


def test_a_run_becomes_a_page_and_pictures(place: Path) -> None:
    run = place / "run"
    before = {path.name for path in run.iterdir()}
    done = report(run)
    assert (done.code, done.out) == (0, f"{run / 'report.html'}\n"), done.err
    written = {path.name for path in run.iterdir()} - before
    assert written >= {"report.html", "loss.png", "lambda.png", "expert-load.png", "attention.png"}
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "report.html").read_text()
    for wanted in ("layer 1 head 1", "layer 1 expert 2", '"likeliest"', "infinito generate"):
        assert wanted in page
    assert infinito("evaluate", run).code == 0  # the run is as good as before


def test_several_runs_go_beside_the_first_and_differ_in_what_differs(
    place: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert (
        infinito(
            "train", "--config", place / "tiny.yaml", "--set", "seed=8", "--output-dir", other
        ).code
        == 0
    )
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").touch()  # an earlier report among the runs
    done = report(*sorted(tmp_path.iterdir()), place / "run")
    assert (done.code, done.out) == (0, f"{tmp_path / 'report' / 'report.html'}\n"), done.err
    page = (tmp_path / "report" / "report.html").read_text()
    assert json.loads(_data(page))["differences"] == [["seed", "8", "7"]]
    assert "held out" not in done.err  # each run has said that of its data


def test_what_a_run_lacks_is_left_out_with_the_reason(place: Path, tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", {"step": 1, "loss": 2.0})
    done = report(bare)
    assert done.code == 0
    assert "no checkpoint that can be used" in done.err
    assert (
        infinito(
            "train", "--config", write_config(tmp_path), "--output-dir", tmp_path / "gone"
        ).code
        == 0
    )
    (tmp_path / "text.txt").unlink()
    done = report(tmp_path / "gone", "--output-dir", tmp_path / "elsewhere")
    assert done.code == 0
    assert "text.txt" in done.err
    assert "text.txt" in (tmp_path / "elsewhere" / "report.html").read_text()
    assert not (tmp_path / "elsewhere" / "attention.png").exists()


def test_wrong_runs_are_refused(place: Path, tmp_path: Path) -> None:
    assert "does not exist" in report(tmp_path / "none").refused(4)
    assert "is no run directory" in report(tmp_path).refused(4)
    assert "no .png" in infinito("plot", place / "run", "--output", tmp_path / "x.pdf").refused(2)
    empty = make_run(tmp_path / "empty")
    assert "no line of metrics" in infinito("plot", empty).refused(4)


def test_plot_is_plain_in_a_pipe_and_coloured_on_a_terminal(place: Path, tmp_path: Path) -> None:
    run = place / "run"
    piped = infinito("plot", run)
    assert piped.code == 0
    assert "\x1b" not in piped.out
    assert "Word perplexity (validation)" in piped.out
    assert max(map(len, piped.out.splitlines())) <= 90
    shown = on_a_terminal(f"from infinito.cli.main import main; main(['plot', {str(run)!r}])")
    assert "\x1b[34m" in shown
    assert infinito("plot", run, "--output", tmp_path / "curves.png").code == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
