"""The search space: what a file may say, what is refused with its line, what is active."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from infinito.config.loading import config_from_plain
from infinito.errors import ConfigError
from infinito.search.objective import ObjectiveSpec, TrialFailedError
from infinito.search.space import Parameter, Space, configured
from infinito.search.space_file import load_space

GOOD = """\
objective: {metric: valid_loss, tokens: 200000}
space:
  training.muon_learning_rate: {log_range: [5e-3, 5e-2], when: {training.optimizer: muon}}
  training.optimizer: {choice: [adamw, muon]}
  training.learning_rate: {log_range: [1e-4, 1e-2]}
  model.n_layers:
    range: [1, 4]
  model.d_ff: {choice: [null, 128]}
  model.dropout: {range: [0, 0.5]}
"""


def load(tmp_path: Path, text: str) -> tuple[ObjectiveSpec, Space]:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(path)


def message(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert "when: {key: value}" in caught.value.remedy
    return caught.value.message.replace(str(tmp_path) + "/", "")


def test_a_good_file(tmp_path: Path) -> None:
    objective, space = load(tmp_path, GOOD)
    assert (objective.metric, objective.tokens, objective.rungs) == ("valid_loss", 200_000, 1)
    by_key = {parameter.key: parameter for parameter in space.parameters}
    keys = list(by_key)
    assert keys.index("training.optimizer") < keys.index("training.muon_learning_rate")
    assert by_key["model.n_layers"].values == (1, 4)
    assert by_key["model.n_layers"].count == 4
    assert by_key["model.d_ff"].values == (None, 128)
    assert by_key["model.dropout"].count is None
    assert isinstance(by_key["model.dropout"].at(0.0), float)
    assert by_key["training.muon_learning_rate"].when == {"training.optimizer": "muon"}


MISTAKES = {
    "training.lr: {choice: [1]}": "training.lr: unknown key; did you mean 'training.learning",
    "model: {choice: [1]}": "model: is a section",
    "model.n_layers: {choice: [1, 2.5]}": "model.n_layers = 2.5: must be a whole number",
    "model.n_layers: {range: [1, 400]}": "model.n_layers = 400: must be less than or equal to 256",
    "model.n_layers: {range: [1.0, 2]}": "model.n_layers = 1.0: must be a whole number: write 1",
    "training.optimizer: {choice: [adamw, mun]}": "training.optimizer = 'mun': must be 'adamw'",
    "training.optimizer: {range: [adamw, muon]}": "range must be two numbers",
    "model.n_layers: {choice: []}": "choice must be a list of at least one value",
    "model.n_layers: {choice: 3}": "model.n_layers = 3: choice must be a list",
    "model.n_layers: {choice: [1, 2, 1]}": "choice holds 1 twice",
    "model.n_layers: {range: [1]}": "range must be two numbers",
    "model.n_layers: {range: [3, 3]}": "the low end of a range, 3, must be below its high end, 3",
    "training.weight_decay: {log_range: [0, 0.1]}": "log_range must start above 0",
    "model.n_layers: [1, 2]": "expected one of {choice: [...]}",
    "model.n_layers: {choice: [1], range: [1, 2]}": "expected one of {choice: [...]}",
    "model.n_layers: {choice: [1], if: {seed: 1}}": "expected one of {choice: [...]}",
    "model.n_layers: {choice: [1], when: {}}": "when must be {key: value}",
    "model.n_layers: {choice: [1], when: seed}": "when must be {key: value}",
    "model.n_layers: {choice: [1], when: {seed: 1}}": "when: seed is not in the space",
    "model.n_layers: {choice: [1], when: {model.d_model: 3}}": "when: model.d_model is never 3",
    "model.n_layers: {choice: [1], when: {model.d_model: true}}": "is never true",
    "data.path: {choice: [a, b]}": "results on different text cannot be compared",
    "tokenizer.vocab_size: {choice: [300, 400]}": "losses per token of different tokenizers",
    "training.max_steps: {choice: [1, 2]}": "the objective says how long",
    "output_dir: {choice: [a, b]}": "each trial has a directory of its own",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    head = (
        "objective: {metric: valid_loss, tokens: 9}\nspace:\n  model.d_model: {choice: [32, 64]}\n"
    )
    text = message(tmp_path, f"{head}  {line}\n")
    assert text.startswith("space.yaml:4: "), text
    assert MISTAKES[line] in text


def test_all_mistakes_come_in_one_message(tmp_path: Path) -> None:
    lines = [f"  {line}" for line in MISTAKES if line.startswith(("training.", "data.", "tok"))]
    keys = {line.split(":")[0] for line in lines}
    first_of_key = [next(line for line in lines if line.split(":")[0] == key) for key in keys]
    text = message(
        tmp_path, "\n".join(["objective: {metric: valid_los, tokens: 0}", "space:", *first_of_key])
    )
    assert f"{2 + len(keys) - 1} problems in space.yaml" in text  # the tokenizer's needs a metric
    assert "space.yaml:1: objective.metric = 'valid_los': must be" in text
    assert "space.yaml:1: objective.tokens = 0: must be" in text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("objective: {metric: valid_loss, tokens: 1}\n", "space: required and missing"),
        ("space: {seed: {choice: [1]}}\n", "objective: required and missing"),
        ("objective: {tokens: 1}\nspace: {seed: {choice: [1]}}\n", "metric: required and missing"),
        ("objective: 3\nspace: {seed: {choice: [1]}}\n", "space.yaml:1: objective = 3: "),
        ("objective: {metric: valid_loss, tokens: 1}\nspace: {}\n", "space.yaml:2: space"),
        ("objective: {metric: valid_loss}\nspace: {seed: {choice: [1]}}\n", "tokens or flops"),
        (GOOD + "more: 1\n", "space.yaml:10: more = 1: unknown; a space has objective"),
        (GOOD.replace("tokens:", "token:"), "space.yaml:1: objective.token = 200000: unknown"),
        (GOOD + "  model.n_layers: {choice: [1]}\n", "space.yaml:10: space.model.n_layers"),
        (GOOD + "  - x\n", "space.yaml:10: "),
        ("", "space.yaml: the file is empty"),
        (
            GOOD.replace("{choice: [adamw, muon]}", "{choice: [adamw, muon], "
                         "when: {training.muon_learning_rate: 0.01}}"),
            "space.yaml: the conditions of training.muon_learning_rate, training.optimizer form",
        ),
    ],
)  # fmt: skip
def test_the_form_of_the_file(tmp_path: Path, text: str, wanted: str) -> None:
    assert wanted in message(tmp_path, text)


def test_a_missing_file_names_its_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the space") as caught:
        load_space(tmp_path / "none.yaml")
    assert caught.value.remedy == "check the path of the space"


def test_tokenizers_may_be_searched_by_words(tmp_path: Path) -> None:
    text = GOOD.replace("valid_loss", "valid_word_perplexity")
    _, space = load(tmp_path, text + "  tokenizer.vocab_size: {choice: [300, 400]}\n")
    assert "tokenizer.vocab_size" in {parameter.key for parameter in space.parameters}


# -- values ------------------------------------------------------------------------------------


def test_ints_of_a_range_have_equal_shares() -> None:
    parameter = Parameter("x", "range", (3, 7))
    found = Counter(parameter.at((i + 0.5) / 1000) for i in range(1000))
    assert found == {3: 200, 4: 200, 5: 200, 6: 200, 7: 200}
    assert all(type(value) is int for value in found)


def test_the_middle_of_a_log_range_is_the_geometric_mean() -> None:
    assert Parameter("x", "log_range", (1e-4, 1e-2)).at(0.5) == pytest.approx(1e-3)
    whole = Parameter("x", "log_range", (1, 1023))
    assert [whole.at(i / 10) for i in (0, 5, 10)] == [1, 32, 1023]


@pytest.mark.parametrize("kind", ["range", "log_range"])
def test_values_stay_between_the_ends(kind: str) -> None:
    low, high = 1.00000049, 1.0000014  # six digits of either would lie outside
    parameter = Parameter("x", kind, (low, high))
    assert all(low <= parameter.at(i / 50) <= high for i in range(51))


def test_true_is_no_number() -> None:
    whole, fractions = Parameter("x", "range", (1, 4)), Parameter("x", "range", (0.0, 4.0))
    assert [whole.includes(value) for value in (1, 4, 5, 2.0, True, "2", None)] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip
    assert [fractions.includes(value) for value in (1, 2.5, 4.1, True, [1])] == [
        True, True, False, False, False,
    ]  # fmt: skip


# -- what is active ----------------------------------------------------------------------------

CHAIN = Space(
    [
        Parameter("c", "choice", (1, 2, 3), {"b": "y"}),
        Parameter("a", "range", (0, 4)),
        Parameter("b", "choice", ("x", "y"), {"a": 2}),
        Parameter("d", "choice", (True, False)),
    ]
)


def test_a_condition_holds_only_while_what_it_depends_on_is_active() -> None:
    everything = {"a": 2, "b": "y", "c": 3, "d": True}
    assert CHAIN.canonical(everything) == everything
    assert CHAIN.canonical(everything | {"b": "x"}) == {"a": 2, "b": "x", "d": True}
    assert CHAIN.canonical(everything | {"a": 1}) == {"a": 1, "d": True}


def test_size_and_listing_agree_with_a_count_by_hand() -> None:
    listed = list(CHAIN.assignments())
    # a = 0, 1, 3, 4: two each; a = 2: b = x two, b = y three times two.
    assert CHAIN.size() == len(listed) == 4 * 2 + 2 + 6
    assert len({str(a) for a in listed}) == len(listed)
    assert all(CHAIN.canonical(a) == a for a in listed)


def test_size_of_great_and_of_infinite_spaces() -> None:
    great = Space(Parameter(f"x{i}", "range", (1, 10**9)) for i in range(5))
    assert great.size() == 10**45
    never = Parameter("y", "range", (0.0, 1.0), {"x": 1, "z": 2})
    other = Parameter("z", "choice", (2, 3), {"x": 5})
    x = Parameter("x", "range", (1, 10**12))
    assert Space([x, other, never]).size() == 10**12 + 1  # y is never active
    assert Space([x, Parameter("y", "range", (0.0, 1.0), {"x": 7})]).size() == math.inf


# -- as a config -------------------------------------------------------------------------------


def test_an_assignment_becomes_a_config() -> None:
    base = config_from_plain({"data": {"source": "python-docs"}, "model": {"d_ff": 64}}, "base")
    found = configured(base, {"model.d_ff": None, "training.learning_rate": 0.5, "seed": 3})
    assert (found.model.d_ff, found.training.learning_rate, found.seed) == (None, 0.5, 3)
    assert base.model.d_ff == 64
    with pytest.raises(ConfigError, match="not a multiple"):
        configured(base, {"model.n_heads": 5})


# -- the objective -----------------------------------------------------------------------------


def spec(**given: object) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate({"metric": "valid_loss", "tokens": 1} | given)


def test_small_is_good_whatever_the_metric() -> None:
    speed, words = spec(metric="tokens_per_second"), spec(metric="valid_word_perplexity")
    assert speed.to_minimise(2000.0) < speed.to_minimise(1000.0) < speed.to_minimise(0.0)
    assert spec().to_minimise(3.5) == 3.5
    for objective, worse, better in ((speed, 1000.0, 1010.1), (words, 101.01, 100.0)):
        gain = objective.to_minimise(worse) - objective.to_minimise(better)
        assert gain == pytest.approx(0.01, rel=0.01)  # one per cent


def test_figures_come_to_one_number() -> None:
    figures = {"valid_loss": 3.0, "tokens_per_second": 1000.0, "memory_mb": 300.0}
    assert spec().value_of(figures) == 3.0
    mixed = spec(metric="weighted", weights={"valid_loss": 1.0, "tokens_per_second": -0.001})
    assert mixed.value_of(figures) == pytest.approx(2.0)
    assert spec(memory_mb=300).value_of(figures) == 3.0
    with pytest.raises(TrialFailedError) as caught:
        spec(memory_mb=299).value_of(figures)
    assert (caught.value.status, caught.value.reason) == ("over_limit", "300 MB of 299")


@pytest.mark.parametrize(
    "wrong",
    [{"flops": 1e9}, {"tokens": None}, {"metric": "weighted"}, {"weights": {"valid_loss": 1.0}},
     {"rungs": 0}, {"memory_mb": 0}],
)  # fmt: skip
def test_objectives_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        spec(**wrong)
