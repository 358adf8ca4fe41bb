"""``evaluate --tasks``: lm-evaluation-harness on our checkpoints, where it is installed."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from infinito.config.loading import config_from_plain
from infinito.errors import DataError
from infinito.load import load_model
from infinito.train.trainer import Trainer
from tests.command_support import infinito
from tests.support import tiny_settings, write_text

CHOICES = """\
task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/choices.jsonl"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: [" the house", " a river", " some bread"]
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
PAGES = """\
task: local_pages
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/pages.jsonl"}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{page}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""
WRITING = """\
task: local_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{place}/prompts.jsonl"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{expected}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 12, repetition_penalty: 1.0}}
metric_list: [{{metric: exact_match}}]
"""


def test_without_the_library_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "infinito.evaluate.harness", raising=False)
    checkpoint = trained(tmp_path)
    err = infinito("evaluate", checkpoint, "--tasks", "hellaswag").refused(2)
    assert 'pip install "infinito[eval]"' in err


def trained(place: Path, **changes: object) -> Path:
    settings = tiny_settings(
        place, model__activation="swiglu", tokenizer={"kind": "bpe", "vocab_size": 290},
        data__sequence_length=48, training__learning_rate=0.02, **changes,
    )  # fmt: skip
    trainer = Trainer(config_from_plain(settings, "test"))
    for _ in range(8):
        trainer.train_step()
    trainer.save(place / "model.pt")
    return place / "model.pt"


def library(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        reason = f"{module} cannot be imported ({error}): pip install {extra}"
        print(reason, file=sys.stderr)
        pytest.skip(reason)


@pytest.fixture
def their_model() -> Any:
    """The library's own class for models of transformers."""
    return library("lm_eval.models.huggingface", "'lm-eval[hf]'").HFLM


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and tasks over local files."""
    library("lm_eval.evaluator", "'infinito[eval]'")
    place = tmp_path_factory.mktemp("harness")
    checkpoint = trained(place)
    loaded = load_model(checkpoint, "cpu")
    from infinito.generate.engine import generate
    from infinito.generate.sampling_config import SamplingConfig

    greedy = SamplingConfig(max_new_tokens=12, temperature=0, repetition_penalty=1, stop=(".",))
    rows = []
    for number, text in enumerate(["the cat sees", "my friend finds", "", "a dog " * 40]):
        ids = loaded.tokenizer.encode(text)
        expected = generate(loaded.model, loaded.tokenizer, ids, greedy)[0].text
        rows.append({"text": text, "label": number % 3, "expected": expected})
    write_lines(place / "choices.jsonl", rows)
    write_lines(place / "prompts.jsonl", rows[:-1])  # a context that is cut loses its eos there
    text = write_text(place / "pages.txt", 12, seed=5).read_text(encoding="utf-8")
    pages = [text[:700], text[700:720], text[720:1500]]
    write_lines(place / "pages.jsonl", [{"page": page} for page in pages])
    write_lines(place / "same.jsonl", [{"text": page} for page in pages])
    for name, task in (("choices", CHOICES), ("pages", PAGES), ("writing", WRITING)):
        (place / f"{name}.yaml").write_text(task.format(place=place), encoding="utf-8")
    return place


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def results(place: Path, *names: str) -> dict[str, dict[str, float]]:
    tasks = ",".join(str(place / f"{name}.yaml") for name in names)
    outcome = infinito("evaluate", place / "model.pt", "--tasks", tasks, "--json")
    assert outcome.code == 0, outcome.err
    found: dict[str, dict[str, float]] = json.loads(outcome.out)["tasks"]
    return found


def test_our_own_convention_is_the_librarys(place: Path) -> None:
    pages = results(place, "pages")["local_pages"]
    own = infinito(
        "evaluate",
        place / "model.pt",
        "--text",
        place / "same.jsonl",
        "--all-conventions",
        "--json",
    )
    conventions = json.loads(own.out)["conventions"]
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert pages[name] == pytest.approx(conventions[f"lm_eval_{name}"], rel=1e-5)


def test_continuations_are_those_of_generate(place: Path) -> None:
    assert results(place, "writing")["local_writing"]["exact_match"] == 1.0


def test_the_exported_model_has_the_same_results(place: Path, their_model: Any) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = place / "folder"
    assert infinito("export", place / "model.pt", "--to", "hf", "--output", folder).code == 0
    ours = results(place, "choices", "pages", "writing")
    # A text of a task stands after one eos, which for whole pages the library puts there itself.
    for name, options in (
        ("choices", {}), ("writing", {}), ("pages", {"add_bos_token": False}),
    ):  # fmt: skip
        model = their_model(str(folder), device="cpu", batch_size=4, **options)
        task = load_yaml(place / f"{name}.yaml", resolve_func=True)
        theirs = simple_evaluate(model, tasks=[task], bootstrap_iters=0)["results"]
        for metric, value in ours[f"local_{name}"].items():
            if not metric.endswith("stderr"):
                assert value == pytest.approx(
                    theirs[f"local_{name}"][f"{metric},none"], rel=1e-5
                ), (name, metric)


def test_each_choice_has_the_exported_models_likelihood(place: Path, their_model: Any) -> None:
    """Accuracies of four rows may agree by luck: the log-likelihoods themselves are compared."""
    from lm_eval.api.instance import Instance

    from infinito.evaluate.harness import HarnessModel

    folder = place / "again"
    assert infinito("export", place / "model.pt", "--to", "hf", "--output", folder).code == 0
    pairs = [("the cat sees", " the house"), ("", "my friend"), ("a dog " * 40, "likes it"),
             ("one bird ", "follows"), ("x", " the old man sees")]  # fmt: skip
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    ours = HarnessModel(load_model(place / "model.pt", "cpu"), 2).loglikelihood(requests)
    theirs = their_model(str(folder), device="cpu", batch_size=2).loglikelihood(requests)
    for pair, (own, own_greedy), (other, other_greedy) in zip(pairs, ours, theirs, strict=True):
        assert own == pytest.approx(other, rel=1e-4), pair
        assert own_greedy is other_greedy, pair


def test_results_are_printed_as_a_table(place: Path) -> None:
    outcome = infinito("evaluate", place / "model.pt", "--tasks", place / "choices.yaml")
    assert outcome.code == 0, outcome.err
    first, head, *rows = outcome.out.splitlines()
    assert first == f"checkpoint: {place / 'model.pt'} (step 8)"
    assert head.split() == ["task", "metric", "value"]
    assert {row.split()[1] for row in rows} >= {"acc", "acc_stderr", "acc_norm"}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--tasks", "no_such_task"], 2, "has no such task"),
        (["--tasks", "gone.yaml"], 2, "has no such task"),
        (["--tasks", "x", "--split", "test"], 2, "its own texts"),
    ],
)
def test_task_refusals(place: Path, options: list[str], code: int, words: str) -> None:
    assert words in infinito("evaluate", place / "model.pt", *options).refused(code)


def test_a_continuation_beyond_the_context_is_refused(place: Path) -> None:
    from infinito.evaluate.harness import HarnessModel

    model = HarnessModel(load_model(place / "model.pt", "cpu"))
    with pytest.raises(DataError, match="more than 48 tokens at once"):
        model._loglikelihood_tokens([(None, [1], [1] * 49)])
