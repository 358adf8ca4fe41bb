"""What is wrong with a config, in a user's words: place, key, value, reason, nearest key."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from infinito.config.keys import all_keys, nearest_key, section_class
from infinito.errors import ConfigError, InfinitoError

MAX_PROBLEMS = 40
_REMEDY = "`infinito config init` prints every key with its meaning, range and default"
UNKNOWN_KEY = "unknown key"
_NO_VALUE = object()


class Place(NamedTuple):
    """Where something was given: a file and its line (from 1), or ``--set key=value``, line 0."""

    where: str
    line: int = 0

    def shown(self) -> str:
        """``file:line`` for a message."""
        return f"{self.where}:{self.line}" if self.line else self.where


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the value of a dotted key."""

    place: Place
    key: str
    reason: str
    value: object = _NO_VALUE

    def line(self) -> str:
        """The problem on one line; the nearest key is sought only for problems that are shown."""
        shown = "" if self.value is _NO_VALUE else f" = {show_value(self.value)}"
        hint = ""
        if self.reason is UNKNOWN_KEY and (near := nearest_key(self.key)):
            hint = f"; did you mean '{near}'?"
        return f"{self.place.shown()}: {printable(self.key)}{shown}: {self.reason}{hint}"


def printable(text: str, limit: int = 80) -> str:
    """``text`` on one line without control characters, cut to ``limit`` characters."""
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text if text.isprintable() else repr(text)[1:-1]


def show_value(value: object) -> str:
    """A value as it stands in YAML, on one short line; text in quotes."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"'{printable(value, 60)}'"
    if isinstance(value, int | float):
        # A number of 400 digits is legal YAML; its middle tells nobody anything.
        return printable(str(value), 60)
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list):
        return "[...]" if value else "[]"
    return f"<{type(value).__name__}>"


def raise_problems(
    problems: Sequence[Problem],
    where: str,
    error: type[InfinitoError] = ConfigError,
    remedy: str = _REMEDY,
) -> None:
    """Raise ``error`` with every problem in one message, one line each; nothing if none."""
    if not problems:
        return
    in_order = sorted(problems, key=lambda problem: problem.place.line or sys.maxsize)
    lines = [problem.line() for problem in in_order[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"... and {len(problems) - MAX_PROBLEMS} more")
    if len(lines) > 1:
        lines = [f"{len(problems)} problems in {where}", *(f"  {line}" for line in lines)]
    raise error("\n".join(lines), remedy)


def explain_validation(
    error: ValidationError, place_of: Callable[[tuple[str, ...]], Place]
) -> list[Problem]:
    """The problems that pydantic found; ``place_of`` maps a key path to where it was given."""
    problems = []
    for details in error.errors(include_url=False):
        path = tuple(str(part) for part in details["loc"])
        problems.append(_explain(details, ".".join(path), place_of(path)))
    return problems


def _explain(details: ErrorDetails, key: str, place: Place) -> Problem:
    kind, value = details["type"], details["input"]
    if kind in ("extra_forbidden", "invalid_key"):
        return Problem(place, key, UNKNOWN_KEY, value)
    if kind == "missing":
        description = f" ({_description(key)})" if _description(key) else ""
        return Problem(place, key, f"required and missing{description}")
    if kind == "value_error":  # a rule between the keys of one section
        return Problem(place, key or "config", details["msg"].removeprefix("Value error, "))
    return Problem(place, key, _reason(kind, key, value, details), value)


def _reason(kind: str, key: str, value: object, details: ErrorDetails) -> str:
    context: dict[str, Any] = details.get("ctx") or {}
    if kind == "model_type":
        return "is a section: it holds keys of its own" + _default_hint(key, value)
    if kind == "literal_error":
        return f"must be {context['expected']}" + _choice_hint(value, context["expected"])
    if kind == "string_pattern_mismatch":
        return f"must be: {_description(key)}"
    if kind == "finite_number":
        return "must be a finite number"
    if kind in ("int_type", "float_type", "bool_type", "string_type"):
        return _type_reason(kind, value) + _default_hint(key, value)
    return details["msg"].replace("Input should", "must")


def _type_reason(kind: str, value: object) -> str:
    wanted = {
        "int_type": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "string_type": "text",
    }[kind]
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "must be text: put it in quotes"
    if kind == "float_type" and isinstance(value, int) and not isinstance(value, bool):
        return "must be a finite number"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"must be a whole number: write {show_value(int(value))}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return f"must be {wanted}, and this is text" + _text_hint(value)
    return f"must be {wanted}"


def _text_hint(text: str) -> str:
    """Why something that resembles a number is text, where that can be told."""
    bare = text.replace("_", "")
    if "_" in text and bare.isdigit():
        return f": write {printable(bare, 40)}"
    if text.isdigit() and text.startswith("0"):
        return ": write it without the leading zero"
    if text.lower().lstrip("+-") in (".nan", ".inf", "nan", "inf"):
        return ": only finite numbers are allowed"
    return ""


def _choice_hint(value: object, expected: str) -> str:
    choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
    close = difflib.get_close_matches(str(value).lower()[:80], choices, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _default_hint(key: str, value: object) -> str:
    if value is not None:
        return ""
    if section_class(key):
        return "; leave the line out to keep their defaults"
    return "; leave the key out to keep its default"


def _description(key: str) -> str:
    field = all_keys().get(key)
    return (field.description or "").rstrip(".") if field else ""
