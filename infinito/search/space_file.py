"""``--space FILE``: the objective and the search space, every mistake named by line in one message.

objective: {metric: valid_loss, tokens: 200000}
space:
  training.learning_rate: {log_range: [1e-4, 1e-2]}
  training.optimizer: {choice: [adamw, muon]}
  training.muon_learning_rate: {log_range: [5e-3, 5e-2], when: {training.optimizer: muon}}
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model

from infinito.config import explain
from infinito.config.explain import UNKNOWN_KEY, Place, Problem, show_value
from infinito.config.keys import all_keys, section_class
from infinito.config.section import Section
from infinito.config.yaml_loader import REMEDY, Document, KeyPath, read_document
from infinito.errors import ConfigError
from infinito.search.objective import ObjectiveSpec
from infinito.search.space import Parameter, Space

_KINDS = ("choice", "range", "log_range")
_FORM = "{choice: [...]}, {range: [low, high]} or {log_range: [low, high]}"
_REMEDY = (
    "a space is `objective: {metric: valid_loss, tokens: N}` and `space:`, a map of config keys to "
    f"{_FORM}, each with an optional when: {{key: value}}"
)
_NAMES = f"unknown; a space has objective ({', '.join(ObjectiveSpec.model_fields)}) and space"
#: Keys that a search may not touch, and why.
_FIXED = {"output_dir": "each trial has a directory of its own"}
_FIXED |= dict.fromkeys(("training.max_steps", "training.epochs"), "the objective says how long")


class SpaceFile(Section):
    """What the file holds."""

    objective: ObjectiveSpec
    space: dict[str, Any] = Field(min_length=1)


def load_space(path: Path) -> tuple[ObjectiveSpec, Space]:
    """Read a space file. Raises ConfigError with everything that is wrong with it."""
    try:
        reader = _SpaceReader(read_document(path, "space"), str(path))
        objective = reader.objective()
        parameters = reader.parameters(objective is not None and objective.is_per_token)
        explain.raise_problems(reader.problems, str(path), remedy=_REMEDY)
        assert objective is not None
        return objective, Space(filter(None, parameters.values()), str(path))
    except ConfigError as error:
        remedy = _REMEDY if error.remedy in ("", REMEDY) else error.remedy
        raise ConfigError(error.message, remedy) from error


class _SpaceReader:
    """Reads the parts of a document and collects what is wrong with them."""

    def __init__(self, document: Document, where: str) -> None:
        self._values, self._lines, self._where = document.values, document.lines, where
        self.problems = list(document.problems)

    def _place(self, path: KeyPath) -> Place:
        """Where ``path`` stands: its line, or that of the nearest key around it."""
        around = (path[:length] for length in range(len(path), 0, -1))
        return Place(self._where, next((self._lines[p] for p in around if p in self._lines), 0))

    def _add(self, path: KeyPath, key: str, reason: str, *value: object) -> None:
        self.problems.append(Problem(self._place(path), key, reason, *value))

    def objective(self) -> ObjectiveSpec | None:
        """The objective; None where it, or the form of the file, is wrong."""
        try:
            return SpaceFile.model_validate(self._values).objective
        except ValidationError as error:
            for problem in explain.explain_validation(error, self._place):
                reason = _NAMES if problem.reason is UNKNOWN_KEY else problem.reason
                self.problems.append(replace(problem, reason=reason))
            return None

    def parameters(self, is_per_token: bool) -> dict[str, Parameter | None]:
        """By key, None where something is wrong with it."""
        given = self._values.get("space")
        self._is_per_token = is_per_token
        specs = given if isinstance(given, dict) else {}
        found = {key: self._parameter(key, spec) for key, spec in specs.items()}
        for parameter in filter(None, found.values()):
            for key, value in parameter.when.items():
                other = found.get(key)
                reason = f"when: {key} is never {show_value(value)}"
                if key not in found:
                    reason = f"when: {key} is not in the space"
                if key not in found or (other and not other.includes(value)):
                    self._add(("space", parameter.key, "when", key), parameter.key, reason)
        return found

    def _parameter(self, key: str, spec: Any) -> Parameter | None:
        path = ("space", key)
        if reason := self._unsearchable(key):
            self._add(path, key, reason)
            return None
        kind = next((kind for kind in _KINDS if isinstance(spec, dict) and kind in spec), None)
        if not isinstance(spec, dict) or kind is None or spec.keys() - {kind, "when"}:
            self._add(path, key, f"expected one of {_FORM}, with no more than `when` beside it")
            return None
        values, when = spec[kind], spec.get("when", {})
        found = _value_problems(key, kind, values, self._place((*path, kind)))
        if not isinstance(when, dict) or ("when" in spec and not when):
            found.append(Problem(self._place((*path, "when")), key, "when must be {key: value}"))
        self.problems += found
        return None if found else Parameter(key, kind, tuple(values), when)

    def _unsearchable(self, key: str) -> str | None:
        if section_class(key):
            return "is a section: name one of its keys, with a dot between"
        if key not in all_keys():
            return UNKNOWN_KEY
        if key.startswith("data.") and key != "data.sequence_length":
            return "results on different text cannot be compared"
        if key.startswith("tokenizer.") and self._is_per_token:
            other = "use the metric valid_word_perplexity"
            return f"losses per token of different tokenizers cannot be compared: {other}"
        return _FIXED.get(key)


def _value_problems(key: str, kind: str, values: Any, place: Place) -> list[Problem]:
    if not isinstance(values, list) or not values:
        return [Problem(place, key, f"{kind} must be a list of at least one value", values)]
    field = all_keys()[key]
    one_key: Any = {key: (field.annotation, field)}
    model = create_model("OneKey", __base__=Section, **one_key)
    problems = []
    for value in values:
        try:
            model.model_validate({key: value})
        except ValidationError as error:
            problems += explain.explain_validation(error, lambda _: place)
    return problems or [Problem(place, key, reason) for reason in _list_reasons(kind, values)]


def _list_reasons(kind: str, values: list[Any]) -> list[str]:
    """What is wrong with values that are each legal for their key."""
    if kind == "choice":
        twice = [value for at, value in enumerate(values) if value in values[:at]]
        return [f"choice holds {show_value(value)} twice" for value in twice]
    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        return [f"{kind} must be two numbers [low, high]"]
    low, high = values
    if low >= high:
        return [f"the low end of a {kind}, {low}, must be below its high end, {high}"]
    return ["log_range must start above 0"] if kind == "log_range" and low <= 0 else []
